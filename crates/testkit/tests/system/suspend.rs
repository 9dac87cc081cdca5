//! VMs that are written to disk and run on later, whatever became of their daemon.

use crate::lifecycle::{names, ready, sandbox};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{ExecRequest, FrameType, NodeStatus};
use slicer_client::Client;
use slicer_testkit::{BOOT, LIMIT, Setup, TestDaemon, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("suspend": a_suspended_vm_runs_on, suspended_with_the_daemon,
        a_worthless_state_is_given_up)
}

/// How far a guest's clock may be off.
const CLOCK: Duration = Duration::from_millis(100);

async fn status(client: &Client, vm: &str) -> Option<NodeStatus> {
    let all = names(client).await;
    let found = all.into_iter().find(|(name, _)| name == vm);
    found.map(|(_, status)| status)
}

/// Something that is in the guest's memory alone.
pub(crate) async fn remember(client: &Client, vm: &str) {
    says(client, vm, "echo remembered > /dev/shm/note").await;
}

pub(crate) async fn remembers(client: &Client, vm: &str) {
    assert_eq!(says(client, vm, "cat /dev/shm/note").await, "remembered");
}

pub(crate) async fn clock_is_right(client: &Client, vm: &str) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now();
    let said = says(client, vm, "date +%s%N").await;
    let after = now();
    let guest = Duration::from_nanos(said.parse().unwrap());
    assert!(
        guest + CLOCK >= before && guest <= after + CLOCK,
        "the guest has {guest:?}, the host had {before:?} to {after:?}"
    );
}

async fn a_suspended_vm_runs_on() {
    let daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    ready(&client, "slicer-1").await;
    remember(&client, "slicer-1").await;
    let sleeper = ExecRequest {
        cmd: "sleep".into(),
        args: vec!["1000".into()],
        ..ExecRequest::default()
    };
    let kept = client.start_background("slicer-1", &sleeper).await.unwrap();
    let mut dropped = client.exec("slicer-1", &sleeper, None).await.unwrap();
    let first = dropped.next_frame().await.unwrap().unwrap();
    assert_eq!(first.kind, Some(FrameType::Started));

    let said = daemon.cli(&["vm", "suspend", "slicer-1"]).await;
    assert_eq!(said.text(), "VM suspended: slicer-1\n");
    // All of it is on disk, and of nobody's business.
    assert!(daemon.processes().is_empty());
    let dir = daemon.dir().join(".slicer/suspended/slicer-1");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.clone()), 0o700);
    assert_eq!(mode(dir.join("memory")), 0o600);
    let ended = tokio::time::timeout(LIMIT, dropped.next_frame()).await;
    assert!(
        !matches!(ended.unwrap(), Some(Ok(_))),
        "a stream outlived its VM"
    );
    assert_eq!(
        status(&client, "slicer-1").await,
        Some(NodeStatus::Suspended)
    );
    for path in ["exec?cmd=true", "pause", "resume", "relaunch"] {
        let answer = daemon.raw().post(&format!("/vm/slicer-1/{path}"), "").await;
        assert_eq!(answer.status, 409, "{path}: {}", answer.text());
        assert!(answer.text().contains("suspended"), "{}", answer.text());
    }
    // What is so already is no error.
    assert_eq!(
        daemon.raw().post("/vm/slicer-1/suspend", "").await.status,
        200
    );

    let said = daemon.cli(&["vm", "restore", "slicer-1"]).await;
    assert_eq!(said.text(), "VM restored: slicer-1\n");
    clock_is_right(&client, "slicer-1").await;
    remembers(&client, "slicer-1").await;
    let info = client.background_exec("slicer-1", &kept.exec_id).await;
    assert!(info.unwrap().running);
    let address = says(&client, "slicer-1", "ip -4 -o address; ip route").await;
    assert!(
        address.contains("192.168.64.2/24") && address.contains("default via"),
        "{address}"
    );
    assert!(!dir.exists());
    let answer = daemon.raw().post("/vm/slicer-1/restore", "").await;
    assert_eq!(answer.status, 409, "{}", answer.text());

    // Back to back, and of a VM that is paused.
    assert_eq!(
        daemon.raw().post("/vm/slicer-1/pause", "").await.status,
        200
    );
    for (action, said) in [
        ("suspend", "VM suspended\n"),
        ("restore?wait=agent", "VM restored\n"),
    ] {
        let answer = daemon
            .raw()
            .post(&format!("/vm/slicer-1/{action}"), "")
            .await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.text(), said);
    }
    remembers(&client, "slicer-1").await;

    // A sandbox that is shut down in its sleep is gone.
    let vm = sandbox(&client).await;
    assert_eq!(daemon.cli(&["vm", "suspend", &vm]).await.code, 0);
    assert_eq!(daemon.cli(&["vm", "shutdown", &vm]).await.code, 0);
    assert_eq!(status(&client, &vm).await, None);
    assert!(!daemon.has_files_of(&vm), "{:?}", daemon.files());
    let left = fs::read_dir(daemon.dir().join(".slicer/suspended")).unwrap();
    assert_eq!(left.count(), 0);
    drop(client);
    daemon.stop();
}

async fn suspended_with_the_daemon() {
    let mut daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    let (vm, ()) = tokio::join!(sandbox(&client), ready(&client, "slicer-1"));
    for vm in ["slicer-1", &vm] {
        remember(&client, vm).await;
        assert_eq!(daemon.cli(&["vm", "suspend", vm]).await.code, 0);
    }
    drop(client);
    daemon.crash();
    daemon.launch_with(&["--suspend-on-shutdown"]);
    let client = daemon.client();
    // What the configuration declares runs; the other waits for whoever suspended it.
    ready(&client, "slicer-1").await;
    remembers(&client, "slicer-1").await;
    assert_eq!(status(&client, &vm).await, Some(NodeStatus::Suspended));
    assert_eq!(daemon.cli(&["vm", "restore", &vm]).await.code, 0);
    remembers(&client, &vm).await;

    drop(client);
    daemon.terminate();
    assert!(daemon.processes().is_empty());
    daemon.launch();
    let client = daemon.client();
    for vm in ["slicer-1", &vm] {
        ready(&client, vm).await;
        remembers(&client, vm).await;
        clock_is_right(&client, vm).await;
    }
    drop(client);
    daemon.stop();
}

async fn a_worthless_state_is_given_up() {
    let daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    ready(&client, "slicer-1").await;
    says(&client, "slicer-1", "echo precious > ~/file").await;
    let memory = daemon.dir().join(".slicer/suspended/slicer-1/memory");
    let disk = daemon.dir().join("slicer-1.img");
    let touch = || {
        let file = File::options().write(true).open(&disk).unwrap();
        file.set_modified(SystemTime::now()).unwrap();
    };
    let cut = || {
        let file = File::options().write(true).open(&memory).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    let ruin: [(&dyn Fn(), &str); 2] = [(&touch, "slicer-1.img was changed since"), (&cut, "load")];
    for (ruin, why) in ruin {
        remember(&client, "slicer-1").await;
        assert_eq!(daemon.cli(&["vm", "suspend", "slicer-1"]).await.code, 0);
        ruin();
        let said = daemon.cli(&["vm", "restore", "slicer-1"]).await;
        assert_eq!(said.code, 0, "{said:?}");
        let text = said.stderr;
        assert!(
            text.contains("could not be restored and was booted from its disk")
                && text.contains(why),
            "{text}"
        );
        // Nothing of the disk is lost.
        assert_eq!(says(&client, "slicer-1", "cat ~/file").await, "precious");
        let gone = crate::tour::sh(&client, "slicer-1", "cat /dev/shm/note").await;
        assert_ne!(gone.exit_code, 0, "{gone:?}");
        wait_until("its state is gone", BOOT, async || !memory.exists()).await;
    }
    drop(client);
    daemon.stop();
}
