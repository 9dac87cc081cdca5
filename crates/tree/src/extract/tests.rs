use super::*;
use crate::pack::Packer;
use proptest::prelude::*;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use tar::{EntryType, Header};

/// An entry as its bytes, whatever it says.
fn entry(kind: EntryType, name: &[u8], mode: u32, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    let short = &name[..name.len().min(100)];
    header.as_mut_bytes()[..short.len()].copy_from_slice(short);
    header.set_mode(mode);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    if kind == EntryType::Symlink || kind == EntryType::Link {
        header.set_link_name_literal("/etc").unwrap();
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, data: &str) -> Vec<u8> {
    entry(EntryType::Regular, name.as_bytes(), 0o644, data.as_bytes())
}

fn directory(name: &str, mode: u32) -> Vec<u8> {
    entry(EntryType::Directory, name.as_bytes(), mode, b"")
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let digits = (1..20).find(|d| (rest.len() + d).to_string().len() == *d);
        write!(data, "{}{rest}", rest.len() + digits.unwrap()).unwrap();
    }
    entry(EntryType::XHeader, b"pax", 0o644, data.as_bytes())
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn extract_with(
    bytes: &[u8],
    into: &Path,
    options: ExtractOptions,
) -> Result<Extracted, TreeError> {
    let mut extractor = Extractor::new(Dir::open(into).unwrap(), options);
    extractor.feed(bytes)?;
    extractor.finish()
}

fn extract(bytes: &[u8], into: &Path) -> Result<Extracted, TreeError> {
    extract_with(bytes, into, ExtractOptions::default())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_tree_comes_out_as_it_was() {
    let tmp = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        directory("./", 0o700),
        directory("a/", 0o500),
        file("a/one", "1"),
        directory("a/b", 0o711),
        entry(EntryType::Regular, b"./run", 0o4710, b"#!/bin/sh\n"),
        file("unlisted/deep/two", "22"),
        entry(EntryType::Regular, b"\xff\xfe", 0o600, b""),
    ]);
    let done = extract(&bytes, tmp.path()).unwrap();
    assert_eq!(
        done,
        Extracted {
            files: 4,
            bytes: 13,
            skipped: 0
        }
    );
    let at = |name: &str| tmp.path().join(name);
    assert_eq!(fs::read(at("a/one")).unwrap(), b"1");
    assert_eq!(fs::read(at("unlisted/deep/two")).unwrap(), b"22");
    assert!(
        tmp.path()
            .join(std::ffi::OsStr::from_bytes(b"\xff\xfe"))
            .exists()
    );
    for (name, bits) in [
        ("a", 0o500),
        ("a/b", 0o711),
        ("a/one", 0o644),
        ("run", 0o711),
        ("unlisted", 0o755),
        ("unlisted/deep", 0o755),
    ] {
        assert_eq!(mode(&at(name)), bits, "{name}");
    }
    for name in ["a", "a/one", "a/b"] {
        let changed = fs::metadata(at(name)).unwrap().mtime();
        assert_eq!(changed, 1_000_000_000, "{name}");
    }
    fs::set_permissions(at("a"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn extensions_count() {
    let tmp = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let bytes = archive(&[
        entry(
            EntryType::GNULongName,
            b"././@LongLink",
            0o644,
            format!("{long}\0").as_bytes(),
        ),
        file("ignored", "long"),
        entry(EntryType::XGlobalHeader, b"g", 0o644, b"8 path=x\n"),
        pax(&[("path", "named/ü"), ("mtime", "12.5"), ("size", "3")]),
        // What the header says of the size doesn't count.
        {
            let mut e = entry(EntryType::Regular, b"other", 0o644, b"");
            e.extend(b"pax");
            e.resize(1024, 0);
            e
        },
        file("last", "x"),
    ]);
    assert_eq!(extract(&bytes, tmp.path()).unwrap().files, 3);
    assert_eq!(fs::read(tmp.path().join(long)).unwrap(), b"long");
    let named = tmp.path().join("named/ü");
    assert_eq!(fs::read(&named).unwrap(), b"pax");
    let meta = fs::metadata(named).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (12, 500_000_000));
    assert!(tmp.path().join("last").exists());
}

#[test]
fn what_could_lead_out_is_refused() {
    for name in ["/etc/x", "../x", "a/../../x", "a//b", "a/./b", "..", ""] {
        for kind in [EntryType::Regular, EntryType::Directory] {
            let tmp = tempfile::tempdir().unwrap();
            let bytes = archive(&[entry(kind, name.as_bytes(), 0o644, b"")]);
            let e = extract(&bytes, tmp.path()).unwrap_err();
            assert!(matches!(e, TreeError::Name { .. }), "{name}: {e}");
        }
        let tmp = tempfile::tempdir().unwrap();
        let bytes = archive(&[pax(&[("path", name)]), file("fine", "")]);
        assert!(extract(&bytes, tmp.path()).is_err(), "{name}");
    }
    let tmp = tempfile::tempdir().unwrap();
    let nul = archive(&[
        entry(EntryType::GNULongName, b"l", 0o644, b"a\0b\0"),
        file("x", ""),
    ]);
    assert!(matches!(
        extract(&nul, tmp.path()),
        Err(TreeError::Name { .. })
    ));
}

#[test]
fn symlinks_are_neither_made_nor_followed() {
    let tmp = tempfile::tempdir().unwrap();
    let (root, outside) = (tmp.path().join("root"), tmp.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    let made = archive(&[
        entry(EntryType::Symlink, b"link", 0o777, b""),
        entry(EntryType::Link, b"hard", 0o777, b""),
        entry(EntryType::Char, b"char", 0o777, b""),
        entry(EntryType::Fifo, b"fifo", 0o777, b""),
        entry(EntryType::new(b'V'), b"volume", 0o777, b"some data"),
        file("after", "x"),
    ]);
    let done = extract(&made, &root).unwrap();
    assert_eq!((done.files, done.skipped), (1, 5));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);

    symlink(&outside, root.join("dir")).unwrap();
    for bytes in [
        file("dir/x", "x"),
        directory("dir/x", 0o755),
        directory("dir", 0o755),
    ] {
        let e = extract(&archive(&[bytes]), &root).unwrap_err();
        assert!(matches!(e, TreeError::NotDirectory { .. }), "{e}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

    // In a file's place a link is replaced; what it led to stays.
    fs::write(outside.join("secret"), "s").unwrap();
    symlink(outside.join("secret"), root.join("file")).unwrap();
    extract(&archive(&[file("file", "new")]), &root).unwrap();
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"s");
    assert_eq!(fs::read(root.join("file")).unwrap(), b"new");
    assert!(!root.join("file").is_symlink());

    // The root itself may be one.
    symlink(&root, tmp.path().join("root-link")).unwrap();
    extract(&archive(&[file("x", "x")]), &tmp.path().join("root-link")).unwrap();
    assert!(root.join("x").exists());
}

#[test]
fn what_exists_is_replaced_or_kept() {
    let tmp = tempfile::tempdir().unwrap();
    let at = |name: &str| tmp.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(at("dir/old"), "old").unwrap();
    fs::write(at("dir/both"), "old").unwrap();
    let bytes = archive(&[directory("dir", 0o700), file("dir/both", "new")]);
    extract(&bytes, tmp.path()).unwrap();
    assert_eq!(mode(&at("dir")), 0o711);
    assert_eq!(fs::read(at("dir/old")).unwrap(), b"old");
    assert_eq!(fs::read(at("dir/both")).unwrap(), b"new");

    let e = extract(&archive(&[file("dir", "x")]), tmp.path()).unwrap_err();
    assert!(e.io().is_some() && e.to_string().contains("dir"), "{e}");
    let e = extract(&archive(&[file("dir/both/x", "x")]), tmp.path()).unwrap_err();
    assert!(matches!(e, TreeError::NotDirectory { .. }), "{e}");
    // Nothing half done is left behind.
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(at("dir")).unwrap().count(), 2);
}

#[test]
fn options_count() {
    let tmp = tempfile::tempdir().unwrap();
    let options = ExtractOptions {
        mode: Some(0o640),
        exclude: Excludes::new(["skip", "*.o"]).unwrap(),
        owner: None,
    };
    let bytes = archive(&[
        file("skip/inside", "x"),
        file("a/b.o", "x"),
        directory("d", 0o700),
        file("d/kept", "x"),
    ]);
    assert_eq!(extract_with(&bytes, tmp.path(), options).unwrap().files, 1);
    assert_eq!(mode(&tmp.path().join("d/kept")), 0o640);
    assert_eq!(mode(&tmp.path().join("d")), 0o700);
    assert!(!tmp.path().join("skip").exists() && !tmp.path().join("a").exists());
}

#[test]
fn broken_archives_are_told() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = archive(&[file("a", "some text"), file("b", "more")]);
    for (bytes, what) in [
        (whole[..100].to_vec(), "cut off"),
        (whole[..520].to_vec(), "cut off"),
        (whole[..1024 + 512].to_vec(), "cut off"),
        (pax(&[("path", "x")]), "cut off"),
        (vec![b'x'; 1024], "makes no sense"),
        (
            archive(&[entry(EntryType::GNUSparse, b"s", 0o644, b"")]),
            "sparse",
        ),
        (
            archive(&[pax(&[("GNU.sparse.major", "1")]), file("x", "")]),
            "sparse",
        ),
        (
            archive(&[entry(EntryType::GNULongName, b"l", 0, &vec![b'a'; 65_537])]),
            "too long",
        ),
        (
            archive(&[entry(EntryType::XHeader, b"l", 0, &vec![b'a'; 65_537])]),
            "too long",
        ),
        (archive(&[pax(&[("size", "-1")]), file("x", "")]), "sense"),
        (archive(&[file("d//f", "")]), "clean"),
        (
            archive(&[
                pax(&[("path", &format!("{}f", "d/".repeat(256)))]),
                file("x", ""),
            ]),
            "too deep",
        ),
    ] {
        let e = extract(&bytes, tmp.path()).expect_err(what).to_string();
        assert!(e.contains(what), "{what}: {e}");
    }
    // Only the end marker is missing, or more follows it.
    assert_eq!(extract(&whole[..2048], tmp.path()).unwrap().files, 2);
    assert_eq!(extract(b"", tmp.path()).unwrap().files, 0);
    let more = [&whole[..], &[7; 700]].concat();
    assert_eq!(extract(&more, tmp.path()).unwrap().files, 2);
}

#[test]
fn an_endless_name_takes_no_memory() {
    // The header promises more than any machine has.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(u64::MAX / 2);
    header.set_cksum();
    let tmp = tempfile::tempdir().unwrap();
    assert!(extract(header.as_bytes(), tmp.path()).is_err());
    for kind in [EntryType::XGlobalHeader, EntryType::new(b'V')] {
        header.set_entry_type(kind);
        header.set_size(u64::MAX);
        header.set_cksum();
        assert!(extract(header.as_bytes(), tmp.path()).is_err());
    }
}

#[test]
fn a_dropped_extraction_leaves_no_half_a_file() {
    let tmp = tempfile::tempdir().unwrap();
    let bytes = archive(&[file("a", "1"), file("b", &"x".repeat(2000))]);
    let mut extractor = Extractor::new(Dir::open(tmp.path()).unwrap(), ExtractOptions::default());
    extractor.feed(&bytes[..2000]).unwrap();
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2);
    drop(extractor);
    let names: Vec<_> = fs::read_dir(tmp.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["a"]);
}

/// All that is below a directory: path, mode and content.
fn listing(root: &Path) -> Vec<(String, u32, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for e in fs::read_dir(dir).unwrap() {
            let path = e.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            assert!(meta.is_dir() || meta.is_file(), "{name}");
            let content = meta.is_file().then(|| fs::read(&path).unwrap());
            all.push((name, meta.mode() & 0o7777, content));
            if meta.is_dir() {
                waiting.push(path);
            }
        }
    }
    all.sort();
    all
}

/// A hostile archive: names made of what leads astray, all kinds of entries, sizes that lie,
/// bytes that are broken.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        "(/|\\./|\\.\\./|a/|link/|up/|b|c|\\.|\\.\\.){0,5}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    let kind = prop::sample::select(&b"0012345567gxLKSV\0"[..]);
    let one = (
        kind,
        name,
        any::<u32>(),
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(kind, name, mode, data)| {
            let data = match kind {
                b'L' => name.clone(),
                b'x' => {
                    let name = String::from_utf8_lossy(&name);
                    pax(&[("path", &name)])[512..].to_vec()
                }
                _ => data,
            };
            entry(EntryType::new(kind), &name, mode & 0o7777, &data)
        });
    (
        prop::collection::vec(one, 0..8),
        prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    )
        .prop_map(|(entries, flip)| {
            let mut bytes = archive(&entries);
            if let Some((at, value)) = flip {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_leaves_the_root(bytes in hostile(), cut in 1usize..700) {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("root");
        let outside = tmp.path().join("outside");
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("b"), "kept").unwrap();
        fs::set_permissions(outside.join("b"), fs::Permissions::from_mode(0o604)).unwrap();
        // What lies in wait: links out, and a link in a file's place.
        symlink(&outside, root.join("link")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink(outside.join("b"), root.join("c")).unwrap();
        let before = listing(&outside);
        let mut extractor = Extractor::new(Dir::open(&root).unwrap(), ExtractOptions::default());
        let fed = bytes.chunks(cut).try_for_each(|piece| extractor.feed(piece));
        let _ = fed.and_then(|()| extractor.finish());
        prop_assert_eq!(listing(&outside), before);
        let names: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert_eq!(names.len(), 2);
        // Nothing but files and directories was made, none of them setuid.
        for name in ["link", "up", "c"] {
            let path = root.join(name);
            if path.is_symlink() {
                fs::remove_file(path).unwrap();
            }
        }
        for (name, mode, _) in listing(&root) {
            prop_assert_eq!(mode & 0o7000, 0, "{}", name);
            prop_assert!(!name.contains(".slicer-") || name.contains('\u{fffd}'), "{}", name);
        }
    }

    #[test]
    fn trees_survive_the_journey(
        files in prop::collection::btree_map("([abé]{1,3}/){0,4}[xyz]{1,2}", (prop::collection::vec(any::<u8>(), 0..2000), prop::sample::select(&[0o644u32, 0o600, 0o755, 0o444][..])), 0..12),
        cut in 1usize..1500,
        room in 1usize..1500,
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        for (name, (data, mode)) in &files {
            let path = from.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(data).unwrap();
            file.set_permissions(fs::Permissions::from_mode(*mode)).unwrap();
        }
        let mut packer = Packer::new(Dir::open(&from).unwrap(), Box::new(|_, _| true));
        let mut packed = Vec::new();
        let mut buffer = vec![0; room];
        loop {
            let n = packer.fill(&mut buffer).unwrap();
            if n == 0 { break; }
            packed.extend_from_slice(&buffer[..n]);
        }
        prop_assert_eq!(packed.len() % 512, 0);
        let mut extractor = Extractor::new(Dir::open(&to).unwrap(), ExtractOptions::default());
        for piece in packed.chunks(cut) {
            extractor.feed(piece).unwrap();
        }
        let done = extractor.finish().unwrap();
        prop_assert_eq!(done.files, files.len() as u64);
        prop_assert_eq!(done.bytes, packer.packed().bytes);
        prop_assert_eq!(listing(&from), listing(&to));
    }
}
