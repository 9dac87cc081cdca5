//! Points at which a program dies as by `kill -9`, when its environment names one of them in
//! [`VARIABLE`]. A test walks over [`POINTS`], has the program die at each, starts it again, and looks
//! whether anything is lost or left over.
//!
//! They are in the programs users get, for those are what is to be tested: without the variable, a
//! point is a load from memory. Who can set it for a program could as well kill it.
#![forbid(unsafe_code)]

use rustix::process::{Signal, getpid, kill_process};
use std::sync::OnceLock;
use std::time::Duration;

/// The environment variable that names the point to die at.
pub const VARIABLE: &str = "SLICER_FAULT";

/// All points there are, by what is done and how far it has come.
pub const POINTS: &[&str] = &[
    // Nothing is on disk yet; its record is; so is its disk; its machine runs; its record says so.
    "launch.named",
    "launch.recorded",
    "launch.disk",
    "launch.machine",
    "launch.running",
    // It has a template's disk; it runs on where the template was saved.
    "clone.disk",
    "clone.machine",
    // A snapshot has a VM's disk, and it another one over that, which its machine has yet to change to; the
    // one that begins as the snapshot has its disk.
    "snapshot.overlay",
    "snapshot.disk",
    // A template's directory is there; it boots; all of it is there; it is one; it is none any more.
    "template.begun",
    "template.booting",
    "template.saved",
    "template.complete",
    "template.forgotten",
    // What tells of its process is the VM's, its disk and console aren't.
    "spare.given",
    // Its machine is gone; its disk has another name; only that is left.
    "delete.ended",
    "delete.renamed",
    "delete.forgotten",
    // There is room for the state; its memory is there; it is a saved state; its machine is gone.
    "suspend.begun",
    "suspend.memory",
    "suspend.saved",
    "suspend.ended",
    // The state was found good; its machine runs; it is a saved state no more.
    "restore.checked",
    "restore.running",
    "restore.forgotten",
    // There is a directory; what it was before is noted; it has the disk; the VM has another; the
    // VM's record says so; there is a commit.
    "commit.begun",
    "commit.noted",
    "commit.linked",
    "commit.overlay",
    "commit.recorded",
    "commit.saved",
    // It has another name.
    "uncommit.renamed",
    // Its disk is there.
    "fork.disk",
    // A blob is whole, without its name; it has its name; so have all; the image is in the index.
    "pull.whole",
    "pull.blob",
    "pull.blobs",
    "pull.indexed",
    // A base is whole, without its name; it has its name.
    "base.whole",
    "base.named",
];

/// Dies here if that was asked for.
pub fn point(name: &'static str) {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(
        POINTS.contains(&name),
        "{name} is not in the list of points"
    );
    let wanted = WANTED.get_or_init(|| std::env::var(VARIABLE).ok());
    if wanted.as_deref() == Some(name) {
        // Nothing can be said of a kill that fails, but that it must not go on.
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = POINTS.iter().collect();
        assert_eq!(names.len(), POINTS.len());
        // Nobody asked.
        point("launch.named");
    }
}
