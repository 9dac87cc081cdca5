//! Host groups, nodes (VMs) and the daemon itself.

use crate::{Timestamp, null_default};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// `GET /info`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The daemon's version.
    pub version: String,
    /// The commit it was built from, `unknown` outside a checkout.
    pub git_commit: String,
    /// Go's name of the host's system: `darwin` or `linux`.
    #[serde(default)]
    pub platform: String,
    /// Go's name of the host's architecture: `arm64` or `amd64`.
    #[serde(default)]
    pub arch: String,
}

/// An element of `GET /hostgroup`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGroup {
    /// The group's name.
    pub name: String,
    /// How many VMs the configuration declares.
    pub count: u32,
    /// Default and maximum memory of a VM, bytes.
    pub ram_bytes: u64,
    /// Default and maximum number of CPUs of a VM.
    pub cpus: u32,
    /// GPUs of a VM.
    #[serde(default)]
    pub gpu_count: u32,
    /// Go's name of the guest's architecture.
    #[serde(default)]
    pub arch: String,
}

/// What a VM is doing, as the API tells it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeStatus {
    /// The VM runs, or is about to.
    Running,
    /// The VM's CPUs are frozen, its memory is kept.
    Paused,
    /// The VM is off, its disk is kept.
    Stopped,
    /// The VM is off, its memory is on disk.
    Suspended,
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A VM in a list.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `<group>-<n>`.
    pub hostname: String,
    /// The group it belongs to.
    #[serde(default)]
    pub hostgroup: String,
    /// Bare IPv4 address.
    #[serde(default)]
    pub ip: String,
    /// Memory, bytes.
    #[serde(default)]
    pub ram_bytes: u64,
    /// Number of CPUs.
    #[serde(default)]
    pub cpus: u32,
    /// When it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// Go's name of the guest's architecture.
    #[serde(default)]
    pub arch: String,
    /// Free-form tags, by convention `key=value`.
    #[serde(default, deserialize_with = "null_default")]
    pub tags: Vec<String>,
    /// What it is doing.
    pub status: NodeStatus,
    /// Whether disk and record survive a stop.
    #[serde(default)]
    pub persistent: bool,
}

impl Node {
    /// The friendly name: the value of the `name=` tag.
    #[must_use]
    pub fn friendly_name(&self) -> Option<&str> {
        self.tags.iter().find_map(|t| t.strip_prefix("name="))
    }
}

/// Allow and drop lists of a VM's network, CIDRs, addresses or `address:port`.
/// A list that is absent is inherited; one that is empty is explicitly empty.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Destinations that may be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// Destinations that may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<Vec<String>>,
}

impl NetworkPolicy {
    /// Whether no list has an entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let none = |l: &Option<Vec<String>>| l.as_ref().is_none_or(Vec::is_empty);
        none(&self.allow) && none(&self.drop)
    }
}

/// The network of a VM in `GET /vm/{h}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNetwork {
    /// `nat`, `bridge` or `isolated`.
    pub mode: String,
    /// Where the policy in force comes from: `host_group` or `override`.
    pub policy_source: String,
    /// The group's policy.
    pub host_group: NetworkPolicy,
    /// The VM's own policy, when it has one.
    #[serde(rename = "override", default, skip_serializing_if = "Option::is_none")]
    pub override_: Option<NetworkPolicy>,
    /// The policy in force.
    pub effective: NetworkPolicy,
}

/// A mapping that the daemon keeps up for a VM, because its host group says so.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeForward {
    /// Where on the daemon's host: `127.0.0.1:6443`, or the absolute path of a socket.
    pub listen: String,
    /// What it leads to in the VM: `127.0.0.1:6443`, or `unix:/var/run/docker.sock`.
    pub target: String,
    /// Whether the daemon listens there; not while somebody else does.
    pub listening: bool,
}

/// What `POST /vm/{h}/restore` says of a VM that runs on where it was.
pub const RESTORED: &str = "VM restored";

/// `GET /vm/{h}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub node: Node,
    /// How its disk is stored; always `image`.
    pub storage: String,
    /// The reference of the image it was made from.
    pub image: String,
    /// The newest commit of its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_id: Option<String>,
    /// The commit it was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_commit_id: Option<String>,
    /// Its network.
    pub network: NodeNetwork,
    /// What of it the daemon's host can reach.
    #[serde(default, deserialize_with = "null_default")]
    pub forwards: Vec<NodeForward>,
}

/// The body of `POST /hostgroup/{g}/nodes`. Every field may be absent.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNode {
    /// CPUs; 0 or absent is the group's default, which also is the maximum.
    #[serde(
        default,
        skip_serializing_if = "is_zero_u32",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub cpus: u32,
    /// Memory in bytes; 0 or absent is the group's default, which also is the maximum.
    #[serde(
        default,
        skip_serializing_if = "is_zero_u64",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub ram_bytes: u64,
    /// GPUs; none can be served.
    #[serde(
        default,
        skip_serializing_if = "is_zero_u32",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub gpu_count: u32,
    /// Whether disk and record survive a stop; ephemeral unless asked.
    #[serde(
        default,
        skip_serializing_if = "std::ops::Not::not",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub persistent: bool,
    /// Whether to run what the image's `ENTRYPOINT` and `CMD` say, at every boot once the VM is
    /// ready; absent is as the group has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<bool>,
    /// A disk to use in place of the group's image; not supported.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub disk_image: String,
    /// A GitHub user whose public keys are let in.
    #[serde(
        default,
        alias = "github_user",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub import_user: String,
    /// Public keys to let in.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub ssh_keys: Vec<String>,
    /// A script run once, as root, at the end of the first boot.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub userdata: String,
    /// A fixed address inside the group's network.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub ip: String,
    /// Tags.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub tags: Vec<String>,
    /// The secrets this VM may see; absent is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<String>>,
    /// Policy in place of the group's.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::object"
    )]
    pub network: Option<NetworkPolicy>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if wants it"
)]
pub(crate) fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if wants it"
)]
pub(crate) fn is_zero_u64(n: &u64) -> bool {
    *n == 0
}

/// The answer to a create or relaunch.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedNode {
    /// `<group>-<n>`.
    pub hostname: String,
    /// The group it belongs to.
    #[serde(default)]
    pub hostgroup: String,
    /// Bare IPv4 address, known at once.
    pub ip: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// Go's name of the guest's architecture.
    #[serde(default)]
    pub arch: String,
    /// Whether disk and record survive a stop.
    #[serde(default)]
    pub persistent: bool,
}

/// The answer to a delete.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedNode {
    /// A line for the user.
    pub message: String,
    /// `"true"` when the disk is gone; a string, which Go clients insist on.
    pub disk_removed: String,
}

/// `GET /vm/{h}/logs`: the end of the VM's serial console.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// The VM.
    pub hostname: String,
    /// How many lines were asked for; the number returned when all were.
    pub lines: u64,
    /// The text.
    pub content: String,
}

/// How long a create holds its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until the agent answers and the guest is sane.
    Agent,
    /// Until userdata has run as well.
    Userdata,
}

impl FromStr for Wait {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "agent" => Ok(Self::Agent),
            "userdata" => Ok(Self::Userdata),
            other => Err(format!("invalid wait {other:?}: use agent or userdata")),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Userdata => "userdata",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_body_may_be_empty_and_take_the_old_key() {
        let c: CreateNode = serde_json::from_str("{}").unwrap();
        assert_eq!(c, CreateNode::default());
        let c: CreateNode =
            serde_json::from_str(r#"{"github_user":"alex","tags":null,"count":1}"#).unwrap();
        assert_eq!(c.import_user, "alex");
        assert_eq!(c.secrets, None);
        assert_eq!(serde_json::to_string(&CreateNode::default()).unwrap(), "{}");
    }

    #[test]
    fn absent_and_empty_policy_lists_differ() {
        let c: CreateNode = serde_json::from_str(r#"{"network":{"allow":[]}}"#).unwrap();
        let n = c.network.unwrap();
        assert_eq!(n.allow, Some(vec![]));
        assert_eq!(n.drop, None);
        assert!(n.is_empty());
        assert_eq!(serde_json::to_string(&n).unwrap(), r#"{"allow":[]}"#);
    }

    #[test]
    fn a_node_is_what_go_decodes() {
        let n = Node {
            hostname: "sbox-1".into(),
            hostgroup: "sbox".into(),
            ip: "192.168.64.3".into(),
            ram_bytes: 1 << 30,
            cpus: 2,
            created_at: Some("2026-01-02T03:04:05.6Z".parse().unwrap()),
            arch: "arm64".into(),
            tags: vec!["name=x".into()],
            status: NodeStatus::Running,
            persistent: false,
        };
        assert_eq!(n.friendly_name(), Some("x"));
        assert_eq!(
            serde_json::to_string(&n).unwrap(),
            r#"{"hostname":"sbox-1","hostgroup":"sbox","ip":"192.168.64.3","ram_bytes":1073741824,"cpus":2,"created_at":"2026-01-02T03:04:05.6Z","arch":"arm64","tags":["name=x"],"status":"Running","persistent":false}"#
        );
    }
}
