//! A VM's record: what must survive the daemon.

use crate::files;
use crate::workdir::WorkDir;
use crate::{
    DaemonError,
    config::{HostGroupConfig, NetworkMode},
};
use serde::{Deserialize, Serialize};
use slicer_api::{
    CreateNode, CreatedNode, Entrypoint, Fixup, NetworkPolicy, Node, NodeStatus, Timestamp,
};
use slicer_image::FileFormat;
use slicer_machine::{DiskFormat, MacAddress};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use tracing::warn;

/// What is known of a VM on disk, in `.slicer/vms/<hostname>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    pub(crate) hostname: String,
    pub(crate) group: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) mac: [u8; 6],
    pub(crate) cpus: u32,
    pub(crate) ram_bytes: u64,
    pub(crate) arch: String,
    pub(crate) created_at: Timestamp,
    pub(crate) persistent: bool,
    /// Declared by the configuration's `count`: launched by the daemon, never deleted by the API.
    pub(crate) configured: bool,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    #[serde(default)]
    pub(crate) ssh_keys: Vec<String>,
    /// The GitHub user whose keys are let in, and those keys once they are known.
    #[serde(default)]
    pub(crate) import_user: String,
    #[serde(default)]
    pub(crate) imported_keys: Option<Vec<String>>,
    /// What it runs at its first boot.
    #[serde(default)]
    pub(crate) userdata: String,
    /// The secrets it may see; none is all.
    #[serde(default)]
    pub(crate) secrets: Option<Vec<String>>,
    /// Where it may connect to, in place of what its group says.
    #[serde(default)]
    pub(crate) network: Option<NetworkPolicy>,
    /// Whether it runs its image's entrypoint, and what that is once it is known.
    #[serde(default)]
    pub(crate) wants_entrypoint: bool,
    #[serde(default)]
    pub(crate) entrypoint: Option<Entrypoint>,
    /// The reference of the image it was made from.
    pub(crate) image: String,
    /// The format of its disk, once it has one.
    #[serde(default)]
    pub(crate) disk: Option<DiskKind>,
    /// The newest commit of its disk.
    #[serde(default)]
    pub(crate) commit_id: Option<String>,
    /// The commit it was forked from.
    #[serde(default)]
    pub(crate) parent_commit_id: Option<String>,
    /// Of a fork that was never ready: what of it must still be made to differ from its source.
    #[serde(default)]
    pub(crate) fixups: Option<Vec<Fixup>>,
    /// The name in the guest, when it isn't its own.
    #[serde(default)]
    pub(crate) guest_hostname: Option<String>,
    /// What its machine began as a clone of, if it did.
    #[serde(default)]
    pub(crate) template: Option<Origin>,
}

/// What a VM began as a clone of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The template, or the snapshot of a VM that ran; it may be gone since.
    pub(crate) id: String,
    /// Whether it was a VM in use, which had an identity and secrets.
    #[serde(default)]
    pub(crate) live: bool,
    /// Whether its machine is of the kind that templates are made of.
    pub(crate) clonable: bool,
    /// The hardware address that the VM's network card began with.
    pub(crate) mac: [u8; 6],
}

/// A disk's format, as records spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DiskKind {
    Raw,
    Qcow2,
}

impl From<DiskKind> for DiskFormat {
    fn from(kind: DiskKind) -> Self {
        match kind {
            DiskKind::Raw => Self::Raw,
            DiskKind::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<DiskKind> for FileFormat {
    fn from(kind: DiskKind) -> Self {
        match kind {
            DiskKind::Raw => Self::Raw,
            DiskKind::Qcow2 => Self::Qcow2,
        }
    }
}

/// Draws a hardware address: locally administered, unicast.
pub(crate) fn draw_mac() -> Result<[u8; 6], DaemonError> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac).map_err(|_| DaemonError::Internal("drawing a MAC address"))?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

/// Draws an id of this kind, such as `cmt`.
pub(crate) fn draw_id(kind: &str) -> Result<String, DaemonError> {
    let mut id = [0; 6];
    getrandom::fill(&mut id).map_err(|_| DaemonError::Internal("drawing an id"))?;
    let id = id.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b));
    Ok(format!("{kind}-{id:012x}"))
}

impl VmRecord {
    /// The record of a VM of this group, before it has a disk.
    pub(crate) fn new(
        group: &HostGroupConfig,
        hostname: String,
        ip: Ipv4Addr,
        arch: &str,
        request: &CreateNode,
    ) -> Result<Self, DaemonError> {
        let mac = draw_mac()?;
        let or = |asked, default| if asked == 0 { default } else { asked };
        let keys = group.ssh_keys.iter().chain(&request.ssh_keys);
        Ok(Self {
            hostname,
            group: group.name.clone(),
            ip,
            mac,
            cpus: or(request.cpus, group.vcpu),
            ram_bytes: if request.ram_bytes == 0 {
                group.ram_bytes
            } else {
                request.ram_bytes
            },
            arch: arch.to_owned(),
            created_at: Timestamp::now(),
            persistent: request.persistent,
            configured: false,
            tags: request.tags.clone(),
            ssh_keys: keys.cloned().collect(),
            import_user: if request.import_user.is_empty() {
                group.github_user.clone()
            } else {
                request.import_user.clone()
            },
            imported_keys: None,
            userdata: request.userdata.clone(),
            secrets: request.secrets.clone(),
            network: request.network.clone().filter(|n| {
                group.network.mode == NetworkMode::Isolated
                    && (n.allow.is_some() || n.drop.is_some())
            }),
            wants_entrypoint: request.entrypoint.unwrap_or(group.entrypoint),
            entrypoint: None,
            image: group.image.clone(),
            disk: None,
            commit_id: None,
            parent_commit_id: None,
            fixups: None,
            guest_hostname: None,
            template: None,
        })
    }

    /// Whether disk and record survive a stop.
    pub(crate) fn is_kept(&self) -> bool {
        self.persistent || self.configured
    }

    /// The name it has in the guest.
    pub(crate) fn guest_hostname(&self) -> &str {
        self.guest_hostname.as_deref().unwrap_or(&self.hostname)
    }

    pub(crate) fn mac(&self) -> MacAddress {
        MacAddress(self.mac)
    }

    pub(crate) fn node(&self, status: NodeStatus, tags: Vec<String>) -> Node {
        Node {
            hostname: self.hostname.clone(),
            hostgroup: self.group.clone(),
            ip: self.ip.to_string(),
            ram_bytes: self.ram_bytes,
            cpus: self.cpus,
            created_at: Some(self.created_at),
            arch: self.arch.clone(),
            tags,
            status,
            persistent: self.is_kept(),
        }
    }

    pub(crate) fn created(&self) -> CreatedNode {
        CreatedNode {
            hostname: self.hostname.clone(),
            hostgroup: self.group.clone(),
            ip: self.ip.to_string(),
            created_at: self.created_at,
            arch: self.arch.clone(),
            persistent: self.is_kept(),
        }
    }

    /// Writes the record durably.
    pub(crate) fn save(&self, work: &WorkDir) -> Result<(), DaemonError> {
        let path = work.record(&self.hostname);
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        files::write_atomically(&path, &text).map_err(DaemonError::io("write", path))
    }

    /// Removes the record of this VM durably.
    pub(crate) fn remove(work: &WorkDir, hostname: &str) -> Result<(), DaemonError> {
        let path = work.record(hostname);
        files::remove(&path).map_err(DaemonError::io("remove", path))
    }

    /// All records, when a daemon starts: what a crash left of a write that it cut short is removed.
    pub(crate) fn load_all(work: &WorkDir) -> Result<Vec<Self>, DaemonError> {
        let dir = work.records();
        for entry in fs::read_dir(&dir).map_err(DaemonError::io("read", &dir))? {
            let path = entry.map_err(DaemonError::io("read", &dir))?.path();
            if !is_record(&path) {
                files::remove(&path).map_err(DaemonError::io("remove", &path))?;
            }
        }
        Self::read_all(work)
    }

    /// All records. One that can't be read is left where it is and told: it may be the only trace
    /// of somebody's disk.
    pub(crate) fn read_all(work: &WorkDir) -> Result<Vec<Self>, DaemonError> {
        let dir = work.records();
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir).map_err(DaemonError::io("read", &dir))? {
            let path = entry.map_err(DaemonError::io("read", &dir))?.path();
            if !is_record(&path) {
                continue;
            }
            let text = match fs::read(&path) {
                Ok(text) => text,
                // Deleted meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(DaemonError::io("read", path)(e)),
            };
            match serde_json::from_slice::<Self>(&text) {
                Ok(record) if path.file_stem().is_some_and(|s| *s == *record.hostname) => {
                    records.push(record);
                }
                Ok(record) => warn!(
                    "{} is the record of {}: ignored",
                    path.display(),
                    record.hostname
                ),
                Err(e) => warn!("{} is not a VM's record: {e}: ignored", path.display()),
            }
        }
        records.sort_by(|a, b| a.hostname.cmp(&b.hostname));
        Ok(records)
    }
}

fn is_record(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(hostname: &str) -> VmRecord {
        VmRecord {
            hostname: hostname.into(),
            group: "sbox".into(),
            ip: Ipv4Addr::new(192, 168, 64, 3),
            mac: [2, 0, 0, 0, 0, 1],
            cpus: 1,
            ram_bytes: 1 << 30,
            arch: "amd64".into(),
            created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            persistent: false,
            configured: false,
            tags: vec!["a=b".into()],
            ssh_keys: vec![],
            import_user: String::new(),
            imported_keys: None,
            userdata: String::new(),
            secrets: None,
            network: None,
            wants_entrypoint: false,
            entrypoint: None,
            image: "oci:/x".into(),
            disk: Some(DiskKind::Qcow2),
            commit_id: None,
            parent_commit_id: None,
            fixups: None,
            guest_hostname: None,
            template: None,
        }
    }

    #[test]
    fn records_survive_and_what_is_torn_is_not_one() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let record = sample("sbox-1");
        record.save(&work).unwrap();
        fs::write(work.records().join(".tmpAbc"), "half").unwrap();
        fs::write(work.records().join("sbox-2.json"), "{\"hostname\":").unwrap();
        fs::copy(
            work.records().join("sbox-1.json"),
            work.records().join("sbox-3.json"),
        )
        .unwrap();
        assert_eq!(VmRecord::load_all(&work).unwrap(), [record]);
        assert!(!work.records().join(".tmpAbc").exists());
        assert!(work.records().join("sbox-2.json").exists());
        VmRecord::remove(&work, "sbox-1").unwrap();
        VmRecord::remove(&work, "sbox-1").unwrap();
        assert!(VmRecord::load_all(&work).unwrap().is_empty());
    }
}
