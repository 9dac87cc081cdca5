//! A host group's image as something VMs can be cloned from: base disk and boot files.

use crate::DaemonError;
use crate::bases::Bases;
use crate::config::HostGroupConfig;
use crate::record::DiskKind;
use crate::store::{ImageStore, PullState, outcome};
use crate::templates::in_memory;
use crate::vm::DiskGate;
use crate::workdir::WorkDir;
use slicer_api::Entrypoint;
use slicer_image::{
    CloneKind, CloneOptions, ImageCache, ImageError, ImageRef, KernelFiles, Resolved, clone_disk,
    find_kernel, prepare_kernel,
};
use slicer_machine::{Arch, DiskFormat};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

/// What the VMs of a group are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) arch: Arch,
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
    store: Arc<ImageStore>,
    group: HostGroupConfig,
    arch: Arch,
    kernel_image: Option<String>,
    warm: bool,
    /// With what the store said of changes before.
    prepared: Mutex<Option<(u64, Arc<Prepared>)>>,
}

impl GroupImage {
    pub(crate) fn new(
        store: Arc<ImageStore>,
        group: HostGroupConfig,
        arch: Arch,
        kernel_image: Option<String>,
    ) -> Self {
        // Where no VM is declared, they are disposable, and wanted at once. A template is as large as a
        // VM's memory, which it takes if that is where files are.
        let on_demand = group.count == 0;
        let by_default = || on_demand && !in_memory(store.bases().work().root());
        Self {
            warm: group.warm.unwrap_or_else(by_default),
            store,
            group,
            arch,
            kernel_image,
            prepared: Mutex::new(None),
        }
    }

    /// The group.
    pub(crate) fn group(&self) -> &HostGroupConfig {
        &self.group
    }

    /// Whether its VMs begin as a template, where the hypervisor can.
    pub(crate) fn is_warm(&self) -> bool {
        self.warm
    }

    /// The architecture of the group's VMs.
    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    fn work(&self) -> &Arc<WorkDir> {
        self.store.bases().work()
    }

    /// The group's base and boot files, made first where they are missing or of another image.
    pub(crate) async fn prepare(&self) -> Result<Arc<Prepared>, DaemonError> {
        // Held across the work on purpose: that is what makes the others wait for it.
        let mut slot = self.prepared.lock().await;
        let changes = self.store.changes();
        if let Some((known, prepared)) = &*slot
            && *known == changes
        {
            return Ok(prepared.clone());
        }
        let prepared = match self.make().await {
            // A blob of the cache that is damaged was forgotten: it can be had once more.
            Err(DaemonError::Image(ImageError::Digest { path, found }))
                if path.starts_with(self.work().image_cache()) =>
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
        *slot = Some((changes, prepared.clone()));
        Ok(prepared)
    }

    /// What it was prepared as, if that is known and still so. Waits for nothing.
    pub(crate) fn known(&self) -> Option<Arc<Prepared>> {
        let slot = self.prepared.try_lock().ok()?;
        let (known, prepared) = slot.as_ref()?;
        (*known == self.store.changes()).then(|| prepared.clone())
    }

    async fn make(&self) -> Result<Prepared, DaemonError> {
        let arch = self.arch;
        let agent = agent(arch)?;
        let (image, kernel, reading) = loop {
            let changes = self.store.changes();
            let image = self.resolve(&self.group.image).await?;
            let kernel = match &self.kernel_image {
                Some(reference) => self.resolve(reference).await?,
                None => {
                    let arch = arch.go_name();
                    blocking(move || {
                        let path = find_kernel(arch)?;
                        Ok(Resolved::find(
                            &ImageRef::OciLayout { path, tag: None },
                            arch,
                        )?)
                    })
                    .await?
                }
            };
            let reading = self.store.reading().await;
            // Else what was found may have been removed meanwhile.
            if self.store.changes() == changes {
                break (image, kernel, reading);
            }
        };
        let (bases, group) = (self.store.bases().clone(), self.group.clone());
        blocking(move || {
            let _reading = reading;
            let work = bases.work();
            let prepared = prepare(&bases, &group, &image, &kernel, (arch, agent));
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
        let parsed = ImageRef::parse(reference)?.relative_to(self.work().root());
        let dir = self.work().image_cache();
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
        let look = async || {
            let (dir, full) = (dir.clone(), full.clone());
            blocking(move || Ok(ImageCache::open(&dir)?.find(&full, arch)?)).await
        };
        if let Some(image) = look().await? {
            return Ok(image);
        }
        let mut pull = self.store.pull(&full, self.arch, None);
        tell(&full, &mut pull).await?;
        let vanished = || ImageError::Missing {
            image: full.clone(),
            what: "blobs any more: it was removed while it was wanted".to_owned(),
        };
        Ok(look().await?.ok_or_else(vanished)?)
    }

    /// Makes the disk of a VM of this group, at this path. What is kept gets a disk that needs no base; what is
    /// thrown away may read from it.
    pub(crate) async fn clone_disk(
        &self,
        disk: PathBuf,
        kept: bool,
        formats: &[DiskFormat],
        gate: DiskGate,
    ) -> Result<DiskKind, DaemonError> {
        let mut kinds = vec![CloneKind::Reflink];
        if !kept && formats.contains(&DiskFormat::Qcow2) {
            kinds.push(CloneKind::Qcow2Overlay);
        }
        kinds.push(CloneKind::SparseCopy);
        let (base, reading) = loop {
            let changes = self.store.changes();
            let base = self.prepare().await?.base.clone();
            let reading = self.store.reading().await;
            // Else it may have been removed meanwhile.
            if self.store.changes() == changes {
                break (base, reading);
            }
        };
        let size = self.group.storage_size;
        let job = move || {
            let _reading = reading;
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

/// The agent for guests of this architecture.
fn agent(arch: Arch) -> Result<&'static [u8], DaemonError> {
    let arch = arch.go_name();
    crate::agents::for_arch(arch).ok_or(DaemonError::NoAgent { arch })
}

fn prepare(
    bases: &Bases,
    group: &HostGroupConfig,
    image: &Resolved,
    kernel: &Resolved,
    (arch, agent): (Arch, &[u8]),
) -> Result<Prepared, DaemonError> {
    let base = bases.prepare(group, image)?;
    let dir = bases.work().kernel(&group.name);
    slicer_image::remove_unfinished(&dir)?;
    let boot = prepare_kernel(kernel, agent, &dir)?;
    info!("group {}: image ready, kernel {}", group.name, boot.version);
    Ok(Prepared {
        arch,
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

/// Waits for a pull, and tells the log how far it is.
async fn tell(image: &str, pull: &mut watch::Receiver<PullState>) -> Result<(), DaemonError> {
    let mut told = pull.clone();
    let telling = async {
        let mb = |bytes: u64| bytes / 1_000_000;
        loop {
            tokio::time::sleep(TELL_PAUSE).await;
            let state = told.borrow_and_update();
            let (received, total) = (mb(state.received), mb(state.total));
            info!("pulling {image}: {received} of {total} MB");
        }
    };
    tokio::select! {
        done = outcome(pull) => done.map(drop),
        () = telling => Ok(()),
    }
}
