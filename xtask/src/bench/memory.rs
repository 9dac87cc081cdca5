//! What daemon and agent need at most while a lot passes through them.

use super::bed::{Bed, seconds};
use super::process::mib;
use super::transfer::path;
use crate::text::say;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::{self, File};
use tokio::process::Command;

/// Where the file is in the guest.
const THERE: &str = "/var/tmp/bench-large";

/// The most resident memory of each, MiB.
#[derive(Debug, Serialize)]
pub(crate) struct Peak {
    /// What passed.
    pub(crate) what: &'static str,
    /// Of `slicer-mac`.
    pub(crate) daemon: f64,
    /// Of the agent in the guest.
    pub(crate) agent: f64,
    /// How long it took, seconds.
    pub(crate) seconds: f64,
}

/// What passed, and what it needed.
#[derive(Debug, Serialize)]
pub(crate) struct Samples {
    /// Bytes of each.
    pub(crate) bytes: u64,
    /// One for each way to pass them.
    pub(crate) peaks: Vec<Peak>,
}

impl Samples {
    /// The most that one of both needed, MiB: that of `slicer-mac` and that of the agent.
    pub(crate) fn most(&self) -> (f64, f64) {
        self.peaks.iter().fold((0.0, 0.0), |(daemon, agent), peak| {
            (f64::max(daemon, peak.daemon), f64::max(agent, peak.agent))
        })
    }

    /// Where it was needed, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        let peak = |p: &Peak| {
            format!(
                "{} of {} MiB in {:.0} s: daemon {:.0} MiB, agent {:.0} MiB at most",
                p.what,
                self.bytes >> 20,
                p.seconds,
                p.daemon,
                p.agent,
            )
        };
        self.peaks.iter().map(peak).collect()
    }
}

/// Passes `bytes` in every way, all of them zeroes in sparse files.
pub(crate) async fn measure(bed: &Bed, bytes: u64) -> Result<Samples> {
    say(&format!("Memory: {} MiB in, out and printed", bytes >> 20));
    let (file, back) = (bed.dir().join("large"), bed.dir().join("large-back"));
    File::create(&file)
        .and_then(|f| f.set_len(bytes))
        .with_context(|| format!("cannot create {}", file.display()))?;
    let there = format!("{{}}:{THERE}");
    let count = bytes.to_string();
    let mut peaks = Vec::new();
    let copy_in = bed.slicer(&["vm", "cp", path(&file)?, &there])?;
    peaks.push(peak(bed, "copy in", copy_in).await?);
    bed.says(&format!("rm {THERE} && truncate -s {bytes} {THERE}"))
        .await?;
    let copy_out = bed.slicer(&["vm", "cp", &there, path(&back)?])?;
    peaks.push(peak(bed, "copy out", copy_out).await?);
    bed.says(&format!("rm {THERE}")).await?;
    let exec = ["vm", "exec", "{}", "--", "head", "-c", &count, "/dev/zero"];
    peaks.push(peak(bed, "exec output", bed.slicer(&exec)?).await?);
    for file in [file, back] {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(Samples { bytes, peaks })
}

async fn peak(bed: &Bed, what: &'static str, command: Command) -> Result<Peak> {
    forget(bed).await?;
    let seconds = seconds(command).await?;
    let said = bed
        .says(
            "grep -hs VmHWM $(grep -ls @slicer-agent /proc/[0-9]*/cmdline | \
             sed s/cmdline/status/); true",
        )
        .await?;
    let agent = said
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .fold(0.0, f64::max);
    Ok(Peak {
        what,
        daemon: mib(bed.daemon_pid(), "status", "VmHWM:")?,
        agent: agent / 1024.0,
        seconds,
    })
}

/// Has both kernels begin anew with what they remember as the most.
async fn forget(bed: &Bed) -> Result<()> {
    let path = format!("/proc/{}/clear_refs", bed.daemon_pid());
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))?;
    bed.says(
        "for f in $(grep -ls @slicer-agent /proc/[0-9]*/cmdline); do \
         echo 5 > ${f%cmdline}clear_refs; done 2>/dev/null; true",
    )
    .await
    .map(drop)
}
