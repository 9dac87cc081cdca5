//! What passes through daemon and agent is not kept by them.

use crate::tests;
use crate::tour::{Tour, VM};
use libtest_mimic::Trial;
use slicer_api::{ExecRequest, FrameType, Stdio};
use slicer_testkit::wait_until;
use std::fs::{self, File};
use std::sync::Arc;
use std::time::Duration;

/// Bytes that pass in each way: eight times as many as may be kept.
const SIZE: u64 = 512 << 20;
/// What daemon and agent may need at most, MiB.
const MOST: f64 = 64.0;
/// How long they may take to pass: ten times what they do under emulation.
const PASS_TIME: Duration = Duration::from_mins(4);

/// A command with a name of its own.
const PRINTER: &str = "/var/tmp/printer";

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("memory", tour; large_copies_and_output_are_not_kept)
}

async fn large_copies_and_output_are_not_kept(tour: &Tour) {
    let dir = tempfile::tempdir_in(tour.daemon().dir()).unwrap();
    let (file, back) = (dir.path().join("sparse"), dir.path().join("back"));
    File::create(&file).unwrap().set_len(SIZE).unwrap();
    let there = format!("{VM}:/var/tmp/sparse");

    forget(tour).await;
    copy(tour, file.to_str().unwrap(), &there).await;
    assert_bounded(tour, "a copy in").await;

    let sparse = format!("sudo rm /var/tmp/sparse && truncate -s {SIZE} /var/tmp/sparse");
    tour.says(&sparse).await;
    forget(tour).await;
    copy(tour, &there, back.to_str().unwrap()).await;
    assert_bounded(tour, "a copy out").await;
    assert_eq!(fs::metadata(&back).unwrap().len(), SIZE);
    tour.says("rm /var/tmp/sparse").await;

    tour.says(&format!("cp /usr/bin/head {PRINTER}")).await;
    forget(tour).await;
    let printed = tokio::time::timeout(PASS_TIME, print(tour)).await.unwrap();
    assert_eq!(printed, SIZE);
    assert_bounded(tour, "a command's output").await;

    // What nobody reads waits where it is made, and not on the way.
    forget(tour).await;
    let client = tour.client();
    let unread = client.exec(VM, &prints(), None).await.unwrap();
    let written = "sudo grep wchar /proc/$(pidof -s printer)/io";
    let mut before = String::new();
    wait_until("the command waits", PASS_TIME, async || {
        let now = tour.says(written).await;
        std::mem::replace(&mut before, now.clone()) == now
    })
    .await;
    assert_bounded(tour, "output that nobody reads").await;
    drop(unread);
    tour.says(&format!("rm {PRINTER}")).await;
}

/// A command that prints.
fn prints() -> ExecRequest {
    ExecRequest {
        cmd: PRINTER.to_owned(),
        args: vec!["-c".to_owned(), SIZE.to_string(), "/dev/zero".to_owned()],
        stdio: Stdio::Base64,
        ..ExecRequest::default()
    }
}

async fn copy(tour: &Tour, from: &str, to: &str) {
    let copied = tour.cli(&format!("cp {from} {to}")).await;
    assert_eq!(copied.code, 0, "{copied:?}");
}

/// Has a command print, and counts what comes.
async fn print(tour: &Tour) -> u64 {
    let client = tour.client();
    let mut stream = client.exec(VM, &prints(), None).await.unwrap();
    let mut printed = 0;
    while let Some(frame) = stream.next_frame().await {
        let frame = frame.unwrap();
        if frame.kind == Some(FrameType::Exit) {
            assert_eq!(frame.exit_code, 0, "{frame:?}");
        }
        let text = frame.stdout.unwrap_or_default();
        printed += slicer_client::output_bytes(text, frame.encoding)
            .unwrap()
            .len() as u64;
    }
    printed
}

/// Has both kernels begin anew with what they remember as the most.
async fn forget(tour: &Tour) {
    let path = format!("/proc/{}/clear_refs", tour.daemon().pid());
    fs::write(path, "5").unwrap();
    tour.says(
        "for f in $(sudo grep -l @slicer-agent /proc/[0-9]*/cmdline); do \
         echo 5 | sudo tee ${f%cmdline}clear_refs > /dev/null 2>&1 || true; done",
    )
    .await;
}

/// Neither of both has needed more than it may.
async fn assert_bounded(tour: &Tour, what: &str) {
    let status = fs::read_to_string(format!("/proc/{}/status", tour.daemon().pid())).unwrap();
    let daemon = most(&status);
    let status = "sudo cat $(sudo grep -l @slicer-agent /proc/[0-9]*/cmdline | \
                  sed s/cmdline/status/) 2>/dev/null | grep VmHWM";
    let agent = most(&tour.says(status).await);
    assert!(daemon > 1.0 && daemon < MOST, "{what}: daemon {daemon} MiB");
    assert!(agent > 1.0 && agent < MOST, "{what}: agent {agent} MiB");
}

/// The largest `VmHWM` in these lines, MiB.
fn most(status: &str) -> f64 {
    let kib = status.lines().filter_map(|line| {
        line.strip_prefix("VmHWM:")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    kib.fold(0.0, f64::max) / 1024.0
}
