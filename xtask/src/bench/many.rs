//! Many VMs at once, the product's and by hand: how long all of them take to be ready, and what they
//! take of the machine.

use super::floor::{Floor, Kept};
use super::plan::Plan;
use super::process::{TICKS_PER_SECOND, descendants, pss, ticks, total_pss, total_ticks};
use super::{GROUP, create, median};
use crate::daemon::Daemon;
use crate::text::say;
use anyhow::{Context, Result};
use serde::Serialize;
use slicer_client::{Client, NodeFilter};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long guests go on before they are looked at: what their image starts has started by then.
const SETTLE_TIME: Duration = Duration::from_secs(8);
/// Bursts that may come to nothing.
const MOST_LOST: u32 = 2;

/// What some VMs take.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Seen {
    /// So many there are.
    pub(crate) vms: u32,
    /// Their share of the memory, with all that was started for them, MiB.
    pub(crate) pss: f64,
    /// That of `slicer-mac`, MiB; 0 by hand.
    pub(crate) daemon_pss: f64,
    /// CPU time while they idle, per VM, per cent of a core; 0 when it wasn't looked at.
    pub(crate) cpu: f64,
    /// The same of `slicer-mac`, for all VMs.
    pub(crate) daemon_cpu: f64,
}

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    pub(crate) vms: u32,
    /// Bursts that came to nothing because a guest gave up: the kernel does when its processor's host is
    /// busy for too long.
    pub(crate) lost: u32,
    /// From the first request until the last answer.
    pub(crate) burst: Vec<f64>,
    /// By hand, from the start of the first QEMU until the last guest is ready.
    pub(crate) floor_burst: Vec<f64>,
    /// The share of `slicer-mac` in the memory without a VM, MiB.
    pub(crate) daemon_pss_none: f64,
    /// Of one VM, and of as many as at once.
    pub(crate) ours: Vec<Seen>,
    pub(crate) by_hand: Vec<Seen>,
}

/// Measures bursts in alternating order, and once what the VMs take.
pub(crate) async fn measure(
    plan: &Plan,
    daemon: &Daemon,
    client: &Client,
    floor: &Floor,
) -> Result<Samples> {
    let vms = plan.many_vms;
    say(&format!("Many: {vms} VMs at once"));
    let mut samples = Samples {
        vms,
        daemon_pss_none: pss(daemon.pid())?,
        ..Samples::default()
    };
    let (_, ours) = of_product(1, Some(0), daemon, client).await?;
    samples.ours.extend(ours);
    let (_, by_hand) = of_floor(1, Some(0), floor).await?;
    samples.by_hand.extend(by_hand);
    for pair in plan.many.run() {
        let look = samples.burst.is_empty().then_some(plan.many_idle_seconds);
        let both = if pair % 2 == 0 {
            let ours = of_product(vms, look, daemon, client).await;
            (ours, of_floor(vms, look, floor).await)
        } else {
            let by_hand = of_floor(vms, look, floor).await;
            (of_product(vms, look, daemon, client).await, by_hand)
        };
        let (ours, by_hand) = match both {
            (Ok(ours), Ok(by_hand)) => (ours, by_hand),
            (Err(e), _) | (_, Err(e)) if samples.lost < MOST_LOST => {
                say(&format!("Many {:2}: {e:#}", pair + 1));
                samples.lost += 1;
                clear(client).await?;
                continue;
            }
            (Err(e), _) | (_, Err(e)) => return Err(e),
        };
        samples.burst.push(ours.0);
        samples.ours.extend(ours.1);
        samples.floor_burst.push(by_hand.0);
        samples.by_hand.extend(by_hand.1);
        say(&format!(
            "Many {:2}: {:.1} s, by hand {:.1} s",
            pair + 1,
            samples.burst.last().copied().unwrap_or_default(),
            samples.floor_burst.last().copied().unwrap_or_default(),
        ));
    }
    Ok(samples)
}

/// Launches `n`, looks at them for so many seconds, if asked to, and deletes them.
async fn of_product(
    n: u32,
    look: Option<u64>,
    daemon: &Daemon,
    client: &Client,
) -> Result<(f64, Option<Seen>)> {
    let start = Instant::now();
    let mut launches = JoinSet::new();
    for _ in 0..n {
        let client = client.clone();
        launches.spawn(async move { create(&client).await });
    }
    let mut names = Vec::new();
    while let Some(vm) = launches.join_next().await {
        names.push(vm??);
    }
    let took = start.elapsed().as_secs_f64();
    let mut seen = None;
    if let Some(seconds) = look {
        tokio::time::sleep(SETTLE_TIME).await;
        let pids = descendants(daemon.pid())?;
        let before = ticks(daemon.pid())?;
        let of_vms = idle(n, &pids, seconds).await?;
        seen = Some(Seen {
            daemon_pss: pss(daemon.pid())?,
            daemon_cpu: percent(ticks(daemon.pid())? - before, seconds),
            ..of_vms
        });
    }
    for vm in names {
        client.delete_node(GROUP, &vm).await?;
    }
    Ok((took, seen))
}

/// Deletes what a burst left that came to nothing.
async fn clear(client: &Client) -> Result<()> {
    for vm in client.nodes(&NodeFilter::default()).await? {
        client.delete_node(GROUP, &vm.hostname).await?;
    }
    Ok(())
}

/// The same by hand. The disks are made before the clock starts.
async fn of_floor(n: u32, look: Option<u64>, floor: &Floor) -> Result<(f64, Option<Seen>)> {
    let mut disks = Vec::new();
    for i in 0..n {
        disks.push(floor.kept_disk(i).await?);
    }
    let start = Instant::now();
    let mut boots = JoinSet::new();
    for disk in disks {
        let floor = floor.clone();
        boots.spawn(async move { floor.kept(disk).await });
    }
    let mut guests: Vec<Kept> = Vec::new();
    while let Some(guest) = boots.join_next().await {
        guests.push(guest??);
    }
    let took = start.elapsed().as_secs_f64();
    let mut seen = None;
    if let Some(seconds) = look {
        tokio::time::sleep(SETTLE_TIME).await;
        let pids: Option<Vec<i32>> = guests.iter().map(Kept::pid).collect();
        seen = Some(idle(n, &pids.context("a guest ended")?, seconds).await?);
    }
    for guest in guests {
        guest.end().await?;
    }
    Ok((took, seen))
}

/// What these processes of `n` VMs take.
async fn idle(n: u32, pids: &[i32], seconds: u64) -> Result<Seen> {
    let before = total_ticks(pids)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Ok(Seen {
        vms: n,
        cpu: percent(total_ticks(pids)? - before, seconds) / f64::from(n),
        pss: total_pss(pids)?,
        ..Seen::default()
    })
}

#[expect(clippy::cast_precision_loss, reason = "some seconds")]
fn percent(ticks: f64, seconds: u64) -> f64 {
    100.0 * ticks / TICKS_PER_SECOND / seconds.max(1) as f64
}

impl Samples {
    /// What `slicer-mac` adds per VM, MiB, by one and by many.
    pub(crate) fn daemon_share(&self) -> Vec<(u32, f64)> {
        let share = |s: &Seen| {
            let more = s.daemon_pss - self.daemon_pss_none;
            (s.vms, more / f64::from(s.vms))
        };
        self.ours.iter().map(share).collect()
    }

    /// The memory of many VMs and of `slicer-mac`, over that of as many by hand.
    pub(crate) fn memory_ratio(&self) -> Option<f64> {
        let (ours, by_hand) = self.ours.last().zip(self.by_hand.last())?;
        Some((ours.pss + ours.daemon_pss) / by_hand.pss)
    }

    /// CPU time of `slicer-mac` for each of many idle VMs, per cent of a core.
    pub(crate) fn daemon_cpu(&self) -> Option<f64> {
        let ours = self.ours.last()?;
        Some(ours.daemon_cpu / f64::from(ours.vms))
    }

    /// How long it takes and what they take, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.lost > 0 {
            let lost = self.lost;
            lines.push(format!(
                "bursts in which a guest gave up while it booted: {lost}"
            ));
        }
        lines.push(format!(
            "{} launches at once {:.1} s, by hand {:.1} s",
            self.vms,
            median(&self.burst),
            median(&self.floor_burst)
        ));
        for (ours, by_hand) in self.ours.iter().zip(&self.by_hand) {
            lines.push(format!(
                "idle VMs, {}: {:.0} MiB PSS and {:.1} MiB of slicer-mac, by hand {:.0} MiB",
                ours.vms, ours.pss, ours.daemon_pss, by_hand.pss
            ));
            if ours.cpu > 0.0 {
                lines.push(format!(
                    "CPU time of an idle VM of {}: {:.2} % of a core, by hand {:.2} %; of slicer-mac \
                     for all {:.2} %",
                    ours.vms, ours.cpu, by_hand.cpu, ours.daemon_cpu
                ));
            }
        }
        lines
    }
}
