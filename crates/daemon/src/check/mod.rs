//! Goes through what a hypervisor must be able to do for the daemon, on this host, with a VM of its
//! own: the contract of [`slicer_machine`], step by step.

mod guest;
mod steps;

use crate::DaemonError;
use slicer_image::{
    CloneKind, CloneOptions, ImageRef, KernelFiles, Limits, Resolved, build_base, clone_disk,
    find_guest, prepare_kernel,
};
use slicer_machine::{Arch, Disk, DiskFormat, Hypervisor};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use steps::{Bench, STEPS};

/// The root disk's size, bytes.
const DISK_SIZE: u64 = 4 << 30;
/// No step takes longer where it works, not even where processors are emulated.
const STEP_TIME: Duration = Duration::from_mins(5);

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The hypervisor does what it must.
    Passed,
    /// It says that it can't here, and why.
    Skipped(String),
    /// It doesn't.
    Failed(String),
}

/// A step that was gone through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What the hypervisor must do.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// Goes through all steps in `dir`, an empty directory of its own, and tells each as it ends. A step
/// needs those before it, so the first that fails is the last. Answers whether all went well.
///
/// # Errors
/// When there is nothing to boot a VM with.
pub async fn run(
    hypervisor: Arc<dyn Hypervisor>,
    dir: &Path,
    mut tell: impl FnMut(&Step),
) -> Result<bool, DaemonError> {
    let arch = Arch::host().ok_or_else(|| {
        DaemonError::Unsupported(format!("no guests run on {} hosts", std::env::consts::ARCH))
    })?;
    let files = {
        let (dir, formats) = (
            dir.to_owned(),
            hypervisor.capabilities().disk_formats.clone(),
        );
        let made = tokio::task::spawn_blocking(move || Files::make(&dir, arch, &formats));
        made.await
            .map_err(|_| DaemonError::Internal("preparing an image"))??
    };
    let mut bench = Bench::new(hypervisor, dir, arch, files)?;
    let mut well = true;
    for (name, step) in STEPS {
        let started = Instant::now();
        let done = tokio::time::timeout(STEP_TIME, step(&mut bench)).await;
        let outcome = match done {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => Outcome::Failed(bench.with_console(&e)),
            Err(_) => {
                Outcome::Failed(bench.with_console(&format!("not done within {STEP_TIME:?}")))
            }
        };
        well = !matches!(outcome, Outcome::Failed(_));
        tell(&Step {
            name,
            outcome,
            took: started.elapsed(),
        });
        if !well {
            break;
        }
    }
    bench.end().await;
    Ok(well)
}

/// What a VM boots with.
struct Files {
    boot: KernelFiles,
    root: PathBuf,
    format: DiskFormat,
}

impl Files {
    fn make(dir: &Path, arch: Arch, formats: &[DiskFormat]) -> Result<Self, DaemonError> {
        let name = arch.go_name();
        let agent = crate::agents::for_arch(name).ok_or(DaemonError::NoAgent { arch: name })?;
        let guest = find_guest(name)?;
        let find = |path: PathBuf| Resolved::find(&ImageRef::OciLayout { path, tag: None }, name);
        let (image, kernel) = (find(guest.image)?, find(guest.kernel)?);
        let boot = prepare_kernel(&kernel, agent, &dir.join("kernel"))?;
        let (base, root) = (dir.join("base.img"), dir.join("root.img"));
        build_base(&image, &base, DISK_SIZE, &Limits::default(), &|_| {})?;
        // As the daemon has it for what is thrown away.
        let mut kinds = vec![CloneKind::Reflink];
        if formats.contains(&DiskFormat::Qcow2) {
            kinds.push(CloneKind::Qcow2Overlay);
        }
        kinds.push(CloneKind::SparseCopy);
        let options = CloneOptions {
            size: DISK_SIZE,
            kinds: &kinds,
            durable: false,
        };
        let format = match clone_disk(&base, &root, &options)? {
            CloneKind::Qcow2Overlay => DiskFormat::Qcow2,
            CloneKind::Reflink | CloneKind::SparseCopy => DiskFormat::Raw,
        };
        Ok(Self { boot, root, format })
    }

    fn disks(&self) -> Vec<Disk> {
        let root = Disk {
            id: "root",
            path: self.root.clone(),
            format: self.format,
            read_only: false,
            flush: true,
        };
        let modules = Disk {
            id: "modules",
            path: self.boot.modules.clone(),
            format: DiskFormat::Raw,
            read_only: true,
            flush: true,
        };
        vec![root, modules]
    }
}

/// Makes a directory of the bench.
fn make_dir(path: PathBuf) -> Result<PathBuf, DaemonError> {
    fs::create_dir_all(&path).map_err(DaemonError::io("create", &path))?;
    Ok(path)
}
