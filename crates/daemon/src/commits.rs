//! Commits: disks of stopped VMs, kept as they are, that others are forked from.
//!
//! ```text
//! .slicer/commits/<id>/disk.img       the disk, never written to again
//! .slicer/commits/<id>/commit.json    the record; without it there is no commit
//! .slicer/commits/<id>/before.json    while the VM's disk changes places: what it was
//! .slicer/commits/<id>.deleting/      between the decision to remove one and its removal
//! ```

mod freeze;
mod moved;
mod record;

pub(crate) use freeze::freeze;
pub(crate) use moved::follow;
pub(crate) use record::CommitRecord;

use crate::DaemonError;
use crate::files;
use crate::record::VmRecord;
use crate::workdir::WorkDir;
use slicer_api::{ApiError, CommitRequest, is_commit_id};
use slicer_image::backing_file;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::{info, warn};

/// Most labels of a commit, and the longest name, value and cache key, bytes.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 256;
const MAX_KEY: usize = 256;
/// The end of the name of one that is being removed.
const DELETING: &str = "deleting";

/// Which commits a list shows.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Those with all these tags.
    pub(crate) tags: Vec<String>,
    pub(crate) cache_key: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) mode: Option<String>,
}

/// The commits of one daemon.
pub(crate) struct Commits {
    known: Mutex<BTreeMap<String, Arc<CommitRecord>>>,
    /// Held while commits come and go, and while a VM is forked until its record is durable.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Commits {
    /// Undoes or ends what a daemon that died was in the middle of, and reads what there is. Before
    /// the records of VMs are read, for it may change them.
    pub(crate) fn open(work: &WorkDir) -> Result<Self, DaemonError> {
        let dir = work.commits();
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(DaemonError::io("read", &dir))? {
            let entry = entry.map_err(DaemonError::io("read", &dir))?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy().into_owned();
            if path.extension().is_some_and(|e| e == DELETING) {
                files::remove_tree(&path).map_err(DaemonError::io("remove", &path))?;
                continue;
            }
            if !is_commit_id(&name) {
                warn!("{} is no commit: ignored", path.display());
                continue;
            }
            if !freeze::settle(work, &name)? {
                info!("{name}: removed, its daemon ended before it was complete");
                continue;
            }
            match CommitRecord::load(work, &name) {
                Ok(record) => {
                    known.insert(name, Arc::new(record));
                }
                // Left where it is: disks may lie over it.
                Err(e) => warn!("{e}: ignored"),
            }
        }
        Ok(Self {
            known: Mutex::new(known),
            changing: tokio::sync::Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<CommitRecord>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The commit of this id.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<CommitRecord>, ApiError> {
        let found = self.known().get(id).cloned();
        found.ok_or_else(|| {
            let id: String = id.chars().take(64).collect();
            ApiError::not_found(format!("commit {id:?} not found"))
        })
    }

    /// All that match, the oldest first.
    pub(crate) fn list(&self, filter: &Filter) -> Vec<Arc<CommitRecord>> {
        let is = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_deref().is_none_or(|w| Some(w) == value)
        };
        let known = self.known();
        let matching = known.values().filter(|c| {
            filter.tags.iter().all(|t| c.tags.contains(t))
                && is(&filter.cache_key, c.cache_key.as_deref())
                && is(&filter.source, Some(&c.source.hostname))
                && is(&filter.mode, Some(record::MODE))
        });
        let mut all: Vec<_> = matching.cloned().collect();
        all.sort_by_key(|c| c.created_at);
        all
    }

    /// Refuses a cache key that another commit has. Under the lock `changing`.
    pub(crate) fn check_unclaimed(&self, key: Option<&str>) -> Result<(), ApiError> {
        let known = self.known();
        let claimed = known
            .values()
            .find(|c| key.is_some() && c.cache_key.as_deref() == key);
        claimed.map_or(Ok(()), |c| {
            Err(ApiError::conflict(format!(
                "commit {} has the cache key {:?} already",
                c.id,
                key.unwrap_or_default()
            )))
        })
    }

    /// Takes in a commit that is durable.
    pub(crate) fn add(&self, record: CommitRecord) -> Arc<CommitRecord> {
        let record = Arc::new(record);
        self.known().insert(record.id.clone(), record.clone());
        record
    }

    /// Removes a commit that no VM needs and no disk lies over. Under the lock `changing`. Blocks.
    pub(crate) fn remove(&self, work: &WorkDir, id: &str) -> Result<(), ApiError> {
        let failed = |e: DaemonError| e.to_api();
        if let Some(user) = user_of(work, id).map_err(failed)? {
            return Err(still_needed(id, &user));
        }
        let (dir, doomed) = (
            work.commit(id),
            work.commit(id).with_added_extension(DELETING),
        );
        fs::rename(&dir, &doomed)
            .and_then(|()| files::sync_dir(&work.commits()))
            .map_err(|e| failed(DaemonError::io("remove", &dir)(e)))?;
        slicer_fault::point("uncommit.renamed");
        self.known().remove(id);
        files::remove_tree(&doomed).map_err(|e| failed(DaemonError::io("remove", &doomed)(e)))
    }
}

/// Checks what a commit shall be called.
pub(crate) fn check(request: &CommitRequest) -> Result<(), ApiError> {
    crate::tags::check_lines(&request.tags)?;
    let bad = |text: String| Err(ApiError::bad_request(text));
    let printable = |text: &str, most| text.len() <= most && !text.chars().any(char::is_control);
    let short = |text: &str| -> String { text.chars().take(64).collect() };
    if !printable(&request.cache_key, MAX_KEY) {
        return bad(format!(
            "invalid cache_key {:?}: expected up to {MAX_KEY} printable characters",
            short(&request.cache_key)
        ));
    }
    if request.labels.len() > MAX_LABELS {
        return bad(format!("more than {MAX_LABELS} labels"));
    }
    let wrong = request.labels.iter().find(|(name, value)| {
        name.is_empty() || !printable(name, MAX_LABEL) || !printable(value, MAX_LABEL)
    });
    wrong.map_or(Ok(()), |(name, value)| {
        bad(format!(
            "invalid label {:?}={:?}: name and value may have {MAX_LABEL} printable characters",
            short(name),
            short(value)
        ))
    })
}

/// Why a commit can't be removed.
pub(crate) fn still_needed(id: &str, user: &str) -> ApiError {
    ApiError::conflict(format!(
        "commit {id} is still needed by {user}: delete that first"
    ))
}

/// Who needs a commit: the VM it is of, one that was forked from it, or a disk over its own.
fn user_of(work: &WorkDir, id: &str) -> Result<Option<String>, DaemonError> {
    let commit = CommitRecord::load(work, id)?;
    // Those of a group that the configuration no longer has, too, which nobody lists.
    let records = VmRecord::read_all(work)?;
    if let Some(vm) = records.iter().find(|vm| commit.is_needed_by(vm)) {
        return Ok(Some(format!("VM {}", vm.hostname)));
    }
    let own = work.commit_disk(id);
    for other in subdirectories(&work.commits())? {
        let disk = work.commit_disk(&other);
        if other != id && lies_over(&disk, &own) {
            return Ok(Some(format!("commit {other}")));
        }
    }
    // What no record tells of any more is somebody's disk all the same.
    let root = work.root();
    for entry in fs::read_dir(root).map_err(DaemonError::io("read", root))? {
        let path = entry.map_err(DaemonError::io("read", root))?.path();
        let is_disk = path.extension().is_some_and(|e| e == "img");
        if is_disk && path.is_file() && lies_over(&path, &own) {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}

fn lies_over(disk: &Path, base: &Path) -> bool {
    // A header that makes no sense is what a guest wrote into a raw disk, which lies over nothing.
    let backing = backing_file(disk).unwrap_or_default();
    backing.is_some_and(|backing| backing == base)
}

fn subdirectories(dir: &Path) -> Result<Vec<String>, DaemonError> {
    let failed = |e| DaemonError::io("read", dir)(e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        names.push(
            entry
                .map_err(failed)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
