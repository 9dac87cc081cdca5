//! A VM is an actor: one task owns its machine and its state. All that happens to it goes through
//! its mailbox, is on disk before it is acknowledged, and is seen on its watch channel.

use crate::DaemonError;
use crate::attend::{self, Attendant, Grant};
use crate::error::FREE_SPACE;
use crate::forwards::Mappings;
use crate::guest;
use crate::images::{GroupImage, Prepared};
use crate::record::VmRecord;
use crate::supervisor::Shared;
use crate::tags;
use slicer_api::{
    ApiError, Entrypoint, Identity, NetworkIdentity, Node, NodeStatus, ShutdownAction, TagsChange,
};
use slicer_machine::{
    Boot, Disk, DiskFormat, Machine, MachineError, MachineSpec, MachineState, StopReason,
    UserNetwork,
};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How long a guest may take to power off when asked.
const SHUTDOWN_TIME: Duration = Duration::from_secs(90);
/// How long that is when somebody waits to start it again.
const RELAUNCH_TIME: Duration = Duration::from_secs(30);

/// What a VM is doing, finer than the API tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its image, disk or machine is being made.
    Launching,
    /// Its machine runs.
    Running,
    /// Its machine is paused.
    Paused,
    /// It was asked to power off.
    Stopping,
    /// It is off, its disk is kept. After a failure, with its reason.
    Stopped(Option<String>),
    /// It is gone for good. After a failure, with its reason.
    Gone(Option<ApiError>),
}

/// A VM as everybody may see it.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    /// The guest is sane and knows who it is.
    pub(crate) ready: bool,
    pub(crate) machine: Option<Arc<dyn Machine>>,
    pub(crate) tags: Arc<Vec<String>>,
}

impl View {
    pub(crate) fn status(&self) -> NodeStatus {
        match self.phase {
            Phase::Launching | Phase::Running | Phase::Stopping => NodeStatus::Running,
            Phase::Paused => NodeStatus::Paused,
            Phase::Stopped(_) | Phase::Gone(_) => NodeStatus::Stopped,
        }
    }
}

type Reply = oneshot::Sender<Result<(), ApiError>>;

enum Command {
    Pause(Reply),
    Resume(Reply),
    Shutdown(ShutdownAction, Reply),
    Relaunch(Reply),
    Delete(Reply),
    Tags(TagsChange, oneshot::Sender<Result<Vec<String>, ApiError>>),
    /// The daemon stops: shut down what is kept, delete the rest. `force` switches off at once.
    Retire {
        force: bool,
        reply: Reply,
    },
}

/// What everybody but the actor holds of a VM.
#[derive(Clone)]
pub(crate) struct VmHandle {
    /// As it was when the VM was made or found; its tags may have changed since.
    pub(crate) record: Arc<VmRecord>,
    /// What of it this host can reach.
    pub(crate) forwards: Mappings,
    mailbox: mpsc::Sender<Command>,
    pub(crate) view: watch::Receiver<View>,
}

impl VmHandle {
    /// The tags it has now.
    pub(crate) fn tags(&self) -> Arc<Vec<String>> {
        self.view.borrow().tags.clone()
    }

    /// The VM as lists show it.
    pub(crate) fn node(&self) -> Node {
        let view = self.view.borrow();
        self.record.node(view.status(), view.tags.to_vec())
    }

    /// Changes its tags; answers with all it has then, once they are durable.
    pub(crate) async fn change_tags(&self, change: TagsChange) -> Result<Vec<String>, ApiError> {
        let (tx, rx) = oneshot::channel();
        let sent = self.mailbox.send(Command::Tags(change, tx)).await;
        sent.map_err(|_| self.gone())?;
        rx.await.map_err(|_| self.gone())?
    }

    fn gone(&self) -> ApiError {
        ApiError::not_found(format!("VM {:?} not found", self.record.hostname))
    }

    async fn call(&self, make: impl FnOnce(Reply) -> Command) -> Result<(), ApiError> {
        let (tx, rx) = oneshot::channel();
        let sent = self.mailbox.send(make(tx)).await;
        sent.map_err(|_| self.gone())?;
        rx.await.map_err(|_| self.gone())?
    }

    pub(crate) async fn pause(&self) -> Result<(), ApiError> {
        self.call(Command::Pause).await
    }

    pub(crate) async fn resume(&self) -> Result<(), ApiError> {
        self.call(Command::Resume).await
    }

    /// Answers once the guest was asked; it goes down by itself after that.
    pub(crate) async fn shutdown(&self, action: ShutdownAction) -> Result<(), ApiError> {
        self.call(|reply| Command::Shutdown(action, reply)).await
    }

    /// Starts a stopped VM again, or one that is being stopped as soon as it is; answers once its
    /// machine runs.
    pub(crate) async fn relaunch(&self) -> Result<(), ApiError> {
        self.call(Command::Relaunch).await?;
        self.launched().await
    }

    /// Answers once nothing is left of the VM.
    pub(crate) async fn delete(&self) -> Result<(), ApiError> {
        self.call(Command::Delete).await
    }

    /// Answers once the VM is off, and deleted unless it is kept.
    pub(crate) async fn retire(&self, force: bool) -> Result<(), ApiError> {
        self.call(|reply| Command::Retire { force, reply }).await
    }

    /// Waits until the machine runs, or tells why it never will.
    pub(crate) async fn launched(&self) -> Result<(), ApiError> {
        self.until(|v| v.phase != Phase::Launching).await
    }

    /// Waits until the guest's userdata has run, or tells why it never will. The caller bounds it.
    pub(crate) async fn userdata_ran(&self) -> Result<(), ApiError> {
        self.ready().await?;
        let machine = self.view.borrow().machine.clone();
        let Some(machine) = machine else {
            return self.launched().await;
        };
        tokio::select! {
            ran = guest::wait_userdata(&*machine) => ran.map_err(|e| e.to_api(&self.record.hostname)),
            // Only a VM that is off again isn't ready any more.
            gone = self.until(|_| false) => gone,
        }
    }

    /// Waits until the guest is ready, or tells why it never will be. The caller bounds it.
    pub(crate) async fn ready(&self) -> Result<(), ApiError> {
        self.until(|v| v.ready).await
    }

    async fn until(&self, there: impl Fn(&View) -> bool) -> Result<(), ApiError> {
        let mut view = self.view.clone();
        let done = |v: &View| there(v) || matches!(v.phase, Phase::Stopped(_) | Phase::Gone(_));
        let name = &self.record.hostname;
        match view.wait_for(done).await.map(|v| v.phase.clone()) {
            Ok(Phase::Stopped(why)) => Err(ApiError::internal(match why {
                Some(why) => format!("VM {name} stopped: {why}"),
                None => format!("VM {name} stopped"),
            })),
            Ok(Phase::Gone(Some(e))) => Err(e),
            Ok(Phase::Gone(None)) | Err(_) => {
                Err(ApiError::not_found(format!("VM {name:?} was deleted")))
            }
            Ok(_) => Ok(()),
        }
    }
}

/// Makes the actor of a VM whose record is on disk. `stopped` VMs wait for a relaunch, the others
/// are launched at once. Returns the handle and the actor, which the supervisor runs.
pub(crate) fn actor(
    shared: Arc<Shared>,
    image: Arc<GroupImage>,
    record: VmRecord,
    dns: Vec<Ipv4Addr>,
    network: (Ipv4Addr, u8),
    forwards: Mappings,
    stopped: bool,
) -> (VmHandle, impl Future<Output = ()>) {
    let (mailbox, commands) = mpsc::channel(16);
    let phase = if stopped {
        Phase::Stopped(None)
    } else {
        Phase::Launching
    };
    let (view_tx, view) = watch::channel(View {
        phase,
        ready: false,
        machine: None,
        tags: Arc::new(record.tags.clone()),
    });
    let handle = VmHandle {
        record: Arc::new(record.clone()),
        forwards,
        mailbox,
        view,
    };
    let vm = Vm {
        shared,
        image,
        record,
        dns,
        network,
        view: view_tx,
        was_ready: false,
        retiring: None,
        relaunching: Vec::new(),
        gate: DiskGate::default(),
    };
    (handle, vm.run(commands))
}

struct Vm {
    shared: Arc<Shared>,
    image: Arc<GroupImage>,
    record: VmRecord,
    dns: Vec<Ipv4Addr>,
    /// Gateway and prefix length.
    network: (Ipv4Addr, u8),
    view: watch::Sender<View>,
    /// Its guest was ready once in the life of its machine.
    was_ready: bool,
    /// Who waits for the VM to be off because the daemon stops.
    retiring: Option<Reply>,
    /// Who waits for the VM to be off because it shall be started again.
    relaunching: Vec<Reply>,
    gate: DiskGate,
}

/// What a VM's own tasks tell it.
enum Progress {
    Launched(Result<Launched, DaemonError>),
    /// The guest is ready, or why it never will be.
    Ready(Result<Attendant, String>),
    /// The guest's agent ended while its machine runs.
    Lost(Attendant),
    /// A shutdown that was asked for took longer than this.
    Overdue(Duration),
}

type DiskUsed = crate::record::DiskKind;

/// What came of a launch.
struct Launched {
    disk: DiskUsed,
    machine: Arc<dyn Machine>,
    /// Keys that were not known before.
    imported_keys: Option<Vec<String>>,
    /// What of its image it shall run.
    entrypoint: Option<Entrypoint>,
}

impl Vm {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        // Aborted when the actor ends: no task of a VM outlives it.
        let mut tasks: JoinSet<Progress> = JoinSet::new();
        if self.view.borrow().phase == Phase::Launching {
            self.launch(&mut tasks);
        }
        loop {
            let stopped = self.machine_stopped();
            tokio::select! {
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    if self.command(command, &mut tasks).await {
                        break;
                    }
                }
                Some(progress) = tasks.join_next() => {
                    // A task that was aborted or panicked has nothing to tell; a launch that
                    // panicked shows as one that failed.
                    let progress = progress.unwrap_or(Progress::Ready(Err("task failed".into())));
                    if self.progress(progress, &mut tasks).await {
                        break;
                    }
                }
                reason = stopped => {
                    tasks.shutdown().await;
                    if self.stopped(reason).await {
                        break;
                    }
                    if !self.relaunching.is_empty() {
                        self.set(Phase::Launching);
                        self.launch(&mut tasks);
                        for reply in self.relaunching.drain(..) {
                            let _ = reply.send(Ok(()));
                        }
                    }
                }
            }
        }
        let name = self.record.hostname.clone();
        self.shared.forget(&name);
    }

    /// Completes when the machine there is now is gone; never, when there is none.
    fn machine_stopped(&self) -> impl Future<Output = StopReason> + use<> {
        let state = self.view.borrow().machine.as_ref().map(|m| m.state());
        async move {
            let Some(mut state) = state else {
                return std::future::pending().await;
            };
            match state
                .wait_for(|s| matches!(s, MachineState::Stopped(_)))
                .await
                .as_deref()
            {
                Ok(MachineState::Stopped(reason)) => reason.clone(),
                _ => StopReason::Crashed("its backend went away".to_owned()),
            }
        }
    }

    fn set(&self, phase: Phase) {
        self.view.send_modify(|v| {
            v.ready &= matches!(phase, Phase::Running | Phase::Paused);
            if matches!(phase, Phase::Stopped(_) | Phase::Gone(_)) {
                v.machine = None;
            }
            v.phase = phase;
        });
    }

    fn phase(&self) -> Phase {
        self.view.borrow().phase.clone()
    }

    fn machine(&self) -> Option<Arc<dyn Machine>> {
        self.view.borrow().machine.clone()
    }

    /// Handles a command; true when the actor is done.
    async fn command(&mut self, command: Command, tasks: &mut JoinSet<Progress>) -> bool {
        let name = self.record.hostname.clone();
        match command {
            Command::Pause(reply) => {
                let done = self.freeze(true).await;
                let _ = reply.send(done);
            }
            Command::Resume(reply) => {
                let done = self.freeze(false).await;
                let _ = reply.send(done);
            }
            Command::Shutdown(action, reply) => {
                let (done, end) = match self.phase() {
                    Phase::Stopped(_) | Phase::Gone(_) => {
                        let text = format!("VM {name} is not running");
                        (Err(ApiError::conflict(text)), false)
                    }
                    Phase::Stopping => (Ok(()), false),
                    Phase::Launching | Phase::Running | Phase::Paused => {
                        (Ok(()), self.ask_to_stop(action, tasks).await)
                    }
                };
                let _ = reply.send(done);
                return end;
            }
            Command::Relaunch(reply) => {
                let done = match self.phase() {
                    Phase::Stopped(_) => {
                        self.set(Phase::Launching);
                        self.launch(tasks);
                        Ok(())
                    }
                    Phase::Stopping if self.retiring.is_none() => {
                        self.relaunching.push(reply);
                        tasks.spawn(async {
                            tokio::time::sleep(RELAUNCH_TIME).await;
                            Progress::Overdue(RELAUNCH_TIME)
                        });
                        return false;
                    }
                    _ => Err(ApiError::conflict(format!("VM {name} is already running"))),
                };
                let _ = reply.send(done);
            }
            Command::Delete(reply) => {
                tasks.shutdown().await;
                let done = self.remove(None).await;
                let failed = done.is_err();
                let _ = reply.send(done);
                return !failed;
            }
            Command::Tags(change, reply) => {
                let _ = reply.send(self.change_tags(&change).await);
            }
            Command::Retire { force, reply } => return self.retire(force, reply, tasks).await,
        }
        false
    }

    async fn retire(&mut self, force: bool, reply: Reply, tasks: &mut JoinSet<Progress>) -> bool {
        if !self.record.is_kept() {
            tasks.shutdown().await;
            let done = self.remove(None).await;
            let _ = reply.send(done);
            return true;
        }
        match self.phase() {
            Phase::Running | Phase::Paused | Phase::Stopping if !force => {
                if self.phase() == Phase::Paused {
                    // A paused guest can't hear the question.
                    let _ = self.freeze(false).await;
                }
                self.retiring = Some(reply);
                // Its end shows in `stopped`; an overdue one is switched off.
                self.phase() != Phase::Stopping
                    && self.ask_to_stop(ShutdownAction::Shutdown, tasks).await
            }
            _ => {
                tasks.shutdown().await;
                let done = self.switch_off().await;
                let _ = reply.send(done);
                true
            }
        }
    }

    async fn change_tags(&mut self, change: &TagsChange) -> Result<Vec<String>, ApiError> {
        let before = self.record.tags.clone();
        self.record.tags = tags::apply(change, &before, self.record.configured)?;
        if let Err(e) = self.save().await {
            self.record.tags = before;
            return Err(e.to_api());
        }
        let tags = self.record.tags.clone();
        self.view.send_modify(|v| v.tags = Arc::new(tags.clone()));
        Ok(tags)
    }

    async fn switch_off(&mut self) -> Result<(), ApiError> {
        if let Some(machine) = self.machine() {
            machine
                .kill()
                .await
                .map_err(|e| ApiError::internal(e.to_string()))?;
        }
        self.set(Phase::Stopped(None));
        Ok(())
    }

    async fn freeze(&mut self, pause: bool) -> Result<(), ApiError> {
        let name = &self.record.hostname;
        let machine = match (self.phase(), self.machine()) {
            (Phase::Running | Phase::Paused, Some(machine)) => machine,
            (Phase::Launching, _) => {
                return Err(ApiError::unavailable(format!(
                    "VM {name} is still being launched"
                )));
            }
            _ => return Err(ApiError::conflict(format!("VM {name} is not running"))),
        };
        let done = if pause {
            machine.pause().await
        } else {
            machine.resume().await
        };
        match done {
            Ok(()) => {
                self.set(if pause { Phase::Paused } else { Phase::Running });
                Ok(())
            }
            Err(MachineError::Gone { .. }) => {
                Err(ApiError::conflict(format!("VM {name} is not running")))
            }
            Err(e) => Err(ApiError::internal(e.to_string())),
        }
    }

    /// Starts the shutdown of a machine that runs: through the agent where there is one that
    /// answers, else by the power button. Either is bounded by [`SHUTDOWN_TIME`]. True when that
    /// was the end of the VM already.
    async fn ask_to_stop(&mut self, action: ShutdownAction, tasks: &mut JoinSet<Progress>) -> bool {
        let Some(machine) = self.machine() else {
            // Still being launched: nothing in it could be lost.
            tasks.shutdown().await;
            return self.stopped(StopReason::Killed).await;
        };
        let name = self.record.hostname.clone();
        if self.phase() == Phase::Paused {
            let _ = self.freeze(false).await;
        }
        self.set(Phase::Stopping);
        tasks.spawn(async move {
            if let Err(e) = guest::shutdown(&*machine, action).await {
                warn!("{name}: asking its agent to power off failed ({e}), pressing the button");
                if let Err(e) = machine.request_stop().await {
                    warn!("{name}: {e}");
                }
            }
            tokio::time::sleep(SHUTDOWN_TIME).await;
            Progress::Overdue(SHUTDOWN_TIME)
        });
        false
    }

    /// Handles what a task tells; true when the actor is done.
    async fn progress(&mut self, progress: Progress, tasks: &mut JoinSet<Progress>) -> bool {
        let name = self.record.hostname.clone();
        match progress {
            Progress::Launched(Ok(launched)) => {
                let machine = launched.machine;
                let disk = Some(launched.disk);
                if self.record.disk != disk
                    || launched.imported_keys.is_some()
                    || self.record.entrypoint != launched.entrypoint
                {
                    self.record.disk = disk;
                    self.record.entrypoint = launched.entrypoint;
                    if launched.imported_keys.is_some() {
                        self.record.imported_keys = launched.imported_keys;
                    }
                    if let Err(e) = self.save().await {
                        let _ = machine.kill().await;
                        return self.failed(&e).await;
                    }
                }
                self.view.send_modify(|v| {
                    v.machine = Some(machine.clone());
                    v.phase = Phase::Running;
                });
                let grant = Grant {
                    store: self.shared.secrets.clone(),
                    names: self.record.secrets.clone(),
                };
                let view = self.view.subscribe();
                let attendant = Attendant::new(machine, self.identity(), grant, view);
                tasks.spawn(bring_up(attendant));
            }
            Progress::Launched(Err(e)) => return self.failed(&e).await,
            Progress::Ready(Ok(mut attendant)) => {
                if self.was_ready {
                    info!("{name}: its agent started anew, and knows again who it is");
                }
                self.was_ready = true;
                self.view.send_modify(|v| v.ready = true);
                tasks.spawn(async move {
                    attendant.attend().await;
                    Progress::Lost(attendant)
                });
            }
            Progress::Lost(attendant) => {
                self.view.send_modify(|v| v.ready = false);
                tasks.spawn(bring_up(attendant));
            }
            Progress::Ready(Err(why)) => {
                if matches!(self.phase(), Phase::Running | Phase::Paused) {
                    warn!("{name}: the guest did not become ready: {why}");
                } else if self.phase() == Phase::Launching {
                    return self.failed(&DaemonError::Internal("launching a VM")).await;
                }
            }
            Progress::Overdue(time) => {
                warn!("{name}: not off after {time:?}, switching it off");
                if let Some(machine) = self.machine()
                    && let Err(e) = machine.kill().await
                {
                    warn!("{name}: {e}");
                }
            }
        }
        false
    }

    /// A launch failed: what is kept stays, stopped; the rest is removed. True when that is all.
    async fn failed(&mut self, e: &DaemonError) -> bool {
        let name = &self.record.hostname;
        warn!("{name}: launch failed: {e}");
        let text = format!("cannot launch VM {name}: {e}");
        let error = match e {
            e if e.is_disk_full() => {
                ApiError::insufficient_storage(format!("{text}: {FREE_SPACE}"))
            }
            DaemonError::Machine(MachineError::Unsupported { .. })
            | DaemonError::Unsupported(_) => ApiError::unsupported(text),
            DaemonError::Pull(_) => ApiError::bad_gateway(text),
            DaemonError::Entrypoint { .. } => ApiError::bad_request(text),
            _ => ApiError::internal(text),
        };
        // One that ran before has a disk somebody wrote to.
        let precious = self.record.configured || self.record.disk.is_some();
        if self.record.is_kept() && precious {
            self.set(Phase::Stopped(Some(e.to_string())));
            if let Some(reply) = self.retiring.take() {
                let _ = reply.send(Ok(()));
                return true;
            }
            return false;
        }
        self.remove(Some(error)).await.is_ok()
    }

    /// The machine is gone. True when that is the end of the VM.
    async fn stopped(&mut self, reason: StopReason) -> bool {
        let name = self.record.hostname.clone();
        let asked = self.phase() == Phase::Stopping;
        let why = match &reason {
            StopReason::Crashed(how) => {
                let last = crate::console::last_lines(&self.shared.work.console(&name), 3).await;
                Some(format!(
                    "{how}{}{last}",
                    if last.is_empty() { "" } else { "; console: " }
                ))
            }
            StopReason::Guest if !asked && !self.was_ready => {
                let last = crate::console::last_lines(&self.shared.work.console(&name), 3).await;
                Some(format!(
                    "the guest powered off before it was ready; console: {last}"
                ))
            }
            StopReason::Guest | StopReason::Killed => None,
        };
        match &why {
            Some(why) => warn!("{name} stopped: {why}"),
            None => info!("{name} stopped"),
        }
        if !self.record.is_kept() {
            let error = why.map(|w| ApiError::internal(format!("VM {name} stopped: {w}")));
            if let Err(e) = self.remove(error).await {
                warn!("{name}: {e}");
            }
            return true;
        }
        self.set(Phase::Stopped(why));
        match self.retiring.take() {
            Some(reply) => {
                let _ = reply.send(Ok(()));
                true
            }
            None => false,
        }
    }

    async fn save(&self) -> Result<(), DaemonError> {
        let (work, record) = (self.shared.work.clone(), self.record.clone());
        let saved = tokio::task::spawn_blocking(move || record.save(&work)).await;
        saved.map_err(|_| DaemonError::Internal("writing a record"))?
    }

    /// Ends the machine and removes disk, record and everything else of the VM. The record goes
    /// last but for the doomed disk: a daemon that dies in between finds it and tries again.
    async fn remove(&mut self, why: Option<ApiError>) -> Result<(), ApiError> {
        if let Some(machine) = self.machine() {
            machine
                .kill()
                .await
                .map_err(|e| ApiError::internal(e.to_string()))?;
        }
        let (work, name) = (self.shared.work.clone(), self.record.hostname.clone());
        let gate = self.gate.clone();
        let job = move || gate.close(|| remove_files(&work, &name));
        let removed = tokio::task::spawn_blocking(job).await;
        let removed = removed.unwrap_or(Err(DaemonError::Internal("removing a VM")));
        removed.map_err(|e| ApiError::internal(e.to_string()))?;
        self.set(Phase::Gone(why));
        Ok(())
    }

    /// Starts making image, disk and machine.
    fn launch(&mut self, tasks: &mut JoinSet<Progress>) {
        let shared = self.shared.clone();
        let image = self.image.clone();
        let record = self.record.clone();
        let gate = self.gate.clone();
        let network = self.network;
        self.was_ready = false;
        tasks.spawn(async move {
            let launch = launch(&shared, &image, &record, network, gate);
            let (launched, imported_keys) = tokio::join!(launch, import_keys(&shared, &record));
            Progress::Launched(launched.map(|launched| Launched {
                imported_keys,
                ..launched
            }))
        });
    }

    fn identity(&self) -> Identity {
        let (gateway, prefix) = self.network;
        Identity {
            hostname: self.record.hostname.clone(),
            clock_unix_nanos: attend::clock(),
            network: Some(NetworkIdentity {
                mac: self.record.mac().to_string(),
                address: self.record.ip,
                prefix,
                gateway,
                dns: self.dns.clone(),
            }),
            ssh_keys: self.record.ssh_keys.clone(),
            imported_keys: self.record.imported_keys.clone().unwrap_or_default(),
            userdata: Some(self.record.userdata.clone()).filter(|u| !u.is_empty()),
            entrypoint: self.record.entrypoint.clone(),
        }
    }
}

/// Keeps a clone that was called off, but runs on in its thread, from leaving a disk behind.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskGate(Arc<Mutex<bool>>);

impl DiskGate {
    /// Does `make` unless the gate is closed.
    pub(crate) fn pass<T>(&self, make: impl FnOnce() -> T) -> Option<T> {
        let closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed { None } else { Some(make()) }
    }

    /// Waits for what has passed, closes the gate for good and does `end`.
    fn close<T>(&self, end: impl FnOnce() -> T) -> T {
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = true;
        end()
    }
}

/// Removes what there is of a VM on disk.
pub(crate) fn remove_files(work: &crate::workdir::WorkDir, name: &str) -> Result<(), DaemonError> {
    let (disk, doomed) = (work.disk(name), work.doomed_disk(name));
    match std::fs::rename(&disk, &doomed) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(DaemonError::io("remove", disk)(e));
        }
        _ => {}
    }
    for dir in [work.run(name)] {
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(DaemonError::io("remove", dir)(e));
            }
            _ => {}
        }
    }
    let console = work.console(name);
    match std::fs::remove_file(&console) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(DaemonError::io("remove", console)(e));
        }
        _ => {}
    }
    VmRecord::remove(work, name)?;
    match std::fs::remove_file(&doomed) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(DaemonError::io("remove", doomed)(e))
        }
        _ => Ok(()),
    }
}

async fn launch(
    shared: &Shared,
    image: &GroupImage,
    record: &VmRecord,
    (gateway, prefix): (Ipv4Addr, u8),
    gate: DiskGate,
) -> Result<Launched, DaemonError> {
    let started = Instant::now();
    let prepared = image.prepare().await?;
    let entrypoint = entrypoint(record, &prepared)?;
    let name = &record.hostname;
    let disk = match record.disk {
        Some(kind) if shared.work.disk(name).exists() => kind,
        _ => {
            let formats = &shared.hypervisor.capabilities().disk_formats;
            image
                .clone_disk(name, record.is_kept(), formats, gate)
                .await?
        }
    };
    let state_dir = shared.work.run(name);
    std::fs::create_dir_all(&state_dir).map_err(DaemonError::io("create", &state_dir))?;
    let mut cmdline = shared.hypervisor.kernel_args(shared.arch);
    cmdline.push_str(KERNEL_ARGS);
    let spec = MachineSpec {
        name: name.clone(),
        arch: shared.arch,
        cpus: record.cpus,
        memory_bytes: record.ram_bytes,
        boot: Boot {
            kernel: prepared.boot.kernel.clone(),
            initramfs: prepared.boot.initramfs.clone(),
            cmdline,
        },
        disks: vec![
            Disk {
                id: "root",
                path: shared.work.disk(name),
                format: disk.into(),
                read_only: false,
                flush: record.is_kept(),
            },
            Disk {
                id: "modules",
                path: prepared.boot.modules.clone(),
                format: DiskFormat::Raw,
                read_only: true,
                flush: true,
            },
        ],
        network: Some(UserNetwork {
            mac: record.mac(),
            address: record.ip,
            gateway,
            dns: resolver(gateway, prefix),
            prefix,
        }),
        console: shared.work.console(name),
        state_dir,
    };
    let machine = shared.hypervisor.launch(spec).await?;
    info!("{name}: launched in {:.0?}", started.elapsed());
    Ok(Launched {
        disk,
        machine: Arc::from(machine),
        imported_keys: None,
        entrypoint,
    })
}

/// What of its image a VM shall run. A disk keeps that of the image it was made from.
fn entrypoint(record: &VmRecord, prepared: &Prepared) -> Result<Option<Entrypoint>, DaemonError> {
    if !record.wants_entrypoint {
        return Ok(None);
    }
    let refused = |why: String| DaemonError::Entrypoint {
        image: record.image.clone(),
        why,
    };
    let entrypoint = match (&record.entrypoint, &prepared.entrypoint) {
        (Some(known), _) => known,
        (None, Some(new)) => new,
        (None, None) => return Err(refused("the image has neither ENTRYPOINT nor CMD".into())),
    };
    entrypoint.check().map_err(refused)?;
    Ok(Some(entrypoint.clone()))
}

/// The keys of the user a VM's record names, unless they are in it. A VM whose configuration has
/// such a user starts without them when they can't be had, and asks again at its next start.
async fn import_keys(shared: &Shared, record: &VmRecord) -> Option<Vec<String>> {
    if record.import_user.is_empty() || record.imported_keys.is_some() {
        return None;
    }
    match shared.github.keys(&record.import_user).await {
        Ok(keys) => Some(keys),
        Err(e) => {
            warn!("{}: {}", record.hostname, e.message);
            None
        }
    }
}

/// Nothing below notices, because every byte on an emulated console costs; no self-tests of
/// ciphers; a panic ends the VM, which its daemon sees.
const KERNEL_ARGS: &str = " quiet loglevel=6 panic=-1 cryptomgr.notests random.trust_cpu=on";

/// The address of the user-mode network's own resolver: the last of the network that is free.
fn resolver(gateway: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let last = (u32::from(gateway) | host_bits) - 1;
    Ipv4Addr::from(if last == u32::from(gateway) {
        last - 1
    } else {
        last
    })
}

async fn bring_up(mut attendant: Attendant) -> Progress {
    let ready = attendant.bring_up().await;
    Progress::Ready(ready.map(|()| attendant))
}
