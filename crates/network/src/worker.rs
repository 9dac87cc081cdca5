//! Makes networks and takes them down, one after the other, on a thread of its own: what is asked of
//! the kernel here blocks, and namespaces are a thread's.

use crate::links::Links;
use crate::rules::{self, Shared};
use crate::{Bridge, Isolated, NetworkError, namespace, nft, tap};
use ipnet::Ipv4Net;
use rustix::thread::{CapabilitySet, capabilities};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::warn;

/// What the host's end of each way to a namespace answers to, and the other end. They are seen by
/// nobody but each other.
const OUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
const INNER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 2);
/// How long somebody waits for a network: several may be made before it, in milliseconds each.
const ANSWER_TIME: Duration = Duration::from_mins(1);
/// A VM's tap in its namespace.
const INSIDE: &str = "tap0";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// A VM's place in a network. What others share with it goes with the last of them that is dropped.
#[derive(Debug)]
pub struct Link {
    tap: Option<OwnedFd>,
    apart: Option<Apart>,
    shared: Shared,
    jobs: Sender<Job>,
}

impl Link {
    /// The tap, the first time it is asked for: it ends with its last descriptor, so that whoever
    /// runs the VM shall have the only one.
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        self.tap.take()
    }

    /// What brings the VM onto its bridge, the first time it is asked for; none, when it is there.
    pub fn take_apart(&mut self) -> Option<Apart> {
        self.apart.take()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A worker that is gone took everything down.
        let _ = self.jobs.send(Job::Release(self.shared.clone()));
    }
}

/// A VM that is not on its bridge yet, see [`Bridge::apart`].
#[derive(Debug)]
pub struct Apart {
    tap: u32,
    bridge: u32,
    jobs: Sender<Job>,
}

impl Apart {
    /// Brings the VM onto the bridge.
    ///
    /// # Errors
    /// When its tap or the bridge is gone, or the kernel refuses it.
    pub async fn join(self) -> Result<(), NetworkError> {
        let Self { tap, bridge, jobs } = self;
        ask(&jobs, |reply| Job::Join { tap, bridge, reply }).await?
    }
}

#[derive(Debug)]
enum Job {
    Join {
        tap: u32,
        bridge: u32,
        reply: oneshot::Sender<Result<(), NetworkError>>,
    },
    Bridge(Bridge, Sender<Job>, Reply),
    Isolated(Isolated, Sender<Job>, Reply),
    Release(Shared),
    Sweep(oneshot::Sender<Result<(), NetworkError>>),
}

type Reply = oneshot::Sender<Result<Link, NetworkError>>;

/// The networks of one owner.
#[derive(Debug)]
pub struct Networks {
    jobs: Sender<Job>,
}

impl Networks {
    /// The networks of the owner that works in this directory. `note` is a file of it, which is there
    /// as long as something has to be taken down.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn open(owner: &Path, note: PathBuf) -> Result<Self, NetworkError> {
        let (jobs, queue) = channel();
        let worker = Worker {
            names: Names::of(owner),
            note,
            users: BTreeMap::new(),
        };
        thread::Builder::new()
            .name("networks".to_owned())
            .spawn(move || worker.run(&queue))
            .map_err(NetworkError::io("start a thread for", "networks"))?;
        Ok(Self { jobs })
    }

    /// Gives a VM a place on a bridge, which is made first if there is none.
    ///
    /// # Errors
    /// When this isn't permitted, the network is somebody else's, or the kernel or nft refuses it.
    pub async fn bridge(&self, bridge: Bridge) -> Result<Link, NetworkError> {
        let jobs = self.jobs.clone();
        ask(&self.jobs, |reply| Job::Bridge(bridge, jobs, reply)).await?
    }

    /// Gives a VM a network namespace of its own.
    ///
    /// # Errors
    /// As [`Networks::bridge`].
    pub async fn isolated(&self, isolated: Isolated) -> Result<Link, NetworkError> {
        let jobs = self.jobs.clone();
        ask(&self.jobs, |reply| Job::Isolated(isolated, jobs, reply)).await?
    }

    /// Takes down all there is of this owner, also what one before it left. Not while VMs run.
    ///
    /// # Errors
    /// When something is there and can't be removed.
    pub async fn sweep(&self) -> Result<(), NetworkError> {
        ask(&self.jobs, Job::Sweep).await?
    }
}

async fn ask<T>(
    jobs: &Sender<Job>,
    job: impl FnOnce(oneshot::Sender<T>) -> Job,
) -> Result<T, NetworkError> {
    let (reply, answer) = oneshot::channel();
    jobs.send(job(reply)).map_err(|_| NetworkError::Gone)?;
    match tokio::time::timeout(ANSWER_TIME, answer).await {
        Ok(answer) => answer.map_err(|_| NetworkError::Gone),
        Err(_) => Err(NetworkError::Timeout(ANSWER_TIME)),
    }
}

/// By what the owner's things are known.
struct Names {
    /// Names the table.
    id: String,
    /// Stands on devices.
    alias: String,
    /// How the names of devices begin that lead to namespaces.
    veths: String,
    /// And those of bridges without a name.
    bridges: String,
}

impl Names {
    fn of(owner: &Path) -> Self {
        let digest = Sha256::digest(owner.as_os_str().as_encoded_bytes());
        let id = hex(&digest[..3]);
        Self {
            alias: format!("slicer {}", owner.display())
                .chars()
                .take(200)
                .collect(),
            veths: format!("sv{id}"),
            bridges: format!("sb{id}"),
            id,
        }
    }

    /// The bridge of this network, unless it has another name.
    fn bridge(&self, gateway: Ipv4Net) -> String {
        let digest = Sha256::digest(gateway.to_string());
        format!("{}{}", self.bridges, hex(&digest[..3]))
    }

    /// The hardware address of a network's router. A VM that was suspended meanwhile still has it in
    /// its tables, so it is always the same.
    fn mac(&self, gateway: Ipv4Net) -> [u8; 6] {
        let digest = Sha256::digest(format!("{} {gateway}", self.alias));
        // Locally administered, unicast.
        let mut mac = [2; 6];
        mac[1..].copy_from_slice(&digest[..5]);
        mac
    }

    fn are_on(&self, device: &crate::links::Device) -> bool {
        device.alias == self.alias
            || device.name.starts_with(&self.veths)
            || device.name.starts_with(&self.bridges)
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

struct Worker {
    names: Names,
    note: PathBuf,
    /// How many VMs need what they share.
    users: BTreeMap<Shared, usize>,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Job>) {
        // Until the owner and all links are gone.
        while let Ok(job) = queue.recv() {
            match job {
                // A link that nobody waits for any more is dropped, and so released.
                Job::Bridge(bridge, jobs, reply) => {
                    drop(reply.send(self.bridge(&bridge, jobs)));
                }
                Job::Isolated(isolated, jobs, reply) => {
                    drop(reply.send(self.isolated(&isolated, jobs)));
                }
                Job::Join { tap, bridge, reply } => {
                    drop(reply.send(Links::open().and_then(|l| l.join(tap, bridge))));
                }
                Job::Release(shared) => {
                    if let Err(e) = self.release(&shared) {
                        warn!("{e}");
                    }
                }
                Job::Sweep(reply) => drop(reply.send(self.sweep())),
            }
        }
    }

    /// Counts one more user of what VMs share, and makes a link that will count it off again.
    fn link(&mut self, shared: Shared, jobs: Sender<Job>) -> Link {
        *self.users.entry(shared.clone()).or_default() += 1;
        Link {
            tap: None,
            apart: None,
            shared,
            jobs,
        }
    }

    fn bridge(&mut self, bridge: &Bridge, jobs: Sender<Job>) -> Result<Link, NetworkError> {
        permitted("bridge", &[CapabilitySet::NET_ADMIN], "CAP_NET_ADMIN")?;
        let links = Links::open()?;
        let name = match &bridge.name {
            Some(name) => name.clone(),
            None => self.names.bridge(bridge.gateway),
        };
        let shared = Shared::Bridge {
            net: bridge.gateway.trunc(),
            device: name.clone(),
        };
        let mut link = self.link(shared, jobs.clone());
        let there = links.find(&name)?;
        if let Some(there) = &there
            && !self.names.are_on(there)
        {
            return Err(NetworkError::NotOurs(name));
        }
        self.check_overlap(&links, bridge.gateway)?;
        // Also when it is there: one whose making was cut short lacks something.
        self.begin()?;
        let index = match there {
            Some(device) => device.index,
            None => self.make_bridge(&links, &name, bridge.gateway)?,
        };
        links.add_address(index, bridge.gateway)?;
        links.set_up(index)?;
        self.apply_rules()?;
        let pattern = format!("{}%d", bridge.tap_prefix.as_deref().unwrap_or("sltap"));
        let (tap, tap_name) = tap::create(&pattern)?;
        without_ipv6(&tap_name);
        let number = links.index(&tap_name)?;
        if bridge.apart {
            link.apart = Some(Apart {
                tap: number,
                bridge: index,
                jobs,
            });
        } else {
            links.join(number, index)?;
        }
        link.tap = Some(tap);
        Ok(link)
    }

    fn make_bridge(
        &self,
        links: &Links,
        name: &str,
        gateway: Ipv4Net,
    ) -> Result<u32, NetworkError> {
        // It has a name of ours until it bears our mark.
        let first = self.names.bridge(gateway);
        let index = links.add_bridge(&first, self.names.mac(gateway))?;
        links.mark(index, &self.names.alias)?;
        if name != first {
            links.rename(index, name)?;
        }
        without_ipv6(name);
        Ok(index)
    }

    fn isolated(&mut self, isolated: &Isolated, jobs: Sender<Job>) -> Result<Link, NetworkError> {
        permitted(
            "isolated",
            &[CapabilitySet::NET_ADMIN, CapabilitySet::SYS_ADMIN],
            "CAP_NET_ADMIN and CAP_SYS_ADMIN",
        )?;
        let nft = nft::find()?;
        let links = Links::open()?;
        let shared = Shared::Isolated {
            net: isolated.gateway.trunc(),
        };
        let mut link = self.link(shared, jobs);
        self.check_overlap(&links, isolated.gateway)?;
        self.begin()?;
        self.apply_rules()?;
        let mut number = [0; 3];
        getrandom::fill(&mut number)
            .map_err(|e| NetworkError::io("read", "random bytes")(io::Error::other(e)))?;
        let outside = format!("{}{}", self.names.veths, hex(&number));
        let host = namespace::own()?;
        let mac = self.names.mac(isolated.gateway);
        let tap = namespace::within_new(|| inside(&nft, isolated, &host, &outside, mac))?;
        // From here on the tap holds the namespace, and the namespace the device.
        let index = links.index(&outside)?;
        links.mark(index, &self.names.alias)?;
        without_ipv6(&outside);
        links.add_address(index, Ipv4Net::from(OUTER))?;
        links.set_up(index)?;
        links.add_route(Ipv4Net::from(isolated.address), INNER, index)?;
        link.tap = Some(tap);
        Ok(link)
    }

    /// Refuses a network that the host is in by another device.
    fn check_overlap(&self, links: &Links, gateway: Ipv4Net) -> Result<(), NetworkError> {
        let net = gateway.trunc();
        let devices = links.all()?;
        for (index, address) in links.addresses()? {
            let theirs = address.trunc();
            if !net.contains(&theirs) && !theirs.contains(&net) {
                continue;
            }
            let device = devices.iter().find(|d| d.index == index);
            if device.is_some_and(|d| self.names.are_on(d)) {
                continue;
            }
            return Err(NetworkError::Overlap {
                device: device.map_or_else(String::new, |d| d.name.clone()),
                address,
                gateway: net,
            });
        }
        Ok(())
    }

    /// Before anything is made that has to be taken down.
    fn begin(&self) -> Result<(), NetworkError> {
        if !self.note.exists() {
            fs::write(&self.note, "").map_err(NetworkError::io("write", &self.note))?;
        }
        let forwards = fs::read_to_string(FORWARDING).unwrap_or_default();
        if forwards.trim() != "1" {
            fs::write(FORWARDING, "1").map_err(NetworkError::io("write", FORWARDING))?;
        }
        Ok(())
    }

    fn apply_rules(&self) -> Result<(), NetworkError> {
        let shared: Vec<Shared> = self.users.keys().cloned().collect();
        let rules = rules::host(&self.names.id, &self.names.veths, &shared);
        nft::apply(&nft::find()?, &rules)
    }

    fn release(&mut self, shared: &Shared) -> Result<(), NetworkError> {
        if let Some(users) = self.users.get_mut(shared) {
            *users -= 1;
            if *users > 0 {
                return Ok(());
            }
            self.users.remove(shared);
        }
        if self.users.is_empty() {
            return self.sweep();
        }
        if let Shared::Bridge { device, .. } = shared {
            let links = Links::open()?;
            if let Some(device) = links.find(device)?
                && self.names.are_on(&device)
            {
                links.remove(&device)?;
            }
        }
        self.apply_rules()
    }

    fn sweep(&mut self) -> Result<(), NetworkError> {
        self.users.clear();
        if !self.note.exists() {
            return Ok(());
        }
        let links = Links::open()?;
        for device in links.all()? {
            if self.names.are_on(&device) {
                links.remove(&device)?;
            }
        }
        match nft::find() {
            Ok(nft) => nft::apply(&nft, &rules::remove(&self.names.id))?,
            // Then there are no rules of ours.
            Err(NetworkError::NftMissing) => {}
            Err(e) => return Err(e),
        }
        fs::remove_file(&self.note).map_err(NetworkError::io("remove", &self.note))
    }
}

/// Sets up a VM's namespace, which this thread is in, and gives back the VM's tap.
fn inside(
    nft: &Path,
    isolated: &Isolated,
    host: &OwnedFd,
    outside: &str,
    mac: [u8; 6],
) -> Result<OwnedFd, NetworkError> {
    for name in ["all", "default"] {
        without_ipv6(name);
    }
    // Before there is anything that could pass.
    let rules = rules::isolated(&isolated.policy, isolated.address, INSIDE, "up0", OUTER);
    nft::apply(nft, &rules)?;
    let links = Links::open()?;
    let (tap, _) = tap::create(INSIDE)?;
    let index = links.index(INSIDE)?;
    links.set_mac(index, mac)?;
    links.add_address(index, isolated.gateway)?;
    links.set_up(index)?;
    links.add_veth(outside, "up0")?;
    links.move_to(links.index(outside)?, host.as_fd())?;
    let up = links.index("up0")?;
    links.add_address(up, Ipv4Net::from(INNER))?;
    links.set_up(up)?;
    links.add_route(Ipv4Net::default(), OUTER, up)?;
    fs::write(FORWARDING, "1").map_err(NetworkError::io("write", FORWARDING))?;
    Ok(tap)
}

/// VMs speak IPv4 with us; a host without IPv6 needs nothing.
fn without_ipv6(device: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    // A second wall: the rules let none pass.
    let _ = fs::write(path, "1");
}

fn permitted(
    mode: &'static str,
    needed: &[CapabilitySet],
    names: &'static str,
) -> Result<(), NetworkError> {
    let has = capabilities(None).map(|sets| sets.effective);
    if has.is_ok_and(|has| needed.iter().all(|n| has.contains(*n))) {
        return Ok(());
    }
    Err(NetworkError::Unsupported {
        mode,
        why: "is not permitted to this user",
        capabilities: names,
    })
}

#[cfg(test)]
mod tests;
