//! Copies to where different names are one, as on most Macs: an ext4 that folds case and spelling.

use crate::tests;
use crate::tour::{Tour, VM};
use libtest_mimic::Trial;
use slicer_testkit::{BOOT, wait_until};
use std::fs;
use std::process::Command;
use std::sync::Arc;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("names", tour; trees_whose_names_are_one_are_refused)
}

async fn trees_whose_names_are_one_are_refused(tour: &Tour) {
    let dir = tempfile::tempdir_in(tour.daemon().dir()).unwrap();
    let at = |name: &str| dir.path().join(name);
    let image = at("folding.img");
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-O", "casefold", "-E", "encoding=utf8"])
        .arg(&image)
        .arg("8M")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let cp = async |from: &str, to: &str| tour.daemon().cli(&["cp", from, to]).await;
    let copied = cp(
        image.to_str().unwrap(),
        &format!("{VM}:/tmp/names/folding.img"),
    )
    .await;
    assert_eq!(copied.code, 0, "{copied:?}");
    // Loop devices come with the modules that are loaded behind the boot.
    wait_until("the file system is mounted", BOOT, async || {
        let mount = "cd /tmp/names && mkdir -p on && sudo modprobe loop && \
                     sudo mount -o loop folding.img on";
        tour.sh(mount).await.exit_code == 0
    })
    .await;
    tour.says(
        "cd /tmp/names && sudo mkdir on/fold && sudo chattr +F on/fold && \
         sudo chown ubuntu on/fold",
    )
    .await;

    // As git and tar make them: the same letters in the other case, or put together of parts; of the
    // last no letter has a case.
    for (tree, one, other) in [
        ("case", "Makefile", "makefile"),
        ("parts", "caf\u{e9}", "cafe\u{301}"),
        ("script", "\u{ac00}", "\u{1100}\u{1161}"),
    ] {
        for (kind, below) in [("files", ""), ("directories", "/file")] {
            let root = at(&format!("{tree}-{kind}"));
            for name in [one, other] {
                let file = root.join(format!("{name}{below}"));
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, name).unwrap();
            }
            let there = format!("/tmp/names/on/fold/{tree}-{kind}");
            let done = cp(root.to_str().unwrap(), &format!("{VM}:{there}")).await;
            assert_eq!(done.code, 1, "{there}: {done:?}");
            assert!(done.stderr.contains("is the same name"), "{done:?}");
            // What came first is as it was.
            let kept = tour
                .says(&format!(
                    "cd {there} && find . -type f -print -exec cat {{}} \\;"
                ))
                .await;
            let (path, content) = kept.split_once('\n').unwrap();
            assert_eq!(path, format!("./{content}{below}"), "{there}");
        }
    }

    // A tree of which no names are one is copied, again, and back.
    let good = at("good");
    fs::create_dir_all(good.join("Src")).unwrap();
    fs::write(good.join("Src/Main"), "1").unwrap();
    fs::write(good.join("\u{ac00}"), "2").unwrap();
    let there = format!("{VM}:/tmp/names/on/fold/good");
    for _ in 0..2 {
        let done = cp(&format!("{}/.", good.display()), &there).await;
        assert_eq!(done.code, 0, "{done:?}");
    }
    let back = at("back");
    let done = cp(&there, back.to_str().unwrap()).await;
    assert_eq!(done.code, 0, "{done:?}");
    let same = Command::new("diff").arg("-r").args([&good, &back]).output();
    let same = same.unwrap();
    assert!(same.status.success(), "{same:?}");
    tour.says("cd / && sudo umount /tmp/names/on && rm -r /tmp/names")
        .await;
}
