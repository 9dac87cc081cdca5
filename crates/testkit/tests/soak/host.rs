//! What is on the host, and whether that is all that must be, and no more.

use crate::model::Model;
use slicer_api::NodeStatus;
use slicer_client::{CommitFilter, NodeFilter};
use slicer_testkit::{LIMIT, TestDaemon, soon};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Processes are gone within this after their daemon, or their VM.
const SOON: Duration = Duration::from_secs(5);
/// Descriptors that a daemon may have open beside those at the beginning.
const FEW: usize = 4;
/// Memory that a daemon may have kept, KiB.
const MEMORY: u64 = 12 << 10;

/// Fails unless nothing of the daemon that was killed runs on.
pub(crate) fn ended(daemon: &TestDaemon) {
    assert!(
        soon(SOON, || daemon.processes().is_empty()),
        "QEMU outlives its daemon"
    );
}

/// Fails unless the daemon says, and has on disk, what must be there.
pub(crate) async fn holds(model: &Model, daemon: &TestDaemon) {
    let client = daemon.client();
    let nodes = client.nodes(&NodeFilter::default()).await.unwrap();
    let said: BTreeSet<(String, String)> = nodes
        .into_iter()
        .map(|n| (n.hostname, n.status.to_string()))
        .collect();
    let must = model.vms.values();
    let must: BTreeSet<_> = must
        .map(|vm| (vm.name.clone(), vm.status.to_string()))
        .collect();
    assert_eq!(said, must);

    let commits = client.commits(&CommitFilter::default()).await.unwrap();
    let said: BTreeSet<String> = commits.into_iter().map(|c| c.commit_id).collect();
    assert_eq!(said, model.commits.values().map(|c| c.id.clone()).collect());
    let on_disk = names(&daemon.dir().join(".slicer/commits"));
    assert_eq!(on_disk, said);

    // A machine that was ended may be a moment in going.
    let machines = model.machines();
    assert!(
        soon(SOON, || daemon.processes().len()
            == machines + being_made(daemon)),
        "{machines} machines must run, {:?} do",
        daemon.processes()
    );
    let vms = |suffix: &str, of: &dyn Fn(NodeStatus) -> bool| -> BTreeSet<String> {
        let vms = model.vms.values().filter(|vm| of(vm.status));
        vms.map(|vm| format!("{}{suffix}", vm.name)).collect()
    };
    let mut disks = names(daemon.dir());
    disks.retain(|name| {
        let name = Path::new(name);
        name.extension().is_some_and(|e| e == "img") && !is_base(name)
    });
    assert_eq!(disks, vms(".img", &|_| true));
    let records = names(&daemon.dir().join(".slicer/vms"));
    assert_eq!(records, vms(".json", &|_| true));
    let suspended = names(&daemon.dir().join(".slicer/suspended"));
    assert_eq!(suspended, vms("", &|s| s == NodeStatus::Suspended));
}

/// How many templates boot.
fn being_made(daemon: &TestDaemon) -> usize {
    let all = daemon.dir().join(".slicer/templates");
    let unfinished = |name: &String| {
        let dir = all.join(name);
        dir.join("run/qemu.json").exists() && !dir.join("template.json").exists()
    };
    names(&all).iter().filter(|name| unfinished(name)).count()
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// What a daemon at rest uses of its host.
#[derive(Debug)]
pub(crate) struct Use {
    descriptors: BTreeSet<(u32, String)>,
    threads: usize,
    memory: u64,
    files: BTreeSet<String>,
}

impl Use {
    pub(crate) fn of(daemon: &TestDaemon) -> Self {
        let proc = Path::new("/proc").join(daemon.pid().to_string());
        let mut descriptors = BTreeSet::new();
        for entry in fs::read_dir(proc.join("fd")).unwrap() {
            let path = entry.unwrap().path();
            let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // One may be gone again.
            let to = fs::read_link(&path).unwrap_or_default();
            descriptors.insert((number, to.display().to_string()));
        }
        let status = fs::read_to_string(proc.join("status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.unwrap().trim().trim_end_matches(" kB");
        let mut files = BTreeSet::new();
        walk(daemon.dir(), &mut files);
        Self {
            descriptors,
            threads: fs::read_dir(proc.join("task")).unwrap().count(),
            memory: memory.parse().unwrap(),
            files,
        }
    }

    /// Fails unless the daemon, at rest again, uses no more than this.
    pub(crate) fn is_all(&self, daemon: &TestDaemon) {
        // What a request has opened is closed soon after its answer.
        let mut now = Self::of(daemon);
        let enough = |now: &Self| {
            now.descriptors.len() <= self.descriptors.len() + FEW
                && now.memory <= self.memory + MEMORY
                && now.files == self.files
        };
        let all = soon(LIMIT, || {
            now = Self::of(daemon);
            enough(&now)
        });
        let files: Vec<_> = now.files.symmetric_difference(&self.files).collect();
        assert!(
            all,
            "at rest the daemon has {:?}, {} threads, {} KiB; before {:?}, {} threads, {} KiB; \
             files that differ: {files:?}",
            now.descriptors, now.threads, now.memory, self.descriptors, self.threads, self.memory,
        );
        eprintln!(
            "soak: descriptors {} and {}, threads {} and {}, memory {} and {} KiB, before and after",
            self.descriptors.len(),
            now.descriptors.len(),
            self.threads,
            now.threads,
            self.memory,
            now.memory,
        );
    }
}

fn walk(dir: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            walk(&path, files);
        }
        // Templates come and go by themselves; snapshots of VMs are to go with those.
        let path = path.display().to_string();
        if !path.contains("/templates/tpl-") {
            files.insert(path);
        }
    }
}

/// Whether this is the disk of an image, from which VMs' are made.
fn is_base(disk: &Path) -> bool {
    let stem = disk.file_stem().unwrap_or_default();
    stem.to_string_lossy().ends_with("-base")
}
