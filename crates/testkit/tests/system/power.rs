//! Guests that power off by themselves, or when asked.

use crate::lifecycle::{names, ready, sandbox};
use crate::tests;
use crate::tour::{says, sh};
use libtest_mimic::Trial;
use slicer_api::{NodeStatus, ShutdownAction};
use slicer_testkit::{BOOT, LIMIT, Setup, TestDaemon, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("power": guests_that_go_by_themselves, a_shutdown_and_a_relaunch_at_once,
        a_guest_whose_agent_hangs)
}

async fn guests_that_go_by_themselves() {
    let daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    let (throwaway, ()) = tokio::join!(sandbox(&client), ready(&client, "slicer-1"),);
    says(&client, "slicer-1", "echo precious > ~/file").await;
    let power_off = async |vm: &str, how: &str| {
        // Whether the answer still gets out is up to the guest.
        let script = format!("sudo systemd-run --no-block {how}");
        sh(&client, vm, &script).await
    };
    power_off(&throwaway, "poweroff").await;
    power_off("slicer-1", "poweroff").await;
    let state = async |vm: &str| {
        let all = names(&client).await;
        all.into_iter()
            .find(|(name, _)| name == vm)
            .map(|(_, status)| status)
    };
    wait_until("the sandbox is gone", BOOT, async || {
        state(&throwaway).await.is_none()
    })
    .await;
    assert!(!daemon.has_files_of(&throwaway), "{:?}", daemon.files());
    let stopped = async || state("slicer-1").await == Some(NodeStatus::Stopped);
    wait_until("slicer-1 is stopped", BOOT, stopped).await;
    assert!(daemon.processes().is_empty());
    crate::lifecycle::check_disk(&daemon.dir().join("slicer-1.img"));
    assert!(daemon.client().logs("slicer-1", None).await.is_ok());

    let said = daemon.cli(&["vm", "relaunch", "slicer-1"]).await;
    assert_eq!(said.text(), "VM relaunched: slicer-1\n");
    ready(&client, "slicer-1").await;
    assert_eq!(says(&client, "slicer-1", "cat ~/file").await, "precious");

    // A reboot ends a VM, too, and so does a panic, which is told.
    power_off("slicer-1", "reboot").await;
    wait_until("slicer-1 is stopped again", BOOT, stopped).await;
    let why = daemon.cli(&["vm", "exec", "slicer-1", "true"]).await;
    assert!(
        why.stderr.contains("is stopped: relaunch it first"),
        "{why:?}"
    );
    client.relaunch("slicer-1").await.unwrap();
    ready(&client, "slicer-1").await;
    power_off("slicer-1", "sh -c 'echo c > /proc/sysrq-trigger'").await;
    wait_until("slicer-1 is stopped by its panic", BOOT, stopped).await;
    let why = daemon.cli(&["vm", "exec", "slicer-1", "true"]).await;
    let said = "its kernel panicked, while it was running: sysrq triggered crash";
    assert!(why.stderr.contains(said), "{why:?}");
    drop(client);
    daemon.stop();
}

async fn a_shutdown_and_a_relaunch_at_once() {
    let daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    ready(&client, "slicer-1").await;
    says(&client, "slicer-1", "echo precious > ~/file").await;
    let boot = says(&client, "slicer-1", "cat /proc/sys/kernel/random/boot_id").await;
    client
        .shutdown("slicer-1", ShutdownAction::Shutdown)
        .await
        .unwrap();
    // The VM is still going down: a relaunch waits for that.
    let answer = daemon.raw().post("/vm/slicer-1/relaunch", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    ready(&client, "slicer-1").await;
    assert_eq!(says(&client, "slicer-1", "cat ~/file").await, "precious");
    assert_ne!(
        says(&client, "slicer-1", "cat /proc/sys/kernel/random/boot_id").await,
        boot
    );
    drop(client);
    daemon.stop();
}

async fn a_guest_whose_agent_hangs() {
    let daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    ready(&client, "slicer-1").await;
    says(&client, "slicer-1", "echo precious > ~/file").await;
    // Once its answer is out.
    let stop = "sudo systemd-run --no-block sh -c 'sleep 1; pkill -STOP -x slicer-agent'";
    says(&client, "slicer-1", stop).await;
    wait_until("the agent says nothing", LIMIT, async || {
        client.health("slicer-1").await.is_err()
    })
    .await;
    let asked = client.shutdown("slicer-1", ShutdownAction::Shutdown).await;
    asked.unwrap();
    wait_until("slicer-1 is stopped", BOOT, async || {
        names(&client).await[0].1 == NodeStatus::Stopped
    })
    .await;
    // The power button did it, and the guest ended in good order.
    let log = daemon.log();
    assert!(
        log.contains("pressing the button") && !log.contains("switching it off"),
        "{log}"
    );
    crate::lifecycle::check_disk(&daemon.dir().join("slicer-1.img"));
    drop(client);
    daemon.stop();
}
