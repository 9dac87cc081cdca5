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
    /// What its image's entrypoint is doing, when the VM was launched with it and it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<EntrypointState>,
}

/// How far the process is that an image's `ENTRYPOINT` and `CMD` name.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntrypointState {
    /// Whether it runs.
    pub running: bool,
    /// Its process id, once it has been started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How it ended: its exit code, or 128 and the number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it could not be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Bytes the words and variables of an entrypoint may have together: Linux takes no more than
/// about two MiB of them, and the guest has its own to add.
const MAX_ENTRYPOINT: usize = 1 << 20;

/// What an image's configuration says is to be run, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entrypoint {
    /// `ENTRYPOINT` and `CMD`: the program and its arguments.
    pub args: Vec<String>,
    /// `ENV`: variables, `KEY=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `WORKDIR`; empty is `/`.
    #[serde(default)]
    pub cwd: String,
    /// `USER`: a name or an id, perhaps with `:` and a group's behind it; empty is root.
    #[serde(default)]
    pub user: String,
}

impl Entrypoint {
    /// Says what is wrong with it, if anything is.
    pub fn check(&self) -> Result<(), String> {
        if self.args.first().is_none_or(String::is_empty) {
            return Err("it names no program".to_owned());
        }
        let texts = || {
            let lists = self.args.iter().chain(&self.env);
            lists.chain([&self.cwd, &self.user])
        };
        if texts().any(|t| t.contains('\0')) {
            return Err("it has a zero byte in it".to_owned());
        }
        let bytes: usize = texts().map(|t| t.len() + 1).sum();
        if bytes > MAX_ENTRYPOINT {
            return Err(format!(
                "its {bytes} bytes are more than the {MAX_ENTRYPOINT} that can be passed on"
            ));
        }
        Ok(())
    }
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
    /// What to run once in each boot, after the VM is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Entrypoint>,
    /// Host folders to mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareMount>,
    /// Whether there is a share `rosetta` with an interpreter of programs for x86-64, which the guest
    /// is to run them by.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rosetta: bool,
    /// That it is a clone of another guest, with whose memory it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<Renewal>,
}

/// What the clone of a guest needs to become one of its own, before anybody is let in: its machine id and
/// SSH host keys are made anew, and what the kernel's random numbers follow from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Which clone it is. The same is made anew once.
    pub id: String,
    /// Random bytes for the kernel, base64.
    pub seed: String,
    /// The hardware address that its network interface still has, of the guest it is a clone of.
    pub mac: String,
}

impl std::fmt::Debug for Renewal {
    /// Without the seed, from which much follows.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Renewal");
        shown.field("id", &self.id).field("mac", &self.mac);
        shown.finish_non_exhaustive()
    }
}

/// Longest tag of virtiofs (virtio 1.2, 5.11.4).
const MAX_TAG: usize = 36;

/// A host folder that the guest mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// Its tag, by which virtiofs finds it.
    pub tag: String,
    /// Where: an absolute path, or one below the default user's home, `~/home`.
    pub mount: String,
    /// A symbolic link to lead there, beside it and by this name, unless there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Whether it can't be written to.
    #[serde(default)]
    pub read_only: bool,
}

impl ShareMount {
    /// Says what is wrong with it, if anything is.
    pub fn check(&self) -> Result<(), String> {
        if self.tag.is_empty() || self.tag.len() > MAX_TAG || self.tag.contains('\0') {
            return Err(format!("a tag has 1 to {MAX_TAG} bytes, none of them zero"));
        }
        if let Some(link) = &self.link
            && (link.is_empty() || link.starts_with('.') || link.contains(['/', '\0']))
        {
            return Err(format!("{link:.80?} is no name of a link"));
        }
        check_mount(&self.mount)
    }
}

/// Says what is wrong with the place of a mount in a guest, if anything is.
pub fn check_mount(mount: &str) -> Result<(), String> {
    let below = mount.strip_prefix("~/").or_else(|| mount.strip_prefix('/'));
    let mut parts = below
        .unwrap_or_default()
        .split('/')
        .filter(|p| !p.is_empty());
    if parts.clone().next().is_none() {
        return Err("expected a path below / or ~/".to_owned());
    }
    if mount.len() > MAX_MOUNT || mount.contains('\0') || parts.any(|p| p == "." || p == "..") {
        return Err(format!(
            "expected a path of at most {MAX_MOUNT} bytes, without . and .."
        ));
    }
    Ok(())
}

/// Longest path of a mount, bytes.
const MAX_MOUNT: usize = 1024;

/// What the agent answers to its identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identified {
    /// Whether the guest is ready: then there is nothing to wait for.
    #[serde(default)]
    pub ready: bool,
}

impl Identity {
    /// Whether nothing but the time differs, and the seed of the same clone.
    #[must_use]
    pub fn differs_by_clock(&self, other: &Self) -> bool {
        let clone = |identity: &Self| identity.renewal.as_ref().map(|r| r.id.clone());
        if clone(self) != clone(other) {
            return false;
        }
        let other = Self {
            clock_unix_nanos: self.clock_unix_nanos,
            renewal: self.renewal.clone(),
            ..other.clone()
        };
        *self == other
    }
}

/// The guest's address, routes and resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkIdentity {
    /// The interface's hardware address, `aa:bb:cc:dd:ee:ff`, by which the agent finds it.
    pub mac: String,
    /// IPv4 address; 0.0.0.0 of a guest that is to have one later.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_below_the_root_or_a_home() {
        let share = |mount: &str| ShareMount {
            tag: "home".into(),
            mount: mount.into(),
            link: Some("host".into()),
            read_only: false,
        };
        for good in ["~/home", "/srv", "/srv/a b/", "~/.config/x..y"] {
            assert_eq!(share(good).check(), Ok(()), "{good}");
        }
        for bad in [
            "", "/", "~", "~/", "//", "srv", "/a/../b", "~/..", "/a/./b", "/a\0",
        ] {
            assert!(share(bad).check().is_err(), "{bad}");
        }
        let change = |change: &dyn Fn(&mut ShareMount)| {
            let mut bad = share("/srv");
            change(&mut bad);
            assert!(bad.check().is_err(), "{bad:?}");
        };
        change(&|s| s.tag.clear());
        change(&|s| s.tag = "x".repeat(37));
        change(&|s| s.link = Some("a/b".into()));
        change(&|s| s.link = Some("..".into()));
    }

    #[test]
    fn entrypoints_are_bounded() {
        let good = Entrypoint {
            args: vec!["/app".into(), String::new()],
            env: vec!["A=b".into()],
            ..Entrypoint::default()
        };
        assert_eq!(good.check(), Ok(()));
        let change = |change: &dyn Fn(&mut Entrypoint)| {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.check().is_err(), "{bad:.80?}");
        };
        change(&|e| e.args.clear());
        change(&|e| e.args[0].clear());
        change(&|e| e.args[1].push('\0'));
        change(&|e| e.user.push('\0'));
        change(&|e| e.env.push("x".repeat(MAX_ENTRYPOINT)));
    }
}
