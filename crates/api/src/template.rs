//! Templates: VMs that were booted once, for others to begin as.

use crate::Timestamp;
use serde::{Deserialize, Serialize};

/// A template, as `GET /templates` lists it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its id.
    pub id: String,
    /// The host group whose VMs begin as it.
    pub hostgroup: String,
    /// The reference of the image it was booted from.
    pub image: String,
    /// That image's digest.
    pub image_digest: String,
    /// The architecture: `amd64` or `arm64`.
    pub arch: String,
    /// CPUs of the VMs that begin as it.
    pub cpus: u32,
    /// Their memory, bytes.
    pub ram_bytes: u64,
    /// Bytes it takes on the host's disk.
    pub disk_bytes: u64,
    /// VMs that began as it since the daemon started.
    pub clones: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When a VM last began as it, since the daemon started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Timestamp>,
}

/// The answer to `DELETE /templates/{id}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedTemplate {
    /// Its id.
    pub id: String,
    /// `removed`.
    pub status: String,
}
