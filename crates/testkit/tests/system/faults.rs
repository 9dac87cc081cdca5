//! A daemon that is killed at every step of what it does: the next one finds nothing lost that it had
//! promised, and nothing left over.

use crate::lifecycle::{names, ready};
use crate::pool;
use crate::template;
use crate::tests;
use crate::tour::{says, sh};
use libtest_mimic::Trial;
use slicer_api::NodeStatus;
use slicer_client::CommitFilter;
use slicer_testkit::{
    BOOT, CliOutput, LIMIT, Layer, Registry, Setup, Signal, TestDaemon, alive, soon,
};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("faults": every_point_is_tested, killed_while_launching_and_deleting,
        killed_while_taking_a_spare, killed_while_making_a_template_and_cloning, killed_while_forking_one_that_runs, killed_while_suspending_and_restoring, killed_while_committing_and_forking,
        killed_while_pulling_and_building)
}

/// What the points are of, as their names begin: each has a test.
const TESTED: [&str; 13] = [
    "snapshot", "launch", "clone", "template", "spare", "delete", "suspend", "restore", "commit",
    "fork", "uncommit", "pull", "base",
];

/// The points of this.
fn points(of: &str) -> impl Iterator<Item = &'static str> {
    let all = slicer_fault::POINTS.iter().copied();
    all.filter(move |point| prefix(point) == of)
}

fn prefix(point: &str) -> &str {
    point.split('.').next().unwrap()
}

/// Not on the way where files can share blocks.
const OVERLAY: [&str; 3] = ["commit.noted", "commit.linked", "commit.overlay"];
/// The daemon's processes are gone within this after its death.
const SOON: Duration = Duration::from_secs(2);

async fn every_point_is_tested() {
    let found: BTreeSet<&str> = slicer_fault::POINTS.iter().map(|p| prefix(p)).collect();
    assert_eq!(found, BTreeSet::from(TESTED));
    // Of these the test has this one, for the commit is gone after it.
    assert_eq!(points("uncommit").collect::<Vec<_>>(), ["uncommit.renamed"]);
}

/// Starts the daemon, which must not run, so that it dies at this point of what the command has it do,
/// and starts it again. Says what the command said.
async fn dies(daemon: &mut TestDaemon, point: &str, command: &[&str]) -> CliOutput {
    daemon.launch_to_die_at(point);
    let said = daemon.cli(command).await;
    again(daemon, point).await;
    said
}

/// Waits until the daemon has died at this point, and starts it again.
async fn again(daemon: &mut TestDaemon, point: &str) {
    let before = daemon.processes();
    let status = daemon.wait_exit(LIMIT);
    assert_eq!(status.signal(), Some(9), "{point}: {status}");
    assert!(
        soon(SOON, || !before.iter().any(|pid| alive(*pid))),
        "{point}: QEMU outlives its daemon"
    );
    daemon.launch();
    // Its socket is there before it has looked around; answers come after.
    names(&daemon.client()).await;
    tidy(daemon.dir(), point);
}

/// Fails if something half-made is in the directory.
fn tidy(dir: &Path, point: &str) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let half = [".slicer-part", ".deleting", ".tmp"];
        // What an image's download has begun is gone on with.
        let kept = path.parent().is_some_and(|p| p.ends_with("oci-cache"));
        assert!(
            kept || !half.iter().any(|h| name.contains(h)),
            "{point}: {} was left over",
            path.display()
        );
        if path.is_dir() && !path.is_symlink() && !kept {
            tidy(&path, point);
        }
    }
}

async fn status(daemon: &TestDaemon, vm: &str) -> Option<NodeStatus> {
    let all = names(&daemon.client()).await;
    let found = all.into_iter().find(|(name, _)| name == vm);
    found.map(|(_, status)| status)
}

async fn ok(daemon: &TestDaemon, command: &[&str]) -> String {
    let said = daemon.cli(command).await;
    assert_eq!(said.code, 0, "{command:?}: {said:?}");
    String::from_utf8(said.stdout).unwrap()
}

async fn gone(daemon: &TestDaemon, vm: &str, point: &str) {
    assert_eq!(status(daemon, vm).await, None, "{point}");
    assert!(!daemon.has_files_of(vm), "{point}: {:?}", daemon.files());
}

async fn killed_while_launching_and_deleting() {
    let mut daemon = TestDaemon::start(&Setup::sandboxes());
    for point in points("launch") {
        daemon.crash();
        let said = dies(&mut daemon, point, &["vm", "launch", "sbox"]).await;
        assert_ne!(said.code, 0, "{point}: {said:?}");
        gone(&daemon, "sbox-1", point).await;

        // One that is kept may be there, for nobody was told that it isn't; then it is whole.
        daemon.crash();
        dies(
            &mut daemon,
            point,
            &["vm", "launch", "sbox", "--persistent"],
        )
        .await;
        match status(&daemon, "sbox-1").await {
            None => gone(&daemon, "sbox-1", point).await,
            Some(status) => {
                assert_eq!(status, NodeStatus::Stopped, "{point}");
                ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
                ok(&daemon, &["vm", "delete", "sbox-1"]).await;
                gone(&daemon, "sbox-1", point).await;
            }
        }
    }
    for point in points("delete") {
        for kept in [false, true] {
            daemon.crash();
            daemon.launch_to_die_at(point);
            let mut launch = vec!["vm", "launch", "sbox"];
            launch.extend(kept.then_some("--persistent"));
            ok(&daemon, &launch).await;
            let said = daemon.cli(&["vm", "delete", "sbox-1"]).await;
            assert_ne!(said.code, 0, "{point}: {said:?}");
            again(&mut daemon, point).await;
            if kept && status(&daemon, "sbox-1").await.is_some() {
                ok(&daemon, &["vm", "delete", "sbox-1"]).await;
            }
            gone(&daemon, "sbox-1", point).await;
        }
    }
    // Names are free.
    let made = ok(&daemon, &["vm", "launch", "sbox", "--json"]).await;
    assert!(made.contains("\"sbox-1\""), "{made}");
    daemon.stop();
}

async fn killed_while_taking_a_spare() {
    let mut daemon = TestDaemon::start(&pool::setup());
    for point in points("spare") {
        daemon.crash();
        daemon.launch_to_die_at(point);
        pool::filled(&daemon).await;
        // It may be told of the VM before it is over.
        daemon.cli(&["vm", "launch", "sbox"]).await;
        again(&mut daemon, point).await;
        gone(&daemon, "sbox-1", point).await;
    }
    // The next daemon's are its own.
    pool::filled(&daemon).await;
    assert_eq!(pool::spares(&daemon), ["sbox+1.img"]);
    daemon.terminate();
    assert_eq!(pool::spares(&daemon), Vec::<String>::new());
}

async fn killed_while_making_a_template_and_cloning() {
    let mut daemon = TestDaemon::start(&template::minimal());
    for point in points("template") {
        let (made, removed) = ("template.complete", "template.forgotten");
        if point == removed {
            // There is one, of the point before.
            daemon.crash();
            daemon.launch_to_die_at(point);
            let id = template::made(&daemon).await;
            daemon.cli(&["template", "remove", &id]).await;
        } else {
            daemon.crash();
            daemon.launch_to_die_at(point);
        }
        let before = daemon.processes();
        assert_eq!(daemon.wait_exit(BOOT).signal(), Some(9), "{point}");
        assert!(
            soon(SOON, || !before.iter().any(|pid| alive(*pid))),
            "{point}"
        );
        daemon.launch();
        names(&daemon.client()).await;
        // What is there is whole; what was half-made is gone, but for what is made now.
        let listed = daemon.client().templates().await.unwrap();
        assert_eq!(
            listed.len(),
            usize::from(point == made),
            "{point}: {listed:?}"
        );
        assert!(template::directories(&daemon).len() <= 1, "{point}");
    }
    template::made(&daemon).await;
    for point in points("clone") {
        daemon.crash();
        let before = template::checks(&daemon);
        daemon.launch_to_die_at(point);
        template::checked(&daemon, before).await;
        // It may be told of the VM before it is over.
        daemon.cli(&["vm", "launch", "sbox"]).await;
        again(&mut daemon, point).await;
        gone(&daemon, "sbox-1", point).await;
    }
    daemon.crash();
    let before = template::checks(&daemon);
    daemon.launch();
    template::checked(&daemon, before).await;
    ok(&daemon, &["vm", "launch", "sbox", "--wait"]).await;
    assert!(template::cloned(&daemon, "sbox-1"));
    daemon.stop();
}

async fn killed_while_forking_one_that_runs() {
    let mut daemon = TestDaemon::start(&Setup::sandboxes());
    ok(&daemon, &["vm", "launch", "sbox", "--persistent"]).await;
    for point in points("snapshot") {
        daemon.crash();
        daemon.launch_to_die_at(point);
        ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
        ready(&daemon.client(), "sbox-1").await;
        let write = format!("echo {point} >> ~/file; sync");
        says(&daemon.client(), "sbox-1", &write).await;
        daemon.cli(&["vm", "fork", "--live", "sbox-1"]).await;
        again(&mut daemon, point).await;
        gone(&daemon, "sbox-2", point).await;
        ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
        ready(&daemon.client(), "sbox-1").await;
        let file = says(&daemon.client(), "sbox-1", "tail -n1 ~/file").await;
        assert_eq!(file, point);
    }
    ok(&daemon, &["vm", "fork", "--live", "sbox-1", "--wait"]).await;
    for vm in ["sbox-1", "sbox-2"] {
        let lines = says(&daemon.client(), vm, "wc -l < ~/file").await;
        assert_eq!(lines, points("snapshot").count().to_string(), "{vm}");
        ok(&daemon, &["vm", "delete", vm]).await;
    }
    assert!(soon(SOON, || template::directories(&daemon).is_empty()));
    daemon.stop();
}

async fn killed_while_suspending_and_restoring() {
    let mut daemon = TestDaemon::start(&Setup::sandboxes());
    ok(&daemon, &["vm", "launch", "sbox", "--persistent", "--wait"]).await;
    says(&daemon.client(), "sbox-1", "echo precious > ~/file; sync").await;
    let state = daemon.dir().join(".slicer/suspended/sbox-1");
    for point in points("suspend") {
        daemon.crash();
        daemon.launch_to_die_at(point);
        ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
        ready(&daemon.client(), "sbox-1").await;
        says(&daemon.client(), "sbox-1", "echo here > /dev/shm/note").await;
        let said = daemon.cli(&["vm", "suspend", "sbox-1"]).await;
        assert_ne!(said.code, 0, "{point}: {said:?}");
        again(&mut daemon, point).await;
        let whole = ["suspend.saved", "suspend.ended"].contains(&point);
        let expected = if whole {
            NodeStatus::Suspended
        } else {
            NodeStatus::Stopped
        };
        assert_eq!(status(&daemon, "sbox-1").await, Some(expected), "{point}");
        assert_eq!(state.exists(), whole, "{point}");
        if whole {
            ok(&daemon, &["vm", "restore", "sbox-1"]).await;
            let note = says(&daemon.client(), "sbox-1", "cat /dev/shm/note").await;
            assert_eq!(note, "here", "{point}");
        }
    }
    for point in points("restore") {
        if status(&daemon, "sbox-1").await == Some(NodeStatus::Stopped) {
            ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
            ready(&daemon.client(), "sbox-1").await;
        }
        says(&daemon.client(), "sbox-1", "echo here > /dev/shm/note").await;
        ok(&daemon, &["vm", "suspend", "sbox-1"]).await;
        daemon.crash();
        let said = dies(&mut daemon, point, &["vm", "restore", "sbox-1"]).await;
        assert_ne!(said.code, 0, "{point}: {said:?}");
        match status(&daemon, "sbox-1").await {
            Some(NodeStatus::Suspended) => {
                ok(&daemon, &["vm", "restore", "sbox-1"]).await;
                let note = sh(&daemon.client(), "sbox-1", "cat /dev/shm/note").await;
                // Once it ran, it may have written to its disk, and the state is true no more.
                assert!(note.exit_code == 0 || point != "restore.checked", "{point}");
            }
            Some(NodeStatus::Stopped) => assert_eq!(point, "restore.forgotten"),
            other => panic!("{point}: {other:?}"),
        }
    }
    if status(&daemon, "sbox-1").await == Some(NodeStatus::Stopped) {
        ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
    }
    ready(&daemon.client(), "sbox-1").await;
    let file = says(&daemon.client(), "sbox-1", "cat ~/file").await;
    assert_eq!(file, "precious");
    ok(&daemon, &["vm", "delete", "sbox-1"]).await;
    gone(&daemon, "sbox-1", "at last").await;
    daemon.stop();
}

/// Whether two files in this directory can share their blocks.
fn shares_blocks(dir: &Path) -> bool {
    let (from, to) = (dir.join("slicer-mac.yaml"), dir.join("reflink"));
    let mut cp = std::process::Command::new("cp");
    let done = cp.arg("--reflink=always").args([&from, &to]).output();
    let _ = fs::remove_file(to);
    done.unwrap().status.success()
}

async fn killed_while_committing_and_forking() {
    let mut daemon = TestDaemon::start(&Setup::sandboxes());
    ok(&daemon, &["vm", "launch", "sbox", "--persistent", "--wait"]).await;
    says(&daemon.client(), "sbox-1", "echo precious > ~/file; sync").await;
    let commits = async |daemon: &TestDaemon| {
        let all = daemon.client().commits(&CommitFilter::default()).await;
        all.unwrap()
            .into_iter()
            .map(|c| c.commit_id)
            .collect::<Vec<_>>()
    };
    let reflinks = shares_blocks(daemon.dir());
    for point in points("commit") {
        if reflinks && OVERLAY.contains(&point) {
            continue;
        }
        daemon.crash();
        dies(&mut daemon, point, &["vm", "commit", "sbox-1"]).await;
        let found = commits(&daemon).await.len();
        assert_eq!(found, usize::from(point == "commit.saved"), "{point}");
        let left = fs::read_dir(daemon.dir().join(".slicer/commits")).unwrap();
        assert_eq!(left.count(), found, "{point}");
        assert_eq!(
            status(&daemon, "sbox-1").await,
            Some(NodeStatus::Stopped),
            "{point}"
        );
        // Its disk is one it can run on.
        ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
    }
    daemon.crash();
    daemon.launch();
    let id = commits(&daemon).await.remove(0);
    for point in points("fork") {
        daemon.crash();
        dies(&mut daemon, point, &["vm", "fork", &id]).await;
        if status(&daemon, "sbox-2").await.is_some() {
            ok(&daemon, &["vm", "delete", "sbox-2"]).await;
        }
        gone(&daemon, "sbox-2", point).await;
    }
    // It was made of a VM that was cut off, and of one that is off: both are sane.
    ok(&daemon, &["vm", "relaunch", "sbox-1"]).await;
    ready(&daemon.client(), "sbox-1").await;
    let file = says(&daemon.client(), "sbox-1", "cat ~/file").await;
    assert_eq!(file, "precious");
    ok(&daemon, &["vm", "delete", "sbox-1"]).await;

    daemon.crash();
    let remove = ["vm", "commit", "delete", &id];
    let said = dies(&mut daemon, "uncommit.renamed", &remove).await;
    assert_ne!(said.code, 0, "{said:?}");
    assert_eq!(commits(&daemon).await.len(), 0);
    let left = fs::read_dir(daemon.dir().join(".slicer/commits")).unwrap();
    assert_eq!(left.count(), 0);
    daemon.stop();
}

async fn killed_while_pulling_and_building() {
    let registry = Registry::start(None).await;
    let layers = [Layer::of(200_000, 1), Layer::of(100_000, 2)];
    let arch = slicer_api::go_arch(std::env::consts::ARCH);
    registry.push("some/image:1", &[arch], &layers).await;
    let name = registry.name("some/image:1");
    let pull = ["image", "pull", &name, "--insecure"];
    let mut daemon = TestDaemon::start(&Setup::sandboxes());
    for point in points("pull") {
        daemon.crash();
        let said = dies(&mut daemon, point, &pull).await;
        assert_ne!(said.code, 0, "{point}: {said:?}");
        let listed = ok(&daemon, &["image", "list"]).await;
        assert_eq!(
            listed.contains("some/image"),
            point == "pull.indexed",
            "{point}: {listed}"
        );
        ok(&daemon, &pull).await;
        ok(&daemon, &["image", "remove", &name]).await;
        let blobs = fs::read_dir(daemon.dir().join("oci-cache/blobs/sha256")).unwrap();
        assert_eq!(blobs.count(), 0, "{point}");
    }

    for point in points("base") {
        daemon.crash();
        for entry in fs::read_dir(daemon.dir().join(".slicer/bases")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for name in daemon.files().iter().filter(|n| n.contains("-base.img")) {
            fs::remove_file(daemon.dir().join(name)).unwrap();
        }
        daemon.launch_to_die_at(point);
        again(&mut daemon, point).await;
        ok(&daemon, &["vm", "launch", "sbox"]).await;
        ok(&daemon, &["vm", "delete", "sbox-1"]).await;
        tidy(daemon.dir(), point);
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_exit(LIMIT).success());
}
