//! A VM to disk and back: by the product, and by QEMU's own means.

use super::floor::{Floor, Sleeper};
use super::plan::Rounds;
use super::{create, median};
use crate::text::say;
use anyhow::{Result, ensure};
use serde::Serialize;
use slicer_client::Client;
use std::time::{Duration, Instant};

/// Pauses and resumes for one sample.
const FREEZES: u32 = 20;
/// How long a restored VM may take to answer.
const RESTORE_TIME: Duration = Duration::from_mins(5);

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// From the request to suspend until its answer.
    pub(crate) suspend: Vec<f64>,
    /// By hand, from `stop` until the state is on the disk and QEMU has ended.
    pub(crate) floor_suspend: Vec<f64>,
    /// From the request to restore until its answer, which comes when the guest is ready.
    pub(crate) restore: Vec<f64>,
    /// By hand, from the start of QEMU until the agent answers.
    pub(crate) floor_restore: Vec<f64>,
    /// From a request to pause, or to resume, until its answer.
    pub(crate) freeze: Vec<f64>,
}

/// Measures pairs of each, in alternating order.
pub(crate) async fn measure(pairs: Rounds, client: &Client, floor: &Floor) -> Result<Samples> {
    let mut samples = Samples::default();
    let vm = create(client).await?;
    let mut sleeper = floor.sleeper().await?;
    for pair in pairs.run() {
        if pair % 2 == 0 {
            by_hand(&mut samples, &mut sleeper).await?;
            by_product(&mut samples, client, &vm).await?;
        } else {
            by_product(&mut samples, client, &vm).await?;
            by_hand(&mut samples, &mut sleeper).await?;
        }
        let last = |of: &[f64]| 1e3 * of.last().copied().unwrap_or_default();
        say(&format!(
            "Suspend {:2}: {:.0} ms, by hand {:.0} ms; restore {:.0} ms, by hand {:.0} ms",
            pair + 1,
            last(&samples.suspend),
            last(&samples.floor_suspend),
            last(&samples.restore),
            last(&samples.floor_restore),
        ));
    }
    for _ in 0..FREEZES {
        let start = Instant::now();
        client.pause(&vm).await?;
        samples.freeze.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        client.resume(&vm).await?;
        samples.freeze.push(start.elapsed().as_secs_f64());
    }
    sleeper.end().await?;
    client.delete_node(super::GROUP, &vm).await?;
    Ok(samples)
}

async fn by_hand(samples: &mut Samples, sleeper: &mut Sleeper) -> Result<()> {
    samples.floor_suspend.push(sleeper.suspend().await?);
    samples.floor_restore.push(sleeper.restore().await?);
    Ok(())
}

async fn by_product(samples: &mut Samples, client: &Client, vm: &str) -> Result<()> {
    let start = Instant::now();
    client.suspend(vm).await?;
    samples.suspend.push(start.elapsed().as_secs_f64());
    let start = Instant::now();
    let lost = client.restore(vm, RESTORE_TIME).await?;
    samples.restore.push(start.elapsed().as_secs_f64());
    ensure!(lost.is_none(), "{lost:?}");
    Ok(())
}

impl Samples {
    /// How long it takes, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        let ms = |times: &[f64]| 1e3 * median(times);
        vec![format!(
            "suspend {:.0} ms, by hand {:.0} ms; restore {:.0} ms, by hand {:.0} ms; pause or resume \
             {:.1} ms",
            ms(&self.suspend),
            ms(&self.floor_suspend),
            ms(&self.restore),
            ms(&self.floor_restore),
            ms(&self.freeze),
        )]
    }
}
