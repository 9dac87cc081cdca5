//! How soon a daemon serves that has many VMs which are off.

use super::plan::Rounds;
use super::{GROUP, median};
use crate::daemon::Daemon;
use crate::programs;
use crate::text::say;
use anyhow::{Result, ensure};
use serde::Serialize;
use slicer_api::CreateNode;
use slicer_client::NodeFilter;
use std::path::Path;
use std::time::Instant;

/// VMs that are off.
const VMS: usize = 50;
/// So many are made at a time, and switched off.
const AT_A_TIME: usize = 10;

/// Times in seconds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// From the daemon's start until it has listed all its VMs.
    pub(crate) start: Vec<f64>,
}

/// Makes the VMs in `dir`, which has an image and no VM, measures starts, and removes them.
pub(crate) async fn measure(rounds: Rounds, dir: &Path) -> Result<Samples> {
    say(&format!("Starts of a daemon with {VMS} VMs that are off"));
    let program = programs()?.join("slicer-mac");
    let kept = CreateNode {
        persistent: true,
        ..CreateNode::default()
    };
    for _ in 0..VMS / AT_A_TIME {
        let daemon = Daemon::start(&program, dir).await?;
        let client = daemon.client()?;
        for _ in 0..AT_A_TIME {
            let vm = client.create_node(GROUP, &kept, None, None).await?.hostname;
            // It need not boot, for it is to be off.
            client.pause(&vm).await?;
        }
        daemon.stop(true).await?;
    }
    let mut samples = Samples::default();
    for _ in rounds.run() {
        let start = Instant::now();
        let daemon = Daemon::start(&program, dir).await?;
        let nodes = daemon.client()?.nodes(&NodeFilter::default()).await?;
        samples.start.push(start.elapsed().as_secs_f64());
        ensure!(nodes.len() == VMS, "{} VMs are listed", nodes.len());
        daemon.stop(false).await?;
    }
    let daemon = Daemon::start(&program, dir).await?;
    let client = daemon.client()?;
    for vm in client.nodes(&NodeFilter::default()).await? {
        client.delete_node(GROUP, &vm.hostname).await?;
    }
    daemon.stop(false).await?;
    Ok(samples)
}

impl Samples {
    /// How long it takes, for people.
    pub(crate) fn story(&self) -> String {
        let ms = 1e3 * median(&self.start);
        format!("a daemon with {VMS} VMs that are off lists them {ms:.0} ms after its start")
    }
}
