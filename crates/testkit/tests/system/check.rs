//! `slicer-mac check`: the contract of a hypervisor, with the one of this host.

use crate::tests;
use libtest_mimic::Trial;
use serde_json::Value;
use slicer_testkit::bin_dir;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("check": all_steps_of_this_hosts_hypervisor, without_an_image_it_says_so_and_leaves_nothing)
}

fn check(temp: &Path, args: &[&str], guest_dir: Option<&Path>) -> Output {
    let mut command = Command::new(bin_dir().join("slicer-mac"));
    command.arg("check").args(args).env("TMPDIR", temp);
    if let Some(dir) = guest_dir {
        command.env("SLICER_GUEST_DIR", dir);
    }
    command.output().unwrap()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

async fn all_steps_of_this_hosts_hypervisor() {
    let temp = tempfile::tempdir().unwrap();
    let done = check(temp.path(), &["--json"], None);
    let text = String::from_utf8(done.stdout).unwrap();
    let complaint = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{text}\n{complaint}");
    let steps: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert!(steps.len() > 15, "{text}");
    for step in &steps {
        let rosetta = step["name"].as_str().unwrap().contains("Rosetta");
        let expected = if rosetta { "skipped" } else { "passed" };
        assert_eq!(step["outcome"], expected, "{step}");
    }
    assert!(is_empty(temp.path()));
}

async fn without_an_image_it_says_so_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let nowhere = temp.path().join("nowhere");
    let done = check(temp.path(), &[], Some(&nowhere));
    assert_eq!(done.status.code(), Some(1));
    let text = String::from_utf8(done.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("nowhere"), "{text}");
    assert!(is_empty(temp.path()));
}
