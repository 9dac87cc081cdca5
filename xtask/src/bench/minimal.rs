//! Launches of an image without an init, beside a kernel alone.

use super::floor::Floor;
use super::plan::Rounds;
use super::{MINIMAL, create_in, median};
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
    /// From the start of QEMU until a bare kernel runs its init.
    pub(crate) bare: Vec<f64>,
}

/// Measures pairs of both, in alternating order.
pub(crate) async fn measure(pairs: Rounds, client: &Client, floor: &Floor) -> Result<Samples> {
    say("Minimal: launches of an image without an init");
    let mut samples = Samples::default();
    // What only the first launch of a group has to do.
    let vm = create_in(MINIMAL, client).await?;
    client.delete_node(MINIMAL, &vm).await?;
    for pair in pairs.run() {
        for product in [pair % 2 == 0, pair % 2 != 0] {
            if product {
                let start = Instant::now();
                let vm = create_in(MINIMAL, client).await?;
                samples.product.push(start.elapsed().as_secs_f64());
                client.delete_node(MINIMAL, &vm).await?;
            } else {
                samples.bare.push(floor.bare().await?);
            }
        }
    }
    Ok(samples)
}

impl Samples {
    /// What a launch takes longer than a bare kernel, pair by pair.
    pub(crate) fn overhead(&self) -> Vec<f64> {
        let pairs = self.product.iter().zip(&self.bare);
        pairs.map(|(a, b)| a - b).collect()
    }

    /// How long it takes, for people.
    pub(crate) fn story(&self) -> String {
        format!(
            "launch of an image without an init {:.2} s, a bare kernel until its init {:.2} s",
            median(&self.product),
            median(&self.bare)
        )
    }
}
