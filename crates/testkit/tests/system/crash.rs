//! Ends nobody asked for: of the daemon, and of a VM's process.

use crate::lifecycle::{names, ready, sandbox};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::NodeStatus;
use slicer_testkit::{
    Group, SBOX, SLICER, Setup, Signal, TestDaemon, alive, send_signal, soon, wait_until,
};
use std::fs;
use std::time::Duration;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("crash": a_killed_daemon_leaves_nothing_behind, a_killed_vm_is_told,
        a_daemon_killed_while_launching)
}

/// Within this, processes and records are gone.
const SOON: Duration = Duration::from_secs(2);
/// Within this, a VM whose process was killed is told to be off.
const TOLD: Duration = Duration::from_secs(1);

async fn a_killed_daemon_leaves_nothing_behind() {
    let mut daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    let (throwaway, ()) = tokio::join!(sandbox(&client), ready(&client, "slicer-1"),);
    // What is synced is there after any crash.
    says(&client, "slicer-1", "echo precious > ~/file; sync ~/file").await;
    let pids = daemon.processes();
    assert_eq!(pids.len(), 2, "{pids:?}");
    drop(client);
    daemon.crash();
    assert!(
        soon(SOON, || !pids.iter().any(|pid| alive(*pid))),
        "QEMU outlives its daemon"
    );
    assert!(daemon.dir().join(format!("{throwaway}.img")).exists());

    daemon.launch();
    let client = daemon.client();
    assert_eq!(
        names(&client).await,
        [("slicer-1".to_owned(), NodeStatus::Running)]
    );
    assert!(!daemon.has_files_of(&throwaway), "{:?}", daemon.files());
    ready(&client, "slicer-1").await;
    assert_eq!(says(&client, "slicer-1", "cat ~/file").await, "precious");
    drop(client);
    daemon.stop();
}

async fn a_killed_vm_is_told() {
    let mut daemon = TestDaemon::start(&Setup::of([SLICER, SBOX]));
    let client = daemon.client();
    let (throwaway, ()) = tokio::join!(sandbox(&client), ready(&client, "slicer-1"),);
    let state = async |vm: &str| {
        let all = names(&client).await;
        all.into_iter()
            .find(|(name, _)| name == vm)
            .map(|(_, status)| status)
    };
    send_signal(daemon.process_of(&throwaway).unwrap(), Signal::KILL);
    wait_until("the sandbox is gone", TOLD, async || {
        state(&throwaway).await.is_none()
    })
    .await;
    assert!(!daemon.has_files_of(&throwaway), "{:?}", daemon.files());
    assert_eq!(state("slicer-1").await, Some(NodeStatus::Running));

    // What is kept is listed as stopped, and comes back with all that was synced, though it was
    // killed in the middle of writing.
    let write = "mkdir ~/files; for i in $(seq 100); do echo $i > ~/files/$i; done; sync; \
                 nohup sh -c 'while :; do for i in $(seq 200); do echo more > ~/files/more$i; done; \
                 sync; rm ~/files/more*; done' > /dev/null 2>&1 & \
                 until [ -e ~/files/more100 ]; do sleep 0.01; done";
    says(&client, "slicer-1", write).await;
    send_signal(daemon.process_of("slicer-1").unwrap(), Signal::KILL);
    wait_until("slicer-1 is stopped", TOLD, async || {
        state("slicer-1").await == Some(NodeStatus::Stopped)
    })
    .await;
    let exec = daemon.raw().post("/vm/slicer-1/exec?cmd=true", "").await;
    assert_eq!(exec.status, 409, "{}", exec.text());
    // It tells how far it had come, and what was last on its console.
    let report = exec.text();
    assert!(
        report.contains("(signal: 9 (SIGKILL))") && report.contains(", while it was running"),
        "{report}"
    );
    assert!(report.contains("; console: "), "{report}");
    assert_eq!(
        daemon.raw().post("/vm/slicer-1/relaunch", "").await.status,
        200
    );
    ready(&client, "slicer-1").await;
    let written = "for i in $(seq 100); do [ \"$(cat ~/files/$i)\" = $i ] || echo $i; done; \
                   sudo dmesg | grep -o 'recovery complete'";
    assert_eq!(
        says(&client, "slicer-1", written).await,
        "recovery complete"
    );
    let disk = daemon.dir().join("slicer-1.img");
    drop(client);
    daemon.terminate();
    crate::lifecycle::check_disk(&disk);
}

async fn a_daemon_killed_while_launching() {
    // Killed at moments spread over a launch, it always comes back with a clean house.
    let groups = [
        Group { count: 0, ..SLICER },
        Group {
            ram_mb: 256,
            ..SBOX
        },
    ];
    let mut daemon = TestDaemon::start(&Setup::of(groups));
    for delay in [0, 3, 10, 30, 100, 400] {
        let raw = daemon.raw();
        let launching = tokio::spawn(async move {
            let body = r#"{"persistent":true}"#;
            tokio::join!(
                raw.post("/hostgroup/sbox/nodes", body),
                raw.post("/hostgroup/sbox/nodes", "{}"),
            )
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let pids = daemon.processes();
        daemon.crash();
        launching.abort();
        assert!(soon(SOON, || !pids.iter().any(|pid| alive(*pid))));
        daemon.launch();
        let client = daemon.client();
        for (vm, status) in names(&client).await {
            // The persistent one, if it was acknowledged or about to be.
            assert_eq!(status, NodeStatus::Stopped, "{vm} after {delay} ms");
            client.delete_node("sbox", &vm).await.unwrap();
        }
        let left: Vec<String> = daemon
            .files()
            .into_iter()
            .filter(|f| f.contains(".img") && !f.contains("-base.img"))
            .collect();
        assert!(left.is_empty(), "{left:?} after {delay} ms");
        assert_eq!(
            fs::read_dir(daemon.dir().join(".slicer/vms"))
                .unwrap()
                .count(),
            0
        );
    }
    daemon.stop();
}
