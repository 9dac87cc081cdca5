//! The images of a daemon: what is in its cache, what was made of it, and who uses which.
//!
//! Who reads images to make something of them, or clones a base, holds `using` shared; who removes
//! holds it alone. A pull doesn't: the cache's own lock keeps what it adds, and what it counts on.

mod inventory;
mod pulls;
mod remove;

pub(crate) use pulls::{PullState, Pulled, outcome};

use crate::DaemonError;
use crate::bases::Bases;
use crate::config::Config;
use crate::workdir::WorkDir;
use pulls::Pulls;
use slicer_image::{Garbage, ImageCache, ImageRef};
use slicer_machine::Arch;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// How long who removes waits for those who read, and between two looks.
const READERS_TIME: Duration = Duration::from_secs(10);
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// The images of one daemon.
pub(crate) struct ImageStore {
    bases: Arc<Bases>,
    arch: Arch,
    insecure: bool,
    /// The groups, and the names in the cache of what each is made of.
    groups: Vec<(String, Vec<String>)>,
    /// The architectures of these groups' VMs.
    archs: Vec<Arch>,
    using: Arc<RwLock<()>>,
    /// Goes up when a name leads elsewhere, or nowhere any more.
    changes: AtomicU64,
    pulls: Pulls,
    stopping: CancellationToken,
}

impl ImageStore {
    /// Ends what a daemon that died was in the middle of removing.
    pub(crate) fn open(
        config: &Config,
        bases: Arc<Bases>,
        arch: Arch,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, DaemonError> {
        let work = bases.work().clone();
        let dir = work.image_cache();
        let uploads = work.uploads();
        match fs::remove_dir_all(&uploads) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(DaemonError::io("remove", &uploads)(e));
            }
            _ => {}
        }
        if dir.exists() {
            // A cache that can't be tidied may still serve.
            match ImageCache::open(&dir).and_then(|cache| cache.collect(&Garbage::Old)) {
                Ok(Some(freed)) if freed > 0 => {
                    info!("removed {freed} bytes of images that are no longer wanted");
                }
                Ok(_) => {}
                Err(e) => warn!("cannot tidy {}: {e}", dir.display()),
            }
        }
        let stopping = CancellationToken::new();
        Ok(Arc::new(Self {
            groups: groups(config, &work),
            archs: config
                .host_groups
                .iter()
                .map(|g| g.arch.unwrap_or(arch))
                .collect(),
            pulls: Pulls::new(dir, tasks, stopping.clone()),
            bases,
            arch,
            insecure: config.insecure_registry,
            using: Arc::default(),
            changes: AtomicU64::new(0),
            stopping,
        }))
    }

    pub(crate) fn bases(&self) -> &Arc<Bases> {
        &self.bases
    }

    /// For which architecture an image is wanted: the one of the groups that are made of it, where
    /// they have one, or else the host's.
    pub(crate) fn arch_of(&self, name: &str) -> Arch {
        let groups = self.groups.iter().zip(&self.archs);
        let mut archs = groups
            .filter(|((_, names), _)| names.iter().any(|n| n == name))
            .map(|(_, arch)| *arch);
        match archs.next() {
            Some(first) if archs.all(|arch| arch == first) => first,
            _ => self.arch,
        }
    }

    fn work(&self) -> &WorkDir {
        self.bases.work()
    }

    fn cache(&self) -> Result<ImageCache, DaemonError> {
        Ok(ImageCache::open(&self.work().image_cache())?)
    }

    /// What was learnt of images counts for as long as this stays the same.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Leave to read images and bases, while which nothing is removed.
    pub(crate) async fn reading(&self) -> OwnedRwLockReadGuard<()> {
        self.using.clone().read_owned().await
    }

    /// Leave to remove. Who waits for it holds up nobody; none if that takes too long.
    async fn removing(&self) -> Option<OwnedRwLockWriteGuard<()>> {
        let looked = async {
            loop {
                match self.using.clone().try_write_owned() {
                    Ok(guard) => return guard,
                    Err(_) => tokio::time::sleep(LOOK_PAUSE).await,
                }
            }
        };
        tokio::time::timeout(READERS_TIME, looked).await.ok()
    }

    /// Begins to pull an image for an architecture, or joins those who wait for it, see [`Pulls::join`]. `insecure` is
    /// as the configuration says unless given.
    pub(crate) fn pull(
        self: &Arc<Self>,
        name: &str,
        arch: Arch,
        insecure: Option<bool>,
    ) -> watch::Receiver<PullState> {
        let store = self.clone();
        let done = move |pulled: &Pulled| {
            if pulled.changed {
                store.changed();
                store.tidy();
            }
        };
        self.pulls
            .join(name, arch, insecure.unwrap_or(self.insecure), done)
    }

    /// Removes what an image left that lost its name, unless somebody may be reading it: then it is
    /// removed with the next, or at the next start.
    fn tidy(self: &Arc<Self>) {
        let Ok(guard) = self.using.clone().try_write_owned() else {
            return;
        };
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let _guard = guard;
            let done = store.cache().and_then(|c| Ok(c.collect(&Garbage::Old)?));
            if let Err(e) = done {
                warn!("cannot tidy the images: {e}");
            }
        });
    }

    /// Where an archive is put that is on its way into the cache.
    pub(crate) fn uploads(&self) -> PathBuf {
        self.work().uploads()
    }

    /// Reads the image of an archive into the cache, under the name given, or else its own. Blocks.
    pub(crate) fn import(
        self: &Arc<Self>,
        archive: &Path,
        name: Option<String>,
    ) -> Result<Option<Pulled>, DaemonError> {
        let name = match name {
            Some(name) => Some(name),
            None => match slicer_image::archive_name(archive)? {
                Some(name) => slicer_registry::canonical(&name).ok(),
                None => None,
            },
        };
        let Some(name) = name else { return Ok(None) };
        let (cache, arch) = (self.cache()?, self.arch_of(&name).go_name());
        let before = cache.find(&name, arch)?;
        let before = before.map(|image| image.manifest_digest().to_owned());
        let image = cache.import_as(archive, &name, arch)?;
        let digest = image.manifest_digest().to_owned();
        let changed = before.as_ref() != Some(&digest);
        if changed {
            self.changed();
            self.tidy();
        }
        info!("imported {name}");
        Ok(Some(Pulled {
            name,
            digest,
            arch,
            changed,
        }))
    }

    /// Ends the pulls that are under way.
    pub(crate) fn stop(&self) {
        self.stopping.cancel();
    }
}

/// What the groups of a configuration are made of, by the names it has in the cache.
fn groups(config: &Config, work: &WorkDir) -> Vec<(String, Vec<String>)> {
    let name = |reference: &str| match ImageRef::parse(reference).ok()?.relative_to(work.root()) {
        ImageRef::Registry(name) => slicer_registry::canonical(&name).ok(),
        ImageRef::OciLayout { .. } => None,
        archive => Some(archive.to_string()),
    };
    let kernel = config.kernel_image.as_deref().and_then(name);
    let of = |image: &str| name(image).into_iter().chain(kernel.clone()).collect();
    let groups = config.host_groups.iter();
    groups.map(|g| (g.name.clone(), of(&g.image))).collect()
}

#[cfg(test)]
mod tests;
