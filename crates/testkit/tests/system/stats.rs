//! What VMs and the host use.

use crate::tests;
use crate::tour::{Tour, VM};
use libtest_mimic::Trial;
use slicer_testkit::{BOOT, wait_until};
use std::sync::Arc;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("stats", tour; figures_are_the_guests, a_vm_that_cannot_be_asked_says_why, top_is_a_table)
}

async fn figures_are_the_guests(tour: &Tour) {
    let raw = tour.raw();
    let own = raw.get(&format!("/node/{VM}/stats")).await;
    assert_eq!(own.status, 200, "{}", own.text());
    let own = own.json();
    assert_eq!(own.as_array().unwrap().len(), 1, "{own}");
    assert_eq!(own[0]["hostname"], VM);
    assert_eq!(own[0]["error"], "");
    let figures = &own[0]["snapshot"];
    assert_eq!(figures["hostname"], VM);
    let says = async |script: &str| tour.says(script).await.parse::<u64>().unwrap();
    assert_eq!(figures["totalCpus"], says("nproc").await);
    let total =
        says(r"echo $(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) * 1024))").await;
    assert_eq!(figures["totalMemory"], total);
    let disk = says("echo $(($(stat -f -c '%b * %S' /)))").await;
    assert_eq!(figures["diskSpaceTotal"], disk);
    for name in [
        "memoryUsed",
        "diskReadTotal",
        "diskWriteTotal",
        "openFiles",
        "diskSpaceUsed",
    ] {
        assert!(figures[name].as_u64().unwrap() > 0, "{name}: {figures}");
    }
    let written = figures["diskWriteTotal"].as_u64().unwrap();
    tour.says("dd if=/dev/zero of=/tmp/stats bs=1M count=4 conv=fsync status=none; rm /tmp/stats")
        .await;
    let again = raw.get(&format!("/node/{VM}/stats")).await.json();
    let more = again[0]["snapshot"]["diskWriteTotal"].as_u64().unwrap() - written;
    assert!(more >= 4 << 20, "{more} more bytes written");
    assert_eq!(raw.get("/node/sbox-99/stats").await.status, 404);
}

async fn a_vm_that_cannot_be_asked_says_why(tour: &Tour) {
    let created = tour
        .cli("vm launch sbox --wait --cpus 1 --ram-mb 256 --json")
        .await;
    let vm = created.json()["hostname"].as_str().unwrap().to_owned();
    tour.cli(&format!("vm pause {vm}")).await;
    let all = tour.raw().get("/nodes/stats").await.json();
    let of = |name: &str| {
        all.as_array()
            .unwrap()
            .iter()
            .find(|n| n["hostname"] == name)
    };
    let paused = of(&vm).unwrap();
    assert!(paused["snapshot"].is_null(), "{paused}");
    assert!(
        paused["error"].as_str().unwrap().contains("paused"),
        "{paused}"
    );
    assert!(of(VM).unwrap()["snapshot"].is_object(), "{all}");
    // What it takes of the host's memory is known all the same.
    for vm in [&vm, VM] {
        let used = of(vm).unwrap()["host_memory"]["used"].as_u64().unwrap();
        assert!(used > 64 << 20 && used < 4 << 30, "{all}");
    }
    assert_eq!(tour.cli(&format!("vm delete {vm}")).await.code, 0);
}

async fn top_is_a_table(tour: &Tour) {
    wait_until("slicer-1 is up", BOOT, async || {
        tour.cli("vm ready slicer-1").await.code == 0
    })
    .await;
    let top = tour.cli("vm top").await;
    let rows: Vec<Vec<&str>> = top
        .text()
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][0], "HOST");
    assert_eq!(rows[0].len(), 17, "{top:?}");
    let row = rows.iter().find(|r| r[0] == VM).unwrap();
    assert_eq!(row.len(), 17, "{top:?}");
    assert!(row[6].ends_with("MB") && row[9].ends_with("GB"), "{row:?}");
    assert!(row[15].ends_with('B') && row[16].ends_with('B'), "{row:?}");
    let one = tour.cli(&format!("vm top {VM} --json")).await.json();
    assert_eq!(one[0]["hostname"], VM);
    assert_eq!(tour.cli("vm top nobody").await.code, 1);
}
