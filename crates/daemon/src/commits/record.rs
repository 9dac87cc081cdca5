//! A commit's record.

use crate::DaemonError;
use crate::files;
use crate::record::{DiskKind, VmRecord, draw_id};
use crate::workdir::WorkDir;
use serde::{Deserialize, Serialize};
use slicer_api::{Commit, CommitRequest, Committed, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// What is in a commit: the disk, and nothing of the memory.
pub(super) const MODE: &str = "disk";

/// What is known of a commit, in `commit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommitRecord {
    pub(crate) id: String,
    pub(crate) created_at: Timestamp,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) cache_key: Option<String>,
    /// The format of its disk.
    pub(crate) disk: DiskKind,
    /// The VM as it was then. Its hardware address tells it from others of its name.
    pub(crate) source: VmRecord,
}

impl CommitRecord {
    /// A commit of this VM, before it is anything on disk.
    pub(crate) fn new(
        source: &VmRecord,
        disk: DiskKind,
        request: CommitRequest,
    ) -> Result<Self, DaemonError> {
        Ok(Self {
            id: draw_id("cmt")?,
            created_at: Timestamp::now(),
            tags: request.tags,
            labels: request.labels,
            cache_key: Some(request.cache_key).filter(|k| !k.is_empty()),
            disk,
            source: source.clone(),
        })
    }

    /// Reads the record of this id.
    pub(crate) fn load(work: &WorkDir, id: &str) -> Result<Self, DaemonError> {
        let path = work.commit_record(id);
        let failed = |e| DaemonError::io("read", &path)(e);
        let text = fs::read(&path).map_err(failed)?;
        let record: Self =
            serde_json::from_slice(&text).map_err(|e| failed(io::Error::other(e)))?;
        if record.id == id {
            Ok(record)
        } else {
            Err(failed(io::Error::other(format!("it is of {}", record.id))))
        }
    }

    /// Writes it durably: from then on there is the commit.
    pub(super) fn save(&self, work: &WorkDir) -> Result<(), DaemonError> {
        let path = work.commit_record(&self.id);
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        files::write_atomically(&path, &text).map_err(DaemonError::io("write", path))
    }

    /// Whether it is of this VM, or this VM was forked from it.
    pub(crate) fn is_needed_by(&self, vm: &VmRecord) -> bool {
        vm.mac == self.source.mac || vm.parent_commit_id.as_deref() == Some(&self.id)
    }

    /// As lists show it.
    pub(crate) fn shown(&self) -> Commit {
        Commit {
            commit_id: self.id.clone(),
            source_hostname: self.source.hostname.clone(),
            source_host_group: self.source.group.clone(),
            created_at: self.created_at,
            mode: MODE.to_owned(),
            tags: self.tags.clone(),
            labels: self.labels.clone(),
            cache_key: self.cache_key.clone(),
        }
    }

    /// The answer to whoever made it.
    pub(crate) fn committed(&self) -> Committed {
        Committed {
            hostname: self.source.hostname.clone(),
            commit_id: self.id.clone(),
            status: "committed".to_owned(),
            parent_status: "stopped".to_owned(),
            mode: MODE.to_owned(),
            tags: self.tags.clone(),
            labels: self.labels.clone(),
            cache_key: self.cache_key.clone(),
        }
    }
}
