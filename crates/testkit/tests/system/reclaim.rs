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
/// A guest is idle after two minutes, and drops 256 MiB in each ten seconds from then on.
const LATER: Duration = Duration::from_mins(5);
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

    // A line without an end is kept whole.
    let before = used().await;
    says(
        &client,
        &vm,
        "head -c 1G /dev/zero | tail | tail -c 1 | wc -c",
    )
    .await;
    let peak = host_memory(&client, &vm).await;
    assert!(peak.used + peak.returned > before + 900 * MIB, "{peak:?}");
    let bound = before + before * 15 / 100;
    wait_until("1 GiB is given back", SOON, async || used().await <= bound).await;
    let after = host_memory(&client, &vm).await;
    assert!(after.returned > 800 * MIB, "{after:?}");

    // What was read is not free, but nobody needs it.
    let before = used().await;
    says(
        &client,
        &vm,
        "truncate -s 800M ~/file && cat ~/file > /dev/null",
    )
    .await;
    let cached = used().await;
    assert!(cached > before + 700 * MIB, "{before} to {cached}");
    wait_until("the page cache is given back", LATER, async || {
        used().await < before + 100 * MIB
    })
    .await;
    let floor = says(
        &client,
        &vm,
        "sed -n 's/^Cached: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo",
    )
    .await;
    let floor: u64 = floor.parse().unwrap();
    assert!(floor > 64 << 10, "{floor} KiB are left");
    daemon.stop();
}
