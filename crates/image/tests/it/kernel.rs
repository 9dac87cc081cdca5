//! Boot files out of a kernel image and an agent.

use crate::support::{Layer, debugfs, e2fsck, layout};
use slicer_image::{ImageRef, Resolved, prepare_kernel};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

fn kernel_image(dir: &Path) -> Resolved {
    let mut layer = Layer::new();
    layer.file("boot/kernel", b"\x7fELF and so on");
    layer.file(
        "boot/modules.load",
        b"[early]\nkernel/d/blk.ko\n[late]\nkernel/n/net.ko\n",
    );
    layer.file("lib/modules/6.1-x/kernel/d/blk.ko", b"block");
    layer.file("lib/modules/6.1-x/kernel/n/net.ko", b"network");
    layer.file("lib/modules/6.1-x/modules.dep", b"kernel/d/blk.ko:\n");
    layout(dir, vec![layer]);
    let reference = ImageRef::parse(&format!("oci:{}", dir.display())).unwrap();
    Resolved::find(&reference, "amd64").unwrap()
}

/// Names and contents in a newc archive.
fn entries(cpio: &[u8]) -> Vec<(String, Vec<u8>)> {
    let number = |at: usize| {
        usize::from_str_radix(std::str::from_utf8(&cpio[at..at + 8]).unwrap(), 16).unwrap()
    };
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        let (size, name) = (number(at + 54), number(at + 94));
        let data = (at + 110 + name).next_multiple_of(4);
        let name = String::from_utf8(cpio[at + 110..at + 110 + name - 1].to_vec()).unwrap();
        if name == "TRAILER!!!" {
            return entries;
        }
        entries.push((name, cpio[data..data + size].to_vec()));
        at = (data + size).next_multiple_of(4);
    }
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn boot_files_are_made_and_remade_only_when_needed() {
    let dir = tempfile::tempdir().unwrap();
    let image = kernel_image(&dir.path().join("oci"));
    let out = dir.path().join("kernel/sbox");
    let files = prepare_kernel(&image, b"agent 1", &out).unwrap();
    assert_eq!(files.version, "6.1-x");
    assert_eq!(fs::read(&files.kernel).unwrap(), b"\x7fELF and so on");
    let archive = entries(&fs::read(&files.initramfs).unwrap());
    let content = |name: &str| {
        let found = archive.iter().find(|(n, _)| n == name);
        found.map(|(_, c)| String::from_utf8(c.clone()).unwrap())
    };
    assert_eq!(content("init").as_deref(), Some("agent 1"));
    assert_eq!(
        content("modules/load").as_deref(),
        Some("[early]\nblk\n[late]\nnet\n")
    );
    assert_eq!(content("modules/blk.ko").as_deref(), Some("block"));
    assert_eq!(content("modules/net.ko").as_deref(), Some("network"));
    for name in [
        "dev",
        "proc",
        "sys",
        "run",
        "newroot",
        "dev/console",
        "dev/null",
    ] {
        assert!(content(name).is_some(), "{name} is missing");
    }
    e2fsck(&files.modules);
    assert_eq!(
        debugfs(&files.modules, "cat /6.1-x/modules.dep"),
        "kernel/d/blk.ko:\n"
    );

    let times = || [&files.kernel, &files.modules, &files.initramfs].map(|p| modified(p));
    let first = times();
    assert_eq!(prepare_kernel(&image, b"agent 1", &out).unwrap(), files);
    assert_eq!(times(), first);

    assert_eq!(prepare_kernel(&image, b"agent 2", &out).unwrap(), files);
    assert_eq!(times()[..2], first[..2]);
    let archive = entries(&fs::read(&files.initramfs).unwrap());
    assert!(archive.contains(&("init".to_owned(), b"agent 2".to_vec())));

    fs::remove_file(&files.modules).unwrap();
    prepare_kernel(&image, b"agent 2", &out).unwrap();
    e2fsck(&files.modules);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 4);
}

#[test]
fn an_image_that_is_no_kernel_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut layer = Layer::new();
    layer.file("etc/hostname", b"x");
    layout(dir.path(), vec![layer]);
    let reference = ImageRef::parse(&format!("oci:{}", dir.path().display())).unwrap();
    let image = Resolved::find(&reference, "amd64").unwrap();
    let error = prepare_kernel(&image, b"agent", &dir.path().join("out")).unwrap_err();
    assert!(error.to_string().contains("lib/modules"), "{error}");
}
