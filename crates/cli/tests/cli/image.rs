//! `slicer image build`, as far as it comes without an image.

use crate::{bare, done};

#[test]
fn what_is_missing_is_named_with_its_package() {
    let dir = tempfile::tempdir().unwrap();
    let mut build = bare(dir.path(), &["image", "build", "--output", "out"]);
    let done = done(build.env("PATH", dir.path()).output().unwrap());
    assert_eq!(done.code, 1);
    assert_eq!(
        done.stderr,
        "Error: mmdebstrap not found: install the Debian package mmdebstrap\n"
    );
    let left: Vec<_> = std::fs::read_dir(dir.path().join("out"))
        .unwrap()
        .flat_map(|arch| std::fs::read_dir(arch.unwrap().path()).unwrap())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
