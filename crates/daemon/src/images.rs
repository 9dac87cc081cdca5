//! A host group's image as something VMs can be cloned from: base disk and boot files.

use crate::DaemonError;
use crate::config::HostGroupConfig;
use crate::record::DiskKind;
use crate::vm::DiskGate;
use crate::workdir::WorkDir;
use slicer_image::{
    CloneKind, CloneOptions, ImageRef, KernelFiles, Limits, Progress, Resolved, base_is_current,
    build_base, clone_disk, find_guest, prepare_kernel,
};
use slicer_machine::{Arch, DiskFormat};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Mutex;
use tracing::{info, warn};

/// What the VMs of a group are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) boot: KernelFiles,
    pub(crate) image_digest: String,
}

/// Prepares a group's image once, however many launches wait for it. A failure is not kept: the
/// next launch tries again.
pub(crate) struct GroupImage {
    work: Arc<WorkDir>,
    group: HostGroupConfig,
    kernel_image: Option<String>,
    arch: Arch,
    prepared: Mutex<Option<Arc<Prepared>>>,
}

impl GroupImage {
    pub(crate) fn new(
        work: Arc<WorkDir>,
        group: HostGroupConfig,
        kernel_image: Option<String>,
        arch: Arch,
    ) -> Self {
        Self {
            work,
            group,
            kernel_image,
            arch,
            prepared: Mutex::new(None),
        }
    }

    /// The group's base and boot files, made first where they are missing or of another image.
    pub(crate) async fn prepare(&self) -> Result<Arc<Prepared>, DaemonError> {
        // Held across the work on purpose: that is what makes the others wait for it.
        let mut slot = self.prepared.lock().await;
        if let Some(prepared) = &*slot {
            return Ok(prepared.clone());
        }
        let work = self.work.clone();
        let group = self.group.clone();
        let kernel_image = self.kernel_image.clone();
        let arch = self.arch;
        let job = move || prepare(&work, &group, kernel_image.as_deref(), arch);
        let prepared = tokio::task::spawn_blocking(job).await;
        let prepared =
            Arc::new(prepared.map_err(|_| DaemonError::Internal("preparing an image"))??);
        *slot = Some(prepared.clone());
        Ok(prepared)
    }

    /// Makes the disk of a VM of this group. What is kept gets a disk that needs no base; what is
    /// thrown away may read from it.
    pub(crate) async fn clone_disk(
        &self,
        vm: &str,
        kept: bool,
        formats: &[DiskFormat],
        gate: DiskGate,
    ) -> Result<DiskKind, DaemonError> {
        let mut kinds = vec![CloneKind::Reflink];
        if !kept && formats.contains(&DiskFormat::Qcow2) {
            kinds.push(CloneKind::Qcow2Overlay);
        }
        kinds.push(CloneKind::SparseCopy);
        let base = self.work.base(&self.group.name);
        let disk = self.work.disk(vm);
        let size = self.group.storage_size;
        let job = move || {
            let options = CloneOptions {
                size,
                kinds: &kinds,
                durable: kept,
            };
            gate.pass(|| clone_disk(&base, &disk, &options))
        };
        let kind = tokio::task::spawn_blocking(job).await;
        let kind = kind
            .ok()
            .flatten()
            .ok_or(DaemonError::Internal("cloning a disk"))?;
        Ok(match kind? {
            CloneKind::Qcow2Overlay => DiskKind::Qcow2,
            CloneKind::Reflink | CloneKind::SparseCopy => DiskKind::Raw,
        })
    }
}

fn prepare(
    work: &WorkDir,
    group: &HostGroupConfig,
    kernel_image: Option<&str>,
    arch: Arch,
) -> Result<Prepared, DaemonError> {
    let go_arch = arch.go_name();
    let agent = crate::agents::for_arch(go_arch).ok_or(DaemonError::NoAgent { arch: go_arch })?;
    let image = resolve(work, &group.image, go_arch)?;
    let base = work.base(&group.name);
    let start = Instant::now();
    if !base_is_current(&base, &image, group.storage_size) {
        info!(
            "group {}: building {} from {}",
            group.name,
            base.display(),
            group.image
        );
        let skipped = |p: Progress<'_>| {
            if let Progress::Skipped { entry, why } = p {
                warn!("{}: left out {entry}: {why}", group.image);
            }
        };
        build_base(
            &image,
            &base,
            group.storage_size,
            &Limits::default(),
            &skipped,
        )?;
        info!(
            "group {}: base built in {:.1?}",
            group.name,
            start.elapsed()
        );
    }
    let kernel = match kernel_image {
        Some(reference) => resolve(work, reference, go_arch)?,
        None => {
            let path = find_guest(go_arch)?.kernel;
            Resolved::find(&ImageRef::OciLayout { path, tag: None }, go_arch)?
        }
    };
    let dir = work.kernel(&group.name);
    slicer_image::remove_unfinished(&dir)?;
    let boot = prepare_kernel(&kernel, agent, &dir)?;
    info!("group {}: image ready, kernel {}", group.name, boot.version);
    Ok(Prepared {
        boot,
        image_digest: image.manifest_digest().to_owned(),
    })
}

/// A relative path in a reference is relative to the working directory.
fn resolve(work: &WorkDir, reference: &str, arch: &str) -> Result<Resolved, DaemonError> {
    let mut parsed = ImageRef::parse(reference)?;
    if let ImageRef::OciLayout { path, .. } = &mut parsed {
        *path = work.root().join(Path::new(&*path));
    }
    Ok(Resolved::find(&parsed, arch)?)
}
