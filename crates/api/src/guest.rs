//! What the daemon and the guest agent tell each other, besides what they only pass on.

use serde::{Deserialize, Serialize};

/// `GET /vm/{h}/health`. The daemon fills in `hostname` and `ip`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The VM.
    #[serde(default)]
    pub hostname: String,
    /// Nanoseconds since the agent started; 0 is never sent.
    pub agent_uptime: u64,
    /// The agent's version.
    pub agent_version: String,
    /// Nanoseconds since the guest's kernel started.
    pub system_uptime: u64,
    /// Whether userdata has finished, or there is none.
    pub userdata_ran: bool,
    /// Userdata's exit code, once it has finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userdata_exit_code: Option<i32>,
    /// Bare IPv4 address.
    #[serde(default)]
    pub ip: String,
}

/// Who a guest is. Given by the daemon to the agent after boot, restore or fork, in one request
/// (`POST /identity` on the guest channel); never part of an image or a kernel command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The hostname, `<group>-<n>`.
    pub hostname: String,
    /// The host's clock, nanoseconds since the Unix epoch.
    pub clock_unix_nanos: u64,
    /// The network, when the VM has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkIdentity>,
    /// Public keys for the default user's `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// More of them, which are added once in the life of the guest's disk: who removes one there
    /// doesn't get it back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imported_keys: Vec<String>,
    /// A script to run as root, once in the life of the guest's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userdata: Option<String>,
}

/// The guest's address, routes and resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkIdentity {
    /// The interface's hardware address, `aa:bb:cc:dd:ee:ff`, by which the agent finds it.
    pub mac: String,
    /// IPv4 address.
    pub address: std::net::Ipv4Addr,
    /// Length of the network prefix.
    pub prefix: u8,
    /// Default route.
    pub gateway: std::net::Ipv4Addr,
    /// Resolvers, in order.
    pub dns: Vec<std::net::Ipv4Addr>,
}

/// What `POST /vm/{h}/shutdown` may ask for. Both end with the VM stopped.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownAction {
    /// Power off.
    #[default]
    Shutdown,
    /// Reboot, which a VM of slicer never does: it stops.
    Reboot,
}

/// The optional body of `POST /vm/{h}/shutdown`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// What to do; absent is a shutdown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ShutdownAction>,
}

/// What a guest asks of its host: a line of `GET /requests` on the guest channel. The host keeps
/// that request open, since a guest can't open streams to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum GuestRequest {
    /// Its secrets, as they are now.
    Secrets {
        /// What the secrets that answer it name, see [`GuestSecrets`](crate::GuestSecrets).
        id: u64,
    },
}
