//! The daemon's orderly end, and what is there afterwards.

use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, NodeStatus, Wait};
use slicer_client::{Client, NodeFilter};
use slicer_testkit::{BOOT, Group, LIMIT, SLICER, Setup, Signal, TestDaemon, wait_until};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("lifecycle": an_orderly_end_and_a_new_start, a_second_signal_switches_off)
}

/// Launches a sandbox and waits until it is ready; gives its name.
pub(crate) async fn launch(client: &Client, request: &CreateNode) -> String {
    let vm = client
        .create_node("sbox", request, Some(Wait::Agent), Some(BOOT))
        .await;
    vm.unwrap().hostname
}

/// Launches an ordinary sandbox and waits until it is ready; gives its name.
pub(crate) async fn sandbox(client: &Client) -> String {
    launch(client, &CreateNode::default()).await
}

/// Waits until a VM answers.
pub(crate) async fn ready(client: &Client, vm: &str) {
    wait_until(&format!("{vm} is ready"), BOOT, async || {
        client.health(vm).await.is_ok()
    })
    .await;
}

/// Fails unless e2fsck finds nothing to mend on a raw disk.
pub(crate) fn check_disk(disk: &Path) {
    let fsck = ["/usr/sbin/e2fsck", "/sbin/e2fsck"];
    let fsck = fsck.iter().find(|p| Path::new(p).exists()).unwrap();
    let done = Command::new(fsck).arg("-fn").arg(disk).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{}: {said}", disk.display());
    assert!(!said.contains("recovering journal"), "{said}");
    let header = Command::new("debugfs")
        .args(["-R", "show_super_stats -h"])
        .arg(disk)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let header = String::from_utf8_lossy(&header.stdout).into_owned();
    let features = header
        .lines()
        .find(|l| l.starts_with("Filesystem features"));
    assert!(!features.unwrap().contains("needs_recovery"), "{header}");
}

pub(crate) async fn names(client: &Client) -> Vec<(String, NodeStatus)> {
    let nodes = client.nodes(&NodeFilter::default()).await.unwrap();
    nodes.into_iter().map(|n| (n.hostname, n.status)).collect()
}

async fn an_orderly_end_and_a_new_start() {
    let mut daemon = TestDaemon::start(&Setup::full());
    let client = daemon.client();
    let kept = CreateNode {
        persistent: true,
        tags: vec!["name=kept".into()],
        ..CreateNode::default()
    };
    let (throwaway, kept, ()) = tokio::join!(
        sandbox(&client),
        launch(&client, &kept),
        ready(&client, "slicer-1"),
    );
    for vm in ["slicer-1", &kept] {
        says(&client, vm, "echo precious > ~/file").await;
    }
    let before = client.node("slicer-1").await.unwrap().node;
    let id = says(&client, "slicer-1", "cat /etc/machine-id").await;
    drop(client);
    daemon.terminate();

    assert!(daemon.processes().is_empty());
    assert!(!daemon.dir().join("slicer.sock").exists());
    assert!(!daemon.has_files_of(&throwaway), "{:?}", daemon.files());
    for vm in ["slicer-1", &kept] {
        check_disk(&daemon.dir().join(format!("{vm}.img")));
    }
    assert!(!daemon.log().contains("switching"), "{}", daemon.log());

    daemon.launch();
    let client = daemon.client();
    // What the configuration declares is launched, what the API made waits for a relaunch.
    assert_eq!(
        names(&client).await,
        [
            ("slicer-1".to_owned(), NodeStatus::Running),
            (kept.clone(), NodeStatus::Stopped)
        ]
    );
    let relaunched = daemon.raw().post(&format!("/vm/{kept}/relaunch"), "").await;
    assert_eq!(relaunched.status, 200, "{}", relaunched.text());
    assert_eq!(relaunched.json()["hostname"], *kept);
    for vm in ["slicer-1", &kept] {
        ready(&client, vm).await;
        assert_eq!(says(&client, vm, "cat ~/file").await, "precious");
    }
    assert_eq!(says(&client, "slicer-1", "cat /etc/machine-id").await, id);
    let after = client.node("slicer-1").await.unwrap().node;
    assert_eq!((after.ip, after.created_at), (before.ip, before.created_at));
    let again = daemon.raw().post(&format!("/vm/{kept}/relaunch"), "").await;
    assert_eq!(again.status, 409, "{}", again.text());
    client.delete_node("sbox", &kept).await.unwrap();
    assert!(!daemon.has_files_of(&kept), "{:?}", daemon.files());
    drop(client);
    daemon.stop();
}

async fn a_second_signal_switches_off() {
    // Big enough to still be booting, too, for whom a polite request takes longest.
    let mut daemon = TestDaemon::start(&Setup::of([Group { count: 2, ..SLICER }]));
    let client = daemon.client();
    ready(&client, "slicer-1").await;
    // A guest that takes its time.
    let unit = "sudo systemd-run --unit=slow -p ExecStop='/bin/sleep 80' -p TimeoutStopSec=85 \
                sleep infinity";
    says(&client, "slicer-1", unit).await;
    drop(client);
    daemon.signal(Signal::TERM);
    wait_until("the guest is shutting down", LIMIT, async || {
        daemon.log().contains("once more")
    })
    .await;
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    let status = daemon.wait_exit(Duration::from_secs(30));
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(daemon.processes().is_empty());
    assert!(!daemon.dir().join("slicer.sock").exists());
}
