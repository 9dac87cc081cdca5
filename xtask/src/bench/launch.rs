//! Launches: by the product, by hand, and of a kernel alone.

use super::floor::Floor;
use super::plan::Rounds;
use super::{GROUP, create, median};
use crate::text::say;
use anyhow::Result;
use serde::Serialize;
use slicer_client::Client;
use std::time::Instant;

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// From the request until its answer, which comes when the guest is ready.
    pub(crate) product: Vec<f64>,
    /// By hand, from the start of QEMU until the agent says that the guest is ready.
    pub(crate) floor_ready: Vec<f64>,
    /// By hand, from the start of QEMU until the agent's first byte.
    pub(crate) floor_first_byte: Vec<f64>,
    /// From the start of QEMU until a bare kernel runs its init.
    pub(crate) bare: Vec<f64>,
    /// Of an overlay by qemu-img and a QEMU until its monitor's greeting, without a guest.
    pub(crate) least: Vec<f64>,
    /// From the request to delete until its answer.
    pub(crate) delete: Vec<f64>,
}

/// Measures pairs of each, in alternating order.
pub(crate) async fn measure(pairs: Rounds, client: &Client, floor: &Floor) -> Result<Samples> {
    let mut samples = Samples::default();
    for pair in pairs.run() {
        if pair % 2 == 0 {
            by_hand(&mut samples, floor).await?;
            by_product(&mut samples, client).await?;
        } else {
            by_product(&mut samples, client).await?;
            by_hand(&mut samples, floor).await?;
        }
        samples.bare.push(floor.bare().await?);
        samples.least.push(floor.least().await?);
        let last = |of: &[f64]| of.last().copied().unwrap_or_default();
        say(&format!(
            "Launch {:2}: {:.2} s, by hand {:.2} s (first byte {:.2} s), bare kernel {:.2} s",
            pair + 1,
            last(&samples.product),
            last(&samples.floor_ready),
            last(&samples.floor_first_byte),
            last(&samples.bare),
        ));
    }
    Ok(samples)
}

async fn by_hand(samples: &mut Samples, floor: &Floor) -> Result<()> {
    let boot = floor.boot().await?;
    samples.floor_first_byte.push(boot.first_byte);
    samples.floor_ready.push(boot.ready);
    Ok(())
}

async fn by_product(samples: &mut Samples, client: &Client) -> Result<()> {
    let start = Instant::now();
    let vm = create(client).await?;
    samples.product.push(start.elapsed().as_secs_f64());
    let start = Instant::now();
    client.delete_node(GROUP, &vm).await?;
    samples.delete.push(start.elapsed().as_secs_f64());
    Ok(())
}

impl Samples {
    /// What a launch takes longer than by hand, pair by pair.
    pub(crate) fn overhead(&self) -> Vec<f64> {
        self.product
            .iter()
            .zip(&self.floor_ready)
            .map(|(a, b)| a - b)
            .collect()
    }

    /// Where a launch's time goes, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        vec![
            format!(
                "launch {:.2} s = by hand {:.2} s + {:.0} ms; a disk by qemu-img and the start of a QEMU \
                 {:.0} ms; delete {:.0} ms",
                median(&self.product),
                median(&self.floor_ready),
                1e3 * median(&self.overhead()),
                1e3 * median(&self.least),
                1e3 * median(&self.delete),
            ),
            format!(
                "by hand: kernel to init {:.2} s, agent's first byte at {:.2} s, ready at {:.2} s",
                median(&self.bare),
                median(&self.floor_first_byte),
                median(&self.floor_ready),
            ),
        ]
    }
}
