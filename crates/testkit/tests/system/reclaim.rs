//! What a guest no longer uses of its memory, the host has again.

use crate::lifecycle::sandbox;
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::HostMemory;
use slicer_client::Client;
use slicer_testkit::{Group, SBOX, Setup, TestDaemon, wait_until};
use std::time::Duration;

/// How long what was freed may be missed.
const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("reclaim": what_is_freed_is_given_back)
}

async fn host_memory(client: &Client, vm: &str) -> HostMemory {
    let stats = client.node_stats(vm).await.unwrap();
    stats[0].host_memory.unwrap()
}

async fn what_is_freed_is_given_back() {
    let daemon = TestDaemon::start(&Setup::of([Group {
        ram_mb: 2048,
        ..SBOX
    }]));
    let client = daemon.client();
    let vm = sandbox(&client).await;
    says(
        &client,
        &vm,
        "until lsmod | grep -q virtio_balloon; do sleep 0.1; done",
    )
    .await;
    let used = async || host_memory(&client, &vm).await.used;
    let settled = async || {
        let mut last = 0;
        wait_until(
            "its memory is the same for five seconds",
            SOON,
            async || {
                tokio::time::sleep(Duration::from_secs(5)).await;
                let now = used().await;
                std::mem::replace(&mut last, now).abs_diff(now) < 4 * MIB
            },
        )
        .await;
        last
    };

    // A line without an end is kept whole. Once beforehand, so that the guest has touched what it
    // touches once, and QEMU has translated what it runs: what is more after that is not given back.
    let gigabyte = async || {
        says(&client, &vm, "head -c 1G /dev/zero | tail > /dev/null").await;
        used().await
    };
    gigabyte().await;
    let before = settled().await;
    let peak = gigabyte().await;
    assert!(peak > before + 600 * MIB, "{before} to {peak}");
    let bound = before + before * 15 / 100;
    wait_until("1 GiB is given back", SOON, async || used().await <= bound).await;
    daemon.stop();
}
