//! A TCP connection forwarded into a VM, the raw guest channel, and the product's channel and port
//! that are below it.

use super::bed::{Bed, TCP_PORT, TOOL};
use super::median;
use super::pipe::Pipe;
use super::plan::Rounds;
use crate::text::say;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

/// Bytes sent to and fro to measure latency, before the other way is measured.
const BLOCK: u32 = 100;
/// How long two programs of the guest may take for a block.
const GUEST_TIME: Duration = Duration::from_mins(1);

/// Times in seconds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// Bytes of a transfer.
    pub(crate) bytes: u64,
    /// So many into the guest through `slicer vm forward`, which a program there throws away. One
    /// per pair.
    pub(crate) forward_in: Vec<f64>,
    /// So many out of the guest, which a program there makes up.
    pub(crate) forward_out: Vec<f64>,
    /// The same over a port as QEMU makes it.
    pub(crate) raw_in: Vec<f64>,
    /// The same over such a port.
    pub(crate) raw_out: Vec<f64>,
    /// The same on a stream of the product's guest channel.
    pub(crate) channel_in: Vec<f64>,
    /// The same on a stream of the guest channel.
    pub(crate) channel_out: Vec<f64>,
    /// The same over the bare port.
    pub(crate) port_in: Vec<f64>,
    /// The same over the bare port.
    pub(crate) port_out: Vec<f64>,
    /// A byte through the forward and back.
    pub(crate) forward_echo: Vec<f64>,
    /// A byte over a port as QEMU makes it and back.
    pub(crate) raw_echo: Vec<f64>,
    /// A byte on a stream of the product's guest channel and back.
    pub(crate) channel_echo: Vec<f64>,
    /// A byte over the bare port and back.
    pub(crate) port_echo: Vec<f64>,
    /// A byte between two programs of the guest, by TCP, and back.
    pub(crate) guest_echo: Vec<f64>,
}

impl Samples {
    /// How fast it is, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        let mib = |times: &[f64]| mib(self.bytes) / median(times);
        vec![
            format!(
                "forward in {:.0} MiB/s, raw {:.0}, channel {:.0}, bare port {:.0}; \
                 out {:.0}, {:.0}, {:.0}, {:.0}",
                mib(&self.forward_in),
                mib(&self.raw_in),
                mib(&self.channel_in),
                mib(&self.port_in),
                mib(&self.forward_out),
                mib(&self.raw_out),
                mib(&self.channel_out),
                mib(&self.port_out),
            ),
            format!(
                "a byte to and fro: forward {:.0} µs, raw {:.0} µs, channel {:.0} µs, \
                 bare port {:.0} µs; between two programs of the guest, by TCP, {:.0} µs",
                1e6 * median(&self.forward_echo),
                1e6 * median(&self.raw_echo),
                1e6 * median(&self.channel_echo),
                1e6 * median(&self.port_echo),
                1e6 * median(&self.guest_echo),
            ),
        ]
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of transfers")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Measures pairs of transfers and blocks of latencies.
pub(crate) async fn measure(
    bed: &mut Bed,
    bytes: u64,
    pairs: Rounds,
    blocks: Rounds,
) -> Result<Samples> {
    say(&format!("Forward: {} MiB, and echoes", bytes >> 20));
    let mut forward = Forward::start(bed).await?;
    let mut samples = Samples {
        bytes,
        ..Samples::default()
    };
    for pair in pairs.run() {
        for product in [pair % 2 == 0, pair % 2 != 0] {
            if product {
                samples.forward_in.push(forward.pipe.give(bytes).await?);
                samples.forward_out.push(forward.pipe.take(bytes).await?);
            } else {
                samples.raw_in.push(bed.raw.give(bytes).await?);
                samples.raw_out.push(bed.raw.take(bytes).await?);
                samples.channel_in.push(bed.stream.give(bytes).await?);
                samples.channel_out.push(bed.stream.take(bytes).await?);
                samples.port_in.push(bed.port.give(bytes).await?);
                samples.port_out.push(bed.port.take(bytes).await?);
            }
        }
    }
    for block in blocks.run() {
        for product in [block % 2 == 0, block % 2 != 0] {
            if product {
                samples.forward_echo.extend(forward.pipe.echo(BLOCK).await?);
                samples.guest_echo.extend(guest_echo(bed).await?);
            } else {
                samples.raw_echo.extend(bed.raw.echo(BLOCK).await?);
                samples.channel_echo.extend(bed.stream.echo(BLOCK).await?);
                samples.port_echo.extend(bed.port.echo(BLOCK).await?);
            }
        }
    }
    forward.command.kill().await?;
    Ok(samples)
}

/// Seconds a byte takes from one program of the guest to another and back, by the guest's clock.
async fn guest_echo(bed: &Bed) -> Result<Vec<f64>> {
    let line = format!("{TOOL} echo {BLOCK}");
    let args = ["vm", "exec", "{}", "--", line.as_str()];
    let mut command = bed.slicer(&args)?;
    let out = tokio::time::timeout(GUEST_TIME, command.output()).await;
    let out = out.with_context(|| format!("{line} hangs"))?;
    let out = out.context("cannot run slicer")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let times: Vec<f64> = text
        .lines()
        .filter_map(|line| Some(line.parse::<f64>().ok()? / 1e9))
        .collect();
    ensure!(times.len() == BLOCK as usize, "{line} says {text:?}");
    Ok(times)
}

/// A running `slicer vm forward`, with one connection through it.
struct Forward {
    command: Child,
    pipe: Pipe<TcpStream>,
}

impl Forward {
    async fn start(bed: &Bed) -> Result<Self> {
        let mapping = format!("0:127.0.0.1:{TCP_PORT}");
        let mut command = bed
            .slicer(&["vm", "forward", "{}", "-L", &mapping])?
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run slicer")?;
        let stdout = command.stdout.take().context("slicer has no output")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let line = line.context("slicer vm forward ended")?;
        let listen: Option<SocketAddr> = line
            .split(' ')
            .nth(1)
            .and_then(|address| address.parse().ok());
        let listen = listen.with_context(|| format!("what does {line:?} mean?"))?;
        let stream = TcpStream::connect(listen).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            command,
            pipe: Pipe(stream),
        })
    }
}
