//! VMs that were booted ahead.

use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, Wait};
use slicer_client::{Client, NodeFilter};
use slicer_testkit::{BOOT, LIMIT, Setup, TestDaemon, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("pool": launches_take_what_was_booted_ahead)
}

/// Sandboxes, of which one is booted ahead.
pub(crate) fn setup() -> Setup {
    let mut setup = Setup::sandboxes();
    setup.group = "      warm_pool: 1\n".into();
    setup
}

/// The disks of spares.
pub(crate) fn spares(daemon: &TestDaemon) -> Vec<String> {
    let mut names = daemon.files();
    names.retain(|f| f.contains('+'));
    names
}

/// Waits until there is a spare.
pub(crate) async fn filled(daemon: &TestDaemon) {
    wait_until("a spare is there", BOOT, async || {
        let metrics = daemon.raw().get("/metrics").await.text();
        metrics.contains("slicer_warm_pool_vms{host_group=\"sbox\"} 1\n")
    })
    .await;
}

async fn launch(client: &Client, node: &CreateNode) -> String {
    let made = client.create_node("sbox", node, Some(Wait::Userdata), Some(BOOT));
    made.await.unwrap().hostname
}

/// Whether the VM was booted for itself, by what the daemon says of its machine.
fn booted(daemon: &TestDaemon, vm: &str) -> bool {
    daemon.log().contains(&format!("{vm}: launched in"))
}

async fn launches_take_what_was_booted_ahead() {
    let mut daemon = TestDaemon::start(&setup());
    let client = daemon.client();
    let create = ["secret", "create", "key", "--from-literal", "sesame"];
    assert_eq!(daemon.cli(&create).await.code, 0);
    filled(&daemon).await;
    // Nobody sees a spare.
    assert!(
        client
            .nodes(&NodeFilter::default())
            .await
            .unwrap()
            .is_empty()
    );

    let node = CreateNode {
        userdata: "hostname > /root/told; cat /run/slicer/secrets/key >> /root/told".into(),
        tags: vec!["name=warm".into()],
        ..CreateNode::default()
    };
    let first = launch(&client, &node).await;
    assert_eq!(first, "sbox-1");
    assert!(!booted(&daemon, &first));
    assert_eq!(
        says(&client, &first, "sudo cat /root/told").await,
        "sbox-1\nsesame"
    );
    let ip = client.node(&first).await.unwrap().node.ip;
    let own = says(&client, &first, "hostname -I").await;
    assert_eq!(own.trim(), ip);
    assert!(daemon.has_files_of(&first));

    // Another machine is booted, though there is a spare.
    filled(&daemon).await;
    let other = CreateNode {
        ram_bytes: 384 << 20,
        ..CreateNode::default()
    };
    let second = launch(&client, &other).await;
    assert!(booted(&daemon, &second));
    let third = launch(&client, &CreateNode::default()).await;
    assert!(!booted(&daemon, &third));
    let mut seen = Vec::new();
    for vm in [&first, &second, &third] {
        let script = "cat /etc/machine-id /proc/sys/kernel/random/boot_id /etc/hostname; \
                      head -c 16 /dev/urandom | od -An -tx1; hostname -I; cat /sys/class/net/e*/address";
        let said = says(&client, vm, script).await;
        seen.extend(said.lines().map(|l| l.trim().to_owned()));
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "{seen:?}");

    // It is a VM as any other.
    says(&client, &first, "echo here > /dev/shm/x").await;
    client.suspend(&first).await.unwrap();
    client.restore(&first, BOOT).await.unwrap();
    assert_eq!(says(&client, &first, "cat /dev/shm/x").await, "here");
    client.delete_node("sbox", &third).await.unwrap();
    assert!(!daemon.has_files_of(&third));

    // A daemon that dies leaves spares, which the next one removes.
    filled(&daemon).await;
    assert_eq!(spares(&daemon).len(), 1, "{:?}", spares(&daemon));
    daemon.crash();
    daemon.launch();
    let client = daemon.client();
    filled(&daemon).await;
    assert_eq!(spares(&daemon), ["sbox+1.img"]);
    assert_eq!(client.nodes(&NodeFilter::default()).await.unwrap().len(), 0);
    wait_until("the processes of before are gone", LIMIT, async || {
        daemon.processes().len() == 1
    })
    .await;
    daemon.terminate();
    assert!(spares(&daemon).is_empty());
}
