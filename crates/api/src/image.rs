//! The images a daemon keeps.

use crate::{Timestamp, null_default};
use serde::{Deserialize, Serialize};

/// The answer to `GET /images`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// By name.
    #[serde(default, deserialize_with = "null_default")]
    pub images: Vec<Image>,
    /// Bytes on the disk of all images and of the base disks made from them; what several have
    /// counts once.
    pub disk_bytes: u64,
    /// Bytes on the disk that are of no image: parts of pulls that ended early, and base disks whose
    /// image is gone.
    pub other_bytes: u64,
}

/// An image in the cache.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name in full, such as `docker.io/library/debian:12`.
    pub name: String,
    /// Its manifest's digest, `sha256:…`.
    pub digest: String,
    /// Go's name of its architecture.
    pub arch: String,
    /// Bytes of its blobs: its layers as they are transferred, compressed.
    pub size_bytes: u64,
    /// Bytes on the disk of its blobs and of the base disks made from it, with what other images
    /// have, too.
    pub disk_bytes: u64,
    /// Bytes of those that removing it would free.
    pub reclaimable_bytes: u64,
    /// The host groups whose configuration names it.
    #[serde(default, deserialize_with = "null_default")]
    pub host_groups: Vec<String>,
    /// The VMs whose disks read from its base disk.
    #[serde(default, deserialize_with = "null_default")]
    pub vms: Vec<String>,
    /// The commits whose disks read from its base disk.
    #[serde(default, deserialize_with = "null_default")]
    pub commits: Vec<String>,
    /// When it was made, by what it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When it came into the cache.
    pub pulled_at: Timestamp,
}
