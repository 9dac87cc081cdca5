//! A large file into a VM and out of it: by the product, and by scp; and as many bytes over the raw
//! guest channel, and over the product's own.

use super::bed::{Bed, seconds};
use super::median;
use super::plan::Rounds;
use crate::text::say;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Where the file is in the guest.
const THERE: &str = "/var/tmp/bench-file";

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// `slicer vm cp FILE VM:FILE`, from its start to its end.
    pub(crate) cp_in: Vec<f64>,
    /// `slicer vm cp VM:FILE FILE`.
    pub(crate) cp_out: Vec<f64>,
    /// `slicer vm exec VM -- head -c BYTES /dev/zero`, whose output is thrown away.
    pub(crate) stdout: Vec<f64>,
    /// As many bytes over a port as QEMU makes it, which the guest throws away.
    pub(crate) raw_in: Vec<f64>,
    /// As many bytes over such a port, which the guest makes up.
    pub(crate) raw_out: Vec<f64>,
    /// As many bytes on a stream of the product's guest channel, which the guest throws away.
    pub(crate) channel_in: Vec<f64>,
    /// As many bytes on a stream of the guest channel, which the guest makes up.
    pub(crate) channel_out: Vec<f64>,
    /// As many bytes over the bare port, which the guest throws away.
    pub(crate) port_in: Vec<f64>,
    /// As many bytes over the bare port, which the guest makes up.
    pub(crate) port_out: Vec<f64>,
    /// As many bytes over the bare port, which the guest writes to a file as they come.
    pub(crate) port_file_in: Vec<f64>,
    /// Bytes of the file for scp, which is slow.
    pub(crate) small_bytes: u64,
    /// `slicer vm cp FILE VM:FILE` of that, in the first pairs.
    pub(crate) small_in: Vec<f64>,
    /// `slicer vm cp VM:FILE FILE` of that.
    pub(crate) small_out: Vec<f64>,
    /// `scp FILE VM:FILE` of that.
    pub(crate) scp_in: Vec<f64>,
    /// `scp VM:FILE FILE` of that.
    pub(crate) scp_out: Vec<f64>,
}

impl Samples {
    /// How fast all of it is, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        let of = |bytes: u64, times: &[f64]| bytes_f64(bytes) / f64::from(1 << 20) / median(times);
        let mib = |times: &[f64]| of(self.bytes, times);
        let small = |times: &[f64]| of(self.small_bytes, times);
        vec![
            format!(
                "{} MiB in: cp {:.0} MiB/s, raw {:.0}, channel {:.0}, bare port {:.0}, bare port to \
                 a file {:.0}, scp {:.0}",
                self.bytes >> 20,
                mib(&self.cp_in),
                mib(&self.raw_in),
                mib(&self.channel_in),
                mib(&self.port_in),
                mib(&self.port_file_in),
                small(&self.scp_in),
            ),
            format!(
                "{} MiB out: cp {:.0} MiB/s, printed {:.0}, raw {:.0}, channel {:.0}, bare port {:.0}, \
                 scp {:.0}",
                self.bytes >> 20,
                mib(&self.cp_out),
                mib(&self.stdout),
                mib(&self.raw_out),
                mib(&self.channel_out),
                mib(&self.port_out),
                small(&self.scp_out),
            ),
        ]
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of files")]
fn bytes_f64(bytes: u64) -> f64 {
    bytes as f64
}

/// Measures pairs of each; the first `notes` also with scp, which is slow, and over the other ways that
/// are good to know.
pub(crate) async fn measure(
    bed: &mut Bed,
    bytes: u64,
    pairs: Rounds,
    notes: u32,
) -> Result<Samples> {
    say(&format!("Transfer: {} MiB", bytes >> 20));
    let (file, back) = (bed.dir().join("file"), bed.dir().join("back"));
    let (small, small_bytes) = (bed.dir().join("small"), bytes / 4);
    plant(&file, bytes)?;
    plant(&small, small_bytes)?;
    let (here, here_small, returned) = (path(&file)?, path(&small)?, path(&back)?);
    let there = format!("{{}}:{THERE}");
    let remote = format!("{}:{THERE}", Bed::ssh_host());
    let count = bytes.to_string();
    let mut samples = Samples {
        bytes,
        small_bytes,
        ..Samples::default()
    };
    for pair in pairs.run() {
        for product in [pair % 2 == 0, pair % 2 != 0] {
            if product {
                bed.says(&format!("rm -f {THERE}")).await?;
                let copy = bed.slicer(&["vm", "cp", here, &there])?;
                samples.cp_in.push(seconds(copy).await?);
                let copy = bed.slicer(&["vm", "cp", &there, returned])?;
                samples.cp_out.push(seconds(copy).await?);
                same(&file, &back)?;
                let print = ["vm", "exec", "{}", "--", "head", "-c", &count, "/dev/zero"];
                samples.stdout.push(seconds(bed.slicer(&print)?).await?);
            } else {
                samples.raw_in.push(bed.raw.give(bytes).await?);
                samples.raw_out.push(bed.raw.take(bytes).await?);
                samples.channel_in.push(bed.stream.give(bytes).await?);
                samples.channel_out.push(bed.stream.take(bytes).await?);
                if pair >= notes {
                    continue;
                }
                samples.port_in.push(bed.port.give(bytes).await?);
                samples.port_out.push(bed.port.take(bytes).await?);
                let with_file = bed.port.give_file(bytes).await?;
                samples.port_file_in.push(with_file);
            }
        }
        if pair < notes {
            for product in [pair % 2 == 0, pair % 2 != 0] {
                bed.says(&format!("rm -f {THERE}")).await?;
                let commands = if product {
                    [
                        bed.slicer(&["vm", "cp", here_small, &there])?,
                        bed.slicer(&["vm", "cp", &there, returned])?,
                    ]
                } else {
                    let (mut to, mut from) = (bed.ssh("scp"), bed.ssh("scp"));
                    to.args([here_small, &remote]);
                    from.args([&remote, returned]);
                    [to, from]
                };
                let [to, from] = commands;
                let (to, from) = (seconds(to).await?, seconds(from).await?);
                same(&small, &back)?;
                if product {
                    samples.small_in.push(to);
                    samples.small_out.push(from);
                } else {
                    samples.scp_in.push(to);
                    samples.scp_out.push(from);
                }
            }
        }
    }
    bed.says(&format!("rm -f {THERE}")).await?;
    for file in [file, small] {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(samples)
}

/// A path on a command line.
pub(super) fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Writes a file of bytes that no step on the way could leave out or shorten.
fn plant(path: &Path, bytes: u64) -> Result<()> {
    let error = || format!("cannot write {}", path.display());
    let mut file = File::create(path).with_context(error)?;
    let mut rng = fastrand::Rng::with_seed(7);
    let mut piece = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        rng.fill(&mut piece);
        file.write_all(&piece).with_context(error)?;
    }
    file.sync_all().with_context(error)
}

fn same(a: &Path, b: &Path) -> Result<()> {
    let same = std::process::Command::new("cmp")
        .args([a, b])
        .status()
        .context("cannot run cmp")?;
    ensure!(same.success(), "what came back is not what was sent");
    // The next copy finds nothing to replace.
    fs::remove_file(b).with_context(|| format!("cannot remove {}", b.display()))
}
