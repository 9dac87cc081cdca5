use super::*;
use crate::walk::measure;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

fn pack(root: &Path, filter: Filter) -> (Vec<u8>, Packed) {
    let mut packer = Packer::new(Dir::open(root).unwrap(), filter);
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 777];
    loop {
        match packer.fill(&mut buffer).unwrap() {
            0 => return (bytes, packer.packed()),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Name, kind, mode, time and size of every entry, as another reader sees them.
fn entries(bytes: &[u8]) -> Vec<(String, EntryType, u32, u64, u64)> {
    let mut all: Vec<_> = tar::Archive::new(bytes)
        .entries()
        .unwrap()
        .map(|e| {
            let e = e.unwrap();
            let h = e.header();
            (
                String::from_utf8_lossy(&e.path_bytes()).into_owned(),
                h.entry_type(),
                h.mode().unwrap(),
                h.mtime().unwrap(),
                h.size().unwrap(),
            )
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn other_readers_understand_it() {
    let tmp = tempfile::tempdir().unwrap();
    let at = |name: &str| tmp.path().join(name);
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    fs::create_dir(at(&"d".repeat(150))).unwrap();
    fs::write(at(&long), "long").unwrap();
    fs::write(at("run"), "#!").unwrap();
    fs::set_permissions(at("run"), fs::Permissions::from_mode(0o4750)).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
    fs::File::open(at("run"))
        .unwrap()
        .set_modified(then)
        .unwrap();
    symlink("run", at("link")).unwrap();
    let (bytes, packed) = pack(tmp.path(), Box::new(|_, _| true));
    assert_eq!(
        packed,
        Packed {
            files: 2,
            bytes: 6,
            skipped: 1
        }
    );
    assert_eq!(&bytes[257..262], b"ustar");
    assert_eq!(bytes[bytes.len() - 1024..], [0; 1024]);
    let entries = entries(&bytes);
    let names: Vec<&str> = entries.iter().map(|e| e.0.as_str()).collect();
    assert_eq!(names, [&format!("{}/", "d".repeat(150)), &long, "run"]);
    assert_eq!(
        entries[2],
        ("run".into(), EntryType::Regular, 0o750, 1000, 2)
    );
    assert_eq!(entries[0].1, EntryType::Directory);
}

#[test]
fn an_empty_tree_is_an_archive() {
    let tmp = tempfile::tempdir().unwrap();
    assert_eq!(pack(tmp.path(), Box::new(|_, _| true)).0, [0; 1024]);
}

#[test]
fn what_does_not_pass_the_filter_is_not_looked_into() {
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir_all(tmp.path().join("no/deep")).unwrap();
    fs::write(tmp.path().join("no/deep/x"), "123").unwrap();
    fs::write(tmp.path().join("no.txt"), "1234").unwrap();
    fs::write(tmp.path().join("yes"), "12345").unwrap();
    symlink("x", tmp.path().join("nolink")).unwrap();
    let filter = || -> Filter {
        Box::new(|path: &[u8], is_dir| {
            assert!(path != b"no/deep");
            assert_eq!(is_dir, path == b"no");
            !path.starts_with(b"no")
        })
    };
    let (bytes, packed) = pack(tmp.path(), filter());
    assert_eq!((packed.files, packed.skipped), (1, 0));
    assert_eq!(entries(&bytes).len(), 1);
    let measured = measure(Dir::open(tmp.path()).unwrap(), filter()).unwrap();
    assert_eq!((measured.files, measured.bytes), (1, 5));
}

#[test]
fn a_file_that_changes_is_an_error_or_cut() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("log");
    fs::write(&path, vec![1; 5000]).unwrap();
    let begin = || {
        let mut packer = Packer::new(Dir::open(tmp.path()).unwrap(), Box::new(|_, _| true));
        let mut buffer = [0; 1024];
        assert_eq!(packer.fill(&mut buffer).unwrap(), 1024);
        packer
    };
    let mut packer = begin();
    fs::write(&path, vec![2; 9000]).unwrap();
    let mut rest = vec![0; 20_000];
    // What was added since isn't in it.
    assert_eq!(packer.fill(&mut rest).unwrap(), 512 + 5120 + 1024 - 1024);
    assert_eq!(packer.packed().bytes, 5000);

    let mut packer = begin();
    fs::write(&path, "short").unwrap();
    let e = packer.fill(&mut rest).unwrap_err();
    assert!(matches!(e, TreeError::Shrank { .. }), "{e}");
}
