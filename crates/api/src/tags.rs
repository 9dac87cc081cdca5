//! Tags of a VM, `GET` and `PATCH /vm/{h}/tags`.

use serde::{Deserialize, Serialize};

/// The tags a VM has.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// The VM.
    pub hostname: String,
    /// Its tags, in order.
    #[serde(default, deserialize_with = "crate::null_default")]
    pub tags: Vec<String>,
}

/// How tags shall change: either `replace`, or `add` and `remove`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagsChange {
    /// Tags to have besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add: Option<Vec<String>>,
    /// Tags not to have any more; one that isn't there is fine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<Vec<String>>,
    /// All tags to have from now on, but for the name, which stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace: Option<Vec<String>>,
}
