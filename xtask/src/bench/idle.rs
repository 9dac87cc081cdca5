//! What a daemon costs that does nothing.

use super::process::{TICKS_PER_SECOND, mib, ticks};
use super::{GROUP, create};
use crate::daemon::Daemon;
use crate::text::say;
use anyhow::Result;
use serde::Serialize;
use slicer_client::Client;
use std::time::{Duration, Instant};

/// What a daemon that has just started may still have to do.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// Memory in MiB, CPU time in ticks.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// Resident memory with no VM, some seconds after the start.
    pub(crate) rss_none: f64,
    /// With one, two and three VMs.
    pub(crate) rss_with: Vec<f64>,
    /// With no VM again, after many execs; 0 when none was measured.
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

/// Measures a daemon that has just started, for `seconds`.
pub(crate) async fn measure(seconds: u64, daemon: &Daemon, client: &Client) -> Result<Samples> {
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
    client.delete_node(GROUP, &first).await?;
    Ok(samples)
}

/// A process's resident memory, MiB.
pub(crate) fn rss(pid: i32) -> Result<f64> {
    mib(pid, "status", "VmRSS:")
}
