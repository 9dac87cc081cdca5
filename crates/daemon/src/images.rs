//! A host group's image as something VMs can be cloned from: base disk and boot files.

use crate::DaemonError;
use crate::bases::Bases;
use crate::config::HostGroupConfig;
use crate::record::DiskKind;
use crate::vm::DiskGate;
use crate::workdir::WorkDir;
use slicer_api::Entrypoint;
use slicer_image::{
    CloneKind, CloneOptions, ImageCache, ImageError, ImageRef, KernelFiles, Resolved, clone_disk,
    find_guest, prepare_kernel,
};
use slicer_machine::{Arch, DiskFormat};
use slicer_registry::{Progress as PullProgress, Wanted, Watcher};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tracing::{info, warn};

/// What the VMs of a group are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) boot: KernelFiles,
    /// What its VMs' disks are cloned from.
    pub(crate) base: PathBuf,
    pub(crate) image_digest: String,
    /// What the image says is to be run, if anything.
    pub(crate) entrypoint: Option<Entrypoint>,
}

/// Prepares a group's image once, however many launches wait for it. A failure is not kept: the
/// next launch tries again.
pub(crate) struct GroupImage {
    work: Arc<WorkDir>,
    bases: Arc<Bases>,
    group: HostGroupConfig,
    kernel_image: Option<String>,
    insecure: bool,
    arch: Arch,
    prepared: Mutex<Option<Arc<Prepared>>>,
}

impl GroupImage {
    pub(crate) fn new(
        bases: Arc<Bases>,
        group: HostGroupConfig,
        kernel_image: Option<String>,
        insecure: bool,
        arch: Arch,
    ) -> Self {
        Self {
            work: bases.work().clone(),
            bases,
            group,
            kernel_image,
            insecure,
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
        let prepared = match self.make().await {
            // A blob of the cache that is damaged was forgotten: it can be had once more.
            Err(DaemonError::Image(ImageError::Digest { path, found }))
                if path.starts_with(self.work.image_cache()) =>
            {
                warn!(
                    "{} is damaged, it has {found}; fetching it again",
                    path.display()
                );
                self.make().await
            }
            made => made,
        };
        let prepared = Arc::new(prepared?);
        *slot = Some(prepared.clone());
        Ok(prepared)
    }

    async fn make(&self) -> Result<Prepared, DaemonError> {
        let image = self.resolve(&self.group.image).await?;
        let kernel = match &self.kernel_image {
            Some(reference) => self.resolve(reference).await?,
            None => {
                let arch = self.arch.go_name();
                blocking(move || {
                    let path = find_guest(arch)?.kernel;
                    Ok(Resolved::find(
                        &ImageRef::OciLayout { path, tag: None },
                        arch,
                    )?)
                })
                .await?
            }
        };
        let (bases, group, arch) = (self.bases.clone(), self.group.clone(), self.arch);
        blocking(move || {
            let work = bases.work();
            let prepared = prepare(&bases, &group, &image, &kernel, arch);
            if let Err(DaemonError::Image(ImageError::Digest { path, .. })) = &prepared
                && let Some(name) = path.file_name().and_then(|n| n.to_str())
                && path.starts_with(work.image_cache())
            {
                ImageCache::open(&work.image_cache())?.forget(name)?;
            }
            prepared
        })
        .await
    }

    /// The image a reference leads to. A relative path in it is relative to the working directory;
    /// an image of an archive or a registry is fetched unless it is in the cache.
    async fn resolve(&self, reference: &str) -> Result<Resolved, DaemonError> {
        let arch = self.arch.go_name();
        let parsed = ImageRef::parse(reference)?.relative_to(self.work.root());
        let dir = self.work.image_cache();
        let name = match parsed {
            ImageRef::Registry(name) => name,
            ImageRef::OciLayout { .. } => {
                return blocking(move || Ok(Resolved::find(&parsed, arch)?)).await;
            }
            ImageRef::OciArchive { .. } | ImageRef::DockerArchive { .. } => {
                return blocking(move || Ok(ImageCache::open(&dir)?.import(&parsed, arch)?)).await;
            }
        };
        let full = slicer_registry::canonical(&name)?;
        let looked = full.clone();
        let (cache, found) = blocking(move || {
            let cache = ImageCache::open(&dir)?;
            let found = cache.find(&looked, arch)?;
            Ok((cache, found))
        })
        .await?;
        if let Some(image) = found {
            return Ok(image);
        }
        let begun = Instant::now();
        info!("pulling {full}");
        let wanted = Wanted {
            reference: full.clone(),
            arch: arch.to_owned(),
            insecure: self.insecure,
        };
        let image = slicer_registry::pull(&cache, &wanted, Teller::watcher(full.clone())).await?;
        info!("pulled {full} in {:.1?}", begun.elapsed());
        Ok(image)
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
        let base = self.prepare().await?.base.clone();
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
    bases: &Bases,
    group: &HostGroupConfig,
    image: &Resolved,
    kernel: &Resolved,
    arch: Arch,
) -> Result<Prepared, DaemonError> {
    let go_arch = arch.go_name();
    let agent = crate::agents::for_arch(go_arch).ok_or(DaemonError::NoAgent { arch: go_arch })?;
    let base = bases.prepare(group, image)?;
    let dir = bases.work().kernel(&group.name);
    slicer_image::remove_unfinished(&dir)?;
    let boot = prepare_kernel(kernel, agent, &dir)?;
    info!("group {}: image ready, kernel {}", group.name, boot.version);
    Ok(Prepared {
        boot,
        base,
        image_digest: image.manifest_digest().to_owned(),
        entrypoint: entrypoint(image),
    })
}

/// What an image's configuration says is to be run.
fn entrypoint(image: &Resolved) -> Option<Entrypoint> {
    let config = image.config().config().as_ref()?;
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let args = [list(config.entrypoint()), list(config.cmd())].concat();
    (!args.is_empty()).then(|| Entrypoint {
        args,
        env: list(config.env()),
        cwd: text(config.working_dir()),
        user: text(config.user()),
    })
}

/// Does work on files where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DaemonError> + Send + 'static,
) -> Result<T, DaemonError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| DaemonError::Internal("preparing an image"))?
}

/// Between two lines of the log on how far a pull is.
const TELL_PAUSE: Duration = Duration::from_secs(5);

/// Tells the log how far a pull is.
struct Teller {
    image: String,
    state: std::sync::Mutex<Told>,
}

struct Told {
    total: u64,
    received: u64,
    last: Instant,
}

impl Teller {
    fn watcher(image: String) -> Watcher {
        let state = std::sync::Mutex::new(Told {
            total: 0,
            received: 0,
            last: Instant::now(),
        });
        let this = Self { image, state };
        Arc::new(move |progress| this.tell(progress))
    }

    fn tell(&self, progress: PullProgress) {
        let image = &self.image;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            PullProgress::Begun { bytes, .. } => state.total += bytes,
            PullProgress::Received(bytes) => state.received += bytes,
            PullProgress::Retrying { why } => warn!("pulling {image}: {why}; trying again"),
        }
        if state.last.elapsed() >= TELL_PAUSE {
            state.last = Instant::now();
            let mb = |bytes: u64| bytes / 1_000_000;
            let (received, total) = (mb(state.received), mb(state.total));
            info!("pulling {image}: {received} of {total} MB");
        }
    }
}
