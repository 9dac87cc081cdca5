use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn dir() -> Change {
    Change::Dir(Attrs {
        mode: 0o750,
        ..Attrs::default()
    })
}

fn file(size: u64) -> Change {
    let kind = LeafKind::File {
        size,
        layer: 0,
        entry: 0,
    };
    Change::Leaf(Leaf {
        attrs: Attrs::default(),
        kind,
    })
}

fn symlink(target: &str) -> Change {
    let kind = LeafKind::Symlink(target.into());
    Change::Leaf(Leaf {
        attrs: Attrs::default(),
        kind,
    })
}

/// A tree of layers of entries.
fn tree<const N: usize>(layers: [Vec<(&str, Change)>; N]) -> Tree {
    let mut tree = Tree::new();
    for (layer, entries) in layers.into_iter().enumerate() {
        for (path, change) in entries {
            tree.apply(layer, path.as_bytes(), change).unwrap();
        }
    }
    tree
}

/// Every path with its size, `None` for what is no file.
fn listing(tree: &Tree) -> BTreeMap<String, Option<u64>> {
    let mut out = BTreeMap::new();
    let mut pending = vec![(Tree::ROOT, String::new())];
    while let Some((dir, prefix)) = pending.pop() {
        for (name, node) in tree.children(dir) {
            let path = format!("{prefix}{}", String::from_utf8_lossy(name));
            match node {
                Node::Dir(id) => {
                    pending.push((id, format!("{path}/")));
                    out.insert(path, None);
                }
                Node::Leaf(id) => {
                    let size = match tree.leaf(id).kind {
                        LeafKind::File { size, .. } => Some(size),
                        _ => None,
                    };
                    out.insert(path, size);
                }
            }
        }
    }
    out
}

fn paths(tree: &Tree) -> Vec<String> {
    listing(tree).into_keys().collect()
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let merged = tree([
        vec![
            ("a/gone", file(1)),
            ("a/dir/f", file(1)),
            ("a/kept", file(1)),
        ],
        vec![
            ("a/.wh.gone", file(0)),
            ("a/.wh.dir", file(0)),
            ("a/own", file(2)),
            ("a/.wh.own", file(0)),
        ],
    ]);
    assert_eq!(paths(&merged), ["a", "a/kept", "a/own"]);
}

#[test]
fn opaque_directories_hide_lower_content_in_any_order() {
    let lower = || {
        vec![
            ("o/old", file(1)),
            ("o/sub/old", file(1)),
            ("o/sub/new", file(1)),
        ]
    };
    let opaque = ("o/.wh..wh..opq", file(0));
    let first = tree([
        lower(),
        vec![opaque, ("o/sub/new", file(2)), ("o/new", file(2))],
    ]);
    let opaque = ("o/.wh..wh..opq", file(0));
    let last = tree([
        lower(),
        vec![("o/sub/new", file(2)), ("o/new", file(2)), opaque],
    ]);
    let expected = BTreeMap::from(
        [
            ("o", None),
            ("o/new", Some(2)),
            ("o/sub", None),
            ("o/sub/new", Some(2)),
        ]
        .map(|(p, s)| (p.to_owned(), s)),
    );
    assert_eq!(listing(&first), expected);
    assert_eq!(listing(&last), expected);
}

#[test]
fn a_whiteout_after_its_replacement_hides_what_was_below() {
    let merged = tree([
        vec![("d/old", file(1))],
        vec![("d", dir()), ("d/new", file(2)), (".wh.d", file(0))],
    ]);
    assert_eq!(paths(&merged), ["d", "d/new"]);
}

#[test]
fn kinds_replace_each_other() {
    let merged = tree([
        vec![
            ("d2f/x", file(1)),
            ("f2d", file(1)),
            ("l2d", symlink("f2d")),
            ("d", dir()),
        ],
        vec![
            ("d2f", file(2)),
            ("f2d", dir()),
            ("f2d/in", file(2)),
            ("l2d", dir()),
            ("d", dir()),
        ],
    ]);
    assert_eq!(paths(&merged), ["d", "d2f", "f2d", "f2d/in", "l2d"]);
    assert!(matches!(merged.get("l2d"), Some(Node::Dir(_))));
}

#[test]
fn a_directory_listed_again_keeps_its_content_and_takes_the_new_attributes() {
    let mut merged = tree([vec![
        ("d", Change::Dir(Attrs::unlisted())),
        ("d/f", file(1)),
    ]]);
    merged.apply(1, b"d/", dir()).unwrap();
    let Some(Node::Dir(id)) = merged.get("d") else {
        panic!("no directory")
    };
    assert_eq!(merged.attrs(id).mode, 0o750);
    assert_eq!(paths(&merged), ["d", "d/f"]);
}

#[test]
fn symlinked_parents_are_followed_within_the_root() {
    let merged = tree([
        vec![
            ("usr/lib/one", file(1)),
            ("lib", symlink("usr/lib")),
            ("x/out", symlink("../../../../usr")),
            ("x/abs", symlink("/usr/lib")),
        ],
        vec![
            ("lib/two", file(2)),
            ("x/out/three", file(3)),
            ("x/abs/four", file(4)),
        ],
    ]);
    assert!(merged.get("usr/lib/two").is_some());
    assert!(merged.get("usr/lib/four").is_some());
    assert!(merged.get("usr/three").is_some());
    assert!(matches!(merged.get("lib"), Some(Node::Leaf(_))));
}

#[test]
fn hard_links_share_a_node_across_layers() {
    let mut merged = tree([vec![("a/f", file(1))]]);
    merged
        .apply(1, b"b/g", Change::HardLink(b"./a/f".to_vec()))
        .unwrap();
    merged.apply(1, b"a/.wh.f", file(0)).unwrap();
    assert_eq!(paths(&merged), ["a", "b", "b/g"]);
    let missing = merged.apply(1, b"h", Change::HardLink(b"a/f".to_vec()));
    assert_eq!(missing, Err(Refused::LinkTarget("a/f".into())));
    let to_dir = merged.apply(1, b"h", Change::HardLink(b"a".to_vec()));
    assert_eq!(to_dir, Err(Refused::LinkTarget("a".into())));
    let out = merged.apply(1, b"h", Change::HardLink(b"../etc/passwd".to_vec()));
    assert_eq!(out, Err(Refused::ParentDir));
}

#[test]
fn tricks_with_paths_are_refused() {
    let mut t = tree([vec![("a", symlink("b")), ("b", symlink("a"))]]);
    assert_eq!(t.apply(0, b"x/../y", file(0)), Err(Refused::ParentDir));
    assert_eq!(t.apply(0, b"/etc/passwd", file(0)), Err(Refused::Absolute));
    assert_eq!(t.apply(0, &[b'x'; 256], file(0)), Err(Refused::LongName));
    assert_eq!(
        t.apply(0, &b"a/".repeat(3000), file(0)),
        Err(Refused::LongPath)
    );
    assert_eq!(t.apply(0, b"a/x", file(0)), Err(Refused::Symlinks));
    assert_eq!(t.apply(0, b"./", file(0)), Err(Refused::Root));
    assert_eq!(t.apply(0, b"d/.wh.", file(0)), Err(Refused::Whiteout));
    assert_eq!(t.apply(0, b"d/.wh...", file(0)), Err(Refused::Whiteout));
    assert_eq!(t.apply(0, b".wh.d/f", file(0)), Err(Refused::Whiteout));
    assert_eq!(t.apply(0, b".wh..wh.plnk/1.2", file(0)), Ok(()));
    assert_eq!(t.get(".wh..wh.plnk"), None);
}

#[test]
fn nesting_has_a_limit_even_through_symlinks() {
    let mut t = Tree::new();
    t.apply(0, "d/".repeat(2000).as_bytes(), dir()).unwrap();
    t.apply(0, b"s", symlink(&"d/".repeat(1000))).unwrap();
    t.apply(0, b"s/t", symlink(&"d/".repeat(900))).unwrap();
    let path = format!("s/t/{}{}", "d/".repeat(100), "e/".repeat(49));
    assert_eq!(t.apply(0, path.as_bytes(), dir()), Err(Refused::TooDeep));
}

/// Entries over so few names that they collide all the time.
fn entry() -> impl Strategy<Value = (String, Change)> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        "..",
        ".",
        "",
    ]);
    let path = prop::collection::vec(name, 1..5).prop_map(|names| names.join("/"));
    let target = prop::sample::select(vec!["a", "../b", "/a/b", "b/a/", "/", ""]);
    let change = (0..4, target, 0u64..9).prop_map(|(kind, target, size)| match kind {
        0 => dir(),
        1 => file(size),
        2 => symlink(target),
        _ => Change::HardLink(target.into()),
    });
    (path, change)
}

proptest! {
    #[test]
    fn any_layers_make_a_sound_tree(layers in prop::collection::vec(
        prop::collection::vec(entry(), 0..12), 0..4,
    )) {
        let mut merged = Tree::new();
        let mut count = 0;
        for (layer, entries) in layers.into_iter().enumerate() {
            for (path, change) in entries {
                let _ = merged.apply(layer, path.as_bytes(), change);
                count += 1;
            }
        }
        // No whiteout and no trick survives, each directory has one place only.
        let mut seen = std::collections::HashSet::new();
        let mut pending = vec![Tree::ROOT];
        while let Some(dir) = pending.pop() {
            prop_assert!(seen.insert(dir));
            for (name, node) in merged.children(dir) {
                prop_assert!(!name.starts_with(b".wh.") && !matches!(name, b"" | b"." | b".."));
                if let Node::Dir(id) = node {
                    pending.push(id);
                }
            }
        }
        prop_assert!(seen.len() <= 1 + count * 16);
    }

    #[test]
    fn an_opaque_root_leaves_the_upper_layer_alone(
        lower in prop::collection::vec(entry(), 0..12),
        upper in prop::collection::vec((prop::collection::vec("[cd]", 1..4), 0u64..9), 0..6),
    ) {
        let apply = |tree: &mut Tree, layer| {
            for (path, size) in &upper {
                let _ = tree.apply(layer, path.join("/").as_bytes(), file(*size));
            }
        };
        let mut merged = Tree::new();
        for (path, change) in lower {
            let _ = merged.apply(0, path.as_bytes(), change);
        }
        merged.apply(1, b".wh..wh..opq", file(0)).unwrap();
        apply(&mut merged, 1);
        let mut alone = Tree::new();
        apply(&mut alone, 0);
        prop_assert_eq!(listing(&merged), listing(&alone));
    }
}
