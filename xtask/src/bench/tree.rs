//! A tree of small files into a VM and out of it: by the product, and by tar through ssh.

use super::bed::{Bed, seconds};
use super::median;
use super::plan::Rounds;
use super::transfer::path;
use crate::text::say;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use tokio::process::Command;

/// Where the tree is in the guest.
const THERE: &str = "/var/tmp/bench-tree";
/// Files in a directory, and the size of the largest.
const PER_DIRECTORY: u32 = 50;
const LARGEST: usize = 8 << 10;

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// Files in the tree.
    pub(crate) files: u32,
    /// `slicer vm cp TREE VM:TREE`, from its start to its end.
    pub(crate) cp_in: Vec<f64>,
    /// `slicer vm cp VM:TREE TREE`.
    pub(crate) cp_out: Vec<f64>,
    /// `tar -c | ssh VM tar -x`.
    pub(crate) tar_in: Vec<f64>,
    /// `ssh VM tar -c | tar -x`.
    pub(crate) tar_out: Vec<f64>,
}

impl Samples {
    /// How fast it is, for people.
    pub(crate) fn story(&self) -> String {
        format!(
            "{} files in: cp {:.2} s, tar through ssh {:.2} s; out: {:.2} s, {:.2} s",
            self.files,
            median(&self.cp_in),
            median(&self.tar_in),
            median(&self.cp_out),
            median(&self.tar_out),
        )
    }
}

/// Measures pairs of each.
pub(crate) async fn measure(bed: &Bed, files: u32, pairs: Rounds) -> Result<Samples> {
    say(&format!("Tree: {files} files"));
    let (root, back) = (bed.dir().join("tree"), bed.dir().join("tree-back"));
    plant(&root, files)?;
    let (here, returned) = (path(&root)?, path(&back)?);
    let there = format!("{{}}:{THERE}");
    let mut samples = Samples {
        files,
        ..Samples::default()
    };
    for pair in pairs.run() {
        for product in [pair % 2 == 0, pair % 2 != 0] {
            if product {
                let copy = bed.slicer(&["vm", "cp", here, &there])?;
                samples.cp_in.push(seconds(copy).await?);
                let copy = bed.slicer(&["vm", "cp", &there, returned])?;
                samples.cp_out.push(seconds(copy).await?);
            } else {
                let ssh = through_ssh(bed)?;
                let script = format!(
                    "tar -C {here} -cf - . | {ssh} 'mkdir {THERE} && tar -C {THERE} -xf -'"
                );
                samples.tar_in.push(shell(&script).await?);
                let script = format!(
                    "mkdir {returned} && {ssh} 'tar -C {THERE} -cf - .' | tar -C {returned} -xf -"
                );
                samples.tar_out.push(shell(&script).await?);
            }
            let compared = Command::new("diff").arg("-r").args([&root, &back]).status();
            let compared = compared.await.context("cannot run diff")?;
            ensure!(compared.success(), "what came back is not what was sent");
            remove(&back)?;
            // Both begin with what they wrote on the disk, and not on its way there.
            bed.says(&format!("rm -r {THERE} && sync")).await?;
        }
    }
    remove(&root)?;
    Ok(samples)
}

async fn shell(script: &str) -> Result<f64> {
    let mut command = Command::new("bash");
    command
        .args(["-e", "-o", "pipefail", "-c", script])
        .kill_on_drop(true);
    seconds(command).await
}

/// The ssh command, for a shell.
fn through_ssh(bed: &Bed) -> Result<String> {
    let mut command = bed.ssh("ssh");
    command.arg(Bed::ssh_host());
    let std = command.as_std();
    let words: Vec<OsString> = [std.get_program()]
        .into_iter()
        .chain(std.get_args())
        .map(OsString::from)
        .collect();
    let words: Result<Vec<&str>> = words.iter().map(|w| path(Path::new(w))).collect();
    Ok(words?.join(" "))
}

fn plant(root: &Path, files: u32) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(11);
    for n in 0..files {
        let group = n / PER_DIRECTORY;
        let dir = root.join(format!("{:02}/{:02}", group / 10, group % 10));
        let error = || format!("cannot write to {}", dir.display());
        fs::create_dir_all(&dir).with_context(error)?;
        let mut bytes = vec![0; rng.usize(..LARGEST)];
        rng.fill(&mut bytes);
        fs::write(dir.join(format!("file-{n}")), bytes).with_context(error)?;
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}
