//! Spare VMs of a host group (`warm_pool`): booted ahead and paused, so that a launch only wakes one and
//! tells it who it is.

use crate::DaemonError;
use crate::config::{HostGroupConfig, NetworkMode};
use crate::images::GroupImage;
use crate::record::VmRecord;
use crate::supervisor::Shared;
use crate::vm::spare::{self, Spare};
use slicer_api::CreateNode;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How long the guest of a spare goes on once its agent is there: what its image starts has started by
/// then.
const SETTLE_TIME: Duration = Duration::from_secs(15);
/// One that began as a template has done that.
const CLONE_SETTLE_TIME: Duration = Duration::from_secs(2);
/// After one that could not be booted.
const RETRY_TIME: Duration = Duration::from_secs(30);
/// After one was taken: who took it has the host first.
const REFILL_TIME: Duration = Duration::from_secs(1);
/// How often it is looked whether the host has memory for them.
const LOOK_TIME: Duration = Duration::from_secs(5);
/// Of the host's memory, what spares leave to others: one part in this many.
const RESERVE: u64 = 10;

/// What a pool holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Spares that can be taken.
    pub(crate) vms: usize,
    /// Host memory they take, bytes.
    pub(crate) memory: u64,
}

/// Takes an address for a spare, if there is one.
pub(crate) type Address = Box<dyn Fn() -> Option<Ipv4Addr> + Send + Sync>;

/// Asks a pool.
pub(crate) struct Pool {
    commands: mpsc::Sender<Command>,
    held: watch::Receiver<Held>,
}

enum Command {
    /// Give one that fits a VM of this record, of the image with this digest.
    Take(Box<VmRecord>, String, oneshot::Sender<Option<Spare>>),
    /// Remove all.
    End(oneshot::Sender<()>),
}

impl Pool {
    /// The pool of a group that wants one, and what keeps it filled.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        image: &Arc<GroupImage>,
        address: Address,
    ) -> Option<(Self, impl Future<Output = ()> + Send + use<>)> {
        let group = image.group().clone();
        if group.warm_pool == 0 {
            return None;
        }
        if group.network.mode != NetworkMode::Nat {
            warn!(
                "group {}: warm_pool has no effect: it is for networks of the mode nat",
                group.name
            );
            return None;
        }
        let (ask, commands) = mpsc::channel(16);
        let (tell, held) = watch::channel(Held::default());
        let keeper = Keeper {
            shared: shared.clone(),
            image: image.clone(),
            group,
            address,
            spares: Vec::new(),
            booted: 0,
            held: tell,
            not_before: Instant::now(),
        };
        let pool = Self {
            commands: ask,
            held,
        };
        Some((pool, keeper.run(commands)))
    }

    /// Takes a spare for a VM of this record, if there is one that fits.
    pub(crate) async fn take(&self, record: &VmRecord, image_digest: &str) -> Option<Spare> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Take(Box::new(record.clone()), image_digest.to_owned(), reply);
        self.commands.send(command).await.ok()?;
        answer.await.ok().flatten()
    }

    /// Ends them all. No spare is made any more.
    pub(crate) async fn end(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::End(reply)).await.is_ok() {
            // A keeper that is gone has ended them.
            let _ = done.await;
        }
    }

    /// What it holds now.
    pub(crate) fn held(&self) -> Held {
        *self.held.borrow()
    }
}

struct Keeper {
    shared: Arc<Shared>,
    image: Arc<GroupImage>,
    group: HostGroupConfig,
    address: Address,
    /// The oldest first, each with when it is to be paused, unless it is.
    spares: Vec<(Spare, Option<Instant>)>,
    /// How many were begun.
    booted: u64,
    held: watch::Sender<Held>,
    not_before: Instant,
}

type Booted = Result<Spare, DaemonError>;

impl Keeper {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut booting: JoinSet<Booted> = JoinSet::new();
        let mut look = tokio::time::interval(LOOK_TIME);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = loop {
            // One at a time: users' own VMs come first.
            if booting.is_empty() {
                self.begin(&mut booting);
            }
            self.tell();
            let settled = self.spares.iter().filter_map(|(_, at)| *at).min();
            tokio::select! {
                command = commands.recv() => match command {
                    None => break None,
                    Some(Command::End(reply)) => break Some(reply),
                    Some(Command::Take(record, digest, reply)) => {
                        let found = self.take(&record, &digest);
                        // When whoever asked is gone, so is the spare.
                        let _ = reply.send(found);
                    }
                },
                Some(done) = booting.join_next() => match done {
                    Ok(Ok(spare)) => {
                        debug!("group {}: a spare is there", self.group.name);
                        let settle = match spare.record.template {
                            Some(_) => CLONE_SETTLE_TIME,
                            None => SETTLE_TIME,
                        };
                        self.spares.push((spare, Some(Instant::now() + settle)));
                    }
                    Ok(Err(e)) => {
                        warn!("group {}: no spare VM: {e}", self.group.name);
                        self.not_before = Instant::now() + RETRY_TIME;
                    }
                    Err(_) => self.not_before = Instant::now() + RETRY_TIME,
                },
                () = until(settled) => self.pause().await,
                _ = look.tick() => self.look().await,
            }
        };
        booting.shutdown().await;
        while let Some((spare, _)) = self.spares.pop() {
            spare.discard().await;
        }
        self.tell();
        if let Some(reply) = ended {
            let _ = reply.send(());
        }
    }

    fn tell(&self) {
        let held = Held {
            vms: self.spares.len(),
            memory: self.spares.iter().map(|(s, _)| s.memory()).sum(),
        };
        self.held
            .send_if_modified(|h| std::mem::replace(h, held) != held);
    }

    /// Begins to boot one, if one is missing and the host can take it.
    fn begin(&mut self, booting: &mut JoinSet<Booted>) {
        let wanted = usize::try_from(self.group.warm_pool).unwrap_or(usize::MAX);
        if self.spares.len() >= wanted || Instant::now() < self.not_before {
            return;
        }
        let short = crate::host::is_short_by(self.group.ram_bytes, RESERVE);
        let Some(ip) = (!short).then(|| (self.address)()).flatten() else {
            self.not_before = Instant::now() + RETRY_TIME;
            return;
        };
        self.booted += 1;
        let name = spare::name(&self.group.name, self.booted);
        let arch = self.image.arch().go_name();
        let record = VmRecord::new(&self.group, name.clone(), ip, arch, &CreateNode::default());
        let hold = spare::Hold::new(&self.shared, name, ip);
        let (shared, image) = (self.shared.clone(), self.image.clone());
        let network = self.group.network.clone();
        booting.spawn(async move {
            let record = VmRecord {
                wants_entrypoint: false,
                ..record?
            };
            Spare::boot(&shared, &image, &network, record, hold).await
        });
    }

    fn take(&mut self, record: &VmRecord, digest: &str) -> Option<Spare> {
        let fits = |(s, _): &(Spare, _)| s.is_alive() && s.image_digest == digest && s.fits(record);
        let at = self.spares.iter().position(fits)?;
        self.not_before = Instant::now() + REFILL_TIME;
        Some(self.spares.remove(at).0)
    }

    /// Pauses those whose time has come.
    async fn pause(&mut self) {
        let now = Instant::now();
        for (spare, at) in &mut self.spares {
            if at.is_some_and(|at| at <= now) {
                *at = None;
                spare.pause().await;
            }
        }
    }

    /// Lets go of those that are gone, that are of an image of before, and of one whenever the host is
    /// short of memory.
    async fn look(&mut self) {
        let image = self.image.known();
        let current = |s: &Spare| {
            image
                .as_ref()
                .is_none_or(|i| i.image_digest == s.image_digest)
        };
        let good = |s: &Spare| s.is_alive() && current(s);
        while let Some(at) = self.spares.iter().position(|(s, _)| !good(s)) {
            let (spare, _) = self.spares.remove(at);
            info!(
                "{}: a spare that is of no use any more",
                spare.record.hostname
            );
            spare.discard().await;
        }
        if crate::host::is_short_by(0, RESERVE)
            && let Some((spare, _)) = self.spares.pop()
        {
            info!(
                "group {}: a spare VM gives way: the host is short of memory",
                self.group.name
            );
            spare.discard().await;
            self.not_before = Instant::now() + RETRY_TIME;
        }
    }
}

/// Waits until then; for ever, without.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
