//! What is known of the daemon and its VMs, as the menu shows it.

use slicer_api::{
    ForwardTarget, HostGroup, Node, NodeForward, NodeStatus, StatsSnapshot, parse_duration,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where Docker listens in a VM, and where its clients on the host look for it below the home
/// directory.
pub(crate) const GUEST_DOCKER: &str = "/var/run/docker.sock";
pub(crate) const HOST_DOCKER: &str = ".slicer/docker.sock";

/// Everything the menu is made of.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct State {
    pub(crate) daemon: Daemon,
    /// What is being done to the VM: `restarting`.
    pub(crate) busy: Option<&'static str>,
    /// Whether somebody is asked if the VM's disk shall be reset.
    pub(crate) asking: bool,
    /// What went wrong last.
    pub(crate) trouble: Option<String>,
    pub(crate) docker: Docker,
}

/// The daemon, as far as it is known.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Daemon {
    /// It has not been asked yet.
    #[default]
    Unknown,
    /// It doesn't answer, and why.
    Down(String),
    Up(Fleet),
}

/// The VMs of a daemon.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Fleet {
    /// The VM that is always there; none where the configuration has none.
    pub(crate) vm: Option<Vm>,
    /// All others.
    pub(crate) sandboxes: Vec<Sandbox>,
}

/// The VM the menu is about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vm {
    pub(crate) hostname: String,
    pub(crate) ip: String,
    pub(crate) status: NodeStatus,
    /// None while it can't be asked.
    pub(crate) stats: Option<Stats>,
    /// The mapping by which the daemon itself forwards Docker, if it does.
    pub(crate) docker: Option<DaemonDocker>,
}

/// Docker forwarded by the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DaemonDocker {
    /// Its socket on this host.
    pub(crate) socket: PathBuf,
    /// Whether the daemon listens there; not while somebody else does.
    pub(crate) listening: bool,
}

/// Another VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) hostname: String,
    pub(crate) group: String,
    pub(crate) name: Option<String>,
    pub(crate) status: NodeStatus,
    /// Whether it outlives a stop.
    pub(crate) persistent: bool,
    /// Whether the configuration keeps it, so that it can't be deleted.
    pub(crate) kept: bool,
}

/// What a VM uses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stats {
    pub(crate) uptime: Duration,
    pub(crate) load: [f64; 3],
    pub(crate) memory_used: u64,
    pub(crate) memory_total: u64,
    pub(crate) disk_used: u64,
    pub(crate) disk_total: u64,
    pub(crate) disk_percent: f64,
    /// Bytes received and sent since the measurement before, and the time since.
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) since: Duration,
}

/// What the tray itself forwards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Docker {
    #[default]
    Off,
    /// Connections to this socket lead into the VM.
    On(PathBuf),
}

impl Stats {
    /// Of a measurement and the one before it, if there was one.
    pub(crate) fn between(before: Option<&StatsSnapshot>, now: &StatsSnapshot) -> Self {
        let before = before.unwrap_or(now);
        let since = now.timestamp.duration_since(before.timestamp);
        Self {
            uptime: parse_duration(&now.uptime).unwrap_or_default(),
            load: [now.load_avg1, now.load_avg5, now.load_avg15],
            memory_used: now.memory_used,
            memory_total: now.total_memory,
            disk_used: now.disk_space_used,
            disk_total: now.disk_space_total,
            disk_percent: now.disk_space_used_percent,
            // A guest that booted anew counts from 0 again.
            received: now
                .network_read_total
                .saturating_sub(before.network_read_total),
            sent: now
                .network_write_total
                .saturating_sub(before.network_write_total),
            since: Duration::try_from(since).unwrap_or_default(),
        }
    }
}

impl Fleet {
    /// Sorts a daemon's VMs: the first of the first group that has VMs by its configuration is the
    /// one the menu is about.
    pub(crate) fn of(groups: &[HostGroup], nodes: Vec<Node>) -> Self {
        let main = groups.iter().find(|g| g.count > 0);
        let main = main.map(|g| format!("{}-1", g.name));
        let mut fleet = Self::default();
        for node in nodes {
            if Some(&node.hostname) == main.as_ref() {
                fleet.vm = Some(Vm {
                    hostname: node.hostname,
                    ip: node.ip,
                    status: node.status,
                    stats: None,
                    docker: None,
                });
                continue;
            }
            let number = node.hostname.strip_prefix(&format!("{}-", node.hostgroup));
            let number = number.and_then(|n| n.parse::<u32>().ok());
            let group = groups.iter().find(|g| g.name == node.hostgroup);
            fleet.sandboxes.push(Sandbox {
                kept: group.is_some_and(|g| number.is_some_and(|n| n <= g.count)),
                name: node.friendly_name().map(str::to_owned),
                hostname: node.hostname,
                group: node.hostgroup,
                status: node.status,
                persistent: node.persistent,
            });
        }
        fleet
    }
}

impl DaemonDocker {
    /// The mapping among these that leads to Docker.
    pub(crate) fn among(forwards: &[NodeForward]) -> Option<Self> {
        let docker = ForwardTarget::Unix(GUEST_DOCKER.into()).to_string();
        let found = forwards
            .iter()
            .find(|f| f.target == docker && Path::new(&f.listen).is_absolute())?;
        Some(Self {
            socket: PathBuf::from(&found.listen),
            listening: found.listening,
        })
    }
}

impl State {
    /// The VM the menu is about.
    pub(crate) fn vm(&self) -> Option<&Vm> {
        match &self.daemon {
            Daemon::Up(fleet) => fleet.vm.as_ref(),
            Daemon::Unknown | Daemon::Down(_) => None,
        }
    }

    /// The sandbox with this name.
    pub(crate) fn sandbox(&self, hostname: &str) -> Option<&Sandbox> {
        match &self.daemon {
            Daemon::Up(fleet) => fleet.sandboxes.iter().find(|s| s.hostname == hostname),
            Daemon::Unknown | Daemon::Down(_) => None,
        }
    }

    /// The socket on this host that leads to the VM's Docker, by the daemon or by the tray.
    pub(crate) fn docker_socket(&self) -> Option<&Path> {
        let by_daemon = self.vm().and_then(|vm| vm.docker.as_ref());
        match (by_daemon, &self.docker) {
            (Some(docker), _) if docker.listening => Some(&docker.socket),
            (_, Docker::On(socket)) => Some(socket),
            (_, Docker::Off) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, count: u32) -> HostGroup {
        HostGroup {
            name: name.into(),
            count,
            ram_bytes: 1 << 30,
            cpus: 1,
            gpu_count: 0,
            arch: String::new(),
        }
    }

    fn node(hostname: &str, tags: &[&str]) -> Node {
        Node {
            hostname: hostname.into(),
            hostgroup: hostname.rsplit_once('-').unwrap().0.into(),
            ip: "192.168.64.2".into(),
            ram_bytes: 1 << 30,
            cpus: 1,
            created_at: None,
            arch: String::new(),
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            status: NodeStatus::Running,
            persistent: false,
        }
    }

    #[test]
    fn the_vm_of_the_menu_is_the_first_that_is_configured() {
        let groups = [group("sbox", 0), group("slicer", 2), group("db", 1)];
        let nodes = ["db-1", "sbox-1", "slicer-1", "slicer-2", "slicer-3"];
        let nodes = nodes.map(|n| node(n, &["name=x"])).to_vec();
        let fleet = Fleet::of(&groups, nodes.clone());
        assert_eq!(fleet.vm.unwrap().hostname, "slicer-1");
        let others = fleet.sandboxes.iter();
        let others: Vec<_> = others.map(|s| (s.hostname.as_str(), s.kept)).collect();
        let expected = [
            ("db-1", true),
            ("sbox-1", false),
            ("slicer-2", true),
            ("slicer-3", false),
        ];
        assert_eq!(others, expected);
        assert_eq!(fleet.sandboxes[0].name.as_deref(), Some("x"));
        let fleet = Fleet::of(&[group("sbox", 0)], nodes);
        assert_eq!((fleet.vm, fleet.sandboxes.len()), (None, 5));
    }

    #[test]
    fn rates_survive_a_guest_that_booted_anew() {
        let early = StatsSnapshot {
            timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
            uptime: "6m53s".into(),
            network_read_total: 1000,
            network_write_total: 1000,
            ..StatsSnapshot::default()
        };
        let late = StatsSnapshot {
            timestamp: "2026-01-02T03:04:07Z".parse().unwrap(),
            network_read_total: 5096,
            network_write_total: 10,
            ..early.clone()
        };
        let stats = Stats::between(Some(&early), &late);
        assert_eq!(stats.uptime, Duration::from_secs(413));
        assert_eq!((stats.received, stats.sent), (4096, 0));
        assert_eq!(stats.since, Duration::from_secs(2));
        let backwards = Stats::between(Some(&late), &early);
        assert_eq!(backwards.since, Duration::ZERO);
        assert_eq!(Stats::between(None, &late).received, 0);
    }

    #[test]
    fn docker_is_found_among_what_the_daemon_forwards() {
        let forward = |listen: &str, target: &str| NodeForward {
            listen: listen.into(),
            target: target.into(),
            listening: true,
        };
        let k3s = forward("127.0.0.1:6443", "127.0.0.1:6443");
        assert_eq!(DaemonDocker::among(std::slice::from_ref(&k3s)), None);
        let docker = forward("/h/.slicer/docker.sock", "unix:/var/run/docker.sock");
        let found = DaemonDocker::among(&[k3s, docker]).unwrap();
        assert_eq!(found.socket, Path::new("/h/.slicer/docker.sock"));
        assert!(found.listening);
    }
}
