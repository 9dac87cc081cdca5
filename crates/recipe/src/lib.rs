//! The guest images and their kernel, as OCI layouts, made of the Debian archive that this
//! machine's own apt uses.
//!
//! Only mmdebstrap, apt, depmod and zstd are called; the rest is done here. Results appear under
//! their names complete or not at all, and what is up to date is left alone.
#![forbid(unsafe_code)]

mod apt;
mod error;
mod files;
mod kernel;
mod layout;
mod modules;
mod program;
mod rootfs;

pub use error::RecipeError;
pub use layout::replace;
pub use program::Stop;

use error::Context as _;
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Goes up when the same inputs should give another image.
const REVISION: u32 = 2;

type Result<T> = std::result::Result<T, RecipeError>;

/// What goes into a root filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// What every sandbox needs: `guest/`, as the layout `image`.
    Default,
    /// That and Docker: `guest/docker/`, as the layout `docker`.
    Docker,
    /// Debian without an init, for tests: `guest/minimal/`, as the layout `minimal`.
    Minimal,
}

impl Recipe {
    const ALL: [Self; 3] = [Self::Default, Self::Docker, Self::Minimal];

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
        match Self::ALL.iter().find(part) {
            Some(owner) => *owner == self,
            None => true,
        }
    }
}

/// A guest's architecture, by Debian's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl Arch {
    /// That of this program, and so of this machine.
    pub fn host() -> Self {
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

/// What is to be built.
pub struct Order<'a> {
    /// For guests of this architecture.
    pub arch: Arch,
    /// The image.
    pub recipe: Recipe,
    /// The directory that gets the layouts, the image's and that of `kernel`.
    pub out: &'a Path,
    /// Build even when nothing has changed.
    pub force: bool,
    /// Told what is done, a line at a time.
    pub say: &'a dyn Fn(&str),
    /// Ends the build early.
    pub stop: &'a Stop,
}

/// The layouts of an image and its kernel; the tag in both is `latest`.
#[derive(Debug, Clone)]
pub struct Built {
    /// The root filesystem.
    pub image: Made,
    /// The kernel and its modules.
    pub kernel: Made,
}

/// A layout that is up to date.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its directory.
    pub path: PathBuf,
    /// Whether it was made now; else it was up to date.
    pub is_new: bool,
}

/// What every step of a build needs to know.
struct Build<'a> {
    arch: Arch,
    /// Where scratch directories and results go: one filesystem.
    out: PathBuf,
    /// The directory of recipes: `guest/`.
    guest: &'a Path,
    sources: apt::Sources,
    say: &'a dyn Fn(&str),
    stop: &'a Stop,
}

/// Builds what is missing or out of date.
pub fn build(order: &Order<'_>) -> Result<Built> {
    with(order, |build| {
        let image = make_recipe(build, order.recipe, order.force)?;
        let kernel = make_kernel(build, order.force)?;
        Ok(Built { image, kernel })
    })
}

/// Builds the kernel alone, for which no program of the guest's architecture is run.
pub fn build_kernel(order: &Order<'_>) -> Result<Made> {
    with(order, |build| make_kernel(build, order.force))
}

fn with<T>(order: &Order<'_>, work: impl FnOnce(&Build<'_>) -> Result<T>) -> Result<T> {
    let guest = files::write().with_context(|| "cannot write the recipes")?;
    work(&Build {
        arch: order.arch,
        out: directory(order.out)?,
        guest: guest.path(),
        sources: apt::Sources::of_host()?,
        say: order.say,
        stop: order.stop,
    })
}

fn make_kernel(build: &Build<'_>, force: bool) -> Result<Made> {
    let module_list = modules::wanted(build.arch).describe();
    let inputs = inputs(build, "kernel", module_list.as_bytes());
    make(build, "kernel", &inputs, force, &|tar| {
        kernel::build(build, tar)
    })
}

/// Puts the same image for several architectures into one layout, named as each of them is, in
/// `out`: the filesystem they are on.
pub fn combine(recipe: Recipe, images: &[Made], out: &Path) -> Result<PathBuf> {
    let out = directory(out)?;
    let scratch = scratch_dir(&out)?;
    let layouts: Vec<_> = images.iter().map(|i| i.path.clone()).collect();
    layout::combine(scratch.path(), &layouts)?;
    let dest = out.join(recipe.layout());
    replace(scratch, &dest)?;
    Ok(dest)
}

fn directory(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path)
        .and_then(|()| path.canonicalize())
        .with_context(|| format!("cannot create {}", path.display()))
}

/// What a result is made of, in short.
fn inputs(build: &Build<'_>, what: &str, recipe: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!(
        "{what} {REVISION} {}\n{}",
        build.arch, build.sources.text
    ));
    hash.update(recipe);
    layout::hex(&hash.finalize())
}

/// Builds a recipe's layout, and before it that of its base, where they are out of date.
fn make_recipe(build: &Build<'_>, recipe: Recipe, force: bool) -> Result<Made> {
    let mut made_of = digest_tree(build.guest, |path| recipe.includes(path))?;
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
    build: &Build<'_>,
    name: &str,
    inputs: &str,
    force: bool,
    write: &dyn Fn(&mut dyn Write) -> Result<()>,
) -> Result<Made> {
    let path = build.out.join(name);
    if !force && layout::inputs_of(&path).as_deref() == Some(inputs) {
        (build.say)(&format!(
            "{name} for {}: up to date ({})",
            build.arch,
            path.display()
        ));
        return Ok(Made {
            path,
            is_new: false,
        });
    }
    program::check()?;
    let started = Instant::now();
    let scratch = scratch_dir(&build.out)?;
    let info = layout::write(
        scratch.path(),
        &build.arch.to_string(),
        inputs,
        build.stop,
        &mut |tar| write(tar),
    )?;
    build.stop.check()?;
    replace(scratch, &path)?;
    (build.say)(&format!(
        "{name} for {}: {:.0} MB, {:.0} MB compressed, {:.1} s ({})",
        build.arch,
        megabytes(info.unpacked),
        megabytes(info.packed),
        started.elapsed().as_secs_f64(),
        path.display()
    ));
    Ok(Made { path, is_new: true })
}

/// A directory beside the results, which are in `out`, that goes away by itself.
fn scratch_dir(out: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(out)
        .with_context(|| format!("cannot create a directory in {}", out.display()))
}

/// Digest of file names, kinds, and contents of what counts in a directory.
fn digest_tree(dir: &Path, counts: impl Fn(&Path) -> bool) -> Result<Vec<u8>> {
    let mut hash = Sha256::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let relative = path.strip_prefix(dir).unwrap_or(&path);
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

impl Build<'_> {
    /// Does one step and says how long it took.
    fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.stop.check()?;
        let started = Instant::now();
        let result = work().with_context(|| format!("cannot {what}"))?;
        self.say_step(what, started.elapsed());
        Ok(result)
    }

    fn say_step(&self, what: &str, took: Duration) {
        (self.say)(&format!("  {:>6.1} s  {what}", took.as_secs_f64()));
    }
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
