//! Commits of VMs' disks, and VMs forked from them.

use crate::{NetworkPolicy, Timestamp, null_default};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The optional body of `POST /vm/{h}/commit`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRequest {
    /// Tags of the commit, to find it by.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub tags: Vec<String>,
    /// Whatever else is to be known of it.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub labels: BTreeMap<String, String>,
    /// What no other commit may have; empty is none.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub cache_key: String,
}

/// The answer to a commit.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The VM.
    pub hostname: String,
    /// The commit's id, `cmt-…`.
    pub commit_id: String,
    /// `committed`.
    pub status: String,
    /// What the VM does: `stopped`.
    pub parent_status: String,
    /// What is in it: `disk`.
    pub mode: String,
    /// Its tags.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub tags: Vec<String>,
    /// Its labels.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_default"
    )]
    pub labels: BTreeMap<String, String>,
    /// Its cache key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
}

/// A commit in `GET /vm/commits`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its id, `cmt-…`.
    pub commit_id: String,
    /// The VM it is of, which may be gone.
    pub source_hostname: String,
    /// The group of that VM, and of all that are forked.
    pub source_host_group: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What is in it: `disk`.
    pub mode: String,
    /// Its tags.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub tags: Vec<String>,
    /// Its labels.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_default"
    )]
    pub labels: BTreeMap<String, String>,
    /// Its cache key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
}

/// The answer to the delete of a commit.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedCommit {
    /// Its id.
    pub commit_id: String,
    /// `deleted`.
    pub status: String,
}

/// What becomes of the tags the source had.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TagMode {
    /// The fork has them, and those that are given.
    #[default]
    Append,
    /// It has only those that are given.
    Replace,
}

/// What of a fork must differ from its source.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fixup {
    /// The name in the guest is the fork's own.
    Hostname,
    /// `/etc/machine-id` is a new one.
    MachineId,
    /// SSH's host keys are new ones.
    SshHostKeys,
}

impl Fixup {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Hostname, Self::MachineId, Self::SshHostKeys];
    /// Put on the kernel's command line, with words of [`Self::word`] and commas between them behind
    /// it: what the agent makes anew before the image's init starts.
    pub const ARGUMENT: &'static str = "slicer.fresh=";

    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Hostname => "hostname",
            Self::MachineId => "machine-id",
            Self::SshHostKeys => "ssh-host-keys",
        }
    }
}

impl FromStr for Fixup {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|f| f.word() == s);
        found.ok_or_else(|| {
            format!("invalid fix-up {s:?}: use hostname, machine-id or ssh-host-keys")
        })
    }
}

impl fmt::Display for Fixup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The optional body of `POST /vm/commits/{id}/fork`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkRequest {
    /// Policy in place of the group's.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::object"
    )]
    pub network: Option<NetworkPolicy>,
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
    /// The secrets it may see, in place of those its source could; absent is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<String>>,
    /// Whether disk and record survive a stop; absent is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// What of it must differ from its source; absent is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixups: Option<Vec<Fixup>>,
    /// CPUs; 0 or absent is as many as its source had.
    #[serde(
        default,
        skip_serializing_if = "crate::node::is_zero_u32",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub vcpu: u32,
    /// Memory in bytes; 0 or absent is as much as its source had.
    #[serde(
        default,
        skip_serializing_if = "crate::node::is_zero_u64",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub ram_bytes: u64,
}

/// The answer to a fork.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forked {
    /// The new VM.
    pub hostname: String,
    /// The VM the commit is of.
    pub source_hostname: String,
    /// The commit.
    pub commit_id: String,
    /// `forked`.
    pub status: String,
    /// What the source does: `running`, `paused`, `stopped`, `suspended` or `deleted`.
    pub parent_status: String,
    /// What the new VM does: `running`, or `starting` when that wasn't waited for.
    pub child_status: String,
    /// What the commit has: `disk`.
    pub mode: String,
    /// Whether disk and record survive a stop.
    pub persistent: bool,
}

/// How long a fork holds its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForkWait {
    /// Until the guest is ready, and nobody else's twin.
    #[default]
    Agent,
    /// Until its machine runs.
    None,
}

impl FromStr for ForkWait {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "agent" => Ok(Self::Agent),
            "none" => Ok(Self::None),
            other => Err(format!("invalid wait {other:?}: use agent or none")),
        }
    }
}

impl fmt::Display for ForkWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::None => "none",
        })
    }
}

/// Whether this may be a commit's id: `cmt-`, and small letters and digits.
#[must_use]
pub fn is_commit_id(id: &str) -> bool {
    let rest = id.strip_prefix("cmt-").unwrap_or_default();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=60).contains(&rest.len()) && rest.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_may_be_empty() {
        let c: CommitRequest = serde_json::from_str("{}").unwrap();
        assert_eq!(c, CommitRequest::default());
        assert_eq!(serde_json::to_string(&c).unwrap(), "{}");
        let f: ForkRequest = serde_json::from_str(r#"{"tags":null,"vcpu":null}"#).unwrap();
        assert_eq!(f, ForkRequest::default());
        assert_eq!(serde_json::to_string(&f).unwrap(), "{}");
    }

    #[test]
    fn fixups_have_one_spelling() {
        for fixup in Fixup::ALL {
            let json = serde_json::to_string(&fixup).unwrap();
            assert_eq!(json, format!("{:?}", fixup.word()));
            assert_eq!(fixup.word().parse(), Ok(fixup));
        }
        let text = r#"{"fixups":["hostname","x"]}"#;
        assert!(serde_json::from_str::<ForkRequest>(text).is_err());
    }

    #[test]
    fn ids_are_never_paths() {
        assert!(is_commit_id("cmt-0a1b"));
        for bad in [
            "", "cmt-", "cmt-/", "cmt-..", "../cmt-a", "cmt-A", "a", "cmt-a\0",
        ] {
            assert!(!is_commit_id(bad), "{bad:?}");
        }
    }
}
