//! `cargo xtask image`: a guest image and its kernel, as two OCI layouts.
//!
//! Everything comes from the Debian archive that this machine's own apt uses. Only mmdebstrap, apt
//! and depmod are called; the rest is done here. Results appear under their names complete or not
//! at all, and what is up to date is left alone.

mod apt;
mod kernel;
pub(crate) mod layout;
mod modules;
mod rootfs;

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Goes up when the same inputs should give another image.
const REVISION: u32 = 2;

/// What `cargo xtask image` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Architecture of the guest
    #[arg(long, value_enum, default_value_t = Arch::host())]
    arch: Arch,
    /// Directory of the results [default: target/guest/ARCH]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Build even when nothing has changed
    #[arg(long)]
    force: bool,
    /// What the image is for
    #[arg(long, value_enum, default_value_t = Recipe::Default)]
    recipe: Recipe,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            arch: Arch::host(),
            out: None,
            force: false,
            recipe: Recipe::Default,
        }
    }
}

/// What goes into a root filesystem.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Recipe {
    /// What every sandbox needs: `guest/`, as the layout `image`.
    Default,
    /// That and Docker: `guest/docker/`, as the layout `docker`.
    Docker,
    /// Debian without an init, for tests: `guest/minimal/`, as the layout `minimal`.
    Minimal,
}

impl Recipe {
    /// The name of its layout.
    fn layout(self) -> &'static str {
        match self {
            Self::Default => "image",
            Self::Docker => "docker",
            Self::Minimal => "minimal",
        }
    }

    /// The recipe whose root it begins with.
    fn base(self) -> Option<Self> {
        match self {
            Self::Default | Self::Minimal => None,
            Self::Docker => Some(Self::Default),
        }
    }

    /// Its directory, where `guest` is that of all recipes.
    fn dir(self, guest: &Path) -> PathBuf {
        match self {
            Self::Default => guest.to_owned(),
            Self::Docker => guest.join("docker"),
            Self::Minimal => guest.join("minimal"),
        }
    }

    /// Whether this path below `guest/` is a part of it or of its base.
    fn includes(self, path: &Path) -> bool {
        let part = |r: &&Self| **r != Self::Default && path.starts_with(r.dir(Path::new("")));
        match Self::value_variants().iter().find(part) {
            Some(owner) => *owner == self,
            None => true,
        }
    }
}

/// A guest's architecture, by Debian's name.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    fn host() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        })
    }
}

/// What every step of a build needs to know.
struct Build {
    arch: Arch,
    /// Where scratch directories and results go: one filesystem.
    out: PathBuf,
    /// The directory of recipes: `guest/`.
    guest: PathBuf,
    sources: apt::Sources,
}

/// Builds what is missing or out of date.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = crate::workspace()?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => workspace.join("target/guest").join(args.arch.to_string()),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let build = Build {
        arch: args.arch,
        out: out.canonicalize()?,
        guest: workspace.join("guest"),
        sources: apt::Sources::of_host()?,
    };
    make_recipe(&build, args.recipe, args.force)?;
    let module_list = modules::wanted(build.arch).describe();
    make(
        &build,
        "kernel",
        &inputs(&build, "kernel", module_list.as_bytes()),
        args.force,
        &|tar| kernel::build(&build, tar),
    )
}

/// What a result is made of, in short.
fn inputs(build: &Build, what: &str, recipe: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!(
        "{what} {REVISION} {}\n{}",
        build.arch, build.sources.text
    ));
    hash.update(recipe);
    layout::hex(&hash.finalize())
}

/// Builds a recipe's layout, and before it that of its base, where they are out of date.
fn make_recipe(build: &Build, recipe: Recipe, force: bool) -> Result<()> {
    let mut made_of = digest_tree(&build.guest, |path| recipe.includes(path))?;
    if let Some(base) = recipe.base() {
        make_recipe(build, base, false)?;
        made_of.extend(layout::digest(&build.out.join(base.layout()))?.into_bytes());
    }
    let name = recipe.layout();
    let inputs = inputs(build, name, &made_of);
    make(build, name, &inputs, force, &|tar| {
        rootfs::build(build, recipe, tar)
    })
}

/// Builds the layout `name` unless the one that is there was made of the same inputs.
fn make(
    build: &Build,
    name: &str,
    inputs: &str,
    force: bool,
    write: &dyn Fn(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let dest = build.out.join(name);
    if !force && layout::inputs_of(&dest).as_deref() == Some(inputs) {
        say(&format!(
            "{name} for {}: up to date ({})",
            build.arch,
            dest.display()
        ));
        return Ok(());
    }
    let started = Instant::now();
    let scratch = scratch_dir(build)?;
    let info = layout::write(
        scratch.path(),
        &build.arch.to_string(),
        inputs,
        &mut |tar| write(tar),
    )?;
    layout::replace(scratch, &dest)?;
    say(&format!(
        "{name} for {}: {:.0} MB, {:.0} MB compressed, {:.1} s ({})",
        build.arch,
        megabytes(info.unpacked),
        megabytes(info.packed),
        started.elapsed().as_secs_f64(),
        dest.display()
    ));
    Ok(())
}

/// A directory beside the results that goes away by itself.
fn scratch_dir(build: &Build) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(&build.out)
        .with_context(|| format!("cannot create a directory in {}", build.out.display()))
}

/// Digest of file names, kinds, and contents of what counts in a directory.
fn digest_tree(dir: &Path, counts: impl Fn(&Path) -> bool) -> Result<Vec<u8>> {
    let mut hash = Sha256::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let relative = path.strip_prefix(dir)?;
        if !counts(relative) {
            continue;
        }
        let meta = fs::symlink_metadata(&path)?;
        hash.update(relative.as_os_str().as_encoded_bytes());
        if meta.is_dir() {
            hash.update(b"/");
            let mut children = fs::read_dir(&path)?
                .map(|e| e.map(|e| e.path()))
                .collect::<std::io::Result<Vec<_>>>()?;
            children.sort();
            pending.extend(children);
        } else {
            let content =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            hash.update(content.len().to_le_bytes());
            hash.update(content);
        }
    }
    Ok(hash.finalize().to_vec())
}

/// Does one step and says how long it took.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = work().with_context(|| format!("cannot {what}"))?;
    say_step(what, started.elapsed());
    Ok(result)
}

fn say_step(what: &str, took: Duration) {
    say(&format!("  {:>6.1} s  {what}", took.as_secs_f64()));
}

/// Writes a line for the person who watches; when nobody can, that is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a program and returns what it printed; what it says on standard error is shown only when
/// it fails.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}; is it installed?"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}):\n{}", output.status, said.trim_end());
    }
    Ok(output.stdout)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_changes_with_its_own_files_only() {
        let own = |recipe: Recipe, path: &str| recipe.includes(Path::new(path));
        assert!(own(Recipe::Default, "packages.txt"));
        assert!(own(Recipe::Docker, "packages.txt"));
        assert!(own(Recipe::Docker, "docker/packages.txt"));
        assert!(own(Recipe::Minimal, "minimal/packages.txt"));
        assert!(!own(Recipe::Default, "docker"));
        assert!(!own(Recipe::Docker, "minimal/packages.txt"));
        assert!(!own(Recipe::Default, "docker/packages.txt"));
    }
}
