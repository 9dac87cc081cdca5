//! Many VMs at once.

use crate::lifecycle::{names, sandbox};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, Wait};
use slicer_testkit::{BOOT, Group, SBOX, Setup, TestDaemon};
use std::collections::BTreeSet;
use tokio::task::JoinSet;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("many": eight_at_once)
}

async fn eight_at_once() {
    let daemon = TestDaemon::start(&Setup::of([Group {
        ram_mb: 256,
        ..SBOX
    }]));
    let client = daemon.client();
    let mut creating = JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        creating.spawn(async move {
            let request = CreateNode::default();
            let vm = client
                .create_node("sbox", &request, Some(Wait::Agent), Some(BOOT))
                .await;
            let vm = vm.unwrap();
            assert_eq!(says(&client, &vm.hostname, "hostname").await, vm.hostname);
            vm
        });
    }
    let all = creating.join_all().await;
    let hostnames: BTreeSet<String> = all.iter().map(|vm| vm.hostname.clone()).collect();
    let expected: BTreeSet<String> = (1..=8).map(|n| format!("sbox-{n}")).collect();
    assert_eq!(hostnames, expected);
    let addresses: BTreeSet<&str> = all.iter().map(|vm| vm.ip.as_str()).collect();
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    assert_eq!(daemon.processes().len(), 8);

    // Names are given out again, the lowest first.
    for vm in ["sbox-6", "sbox-3"] {
        client.delete_node("sbox", vm).await.unwrap();
    }
    let again = client
        .create_node("sbox", &CreateNode::default(), None, None)
        .await;
    assert_eq!(again.unwrap().hostname, "sbox-3");
    assert_eq!(sandbox(&client).await, "sbox-6");

    let mut deleting = JoinSet::new();
    for vm in expected {
        let client = client.clone();
        deleting.spawn(async move { client.delete_node("sbox", &vm).await.unwrap() });
    }
    deleting.join_all().await;
    assert!(names(&client).await.is_empty());
    assert!(daemon.processes().is_empty());
    for n in 1..=8 {
        assert!(
            !daemon.has_files_of(&format!("sbox-{n}")),
            "{:?}",
            daemon.files()
        );
    }
    drop(client);
    daemon.stop();
}
