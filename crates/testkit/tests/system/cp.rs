//! Copies into a real VM and out of it.

use crate::tests;
use crate::tour::{Tour, VM};
use libtest_mimic::Trial;
use sha2::{Digest, Sha256};
use slicer_testkit::CliOutput;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("cp", tour; files, a_large_file, trees, what_cannot_be)
}

async fn cp(tour: &Tour, args: &[&str]) -> CliOutput {
    let args: Vec<&str> = ["cp"].iter().chain(args).copied().collect();
    tour.daemon().cli(&args).await
}

async fn good(tour: &Tour, args: &[&str]) {
    let done = cp(tour, args).await;
    assert_eq!(done.code, 0, "{args:?}: {done:?}");
}

async fn files(tour: &Tour) {
    let dir = tempfile::tempdir_in(tour.daemon().dir()).unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let script = at("run.sh");
    fs::write(&script, "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    // Into the home of the default user, whose it is, and as executable as it was.
    good(tour, &[&script, &format!("{VM}:")]).await;
    assert_eq!(
        tour.says("./run.sh; stat -c '%U %a' run.sh").await,
        "ran\nubuntu 755"
    );
    good(
        tour,
        &[
            "--uid",
            "0",
            "--gid",
            "0",
            "--permissions",
            "0600",
            &script,
            &format!("{VM}:/root/new/x"),
        ],
    )
    .await;
    let stat = tour.says("sudo stat -c '%U %G %a' /root/new/x").await;
    assert_eq!(stat, "root root 600");
    // And back: into a directory, to a name, with a mode.
    good(tour, &[&format!("{VM}:run.sh"), &at("")]).await;
    good(tour, &[&format!("{VM}:~/run.sh"), &at("copy")]).await;
    good(
        tour,
        &[
            "--permissions",
            "640",
            &format!("{VM}:run.sh"),
            &at("plain"),
        ],
    )
    .await;
    for (name, mode) in [("run.sh", 0o755), ("copy", 0o755), ("plain", 0o640)] {
        let meta = fs::metadata(at(name)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{name}");
        assert_eq!(fs::read(at(name)).unwrap(), fs::read(&script).unwrap());
    }
    tour.says("rm run.sh; sudo rm -r /root/new").await;
}

async fn a_large_file(tour: &Tour) {
    const SIZE: usize = 256 << 20;
    let dir = tempfile::tempdir_in(tour.daemon().dir()).unwrap();
    let (out, back) = (dir.path().join("out"), dir.path().join("back"));
    let mut file = File::create(&out).unwrap();
    let mut sum = Sha256::new();
    let mut state = 1u64;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..SIZE / piece.len() {
        for word in piece.chunks_mut(8) {
            // Xorshift: nothing that could be compressed or left out.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        sum.update(&piece);
        file.write_all(&piece).unwrap();
    }
    let sum: Vec<String> = sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let sum = sum.concat();
    let out = out.to_str().unwrap();
    tour.says("sudo mkdir -p /tmp/few && sudo mount -t tmpfs -o size=100m none /tmp/few")
        .await;
    // As one stream, and in pieces that are put together there. Whoever fails leaves nothing.
    for how in [&[][..], &["--verify"]] {
        let to = |path: &str| [how, &[out, &format!("{VM}:{path}")]].concat().join(" ");
        let copied = tour.cli(&format!("cp {}", to("/tmp/large"))).await;
        assert_eq!(copied.code, 0, "{copied:?}");
        let there = tour.says("sha256sum /tmp/large").await;
        assert!(there.starts_with(&sum), "{there}");
        let full = tour.cli(&format!("cp {}", to("/tmp/few/large"))).await;
        assert!(
            full.code == 1 && full.stderr.contains("No space"),
            "{full:?}"
        );
        let left = "ls -d /.slicer-upload-* /tmp/.slicer-upload-* /tmp/few/* /tmp/few/.[!.]* 2>/dev/null | wc -l";
        assert_eq!(tour.says(left).await, "0");
    }
    tour.says("sudo umount /tmp/few").await;
    good(tour, &[&format!("{VM}:/tmp/large"), back.to_str().unwrap()]).await;
    let compared = std::process::Command::new("cmp")
        .args([Path::new(out), &back])
        .status();
    assert!(compared.unwrap().success());
    tour.says("rm /tmp/large").await;
}

/// A tree of a thousand files in directories four deep.
fn plant(root: &Path) {
    for n in 0..1000u32 {
        let dir = root.join(format!("{}/{}/{}", n % 5, n % 7, n % 3));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join(format!("file {n}"));
        fs::write(&file, n.to_string().repeat(n as usize % 50)).unwrap();
        let mode = if n % 10 == 0 { 0o755 } else { 0o640 };
        fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::create_dir(root.join("empty")).unwrap();
}

async fn trees(tour: &Tour) {
    let dir = tempfile::tempdir_in(tour.daemon().dir()).unwrap();
    let root = dir.path().join("tree");
    plant(&root);
    let (root, back) = (root.to_str().unwrap(), dir.path().join("back"));
    let back = back.to_str().unwrap();
    good(tour, &[root, &format!("{VM}:/tmp/planted")]).await;
    let count = tour
        .says("find /tmp/planted -type f -user ubuntu | wc -l")
        .await;
    assert_eq!(count, "1000");
    good(tour, &[&format!("{VM}:/tmp/planted"), back]).await;
    let compared = std::process::Command::new("diff")
        .args(["-r", root, back])
        .output();
    let compared = compared.unwrap();
    assert!(compared.status.success(), "{compared:?}");
    let mode = |path: String| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let name = "0/0/0/file 0";
    assert_eq!(
        mode(format!("{root}/{name}")),
        mode(format!("{back}/{name}"))
    );
    // Into what exists, what is in it, and what is left out.
    fs::write(format!("{root}/.slicerignore"), "empty/\n/0\n").unwrap();
    good(
        tour,
        &[
            "-r",
            "--exclude",
            "file 1*",
            root,
            &format!("{VM}:/tmp/planted"),
        ],
    )
    .await;
    let kept = "cd /tmp/planted/tree && ls -d 0 empty 1 2>/dev/null; find . -name 'file 1*'";
    assert_eq!(tour.sh(kept).await.stdout, "1\n");
    good(tour, &[&format!("{root}/."), &format!("{VM}:/tmp/planted")]).await;
    assert_eq!(
        tour.says("ls -A /tmp/planted | grep -c slicerignore").await,
        "1"
    );
    tour.says("rm -r /tmp/planted").await;
}

async fn what_cannot_be(tour: &Tour) {
    let dir = tempfile::tempdir_in(tour.daemon().dir()).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let here = dir.path().to_str().unwrap();
    for (args, code, part) in [
        (&[file, here][..], 2, "VM:PATH"),
        (&[file, "nobody:/tmp/x"], 1, "nobody"),
        (
            &["/no/such/file", &format!("{VM}:/tmp/x")],
            1,
            "/no/such/file",
        ),
        (&[file, &format!("{VM}:/tmp/missing/")], 1, "does not exist"),
        (&[&format!("{VM}:/no/such"), here], 1, "/no/such"),
        (&[&format!("{VM}:/dev/zero"), here], 1, "regular"),
        (
            &["--mode", "binary", &format!("{VM}:/etc"), here],
            1,
            "directory",
        ),
        (&[&format!("{VM}:/etc"), file], 1, "not a directory"),
    ] {
        let done = cp(tour, args).await;
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        assert!(done.stderr.contains(part), "{args:?}: {}", done.stderr);
    }
    let names: Vec<_> = fs::read_dir(here).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    // A full disk is told, and nothing of the file is left.
    tour.says("sudo mkdir -p /tmp/small && sudo mount -t tmpfs -o size=1m none /tmp/small")
        .await;
    let large = dir.path().join("large");
    fs::write(&large, vec![1; 4 << 20]).unwrap();
    let done = cp(
        tour,
        &[large.to_str().unwrap(), &format!("{VM}:/tmp/small/x")],
    )
    .await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("507"), "{}", done.stderr);
    assert_eq!(tour.says("ls -A /tmp/small | wc -l").await, "0");
    // Of a tree that doesn't say how large it is, what was complete is.
    let mut tar = tar::Builder::new(Vec::new());
    for (name, size) in [("first", 100), ("second", 4 << 20)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        let data = std::io::repeat(b'x').take(size);
        tar.append_data(&mut header, name, data).unwrap();
    }
    let target = format!("/vm/{VM}/cp?mode=tar&path=/tmp/small/tree");
    let answer = tour.raw().post(&target, tar.into_inner().unwrap()).await;
    assert_eq!(answer.status, 507, "{}", answer.text());
    assert_eq!(tour.says("ls -A /tmp/small/tree").await, "first");
    tour.says("sudo umount /tmp/small").await;
}
