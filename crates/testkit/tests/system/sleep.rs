//! VMs of a host that goes to sleep and wakes up.

use crate::lifecycle::{names, ready};
use crate::suspend::{clock_is_right, remember, remembers};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::NodeStatus::{Running, Stopped, Suspended};
use slicer_api::{CreateNode, ExecRequest, NodeStatus, Wait};
use slicer_client::Client;
use slicer_testkit::{BOOT, Group, LIMIT, Logind, SBOX, Setup, TestDaemon, wait_until};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("sleep": vms_sleep_and_wake_with_the_host, a_host_that_never_sleeps)
}

async fn launch(client: &Client, group: &str, persistent: bool) -> String {
    let request = CreateNode {
        persistent,
        ..CreateNode::default()
    };
    let made = client.create_node(group, &request, Some(Wait::Agent), Some(BOOT));
    made.await.unwrap().hostname
}

/// Waits until the daemon holds this many locks that delay sleep and that prevent it.
async fn locks(logind: &Logind, delay: usize, block: usize) {
    let what = format!("{delay} delays and {block} blocks are held");
    wait_until(&what, BOOT, async || {
        (logind.count("delay"), logind.count("block")) == (delay, block)
    })
    .await;
}

/// KiB that a guest has still to write to its disks.
async fn unwritten(client: &Client, vm: &str) -> u64 {
    let kib = says(client, vm, "awk '/^Dirty:/ {print $2}' /proc/meminfo").await;
    kib.parse().unwrap()
}

async fn vms_sleep_and_wake_with_the_host() {
    let logind = Logind::start(BOOT);
    let group = |name, sleep_action| Group {
        name,
        sleep_action,
        ..SBOX
    };
    let mut setup = Setup::of([
        group("sbox", "suspend"),
        group("ends", "shutdown"),
        group("stays", "prevent"),
    ]);
    let bus = ("DBUS_SYSTEM_BUS_ADDRESS", logind.address());
    setup.env.push(bus);
    let mut daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    locks(&logind, 1, 0).await;
    let (_, _, kept, _) = tokio::join!(
        launch(&client, "sbox", false),
        launch(&client, "ends", false),
        launch(&client, "ends", true),
        launch(&client, "stays", false),
    );
    locks(&logind, 1, 1).await;
    remember(&client, "sbox-1").await;
    let sleeper = ExecRequest {
        cmd: "sleep".into(),
        args: vec!["1000".into()],
        ..ExecRequest::default()
    };
    let sleeper = client.start_background("sbox-1", &sleeper).await.unwrap();
    // As after a sleep of hours.
    says(&client, "stays-1", "sudo date -s '-2 hours'").await;
    let write = "head -c 16M /dev/zero > ~/written";
    says(&client, "stays-1", write).await;
    assert!(unwritten(&client, "stays-1").await > 8 << 10);

    logind.sleep();
    locks(&logind, 0, 1).await;
    // At that very moment, not soon after.
    let vms = |sandbox: NodeStatus| {
        let vms = [("sbox-1", sandbox), (&kept, Stopped), ("stays-1", Running)];
        vms.map(|(name, status)| (name.to_owned(), status))
    };
    assert_eq!(names(&client).await, vms(Suspended));
    assert_eq!(daemon.processes().len(), 1, "{}", daemon.log());
    let kib = unwritten(&client, "stays-1").await;
    assert!(kib < 4 << 10, "{kib} KiB are only in its memory");

    logind.wake();
    locks(&logind, 1, 1).await;
    wait_until("its clock is set", LIMIT, async || {
        let guest: u64 = says(&client, "stays-1", "date +%s").await.parse().unwrap();
        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        guest + 60 > host.as_secs()
    })
    .await;
    clock_is_right(&client, "stays-1").await;
    ready(&client, "sbox-1").await;
    clock_is_right(&client, "sbox-1").await;
    remembers(&client, "sbox-1").await;
    let info = client.background_exec("sbox-1", &sleeper.exec_id).await;
    assert!(info.unwrap().running);
    assert_eq!(names(&client).await, vms(Running));
    client.delete_node("stays", "stays-1").await.unwrap();
    locks(&logind, 1, 0).await;

    // The next daemon wakes what it finds asleep.
    logind.sleep();
    locks(&logind, 0, 0).await;
    daemon.crash();
    drop(client);
    daemon.launch();
    let client = daemon.client();
    ready(&client, "sbox-1").await;
    remembers(&client, "sbox-1").await;
    locks(&logind, 1, 0).await;
    drop(client);
    daemon.stop();
    locks(&logind, 0, 0).await;
}

async fn a_host_that_never_sleeps() {
    let daemon = TestDaemon::start_printed();
    let said = "sleep_action has no effect";
    wait_until("that is told", LIMIT, async || daemon.log().contains(said)).await;
    let client = daemon.client();
    ready(&client, "slicer-1").await;
    assert_eq!(daemon.log().matches(said).count(), 1);
    assert_eq!(daemon.log().matches("WARN").count(), 1, "{}", daemon.log());
    drop(client);
    daemon.stop();
}
