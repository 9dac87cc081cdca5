//! Templates: VMs that were booted, came to rest and were saved, for others to begin as. A clone maps the
//! template's memory and has its own copy of what it writes to; its disk is an overlay on the template's.
//!
//! ```text
//! .slicer/templates/<id>/template.json    written last: with it the rest is a template
//!                        memory  state  disk.img
//!                        run/  console.txt    while it boots
//! ```
//!
//! A template is a cache: whatever is wrong with one, it is removed and VMs boot. Its disk stays for as
//! long as another one reads from it.

mod maker;
mod record;

pub(crate) use maker::{Maker, Want, in_memory};
pub(crate) use record::{Place, Shape, Template, check_group, may_clone};

use crate::bases::Bases;
use crate::images::Prepared;
use crate::vm::live;
use crate::workdir::WorkDir;
use crate::{DaemonError, files};
use slicer_api::Timestamp;
use slicer_machine::Hypervisor;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// The most that are kept.
const MOST: usize = 4;
/// Shapes that may wait for their template.
const WANTS: usize = 16;

/// All templates of a working directory.
pub(crate) struct Templates {
    work: Arc<WorkDir>,
    bases: Arc<Bases>,
    known: Mutex<BTreeMap<String, Known>>,
    /// Held to write while a template is removed, so that no disk is made meanwhile that reads from its.
    removing: RwLock<()>,
    wants: mpsc::Sender<Want>,
    /// What is no template any more, and has a disk that others read from.
    lingering: Mutex<BTreeSet<PathBuf>>,
}

struct Known {
    template: Arc<Template>,
    /// Its files were read and found whole by this daemon.
    checked: bool,
    used: Option<Timestamp>,
    /// VMs that began as it, of this daemon's.
    clones: u64,
}

/// A template, as it is listed.
pub(crate) struct Listed {
    pub(crate) template: Arc<Template>,
    pub(crate) used: Option<Timestamp>,
    pub(crate) clones: u64,
    /// Bytes on disk.
    pub(crate) size: u64,
}

impl Templates {
    /// Opens what an earlier daemon left, and removes what it left half-made. Blocks, but for the
    /// hypervisor.
    pub(crate) async fn open(
        work: Arc<WorkDir>,
        bases: Arc<Bases>,
        hypervisor: &dyn Hypervisor,
        groups: &[&str],
    ) -> Result<(Self, mpsc::Receiver<Want>), DaemonError> {
        let (wants, wanted) = mpsc::channel(WANTS);
        let this = Self {
            work,
            bases,
            known: Mutex::default(),
            removing: RwLock::default(),
            wants,
            lingering: Mutex::default(),
        };
        let dir = this.work.templates();
        for entry in fs::read_dir(&dir).map_err(DaemonError::io("read", &dir))? {
            let entry = entry.map_err(DaemonError::io("read", &dir))?;
            let place = Place::new(entry.path());
            live::settle(&this.work, &place)?;
            hypervisor.reap(&place.run()).await?;
            let found = Template::load(&place).filter(|t| {
                place.dir().file_name().is_some_and(|n| *n == *t.id)
                    && groups.contains(&&*t.shape.group)
            });
            match found {
                Some(template) => this.insert(template, false),
                None => drop(this.clear(&place)?),
            }
        }
        this.tidy();
        Ok((this, wanted))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn place(&self, id: &str) -> Place {
        Place::new(self.work.templates().join(id))
    }

    fn insert(&self, template: Template, checked: bool) {
        let known = Known {
            checked,
            used: None,
            clones: 0,
            template: Arc::new(template),
        };
        self.known().insert(known.template.id.clone(), known);
    }

    /// The template of a shape, if there is one that is whole. One that no longer fits what VMs boot from
    /// is removed. Blocks.
    pub(crate) fn find(&self, shape: &Shape, prepared: &Prepared) -> Option<Arc<Template>> {
        let template = {
            let known = self.known();
            let mut all = known.values().filter(|k| k.checked);
            all.find(|k| k.template.shape == *shape)?.template.clone()
        };
        match template.stale(&self.place(&template.id), prepared) {
            None => Some(template),
            Some(why) => {
                self.discard(&template.id, &why);
                None
            }
        }
    }

    /// Whether there is a template of this shape, or may be.
    fn has(&self, shape: &Shape) -> bool {
        self.known().values().any(|k| k.template.shape == *shape)
    }

    /// Notes that a VM began as this one.
    pub(crate) fn used(&self, id: &str) {
        if let Some(known) = self.known().get_mut(id) {
            known.used = Some(Timestamp::now());
            known.clones += 1;
        }
    }

    /// Asks for a template, to be made when there is time. One too many is forgotten.
    pub(crate) fn want(&self, want: Want) {
        // Nothing is waited for; the next launch asks again.
        let _ = self.wants.try_send(want);
    }

    /// Does `make`, while which no template is removed, if this one is there. Blocks.
    pub(crate) fn while_there<T>(&self, id: &str, make: impl FnOnce() -> T) -> Option<T> {
        let _there = self.removing.read().unwrap_or_else(PoisonError::into_inner);
        let there = self.known().contains_key(id);
        there.then(make)
    }

    /// All, with what they cost. Blocks.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let known = self.known();
        let listed = |k: &Known| Listed {
            template: k.template.clone(),
            used: k.used,
            clones: k.clones,
            size: Template::size(&self.place(&k.template.id)),
        };
        known.values().map(listed).collect()
    }

    /// Removes a template; false when there is none of this id. Blocks.
    pub(crate) fn remove(&self, id: &str) -> Result<bool, DaemonError> {
        let _alone = self
            .removing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if self.known().remove(id).is_none() {
            return Ok(false);
        }
        self.clear(&self.place(id))?;
        Ok(true)
    }

    /// Removes one that is of no use. Blocks.
    pub(crate) fn discard(&self, id: &str, why: &str) {
        match self.remove(id) {
            Ok(true) => info!("template {id} is removed: {why}"),
            Ok(false) => {}
            Err(e) => warn!("template {id}: {e}"),
        }
    }

    fn lingering(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.lingering
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes disks that were left to those who read from them, and that nobody reads from any more.
    /// Blocks.
    pub(crate) fn tidy(&self) {
        // One that goes may be the last that reads from another.
        loop {
            let left = self.lingering().clone();
            let went = left
                .into_iter()
                .filter(|dir| self.clear_or_warn(&Place::new(dir.clone())));
            if went.count() == 0 {
                return;
            }
        }
    }

    /// Removes what there is at a place that is no template's, and warns if that can't be. Whether nothing
    /// is left. Blocks.
    pub(crate) fn clear_or_warn(&self, place: &Place) -> bool {
        self.clear(place).unwrap_or_else(|e| {
            warn!("{e}");
            false
        })
    }

    /// Removes what there is at a place, but for a disk that others read from. It is no template from the
    /// first step on. Whether nothing is left.
    fn clear(&self, place: &Place) -> Result<bool, DaemonError> {
        // Of two who look whether anybody reads from a disk, the second sees that the first was the last.
        let mut lingering = self.lingering();
        let remove = |path: &std::path::Path| {
            files::remove(path).map_err(|e| DaemonError::io("remove", path)(e))
        };
        remove(&place.note())?;
        slicer_fault::point("template.forgotten");
        for path in [place.memory(), place.state(), place.console()] {
            remove(&path)?;
        }
        let run = place.run();
        files::remove_tree(&run).map_err(DaemonError::io("remove", run))?;
        let disk = place.disk();
        // Kept, too, if that can't be told: a guest may write nonsense into its disk.
        let is_read = disk.exists()
            && self
                .bases
                .backing_files()
                .map_or(true, |all| all.contains(&disk));
        if is_read {
            debug!("{}: VMs still read from it", disk.display());
            lingering.insert(place.dir().to_owned());
            return Ok(false);
        }
        files::remove_tree(place.dir()).map_err(DaemonError::io("remove", place.dir()))?;
        lingering.remove(place.dir());
        Ok(true)
    }

    /// Removes those of a shape's group that are of another image, or booted from other files. Blocks.
    fn remove_outdated(&self, shape: &Shape, prepared: &Prepared) {
        let old: Vec<_> = {
            let known = self.known();
            let of_group = known
                .values()
                .filter(|k| k.template.shape.group == shape.group);
            let outdated = of_group.filter(|k| {
                let other = &k.template.shape;
                other.image_digest != shape.image_digest
                    || other.storage_size != shape.storage_size
                    || other.arch != shape.arch
                    || k.template
                        .stale(&self.place(&k.template.id), prepared)
                        .is_some()
            });
            outdated.map(|k| k.template.id.clone()).collect()
        };
        for id in old {
            self.discard(&id, "its group has another image now");
        }
    }

    /// Removes those that are used least, until there is room for one more. Blocks.
    fn make_room(&self) {
        loop {
            let least = {
                let known = self.known();
                if known.len() < MOST {
                    return;
                }
                let used = |k: &Known| k.used.unwrap_or(k.template.created_at);
                let least = known.values().min_by_key(|k| used(k));
                least.map(|k| k.template.id.clone())
            };
            let Some(id) = least else { return };
            self.discard(&id, "others are used more");
        }
    }

    /// Reads those of an earlier daemon through. Only what is whole is used. Blocks.
    fn check(&self) {
        let unchecked: Vec<_> = {
            let known = self.known();
            let unchecked = known.values().filter(|k| !k.checked);
            unchecked.map(|k| k.template.clone()).collect()
        };
        for template in unchecked {
            match template.damaged(&self.place(&template.id)) {
                None => {
                    if let Some(known) = self.known().get_mut(&template.id) {
                        known.checked = true;
                    }
                }
                Some(why) => self.discard(&template.id, &why),
            }
        }
        info!("templates of before are whole: {}", self.known().len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::templates::record::sample;
    use std::fs::File;
    use std::sync::Barrier;
    use std::thread;

    fn store() -> (tempfile::TempDir, Templates) {
        let dir = tempfile::tempdir().unwrap();
        let work = Arc::new(WorkDir::open(dir.path()).unwrap());
        let templates = Templates {
            bases: Arc::new(Bases::new(work.clone())),
            work,
            known: Mutex::default(),
            removing: RwLock::default(),
            wants: mpsc::channel(1).0,
            lingering: Mutex::default(),
        };
        (dir, templates)
    }

    fn put(store: &Templates, id: &str) {
        let place = store.place(id);
        fs::create_dir_all(place.run()).unwrap();
        for file in [place.memory(), place.state(), place.disk(), place.note()] {
            fs::write(file, id).unwrap();
        }
        store.insert(sample(id), true);
    }

    #[test]
    fn those_used_least_make_room() {
        let (_dir, store) = store();
        for id in ["tpl-1", "tpl-2", "tpl-3"] {
            put(&store, id);
        }
        store.make_room();
        assert_eq!(store.list().len(), 3);
        put(&store, "tpl-4");
        for id in ["tpl-1", "tpl-2", "tpl-4"] {
            store.used(id);
        }
        store.make_room();
        assert!(!store.place("tpl-3").dir().exists());
        assert_eq!(store.list().len(), 3);
        assert_eq!(store.while_there("tpl-3", || ()), None);
        assert_eq!(store.while_there("tpl-4", || 4), Some(4));
    }

    #[test]
    fn a_disk_stays_for_those_who_read_from_it() {
        let (dir, store) = store();
        put(&store, "tpl-1");
        put(&store, "tpl-2");
        let disk = store.place("tpl-1").disk();
        File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        let overlay = dir.path().join("sbox-1.img");
        slicer_image::overlay_disk(&disk, slicer_image::FileFormat::Raw, &overlay).unwrap();
        for id in ["tpl-1", "tpl-2"] {
            assert!(store.remove(id).unwrap());
            assert!(!store.remove(id).unwrap());
        }
        let place = store.place("tpl-1");
        assert!(place.disk().exists() && !place.memory().exists() && !place.note().exists());
        assert!(!store.place("tpl-2").dir().exists());
        store.tidy();
        assert!(place.disk().exists());
        fs::remove_file(overlay).unwrap();
        store.tidy();
        assert!(!place.dir().exists());
    }

    #[test]
    fn those_who_leave_at_once_leave_nothing() {
        const FILES: usize = 200;
        for round in 0..30 {
            let (dir, store) = store();
            put(&store, "tpl-1");
            let disk = store.place("tpl-1").disk();
            File::create(&disk).unwrap().set_len(1 << 20).unwrap();
            let overlays = ["sbox-1.img", "sbox-2.img"].map(|name| dir.path().join(name));
            for overlay in &overlays {
                slicer_image::overlay_disk(&disk, slicer_image::FileFormat::Raw, overlay).unwrap();
            }
            // What takes time to be looked through.
            let file = |n: usize| dir.path().join(n.to_string());
            for n in 0..FILES {
                fs::write(file(n), "").unwrap();
            }
            store.remove("tpl-1").unwrap();
            let (start, store) = (&Barrier::new(overlays.len()), &store);
            thread::scope(|scope| {
                for (overlay, waits) in overlays.iter().zip([0, round * FILES / 15]) {
                    scope.spawn(move || {
                        start.wait();
                        for n in 0..waits {
                            fs::read(file(n % FILES)).unwrap();
                        }
                        fs::remove_file(overlay).unwrap();
                        store.tidy();
                    });
                }
            });
            assert!(!store.place("tpl-1").dir().exists(), "round {round}");
        }
    }
}
