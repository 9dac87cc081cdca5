//! All VMs: who there is, who may come, who goes.

use crate::DaemonError;
use crate::admission::{check_name, check_request, read_userdata};
use crate::bases::Bases;
use crate::commits::{self, CommitRecord, Commits};
use crate::config::{Config, HostGroupConfig};
use crate::forwards;
use crate::github::Github;
use crate::images::GroupImage;
use crate::metrics::Metrics;
use crate::network::{self, Networking};
use crate::pool::{Held, Pool};
use crate::record::VmRecord;
use crate::saved::{self, Saved};
use crate::secrets::Secrets;
use crate::store::ImageStore;
use crate::tags;
use crate::templates::{Maker, Templates, Want, check_group};
use crate::turns::Turns;
use crate::vm::spare::{self, Spare};
use crate::vm::{self, Phase, Start, VmHandle, remove_files};
use crate::workdir::WorkDir;
use slicer_api::{ApiError, CreateNode, HostGroup, TagsChange};
use slicer_machine::{Arch, Hypervisor};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// What VMs share.
pub(crate) struct Shared {
    pub(crate) work: Arc<WorkDir>,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) github: Github,
    pub(crate) commits: Commits,
    pub(crate) networking: Networking,
    pub(crate) templates: Arc<Templates>,
    pub(crate) turns: Turns,
    vms: Mutex<BTreeMap<String, VmHandle>>,
    /// Addresses of spare VMs. Taken only while `vms` is held.
    spare_addresses: Mutex<BTreeSet<Ipv4Addr>>,
    /// Told when a VM comes, goes, or does something else.
    pub(crate) phases: watch::Sender<()>,
    /// Told when the host woke up: guests' clocks are behind.
    pub(crate) wakes: watch::Sender<()>,
}

impl Shared {
    fn vms(&self) -> MutexGuard<'_, BTreeMap<String, VmHandle>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All VMs.
    pub(crate) fn handles(&self) -> Vec<VmHandle> {
        self.vms().values().cloned().collect()
    }

    /// A VM that a commit is of, or that was forked from it.
    pub(crate) fn user_of(&self, commit: &CommitRecord) -> Option<String> {
        let vms = self.vms();
        let mut there = vms
            .values()
            .filter(|h| !matches!(h.view.borrow().phase, Phase::Gone(_)));
        let user = there.find(|h| commit.is_needed_by(&h.record));
        user.map(|h| h.record.hostname.clone())
    }

    fn spare_addresses(&self) -> MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.spare_addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// An address for a spare VM of this group, if there is one.
    fn spare_address(&self, group: &HostGroupConfig) -> Option<Ipv4Addr> {
        let vms = self.vms();
        let mut spares = self.spare_addresses();
        let free =
            |ip: &Ipv4Addr| !spares.contains(ip) && !vms.values().any(|h| h.record.ip == *ip);
        let ip = group.network.pool().find(free)?;
        spares.insert(ip);
        Some(ip)
    }

    /// Frees the address of a spare VM.
    pub(crate) fn release_address(&self, ip: Ipv4Addr) {
        self.spare_addresses().remove(&ip);
    }

    /// Frees the name of a VM that is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.vms().remove(name);
        self.phases.send_replace(());
    }
}

pub(crate) struct Group {
    pub(crate) config: HostGroupConfig,
    image: Arc<GroupImage>,
    pool: OnceLock<Pool>,
}

impl Group {
    /// Go's name of its VMs' architecture.
    fn arch(&self) -> &'static str {
        self.image.arch().go_name()
    }
}

/// The VMs of one daemon.
pub(crate) struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) images: Arc<ImageStore>,
    groups: Vec<Group>,
    tasks: TaskTracker,
    pub(crate) metrics: Metrics,
    graceful: bool,
    stopping: AtomicBool,
    /// Told when the API asks for the daemon's end.
    pub(crate) ending: Notify,
    /// Held while a VM is given its friendly name, which must be nobody else's.
    naming: tokio::sync::Mutex<()>,
    /// Ends the making of templates.
    no_templates: CancellationToken,
}

impl Supervisor {
    /// Recovers what an earlier daemon left, and starts the VMs the configuration declares.
    pub(crate) async fn start(
        config: &Config,
        work: Arc<WorkDir>,
        hypervisor: Arc<dyn Hypervisor>,
        arch: Arch,
    ) -> Result<Arc<Self>, DaemonError> {
        work.sweep()?;
        saved::sweep(&work)?;
        let commits = Commits::open(&work)?;
        commits::follow(&work, &commits)?;
        let bases = Arc::new(Bases::new(work.clone()));
        let names: Vec<_> = config.host_groups.iter().map(|g| g.name.as_str()).collect();
        let hv = &*hypervisor;
        let (templates, wants) = Templates::open(work.clone(), bases.clone(), hv, &names).await?;
        bases.remove_unused(&names)?;
        let tasks = TaskTracker::new();
        let images = ImageStore::open(config, bases, arch, tasks.clone())?;
        let groups: Vec<Group> = config
            .host_groups
            .iter()
            .map(|group| Group {
                config: group.clone(),
                image: Arc::new(GroupImage::new(
                    images.clone(),
                    group.clone(),
                    group.arch.unwrap_or(arch),
                    config.kernel_image.clone(),
                )),
                pool: OnceLock::new(),
            })
            .collect();
        let networking = Networking::open(&work, tasks.clone()).await?;
        let shared = Arc::new(Shared {
            secrets: Arc::new(Secrets::open(work.root())?),
            work,
            hypervisor,
            github: Github::from_env(),
            commits,
            networking,
            templates: Arc::new(templates),
            turns: Turns::new(),
            vms: Mutex::default(),
            spare_addresses: Mutex::default(),
            phases: watch::channel(()).0,
            wakes: watch::channel(()).0,
        });
        let this = Arc::new(Self {
            shared,
            groups,
            images,
            tasks,
            metrics: Metrics::default(),
            graceful: config.graceful_shutdown,
            stopping: AtomicBool::new(false),
            ending: Notify::new(),
            naming: tokio::sync::Mutex::default(),
            no_templates: CancellationToken::new(),
        });
        this.recover().await?;
        // Of those that are gone with their daemon, nobody reads any more.
        this.shared.templates.tidy();
        this.start_configured()?;
        let maker = Maker::new(this.shared.clone(), wants);
        this.tasks.spawn(maker.run(this.no_templates.clone()));
        for group in &this.groups {
            let (shared, config) = (this.shared.clone(), group.config.clone());
            let address = move || shared.spare_address(&config);
            if let Some((pool, keeper)) = Pool::new(&this.shared, &group.image, Box::new(address)) {
                let _ = group.pool.set(pool);
                this.tasks.spawn(keeper);
            }
            // So that the first launch need not wait for it; a launch that comes earlier does.
            let (image, name) = (group.image.clone(), group.config.name.clone());
            let runs = this.shared.hypervisor.check_arch(image.arch());
            let wish = this.wish(group);
            let templates = this.shared.templates.clone();
            this.tasks.spawn(async move {
                let prepared = match runs {
                    Ok(()) => image.prepare().await.map(drop),
                    Err(e) => Err(e.into()),
                };
                match (prepared, wish) {
                    (Ok(()), Some(wish)) => templates.want(wish),
                    (Ok(()), None) => {}
                    (Err(e), _) => warn!("group {name}: {e}"),
                }
            });
        }
        Ok(this)
    }

    /// Ends VMs an earlier daemon left running; removes the ephemeral, lists the others. Of a VM that
    /// is suspended there is nothing that ran: it is listed, ephemeral or not.
    async fn recover(&self) -> Result<(), DaemonError> {
        let work = &self.shared.work;
        for name in spare::left(work)? {
            self.shared.hypervisor.reap(&work.run(&name)).await?;
            remove_files(work, &name)?;
        }
        let records = VmRecord::load_all(work)?;
        let mut ips: BTreeSet<Ipv4Addr> = records.iter().map(|r| r.ip).collect();
        for mut record in records {
            let name = record.hostname.clone();
            self.shared.hypervisor.reap(&work.run(&name)).await?;
            let saved = Saved::load(work, &name);
            if !record.is_kept() && saved.is_none() {
                info!("{name}: removed, its daemon ended without doing so");
                remove_files(work, &name)?;
                continue;
            }
            let Some(group) = self.group(&record.group) else {
                warn!(
                    "{name} is of group {:?}, which the configuration no longer has: its disk \
                       is kept, the VM isn't listed",
                    record.group
                );
                continue;
            };
            if network::readdress(&group.config.network, &mut record, &mut ips) {
                record.save(work)?;
            }
            // Those the configuration declares are started by `start_configured`.
            let declared = record.configured
                && index(&record.group, &name).is_some_and(|n| n <= group.config.count);
            if !declared {
                let start = match saved {
                    None => Start::Stopped,
                    Some(saved) if saved.restore_at_start => Start::Restore,
                    Some(_) => Start::Suspended,
                };
                self.adopt(group, record, start);
            }
        }
        Ok(())
    }

    fn start_configured(&self) -> Result<(), DaemonError> {
        let work = self.shared.work.clone();
        let mut known: BTreeMap<String, VmRecord> = VmRecord::load_all(&work)?
            .into_iter()
            .map(|r| (r.hostname.clone(), r))
            .collect();
        for group in &self.groups {
            for n in 1..=group.config.count {
                let name = format!("{}-{n}", group.config.name);
                let mut record = match known.remove(&name) {
                    Some(record) => record,
                    None => {
                        let vms = self.shared.vms();
                        let ip = Self::free_address(&group.config, None, |ip| {
                            vms.values().any(|h| h.record.ip == ip)
                                || known.values().any(|r| r.ip == ip)
                        });
                        drop(vms);
                        let ip = ip.map_err(|e| DaemonError::Unsupported(e.message))?;
                        let arch = group.arch();
                        let request = CreateNode {
                            persistent: true,
                            ..CreateNode::default()
                        };
                        let mut record =
                            VmRecord::new(&group.config, name.clone(), ip, arch, &request)?;
                        if work.disk(&name).exists() {
                            // A disk whose record was lost is somebody's work.
                            warn!("{name}: found its disk without a record, using it");
                            record.disk = Some(crate::record::DiskKind::Raw);
                        }
                        record
                    }
                };
                // The configuration rules: it may have been edited since.
                record.configured = true;
                if record.disk.is_none() {
                    group.arch().clone_into(&mut record.arch);
                }
                record.cpus = group.config.vcpu;
                record.ram_bytes = group.config.ram_bytes;
                record.ssh_keys.clone_from(&group.config.ssh_keys);
                if record.import_user != group.config.github_user {
                    record.import_user.clone_from(&group.config.github_user);
                    record.imported_keys = None;
                }
                record.wants_entrypoint = group.config.entrypoint;
                record.userdata = read_userdata(&work, &group.config.userdata)?;
                record.save(&work)?;
                let start = match Saved::load(&work, &record.hostname) {
                    None => Start::Launch,
                    Some(_) => Start::Restore,
                };
                self.adopt(group, record, start);
            }
        }
        Ok(())
    }

    /// The template that launches of a group ask for unless they say otherwise, if it is to have one.
    fn wish(&self, group: &Group) -> Option<Want> {
        let config = &group.config;
        if !group.image.is_warm() {
            return None;
        }
        if let Err(why) = check_group(config, self.shared.hypervisor.capabilities()) {
            if config.warm == Some(true) {
                warn!("group {}: warm has no effect: {why}", config.name);
            }
            return None;
        }
        let ip = config.network.pool().next()?;
        let name = config.name.clone();
        let record = VmRecord::new(config, name, ip, group.arch(), &CreateNode::default());
        Some(Want {
            image: group.image.clone(),
            record: VmRecord {
                wants_entrypoint: false,
                ..record.ok()?
            },
        })
    }

    /// Gives a VM whose record is on disk its actor.
    fn adopt(&self, group: &Group, record: VmRecord, start: Start) -> VmHandle {
        let name = record.hostname.clone();
        let network = Arc::new(group.config.network.clone());
        let (handle, actor) = vm::actor(
            self.shared.clone(),
            group.image.clone(),
            record,
            group.config.dns_servers.clone(),
            network,
            self.forwards(group),
            start,
        );
        self.shared.vms().insert(name, handle.clone());
        self.shared.phases.send_replace(());
        self.tasks.spawn(actor);
        let kept = forwards::keep_up(handle.clone(), self.tasks.clone());
        self.tasks.spawn(kept);
        handle
    }

    /// What its group says of each of its VMs is reachable.
    fn forwards(&self, group: &Group) -> forwards::Mappings {
        forwards::mappings(&group.config.forwards, self.shared.work.root())
    }

    pub(crate) fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|g| g.config.name == name)
    }

    /// The configurations of all groups.
    pub(crate) fn group_configs(&self) -> impl Iterator<Item = &HostGroupConfig> {
        self.groups.iter().map(|g| &g.config)
    }

    /// The configuration of a group.
    pub(crate) fn group_config(&self, name: &str) -> Result<&HostGroupConfig, ApiError> {
        let names = || {
            self.groups
                .iter()
                .map(|g| g.config.name.as_str())
                .collect::<Vec<_>>()
        };
        self.group(name).map(|g| &g.config).ok_or_else(|| {
            ApiError::not_found(format!(
                "host group {name:?} not found; there are: {}",
                names().join(", ")
            ))
        })
    }

    pub(crate) fn secrets(&self) -> Arc<Secrets> {
        self.shared.secrets.clone()
    }

    pub(crate) fn work(&self) -> &WorkDir {
        &self.shared.work
    }

    pub(crate) fn host_groups(&self) -> Vec<HostGroup> {
        let group = |g: &Group| HostGroup {
            name: g.config.name.clone(),
            count: g.config.count,
            ram_bytes: g.config.ram_bytes,
            cpus: g.config.vcpu,
            gpu_count: 0,
            arch: g.arch().to_owned(),
        };
        self.groups.iter().map(group).collect()
    }

    /// All VMs, in the order of groups and numbers.
    pub(crate) fn list(&self) -> Vec<VmHandle> {
        let mut all: Vec<VmHandle> = self.shared.vms().values().cloned().collect();
        let position = |h: &VmHandle| {
            let group = self
                .groups
                .iter()
                .position(|g| g.config.name == h.record.group);
            (group, index(&h.record.group, &h.record.hostname))
        };
        all.sort_by_key(position);
        all
    }

    pub(crate) fn get(&self, name: &str) -> Result<VmHandle, ApiError> {
        let found = self.shared.vms().get(name).cloned();
        found.ok_or_else(|| ApiError::not_found(format!("VM {name:?} not found")))
    }

    /// The first address of the group's pool that no VM has, or the one asked for.
    fn free_address(
        group: &HostGroupConfig,
        wanted: Option<Ipv4Addr>,
        taken: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Ipv4Addr, ApiError> {
        match wanted {
            Some(ip) if !group.network.pool().any(|a| a == ip) => Err(ApiError::bad_request(
                format!("address {ip} is not one of host group {}", group.name),
            )),
            Some(ip) if taken(ip) => Err(ApiError::conflict(format!(
                "address {ip} is in use by another VM"
            ))),
            Some(ip) => Ok(ip),
            None => group.network.pool().find(|ip| !taken(*ip)).ok_or_else(|| {
                ApiError::conflict(format!("host group {} has no free address", group.name))
            }),
        }
    }

    /// Makes a VM: its record is durable and its launch has begun when this returns.
    pub(crate) async fn create(
        &self,
        group: &str,
        request: &CreateNode,
    ) -> Result<VmHandle, ApiError> {
        self.group_config(group)?;
        let Some(group) = self.group(group) else {
            return Err(ApiError::not_found("host group not found"));
        };
        check_request(&group.config, request)?;
        self.check_secrets(request.secrets.as_deref()).await?;
        let imported = if request.import_user.is_empty() {
            None
        } else {
            Some(self.shared.github.keys(&request.import_user).await?)
        };
        let mut request = request.clone();
        if request.userdata.trim().is_empty() {
            let (work, userdata) = (self.shared.work.clone(), group.config.userdata.clone());
            let read = tokio::task::spawn_blocking(move || read_userdata(&work, &userdata)).await;
            let read = read.unwrap_or(Err(DaemonError::Internal("reading userdata")));
            request.userdata = read.map_err(|e| e.to_api())?;
        }
        let request = &request;
        let wanted = match request.ip.split('/').next().unwrap_or_default() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                ApiError::bad_request(format!("invalid ip {text:?}: expected an IPv4 address"))
            })?),
        };
        let arch = group.arch();
        let record = |name, ip| {
            let record = VmRecord::new(&group.config, name, ip, arch, request);
            record.map_err(|e| e.to_api())
        };
        let spare = match (wanted, &group.pool.get()) {
            (None, Some(pool)) => {
                let asked = record(String::new(), Ipv4Addr::UNSPECIFIED)?;
                Self::spare(group, pool, &asked).await
            }
            _ => None,
        };
        let begin = spare.map(|spare| Start::Wake(Box::new(spare)));
        self.admit(group, wanted, begin, &request.tags, |name, ip| {
            let mut record = record(name, ip)?;
            record.imported_keys = imported;
            Ok(record)
        })
        .await
    }

    /// Refuses names of secrets that there aren't.
    pub(crate) async fn check_secrets(&self, names: Option<&[String]>) -> Result<(), ApiError> {
        let Some(names) = names.filter(|names| !names.is_empty()) else {
            return Ok(());
        };
        let (secrets, names) = (self.secrets(), names.to_vec());
        let checked = tokio::task::spawn_blocking(move || secrets.check_names(&names)).await;
        checked.unwrap_or_else(|_| Err(ApiError::internal("cannot work on secrets")))
    }

    /// A spare VM for one of this record, if there is one that is of the group's image of now.
    async fn spare(group: &Group, pool: &Pool, record: &VmRecord) -> Option<Spare> {
        // A launch that has to wait for the image does so where nobody waits for its answer.
        let prepared = group.image.known()?;
        pool.take(record, &prepared.image_digest).await
    }

    /// What the pools of spare VMs hold, by group.
    pub(crate) fn pools(&self) -> impl Iterator<Item = (&str, Held)> {
        self.groups
            .iter()
            .filter_map(|g| Some((g.config.name.as_str(), g.pool.get()?.held())))
    }

    /// Gives a new VM of a group its name and address, with which `make` makes its record: that is
    /// durable and the launch has begun when this returns.
    pub(crate) async fn admit(
        &self,
        group: &Group,
        wanted: Option<Ipv4Addr>,
        mut begin: Option<Start>,
        tags: &[String],
        make: impl FnOnce(String, Ipv4Addr) -> Result<VmRecord, ApiError>,
    ) -> Result<VmHandle, ApiError> {
        let named = tags.iter().any(|t| t.starts_with(tags::NAME));
        let _naming = if named {
            Some(self.naming.lock().await)
        } else {
            None
        };
        // Name and address are taken in memory first, under the lock; nobody else can get them
        // while the record is made durable, and the launch begins only after that.
        let admitted = (|| {
            let mut vms = self.shared.vms();
            if self.stopping.load(Ordering::Relaxed) {
                return Err(ApiError::unavailable("the daemon is stopping"));
            }
            let spare = match &begin {
                Some(Start::Wake(spare)) => Some(&spare.record),
                _ => None,
            };
            let taken = spare.map(|spare| spare.mac);
            let ip = match spare {
                Some(spare) => spare.ip,
                None => {
                    let spares = self.shared.spare_addresses();
                    Self::free_address(&group.config, wanted, |ip| {
                        spares.contains(&ip) || vms.values().any(|h| h.record.ip == ip)
                    })?
                }
            };
            check_name(&vms, tags)?;
            let name = (1..=u32::MAX)
                .map(|n| format!("{}-{n}", group.config.name))
                .find(|name| !vms.contains_key(name) && !self.shared.work.has(name))
                .unwrap_or_default();
            let mut record = make(name.clone(), ip)?;
            record.mac = taken.unwrap_or(record.mac);
            let network = Arc::new(group.config.network.clone());
            let (handle, actor) = vm::actor(
                self.shared.clone(),
                group.image.clone(),
                record.clone(),
                group.config.dns_servers.clone(),
                network,
                self.forwards(group),
                begin.take().unwrap_or(Start::Launch),
            );
            vms.insert(name, handle.clone());
            // It is the VM's now, if it was a spare's.
            self.shared.release_address(ip);
            self.shared.phases.send_replace(());
            Ok((record, handle, actor))
        })();
        let (record, handle, actor) = match admitted {
            Ok(admitted) => admitted,
            Err(e) => {
                if let Some(Start::Wake(spare)) = begin {
                    spare.discard().await;
                }
                return Err(e);
            }
        };
        // In a task of its own: a client that leaves now must not leave half a VM.
        let (tx, rx) = oneshot::channel();
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            slicer_fault::point("launch.named");
            let (work, saved) = (shared.work.clone(), record.clone());
            let saved = tokio::task::spawn_blocking(move || saved.save(&work)).await;
            let saved = saved.unwrap_or(Err(DaemonError::Internal("writing a record")));
            let durable = saved.is_ok();
            if durable {
                slicer_fault::point("launch.recorded");
            } else {
                shared.forget(&record.hostname);
            }
            let _ = tx.send(saved);
            if durable {
                actor.await;
            }
        });
        let saved = rx
            .await
            .unwrap_or(Err(DaemonError::Internal("writing a record")));
        saved.map_err(|e| e.to_api())?;
        let kept = forwards::keep_up(handle.clone(), self.tasks.clone());
        self.tasks.spawn(kept);
        Ok(handle)
    }

    /// Changes a VM's tags.
    pub(crate) async fn change_tags(
        &self,
        vm: &VmHandle,
        change: TagsChange,
    ) -> Result<Vec<String>, ApiError> {
        let _naming = self.naming.lock().await;
        let has = vm.tags();
        let new = change.add.iter().flatten().filter(|t| !has.contains(t));
        let new: Vec<String> = new.cloned().collect();
        check_name(&self.shared.vms(), &new)?;
        vm.change_tags(change).await
    }

    /// Runs what serves a client beyond its request. It ends by itself with the VM it is about.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// What runs beyond requests, to add to.
    pub(crate) fn tasks(&self) -> TaskTracker {
        self.tasks.clone()
    }

    /// Takes everything down: what is kept is shut down, the rest deleted. With `force`, at once. With
    /// `suspend`, what runs is suspended first, where that can be, for the next daemon to restore.
    pub(crate) async fn stop(&self, force: bool, suspend: bool) {
        let force = force || !self.graceful;
        {
            // Under the lock, so that a VM is either seen below or never made.
            let _vms = self.shared.vms();
            self.stopping.store(true, Ordering::Relaxed);
        }
        self.images.stop();
        self.no_templates.cancel();
        for group in &self.groups {
            if let Some(pool) = group.pool.get() {
                pool.end().await;
            }
        }
        let mut stopping = tokio::task::JoinSet::new();
        for vm in self.list() {
            stopping.spawn(async move {
                let runs = matches!(vm.view.borrow().phase, Phase::Running | Phase::Paused);
                if suspend
                    && runs
                    && let Err(e) = vm.suspend(true).await
                {
                    warn!("{}: {e}: it is shut down", vm.record.hostname);
                }
                if let Err(e) = vm.retire(force).await {
                    warn!("{}: {e}", vm.record.hostname);
                }
            });
        }
        while stopping.join_next().await.is_some() {}
        self.tasks.close();
        // Actors end with their VMs; what else runs is not worth waiting for.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
        if let Err(e) = self.shared.networking.close().await {
            warn!("{e}");
        }
    }
}

/// The number of a VM in its group.
fn index(group: &str, hostname: &str) -> Option<u32> {
    hostname
        .strip_prefix(group)?
        .strip_prefix('-')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_off_hostnames() {
        assert_eq!(index("sbox", "sbox-12"), Some(12));
        assert_eq!(index("sbox", "sboxx-1"), None);
        assert_eq!(index("a-1", "a-1-2"), Some(2));
    }
}
