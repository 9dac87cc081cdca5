//! How long a fresh command takes to be run: by the product, by ssh, and beside somebody who reads
//! nothing of what he asked for.

use super::bed::{Bed, seconds};
use super::exec::{run_true, spawn_in_guest};
use super::median;
use super::plan::Rounds;
use crate::text::say;
use anyhow::{Result, ensure};
use serde::Serialize;
use slicer_api::ExecRequest;
use slicer_client::ExecStream;
use std::time::{Duration, Instant};

/// Execs of which a median is taken.
const BLOCK: u32 = 40;
/// What a command that nobody reads needs to fill all that is on its way.
const FILL_TIME: Duration = Duration::from_secs(3);

/// Times in seconds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// `slicer vm exec VM -- /bin/true`, from its start to its end. One per pair.
    pub(crate) exec: Vec<f64>,
    /// `ssh VM /bin/true`, over a connection of its own.
    pub(crate) ssh: Vec<f64>,
    /// The median of some REST execs, one per block.
    pub(crate) alone: Vec<f64>,
    /// The median of as many bytes, one at a time, over a port as QEMU makes it and back.
    pub(crate) echo: Vec<f64>,
    /// What a shell in the guest needs to spawn `/bin/true` and wait for it.
    pub(crate) spawn: Vec<f64>,
    /// The median of some REST execs while a command prints without end and nobody reads it.
    pub(crate) beside: Vec<f64>,
}

impl Samples {
    /// What an exec can't be faster than: a byte to the guest and back, and a program there.
    pub(crate) fn floor(&self) -> Vec<f64> {
        self.echo
            .iter()
            .zip(&self.spawn)
            .map(|(a, b)| a + b)
            .collect()
    }

    /// How fast it is, for people.
    pub(crate) fn story(&self) -> String {
        format!(
            "a fresh command: slicer {:.0} ms, ssh {:.0} ms; REST exec {:.2} ms, beside a reader \
             that is stuck {:.2} ms",
            1e3 * median(&self.exec),
            1e3 * median(&self.ssh),
            1e3 * median(&self.alone),
            1e3 * median(&self.beside),
        )
    }
}

/// Measures pairs of connections and blocks of execs.
pub(crate) async fn measure(bed: &mut Bed, pairs: Rounds, blocks: Rounds) -> Result<Samples> {
    say("Connect: fresh commands, and execs beside a stuck reader");
    let mut samples = Samples::default();
    for pair in pairs.run() {
        for product in [pair % 2 == 0, pair % 2 != 0] {
            if product {
                let exec = bed.slicer(&["vm", "exec", "{}", "--", "/bin/true"])?;
                samples.exec.push(seconds(exec).await?);
            } else {
                let mut ssh = bed.ssh("ssh");
                ssh.arg(Bed::ssh_host()).arg("/bin/true");
                samples.ssh.push(seconds(ssh).await?);
            }
        }
    }
    for block in blocks.run() {
        for stuck in [block % 2 == 0, block % 2 != 0] {
            if stuck {
                let reader = start_unread(bed).await?;
                samples.beside.push(block_of_execs(bed).await?);
                drop(reader);
            } else {
                samples.alone.push(block_of_execs(bed).await?);
                let spawn = spawn_in_guest(bed.client(), bed.vm()).await?;
                samples.spawn.push(spawn);
                samples.echo.push(median(&bed.raw.echo(BLOCK).await?));
            }
        }
    }
    Ok(samples)
}

async fn block_of_execs(bed: &Bed) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..BLOCK {
        let start = Instant::now();
        run_true(bed.client(), bed.vm()).await?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(&times))
}

/// Starts a command that prints without end, and makes sure that it has come to a stop.
async fn start_unread(bed: &Bed) -> Result<ExecStream> {
    let request = ExecRequest {
        cmd: "/usr/bin/yes".to_owned(),
        ..ExecRequest::default()
    };
    let stream = bed.client().exec(bed.vm(), &request, None).await?;
    tokio::time::sleep(FILL_TIME).await;
    let script = "cat /proc/$(pidof yes)/wchan";
    let waits = bed.says(script).await?;
    ensure!(
        waits.contains("pipe_write"),
        "what nobody reads goes on: it is in {waits:?}"
    );
    Ok(stream)
}
