//! Forks of VMs that run.

use crate::{CreatedNode, TagMode, null_default};
use serde::{Deserialize, Serialize};

/// Most VMs that are forked at once.
pub const MAX_FORKS: u32 = 64;

/// The optional body of `POST /vm/{h}/fork`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveForkRequest {
    /// How many VMs begin as this one is now, at most [`MAX_FORKS`]; 0 or absent is one.
    #[serde(default, deserialize_with = "null_default")]
    #[cfg_attr(feature = "openapi", schema(nullable, maximum = 64))]
    pub count: u32,
    /// Tags.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub tags: Vec<String>,
    /// What becomes of the source's tags; its name is never taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag_mode: Option<TagMode>,
    /// The secrets they may see; absent is none, whatever the source may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<String>>,
}

/// The answer to `POST /vm/{h}/fork`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveForked {
    /// The VM that was forked, and runs on.
    pub source_hostname: String,
    /// `forked`.
    pub status: String,
    /// Nanoseconds for which it was paused.
    pub paused: u64,
    /// The VMs that began as it.
    pub vms: Vec<CreatedNode>,
}
