//! What a daemon costs that does nothing.

use super::{GROUP, create};
use crate::daemon::Daemon;
use crate::text::say;
use anyhow::{Context, Result};
use serde::Serialize;
use slicer_client::Client;
use std::fs;
use std::time::{Duration, Instant};

/// The unit of times in `/proc/PID/stat`, which is the same on all architectures slicer runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// What a daemon that has just started may still have to do.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// Memory in MiB, CPU time in ticks.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// Resident memory with no VM, some seconds after the start.
    pub(crate) rss_none: f64,
    /// With one, two and three VMs.
    pub(crate) rss_with: Vec<f64>,
    /// With no VM again, after every measurement.
    pub(crate) rss_after_work: f64,
    /// CPU time used while one VM idled, hundredths of a second.
    pub(crate) ticks: f64,
    /// For so many seconds.
    pub(crate) seconds: f64,
}

impl Samples {
    /// What a VM adds, MiB: by those after the first, which brings in what all share.
    pub(crate) fn rss_per_vm(&self) -> f64 {
        match self.rss_with[..] {
            [one, _, three] => (three - one) / 2.0,
            _ => 0.0,
        }
    }

    /// CPU time as a share of one core, per cent.
    pub(crate) fn cpu_percent(&self) -> f64 {
        100.0 * self.ticks / TICKS_PER_SECOND / self.seconds
    }
}

/// Measures a daemon that has just started, for `seconds`. Leaves one VM, whose name it returns.
pub(crate) async fn measure(
    seconds: u64,
    daemon: &Daemon,
    client: &Client,
) -> Result<(Samples, String)> {
    say(&format!("Idle: three VMs, then {seconds} s with one"));
    tokio::time::sleep(SETTLE_TIME).await;
    let mut samples = Samples {
        rss_none: rss(daemon.pid())?,
        ..Samples::default()
    };
    let mut vms = Vec::new();
    for _ in 0..3 {
        vms.push(create(client).await?);
        samples.rss_with.push(rss(daemon.pid())?);
    }
    let first = vms.remove(0);
    for vm in vms {
        client.delete_node(GROUP, &vm).await?;
    }
    tokio::time::sleep(SETTLE_TIME).await;
    let (before, start) = (ticks(daemon.pid())?, Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    samples.seconds = start.elapsed().as_secs_f64();
    samples.ticks = ticks(daemon.pid())? - before;
    Ok((samples, first))
}

/// A process's resident memory, MiB.
pub(crate) fn rss(pid: i32) -> Result<f64> {
    status_mib(pid, "VmRSS:")
}

/// A size of `/proc/PID/status`, MiB.
pub(super) fn status_mib(pid: i32, key: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {key} in {path}"))? / 1024.0)
}

/// A process's CPU time, user and system, in ticks.
fn ticks(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th after it.
    let fields = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace());
    let times = fields.map(|f| {
        f.skip(11)
            .take(2)
            .filter_map(|f| f.parse::<f64>().ok())
            .sum()
    });
    times.with_context(|| format!("no times in {path}"))
}
