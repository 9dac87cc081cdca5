//! The disks a daemon keeps.

use crate::{NodeStatus, null_default};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The answer to `GET /disks`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// Those of VMs first, then commits', then the bases that others read from.
    #[serde(default, deserialize_with = "null_default")]
    pub disks: Vec<Disk>,
    /// Bytes that all of them take on the host; blocks that several share count for each.
    pub disk_bytes: u64,
}

/// A disk.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The VM's hostname, the commit's id, or the digest of the image a base was made of.
    pub name: String,
    /// Whose it is.
    pub kind: DiskOwner,
    /// Its file on the host.
    pub path: String,
    /// How its bytes are in the file.
    pub format: DiskFormat,
    /// Bytes it has as a machine sees it.
    pub size_bytes: u64,
    /// Bytes its file takes on the host. Where the file system shares blocks, those it shares with
    /// others, too.
    pub disk_bytes: u64,
    /// The file it reads from what it doesn't have itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// What its VM does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
}

/// Whose a disk is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskOwner {
    /// A VM's.
    Vm,
    /// A commit's, never written to again.
    Commit,
    /// A template's, which the disks of VMs read from that began as it.
    Template,
    /// Made of an image, for others to read from or to be copied.
    Base,
}

/// How a disk's bytes are in a file.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// As they are.
    Raw,
    /// As QEMU's image format has them, with nothing for what is empty.
    #[default]
    Qcow2,
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for DiskFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("invalid format {text:.32?}: expected qcow2 or raw")),
        }
    }
}

/// The answer to `POST /disks/{vm}/sparsify`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparsifiedDisk {
    /// The VM.
    pub hostname: String,
    /// Bytes of its disk that its file systems said they don't use.
    pub trimmed_bytes: u64,
    /// Bytes its file takes on the host now.
    pub disk_bytes: u64,
    /// Bytes it took before.
    pub disk_bytes_before: u64,
}

/// The agent's answer to the daemon's `POST /trim`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trimmed {
    /// Bytes that its file systems said they don't use.
    pub bytes: u64,
}
