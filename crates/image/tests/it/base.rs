//! Images with every hard case there is, built into ext4 and looked at with e2fsprogs.

use crate::support::{Entry, Layer, Small, debugfs, dumpe2fs, e2fsck, layout};
use slicer_image::{ImageError, ImageRef, Limits, Progress, Resolved, base_is_current, build_base};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tar::EntryType;

fn resolve(dir: &Path) -> Resolved {
    let reference = ImageRef::parse(&format!("oci:{}:latest", dir.display())).unwrap();
    Resolved::find(&reference, "amd64").unwrap()
}

fn build(dir: &Path, out: &Path) -> Result<u64, ImageError> {
    build_base(&resolve(dir), out, SIZE, &Limits::default(), &|_| {})
}

/// Less than any content takes.
const SIZE: u64 = 1 << 20;

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A path of 30 directories, about 800 bytes.
fn deep() -> String {
    (0..30).fold(String::new(), |path, i| {
        format!("{path}/deep-directory-number-{i}")
    })
}

/// Files of all kinds, sizes, owners and times.
fn lower() -> Layer {
    let mut t = Layer::new();
    t.dir("./", 0o755);
    for dir in [
        "a", "b", "dev", "wh", "opq", "rep", "many", "usr", "usr/lib", "z",
    ] {
        t.dir(dir, 0o755);
    }
    t.add(
        "a/setuid",
        Entry {
            mode: 0o4755,
            data: &[b'x'; 100],
            ..Entry::default()
        },
    );
    t.add(
        "a/setgid",
        Entry {
            mode: 0o2755,
            owner: (0, 42),
            ..Entry::default()
        },
    );
    t.dir("a/sticky", 0o1777);
    t.add(
        "a/biguid",
        Entry {
            owner: (2_000_000, 3_000_000),
            ..Entry::default()
        },
    );
    t.file(&format!("a/n{}", "l".repeat(254)), b"longname");
    let deep = deep();
    t.file(&format!("a{deep}/leaf"), b"deep");
    t.file("a/hl1", &b"hard".repeat(5000))
        .hard_link("a/hl2", "a/hl1")
        .hard_link("b/hl3", "a/hl1");
    t.symlink("a/sl-59", &"x".repeat(59))
        .symlink("a/sl-60", &"y".repeat(60));
    t.symlink("a/sl-long", &"z".repeat(1000));
    let pax: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.foo", b"bar"),
        ("SCHILY.xattr.security.capability", CAPABILITY),
    ];
    t.add(
        "a/xattr",
        Entry {
            data: b"xa",
            pax,
            ..Entry::default()
        },
    );
    let big = [b'B'; 3000];
    let pax: &[(&str, &[u8])] = &[("SCHILY.xattr.user.big", &big), ("SCHILY.xattr.odd", b"")];
    t.add(
        "a/xattr-big",
        Entry {
            data: &b"xb".repeat(3000),
            pax,
            ..Entry::default()
        },
    );
    let acl = [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0],
        &[
            4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255,
        ],
        &[32, 0, 4, 0, 255, 255, 255, 255],
    ]
    .concat();
    let pax: &[(&str, &[u8])] = &[("SCHILY.xattr.system.posix_acl_access", &acl)];
    t.add(
        "a/acl",
        Entry {
            pax,
            ..Entry::default()
        },
    );
    t.device("dev/null", EntryType::Char, (1, 3))
        .device("dev/sda", EntryType::Block, (8, 0));
    t.device("dev/bigminor", EntryType::Char, (240, 70000));
    t.device("dev/fifo", EntryType::Fifo, (0, 0));
    t.add(
        "a/future",
        Entry {
            pax: &[("mtime", b"4294968296.25")],
            ..Entry::default()
        },
    );
    t.add(
        "a/past",
        Entry {
            pax: &[("mtime", b"-100")],
            ..Entry::default()
        },
    );
    t.file("a/empty", b"").file("a/ünïcödé-名前", b"u");
    t.file("a/exact", &[b'e'; 4096])
        .file("a/more", &[b'e'; 4097]);
    t.file("a/zeros", &[vec![0; 1 << 20], b"end".to_vec()].concat());
    for i in 0..5000 {
        t.file(&format!("many/file-with-a-rather-long-name-{i:06}"), b"x");
    }
    t.file("wh/gone", b"g")
        .file("wh/keep", b"k")
        .file("wh/gonedir/f", b"f");
    t.file("wh/hardA", &[b'H'; 9000])
        .hard_link("wh/hardB", "wh/hardA");
    t.file("opq/old", b"o").file("opq/olddir/f", b"o");
    t.file("rep/dir2file/f", b"x")
        .file("rep/file2dir", b"x")
        .file("rep/file2link", b"x");
    t.symlink("rep/link2file", "/etc/passwd")
        .dir("rep/dir2link", 0o755);
    t.file("rep/overwrite", &b"old".repeat(10000));
    t.symlink("lib", "usr/lib").file("usr/lib/one", b"1");
    t.dir("lost+found", 0o755);
    t
}

/// What changes, hides and replaces parts of [`lower`].
fn upper() -> Layer {
    let mut t = Layer::new();
    t.add(
        "a",
        Entry {
            kind: EntryType::Directory,
            mode: 0o711,
            owner: (5, 0),
            ..Entry::default()
        },
    );
    t.file("wh/.wh.gone", b"")
        .file("wh/.wh.gonedir", b"")
        .file("wh/.wh.hardA", b"");
    t.dir("opq", 0o700)
        .file("opq/new", b"n")
        .file("opq/.wh..wh..opq", b"");
    t.file("rep/dir2file", b"now a file")
        .dir("rep/file2dir", 0o755);
    t.file("rep/file2dir/in", b"i")
        .symlink("rep/file2link", "overwrite");
    t.file("rep/link2file", b"real")
        .symlink("rep/dir2link", "file2dir");
    t.file("rep/overwrite", b"new")
        .hard_link("z/hl-across", "a/hl1");
    t.file("lib/two", b"2 through a symlink");
    t
}

#[test]
fn every_hard_case_arrives_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), vec![lower(), upper()]);
    let out = dir.path().join("base.img");
    let size = build(dir.path(), &out).unwrap();
    e2fsck(&out);
    let meta = fs::metadata(&out).unwrap();
    assert_eq!(meta.len(), size);
    // 64 MiB of journal are holes, and so are a file's zeros.
    assert!(
        meta.blocks() * 512 < 32 << 20,
        "{} bytes",
        meta.blocks() * 512
    );

    let stat = |path: &str| debugfs(&out, &format!("stat \"{path}\""));
    let has = |path: &str, parts: &[&str]| {
        let text = stat(path);
        for part in parts {
            assert!(text.contains(part), "{path} lacks {part:?}:\n{text}");
        }
    };
    has("/a", &["Mode:  0711", "User:     5"]);
    has("/a/setuid", &["Type: regular", "Mode:  04755", "Size: 100"]);
    has("/a/setgid", &["Mode:  02755", "Group:    42"]);
    has("/a/sticky", &["Type: directory", "Mode:  01777"]);
    has("/a/biguid", &["User: 2000000", "Group: 3000000"]);
    has("/a/hl1", &["Links: 4", "Size: 20000"]);
    has(
        "/a/sl-59",
        &[&format!("Fast link dest: \"{}\"", "x".repeat(59))],
    );
    has("/a/sl-60", &["Type: symlink", "Size: 60"]);
    has("/a/sl-long", &["Type: symlink", "Size: 1000"]);
    has(
        "/a/xattr",
        &["user.foo (3) = \"bar\"", "security.capability (20)"],
    );
    has("/a/xattr-big", &["user.big (3000)", "Size: 6000"]);
    has("/a/acl", &["system.posix_acl_access"]);
    has(
        "/dev/null",
        &[
            "Type: character special",
            "Device major/minor number: 01:03",
        ],
    );
    has(
        "/dev/sda",
        &["Type: block special", "Device major/minor number: 08:00"],
    );
    has("/dev/bigminor", &["(hex f0:11170)"]);
    has("/dev/fifo", &["Type: FIFO"]);
    has("/a/future", &["2106"]);
    has("/a/past", &["Wed Dec 31 23:58:20 1969"]);
    has("/a/ünïcödé-名前", &["Size: 1"]);
    has("/wh/hardB", &["Links: 1", "Size: 9000"]);
    has("/opq", &["Mode:  0700"]);
    has("/rep/dir2link", &["Fast link dest: \"file2dir\""]);
    has("/rep/file2link", &["Fast link dest: \"overwrite\""]);
    has("/lib", &["Fast link dest: \"usr/lib\""]);
    for gone in [
        "/wh/gone",
        "/wh/gonedir",
        "/wh/hardA",
        "/wh/.wh.gone",
        "/opq/old",
        "/opq/olddir",
    ] {
        assert!(!stat(gone).contains("Inode:"), "{gone} is still there");
    }

    let cat = |path: &str| debugfs(&out, &format!("cat \"{path}\""));
    assert_eq!(cat("/rep/overwrite"), "new");
    assert_eq!(cat("/rep/dir2file"), "now a file");
    assert_eq!(cat("/rep/file2dir/in"), "i");
    assert_eq!(cat("/rep/link2file"), "real");
    assert_eq!(cat("/usr/lib/two"), "2 through a symlink");
    assert_eq!(cat("/opq/new"), "n");
    assert_eq!(cat("/z/hl-across"), "hard".repeat(5000));
    assert_eq!(cat("/a/exact"), "e".repeat(4096));
    assert_eq!(cat("/a/more"), "e".repeat(4097));
    assert_eq!(cat("/a/zeros"), format!("{}end", "\0".repeat(1 << 20)));
    assert_eq!(cat(&format!("/a/n{}", "l".repeat(254))), "longname");
    let deep = deep();
    assert_eq!(cat(&format!("/a{deep}/leaf")), "deep");
    assert_eq!(
        debugfs(&out, "ls -p /many")
            .lines()
            .filter(|l| l.contains("rather-long"))
            .count(),
        5000
    );
    assert_eq!(cat("/many/file-with-a-rather-long-name-004999"), "x");
}

#[test]
fn the_same_image_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), vec![lower(), upper()]);
    let (one, two) = (dir.path().join("1"), dir.path().join("2"));
    build(dir.path(), &one).unwrap();
    build(dir.path(), &two).unwrap();
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap());
}

#[test]
fn a_base_is_current_until_the_image_or_the_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("base.img");
    let mut layer = Layer::new();
    layer.file("f", b"1");
    layout(dir.path(), vec![layer]);
    let first = resolve(dir.path());
    assert!(!base_is_current(&out, &first, SIZE));
    build(dir.path(), &out).unwrap();
    assert!(base_is_current(&out, &first, SIZE));

    let mut layer = Layer::new();
    layer.file("f", b"2");
    layout(dir.path(), vec![layer]);
    let second = resolve(dir.path());
    assert!(!base_is_current(&out, &second, SIZE));
    build(dir.path(), &out).unwrap();
    assert!(base_is_current(&out, &second, SIZE) && !base_is_current(&out, &first, SIZE));
    assert_eq!(debugfs(&out, "cat /f"), "2");

    fs::File::options()
        .write(true)
        .open(&out)
        .unwrap()
        .set_len(4096)
        .unwrap();
    assert!(!base_is_current(&out, &second, SIZE));
}

#[test]
fn a_base_has_the_size_of_its_clones_and_takes_no_more_room() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), vec![lower()]);
    let image = resolve(dir.path());
    let (small, large) = (dir.path().join("small.img"), dir.path().join("large.img"));
    build(dir.path(), &small).unwrap();
    let size = (15 << 30) + 4096;
    let built = build_base(&image, &large, size, &Limits::default(), &|_| {}).unwrap();
    assert_eq!(built, 15 << 30);
    e2fsck(&large);
    assert!(base_is_current(&large, &image, size) && !base_is_current(&large, &image, SIZE));
    let room = |file: &Path| fs::metadata(file).unwrap().blocks() * 512;
    let more = room(&large) - room(&small);
    assert!(more < 2 << 20, "{more} bytes for the size alone");
    // Nothing is left for the guest to initialise, which would fill every clone.
    let header = dumpe2fs(&large);
    let groups = header.matches("\nGroup ").count();
    assert_eq!(
        (groups, header.matches("ITABLE_ZEROED").count()),
        (120, 120)
    );
}

/// Builds and expects nothing but the error and the layout to be there afterwards.
fn refused(layers: Vec<Layer>, limits: Limits) -> ImageError {
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), layers);
    let image = resolve(&dir.path().join("oci"));
    let error =
        build_base(&image, &dir.path().join("base.img"), SIZE, &limits, &|_| {}).unwrap_err();
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "something was left behind"
    );
    error
}

#[test]
fn paths_that_lead_outside_are_refused_by_name() {
    for path in ["../escape", "a/../../escape", "/etc/passwd"] {
        let mut layer = Layer::new();
        layer.file(path, b"x");
        let error = refused(vec![layer], Limits::default());
        assert!(
            matches!(&error, ImageError::Entry { entry, .. } if entry == path),
            "{error}"
        );
    }
    let mut layer = Layer::new();
    layer.hard_link("link", "../../etc/shadow");
    let error = refused(vec![layer], Limits::default());
    assert!(
        matches!(&error, ImageError::Entry { entry, .. } if entry == "link"),
        "{error}"
    );
}

#[test]
fn archives_made_to_fill_disk_or_memory_are_refused() {
    let mut large = Layer::new();
    large.file("zeros", &vec![0; 3 << 20]);
    let limits = Limits {
        max_bytes: 2 << 20,
        ..Limits::default()
    };
    let error = refused(vec![large], limits);
    assert!(
        matches!(error, ImageError::TooLarge { unit: "bytes", .. }),
        "{error}"
    );
    assert!(error.to_string().contains("storage_size"), "{error}");

    let mut many = Layer::new();
    for i in 0..100 {
        many.file(&format!("f{i}"), b"");
    }
    let error = refused(
        vec![many],
        Limits {
            max_files: 50,
            ..Limits::default()
        },
    );
    assert!(
        matches!(error, ImageError::TooLarge { unit: "files", .. }),
        "{error}"
    );

    let mut headers = Layer::new();
    let value = vec![b'x'; 8 << 20];
    headers.add(
        "f",
        Entry {
            pax: &[("comment", &value)],
            ..Entry::default()
        },
    );
    let error = refused(vec![headers], Limits::default());
    assert!(error.to_string().contains("headers"), "{error}");
}

#[test]
fn devices_cost_what_files_cost() {
    let limits = Limits {
        max_bytes: 1 << 20,
        ..Limits::default()
    };
    // They have no bytes, but each takes an inode.
    let mut many = Layer::new();
    for i in 0..3000 {
        many.device(&format!("d{i}"), EntryType::Char, (1, 3));
    }
    let error = refused(vec![many], limits);
    assert!(
        matches!(error, ImageError::TooLarge { unit: "bytes", .. }),
        "{error}"
    );
    assert!(error.to_string().contains("storage_size"), "{error}");
    // One that says it is large is believed, and refused before anything is read.
    let mut large = Layer::new();
    large.add(
        "d",
        Entry {
            kind: EntryType::Block,
            device: (8, 0),
            claimed: Some(1 << 40),
            ..Entry::default()
        },
    );
    let error = refused(vec![large], limits);
    assert!(
        matches!(error, ImageError::TooLarge { unit: "bytes", .. }),
        "{error}"
    );
}

#[test]
fn a_full_disk_is_told_and_left_as_it_was() {
    let Some(small) = Small::mount("6m") else {
        eprintln!("not root: not tested");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut layer = Layer::new();
    let noise: Vec<u8> = (0..8u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 1)
        .collect();
    layer.file("noise", &noise);
    layout(dir.path(), vec![layer]);
    let out = small.path().join("base.img");
    let error = build(dir.path(), &out).unwrap_err();
    let text = error.to_string();
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(text.contains("base.img"), "{text}");
    assert!(cause.unwrap_or(text).contains("No space left"), "{error:?}");
    assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
    // What is smaller has room again.
    let other = tempfile::tempdir().unwrap();
    let mut layer = Layer::new();
    layer.file("little", &noise[..1 << 20]);
    layout(other.path(), vec![layer]);
    build(other.path(), &out).unwrap();
    assert!(base_is_current(&out, &resolve(other.path()), SIZE));
}

#[test]
fn a_damaged_layer_is_refused_by_name() {
    for damage in [0, 1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let oci = dir.path().join("oci");
        let blob = layout(&oci, vec![lower(), upper()]).swap_remove(damage % 2);
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        match damage {
            0 | 1 => bytes[middle] ^= 1,
            _ => bytes.truncate(middle),
        }
        fs::write(&blob, bytes).unwrap();
        let image = resolve(&oci);
        let out = dir.path().join("base.img");
        let error = build_base(&image, &out, SIZE, &Limits::default(), &|_| {}).unwrap_err();
        assert!(
            matches!(&error, ImageError::Digest { path, .. } if *path == blob),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_is_left_out_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut layer = Layer::new();
    layer
        .device("socket", EntryType::new(b'?'), (0, 0))
        .file("f", b"1");
    layout(dir.path(), vec![layer]);
    let skipped = std::cell::RefCell::new(Vec::new());
    let out = dir.path().join("base.img");
    build_base(
        &resolve(dir.path()),
        &out,
        SIZE,
        &Limits::default(),
        &|progress| {
            if let Progress::Skipped { entry, .. } = progress {
                skipped.borrow_mut().push(entry.to_owned());
            }
        },
    )
    .unwrap();
    assert_eq!(*skipped.borrow(), ["socket"]);
    e2fsck(&out);
}

#[test]
fn images_are_found_by_tag_and_architecture() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), vec![lower()]);
    let find = |tag: &str, arch| {
        let text = format!("oci:{}{tag}", dir.path().display());
        Resolved::find(&ImageRef::parse(&text).unwrap(), arch)
    };
    assert!(
        find("", "amd64")
            .unwrap()
            .manifest_digest()
            .starts_with("sha256:")
    );
    let other = find(":v2", "amd64").unwrap_err();
    assert!(matches!(&other, ImageError::NoTag { available, .. } if available == "latest"));
    let other = find("", "arm64").unwrap_err();
    assert!(
        matches!(&other, ImageError::NoPlatform { available, .. } if available == "linux/amd64")
    );
    let registry = Resolved::find(&ImageRef::parse("debian:12").unwrap(), "amd64").unwrap_err();
    assert!(
        matches!(&registry, ImageError::Unsupported { .. }),
        "{registry}"
    );
}
