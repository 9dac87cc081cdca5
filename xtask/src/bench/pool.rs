//! Launches of what was booted ahead (`warm_pool: 1`), beside launches that boot.

use super::plan::Rounds;
use super::template::execs;
use super::{COLD, GROUP, create, create_in, http, median};
use crate::daemon::Daemon;
use crate::text::say;
use anyhow::{Result, ensure};
use serde::Serialize;
use slicer_client::Client;
use std::time::{Duration, Instant};

/// How long a spare may take until it is there.
const FILL_TIME: Duration = Duration::from_mins(3);
/// How long it goes on then, until it is paused: longer than the daemon lets it.
const SETTLE_TIME: Duration = Duration::from_secs(17);

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// A launch that takes a spare, from the request until its answer: the VM is ready.
    pub(crate) pooled: Vec<f64>,
    /// A launch that boots.
    pub(crate) cold: Vec<f64>,
    /// The first exec after a launch that takes a spare.
    pub(crate) first_exec: Vec<f64>,
    /// The median of later ones in the same.
    pub(crate) later_exec: Vec<f64>,
}

/// Measures pairs of both.
pub(crate) async fn measure(pairs: Rounds, daemon: &Daemon, client: &Client) -> Result<Samples> {
    say("Pool: launches of what was booted ahead");
    let mut samples = Samples::default();
    // What only the first launch of a group has to do.
    let vm = create_in(COLD, client).await?;
    client.delete_node(COLD, &vm).await?;
    for pair in pairs.run() {
        filled(daemon).await?;
        for pooled in [pair % 2 == 0, pair % 2 != 0] {
            let start = Instant::now();
            let (group, vm) = if pooled {
                (GROUP, create(client).await?)
            } else {
                (COLD, create_in(COLD, client).await?)
            };
            let took = start.elapsed().as_secs_f64();
            if pooled {
                let (first, later) = execs(client, &vm).await?;
                samples.first_exec.push(first);
                samples.later_exec.push(later);
            }
            client.delete_node(group, &vm).await?;
            if pooled {
                samples.pooled.push(took);
                // The next spare is booted when one is taken, and would be in the other's way.
                filled(daemon).await?;
            } else {
                samples.cold.push(took);
            }
        }
        say(&format!(
            "Pool {:2}: {:.0} ms, cold {:.2} s",
            pair + 1,
            1e3 * samples.pooled.last().copied().unwrap_or_default(),
            samples.cold.last().copied().unwrap_or_default(),
        ));
    }
    Ok(samples)
}

/// Waits until there is a spare, and it has been paused.
async fn filled(daemon: &Daemon) -> Result<()> {
    let start = Instant::now();
    let line = format!("slicer_warm_pool_vms{{host_group=\"{GROUP}\"}} 1\n");
    if metrics(daemon).await?.contains(&line) {
        return Ok(());
    }
    while !metrics(daemon).await?.contains(&line) {
        ensure!(start.elapsed() < FILL_TIME, "there is no spare VM");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(SETTLE_TIME).await;
    Ok(())
}

async fn metrics(daemon: &Daemon) -> Result<String> {
    let (_, text) = http::ask(&daemon.socket(), "GET", "/metrics", "").await?;
    Ok(text)
}

impl Samples {
    /// How long it takes, for people.
    pub(crate) fn story(&self) -> String {
        format!(
            "a launch of what was booted ahead {:.0} ms, its first exec {:.1} ms, a later one {:.1} ms; a \
             launch that boots {:.2} s",
            1e3 * median(&self.pooled),
            1e3 * median(&self.first_exec),
            1e3 * median(&self.later_exec),
            median(&self.cold)
        )
    }
}
