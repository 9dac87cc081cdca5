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

/// The body of `POST /images/pull`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullImage {
    /// The image's name in its registry.
    pub reference: String,
    /// For which architecture, as Go calls it; that of the groups that have the image unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Whether the registry is spoken to by plain HTTP; as the configuration says unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
}

/// A line of the answer to `POST /images/pull`. The last one is `done` or `error`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum PullFrame {
    /// How far it is.
    Progress {
        /// Bytes that have come, with those of an earlier attempt.
        received_bytes: u64,
        /// Bytes there will be, as far as is known.
        total_bytes: u64,
    },
    /// Something failed and is tried again.
    Retrying {
        /// What, and why.
        message: String,
    },
    /// The image is in the cache.
    Done {
        /// Its name in full.
        name: String,
        /// Its manifest's digest.
        digest: String,
        /// Go's name of its architecture.
        arch: String,
        /// Whether the name led elsewhere before, or nowhere.
        changed: bool,
    },
    /// It isn't.
    Error {
        /// A sentence for the user.
        error: String,
        /// A stable word for programs, such as `not_found`.
        code: String,
    },
}

/// The answer to `POST /images/import`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedImage {
    /// Its name in full.
    pub name: String,
    /// Its manifest's digest.
    pub digest: String,
    /// Go's name of its architecture.
    pub arch: String,
}

/// The answer to the removal of images.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedImages {
    /// The names that are gone.
    #[serde(default, deserialize_with = "null_default")]
    pub removed: Vec<String>,
    /// Bytes on the disk that are free again.
    pub freed_bytes: u64,
    /// What stays, and why.
    #[serde(default, deserialize_with = "null_default")]
    pub kept: Vec<KeptImage>,
}

/// Something that was not removed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptImage {
    /// What: an image's name, or the digest of one that has no name any more.
    pub name: String,
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_say_what_they_are() {
        let frame = PullFrame::Progress {
            received_bytes: 1,
            total_bytes: 2,
        };
        let text = r#"{"type":"progress","received_bytes":1,"total_bytes":2}"#;
        assert_eq!(serde_json::to_string(&frame).unwrap(), text);
        assert_eq!(serde_json::from_str::<PullFrame>(text).unwrap(), frame);
    }
}
