use super::*;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

const ALL: &[CloneKind] = &[
    CloneKind::Reflink,
    CloneKind::Qcow2Overlay,
    CloneKind::SparseCopy,
];

fn options(size: u64, kinds: &[CloneKind]) -> CloneOptions<'_> {
    CloneOptions {
        size,
        kinds,
        durable: false,
    }
}

/// A directory with a `base` of 8 MiB with some data.
fn base() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.img");
    let file = File::create(&base).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(&[7; 9000], 5 << 20).unwrap();
    (dir, base)
}

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_copy_has_the_data_and_the_new_size() {
    let (dir, base) = base();
    let dest = dir.path().join("vm.img");
    for durable in [false, true] {
        let options = CloneOptions {
            durable,
            ..options(1 << 30, &[CloneKind::SparseCopy])
        };
        assert_eq!(
            clone_disk(&base, &dest, &options).unwrap(),
            CloneKind::SparseCopy
        );
    }
    let meta = fs::metadata(&dest).unwrap();
    assert_eq!(meta.len(), 1 << 30);
    assert!(meta.blocks() * 512 < 1 << 20);
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let mut head = vec![0; 8 << 20];
    File::open(&dest)
        .unwrap()
        .read_exact_at(&mut head, 0)
        .unwrap();
    assert!(head == fs::read(&base).unwrap());
    assert_eq!(names(dir.path()), 2);
}

#[test]
fn the_first_way_that_works_is_taken() {
    let (dir, base) = base();
    let dest = dir.path().join("vm.img");
    let kind = clone_disk(&base, &dest, &options(16 << 20, ALL)).unwrap();
    assert_ne!(kind, CloneKind::SparseCopy);
    if kind == CloneKind::Qcow2Overlay {
        let only = clone_disk(&base, &dest, &options(16 << 20, &[CloneKind::Reflink]));
        assert!(matches!(only, Err(ImageError::NoClone { .. })), "{only:?}");
    } else {
        assert_eq!(fs::metadata(&dest).unwrap().len(), 16 << 20);
    }
    let none = clone_disk(&base, &dest, &options(16 << 20, &[]));
    assert!(matches!(none, Err(ImageError::NoClone { .. })), "{none:?}");
    assert_eq!(names(dir.path()), 2);
}

#[test]
fn sizes_are_checked_before_anything_is_made() {
    let (dir, base) = base();
    let dest = dir.path().join("vm.img");
    let small = clone_disk(&base, &dest, &options(4 << 20, ALL)).unwrap_err();
    assert!(
        matches!(
            small,
            ImageError::TooSmall {
                base_size: 8_388_608,
                ..
            }
        ),
        "{small:?}"
    );
    for size in [(16 << 40) + 1, u64::MAX] {
        let large = clone_disk(&base, &dest, &options(size, ALL)).unwrap_err();
        assert!(
            matches!(large, ImageError::DiskTooLarge { .. }),
            "{large:?}"
        );
    }
    let absent = clone_disk(&dir.path().join("absent"), &dest, &options(1 << 30, ALL));
    assert!(matches!(absent, Err(ImageError::Io { .. })), "{absent:?}");
    assert_eq!(names(dir.path()), 1);
}

#[test]
fn qemu_takes_the_overlay_where_there_is_one() {
    let (dir, base) = base();
    let dest = dir.path().join("vm.qcow2");
    // An odd size, and one whose first-level table takes several clusters.
    for size in [(1 << 30) + 1, 15 << 30, 5 << 40] {
        clone_disk(&base, &dest, &options(size, &[CloneKind::Qcow2Overlay])).unwrap();
        let qemu_img = |args: &[&str]| Command::new("qemu-img").args(args).arg(&dest).output();
        let Ok(info) = qemu_img(&["info", "--output=json"]) else {
            println!("no qemu-img here");
            return;
        };
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!(info["format"], "qcow2");
        assert_eq!(info["virtual-size"], size.next_multiple_of(4096));
        assert_eq!(info["backing-filename-format"], "raw");
        assert_eq!(
            info["full-backing-filename"],
            base.canonicalize().unwrap().to_str().unwrap()
        );
        let check = qemu_img(&["check"]).unwrap();
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stderr)
        );
    }
    clone_disk(&base, &dest, &options(16 << 20, &[CloneKind::Qcow2Overlay])).unwrap();
    let raw = dir.path().join("raw");
    let convert = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([&dest, &raw])
        .output()
        .unwrap();
    assert!(
        convert.status.success(),
        "{}",
        String::from_utf8_lossy(&convert.stderr)
    );
    let raw = fs::read(raw).unwrap();
    assert_eq!(raw.len(), 16 << 20);
    assert!(raw[..8 << 20] == fs::read(&base).unwrap());
    assert!(raw[8 << 20..].iter().all(|b| *b == 0));
}
