//! Copies that are told to end.

use crate::support::{FakeDaemon, json, node, streamed};
use crate::{bare, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

/// Whether a file is on its way.
fn unfinished(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names = entries.map(|e| e.unwrap().file_name());
    names.any(|name| name.as_encoded_bytes().starts_with(b".slicer-"))
}

#[test]
fn a_copy_that_is_told_to_end_leaves_nothing() {
    let daemon = FakeDaemon::start(|request| {
        let (sender, reply) = streamed();
        let _ = sender.send("half".to_owned());
        let copy = request.uri().path().ends_with("/cp");
        async move {
            if !copy {
                return json(
                    200,
                    DETAIL.replace("NODE", node("sbox-1", "[]").trim_start_matches('{')),
                );
            }
            tokio::spawn(async move { sender.closed().await });
            reply
        }
    });
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 143)] {
        let dir = tempfile::tempdir().unwrap();
        let url = daemon.socket();
        let args = ["--url", url.to_str().unwrap(), "cp", "sbox-1:/x", "./x"];
        let child = bare(dir.path(), &args).spawn().unwrap();
        let begun = Instant::now();
        while !unfinished(dir.path()) {
            assert!(begun.elapsed() < Duration::from_secs(20), "no copy began");
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).unwrap();
        assert_eq!(wait(child), code, "{signal:?}");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "{signal:?}");
    }
}

/// The answer to `GET /vm/{h}`, around its node.
const DETAIL: &str = r#"{"storage":"image","image":"x","network":{"mode":"nat","policy_source":"host_group","host_group":{},"effective":{}},NODE"#;
