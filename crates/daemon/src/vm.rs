//! A VM is an actor: one task owns its machine and its state. All that happens to it goes through
//! its mailbox, is on disk before it is acknowledged, and is seen on its watch channel.

mod clone;
mod commit;
mod disk;
mod export;
mod handle;
mod identity;
mod launch;
pub(crate) mod live;
mod reset;
pub(crate) mod spare;
mod stall;
mod suspend;

pub(crate) use clone::template_spec;
pub(crate) use disk::{DiskGate, remove_files};
pub(crate) use handle::{DiskLease, Phase, View, VmHandle};

use crate::DaemonError;
use crate::attend::{Attendant, Grant, UntilReady};
use crate::config::NetworkConfig;
use crate::console;
use crate::error::FREE_SPACE;
use crate::forwards::Mappings;
use crate::guest;
use crate::images::GroupImage;
use crate::record::{DiskKind, Origin, VmRecord};
use crate::supervisor::Shared;
use crate::tags;
use handle::{Command, Reply};
use launch::{import_keys, launch};
use live::Snapshot;
use slicer_api::{ApiError, Entrypoint, Identity, ShutdownAction, TagsChange};
use slicer_machine::{Machine, MachineError, MachineState, StopReason};
use slicer_network::NetworkError;
use spare::Spare;
use std::net::Ipv4Addr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How long a guest may take to power off when asked.
pub(crate) const SHUTDOWN_TIME: Duration = Duration::from_secs(90);
/// How long that is when somebody waits to start it again.
const RELAUNCH_TIME: Duration = Duration::from_secs(30);

/// What a VM's actor begins with.
pub(crate) enum Start {
    /// It boots.
    Launch,
    /// It takes over what was booted ahead.
    Wake(Box<Spare>),
    /// It goes on from where another VM was.
    Fork(Arc<Snapshot>),
    /// It is off until it is relaunched.
    Stopped,
    /// It is suspended until it is restored.
    Suspended,
    /// It was suspended and runs on.
    Restore,
}

/// Makes the actor of a VM whose record is on disk. Returns the handle and the actor, which the
/// supervisor runs.
pub(crate) fn actor(
    shared: Arc<Shared>,
    image: Arc<GroupImage>,
    record: VmRecord,
    dns: Vec<Ipv4Addr>,
    network: Arc<NetworkConfig>,
    forwards: Mappings,
    start: Start,
) -> (VmHandle, impl Future<Output = ()>) {
    let (mailbox, commands) = mpsc::channel(16);
    let (start, first) = match start {
        Start::Wake(spare) => (Start::Launch, Some(First::Wake(spare))),
        Start::Fork(snapshot) => (Start::Launch, Some(First::Fork(snapshot))),
        start => (start, None),
    };
    let phase = match start {
        Start::Launch | Start::Wake(_) | Start::Fork(_) | Start::Restore => Phase::Launching,
        Start::Stopped => Phase::Stopped(None),
        Start::Suspended => Phase::Suspended(None),
    };
    let (view_tx, view) = watch::channel(View {
        phase,
        ready: false,
        machine: None,
        tags: Arc::new(record.tags.clone()),
        stalled: None,
        state_lost: None,
        commit_id: record.commit_id.as_deref().map(Arc::from),
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
        unready: None,
        retiring: None,
        relaunching: Vec::new(),
        gate: DiskGate::default(),
        lease: Weak::new(),
        first,
    };
    (handle, vm.run(start, commands))
}

struct Vm {
    shared: Arc<Shared>,
    image: Arc<GroupImage>,
    record: VmRecord,
    dns: Vec<Ipv4Addr>,
    network: Arc<NetworkConfig>,
    view: watch::Sender<View>,
    /// Its guest was ready once in the life of its machine.
    was_ready: bool,
    /// Why its guest never will be.
    unready: Option<String>,
    /// Who waits for the VM to be off because the daemon stops.
    retiring: Option<Reply>,
    /// Who waits for the VM to be off because it shall be started again.
    relaunching: Vec<Reply>,
    gate: DiskGate,
    /// Who reads its disk while it is off or paused.
    lease: Weak<()>,
    /// What its first launch takes over.
    first: Option<First>,
}

/// What a VM's first launch takes over.
enum First {
    Wake(Box<Spare>),
    Fork(Arc<Snapshot>),
}

/// What a VM's own tasks tell it.
enum Progress {
    Launched(Result<Launched, DaemonError>),
    /// The guest is ready, or why it never will be.
    Ready(Result<Attendant, String>),
    /// The guest's agent ended while its machine runs.
    Lost(Attendant),
    /// The host may have room again for what the VM writes.
    Room,
    /// A shutdown that was asked for took longer than this.
    Overdue(Duration),
}

/// What came of a launch.
struct Launched {
    disk: DiskKind,
    machine: Arc<dyn Machine>,
    /// Keys that were not known before.
    imported_keys: Option<Vec<String>>,
    /// What of its image it shall run.
    entrypoint: Option<Entrypoint>,
    /// What it began as a clone of.
    template: Option<Origin>,
    /// Whether it was suspended and runs on.
    restored: bool,
    /// Why it was booted though it had been suspended.
    state_lost: Option<String>,
    until_ready: UntilReady,
}

impl Launched {
    /// A machine with this disk, of which there is nothing else to say.
    fn new(disk: DiskKind, machine: Arc<dyn Machine>) -> Self {
        Self {
            disk,
            machine,
            imported_keys: None,
            entrypoint: None,
            template: None,
            restored: false,
            state_lost: None,
            until_ready: UntilReady::default(),
        }
    }
}

impl Vm {
    async fn run(mut self, start: Start, mut commands: mpsc::Receiver<Command>) {
        // Aborted when the actor ends: no task of a VM outlives it.
        let mut tasks: JoinSet<Progress> = JoinSet::new();
        match start {
            Start::Launch | Start::Wake(_) | Start::Fork(_) => self.launch(&mut tasks),
            Start::Restore => self.take_up(&mut tasks),
            Start::Stopped | Start::Suspended => {}
        }
        loop {
            let (stopped, stalled) = (self.machine_stopped(), self.machine_stalled());
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
                why = stalled => self.stalled(&why, &mut tasks),
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
            if phase != Phase::Paused {
                v.stalled = None;
            }
            if phase.is_off() {
                v.machine = None;
            }
            v.phase = phase;
        });
        self.shared.phases.send_replace(());
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
                let done = match self.check_unleased() {
                    Ok(()) => self.freeze(false).await,
                    refused => refused,
                };
                let _ = reply.send(done);
            }
            Command::Suspend(restore_at_start, reply) => {
                let _ = reply.send(self.suspend(restore_at_start, tasks).await);
            }
            Command::Restore(reply) => self.restore(reply, tasks),
            Command::Shutdown(action, reply) => {
                let (done, end) = match self.phase() {
                    Phase::Suspended(_) | Phase::Paused if self.is_leased() => {
                        (self.check_unleased(), false)
                    }
                    Phase::Suspended(_) => match self.forget_state().await {
                        Ok(()) => (Ok(()), self.stopped(StopReason::Killed).await),
                        failed => (failed, false),
                    },
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
                    Phase::Stopped(_) if self.is_leased() => self.check_unleased(),
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
                    Phase::Suspended(_) => Err(ApiError::conflict(format!(
                        "VM {name} is suspended: restore it, or shut it down first, which gives up \
                         what it was doing"
                    ))),
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
            Command::Commit(request, reply) => {
                let _ = reply.send(self.commit(request).await);
            }
            Command::Snapshot(reply) => {
                let _ = reply.send(self.snapshot().await);
            }
            Command::Export(format, reply) => {
                let _ = reply.send(self.export(format).await);
            }
            Command::ResetDisk(reply) => {
                let _ = reply.send(self.reset_disk().await);
            }
            Command::Retire { force, reply } => return self.retire(force, reply, tasks).await,
        }
        false
    }

    async fn retire(&mut self, force: bool, reply: Reply, tasks: &mut JoinSet<Progress>) -> bool {
        if self.phase() == Phase::Launching && self.has_state().await {
            // It was being restored. What of that had begun ends here; its state is as it was.
            tasks.shutdown().await;
            self.set(Phase::Suspended(None));
        }
        if matches!(self.phase(), Phase::Suspended(_)) {
            let _ = reply.send(Ok(()));
            return true;
        }
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
            (Phase::Suspended(_), _) => {
                return Err(ApiError::conflict(format!(
                    "VM {name} is suspended: restore it first"
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
            // Still being launched: nothing in it could be lost. One that was being restored shall
            // not be so by the next daemon.
            tasks.shutdown().await;
            if let Err(e) = self.forget_state().await {
                warn!("{}: {e}", self.record.hostname);
            }
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
                    || self.record.template != launched.template
                {
                    self.record.disk = disk;
                    self.record.template = launched.template;
                    self.record.entrypoint = launched.entrypoint;
                    if launched.imported_keys.is_some() {
                        self.record.imported_keys = launched.imported_keys;
                    }
                    if let Err(e) = self.save().await {
                        let _ = machine.kill().await;
                        return self.failed(&e).await;
                    }
                }
                slicer_fault::point(if launched.restored {
                    "restore.running"
                } else {
                    "launch.running"
                });
                self.view.send_modify(|v| {
                    v.machine = Some(machine.clone());
                    v.phase = Phase::Running;
                    v.state_lost = launched.state_lost.map(Arc::from);
                });
                self.attend(machine, launched.until_ready, tasks);
                // It runs, so what is on disk is history. Should the daemon die before it is gone,
                // the stamps tell whether the guest has written anything since.
                if launched.restored
                    && let Err(e) = self.forget_state().await
                {
                    warn!("{name}: {e}");
                }
            }
            Progress::Launched(Err(e)) => return self.failed(&e).await,
            Progress::Ready(Ok(mut attendant)) => {
                if self.was_ready {
                    info!("{name}: its agent started anew, and knows again who it is");
                }
                self.was_ready = true;
                self.settled().await;
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
                    self.unready = Some(why);
                    // Its end, of itself or now, shows in `stopped`.
                    if self.is_unsettled()
                        && let Some(machine) = self.machine()
                        && let Err(e) = machine.kill().await
                    {
                        warn!("{name}: {e}");
                    }
                } else if self.phase() == Phase::Launching {
                    return self.failed(&DaemonError::Internal("launching a VM")).await;
                }
            }
            Progress::Room => self.try_again(tasks).await,
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

    /// Has somebody attend to the guest of this machine.
    fn attend(
        &self,
        machine: Arc<dyn Machine>,
        until_ready: UntilReady,
        tasks: &mut JoinSet<Progress>,
    ) {
        let grant = Grant {
            store: self.shared.secrets.clone(),
            names: self.record.secrets.clone(),
            revoke: self.record.template.as_ref().is_some_and(|t| t.live),
        };
        let (view, wakes) = (self.view.subscribe(), self.shared.wakes.subscribe());
        let attendant = Attendant::new(machine, self.identity(), grant, until_ready, view, wakes);
        tasks.spawn(bring_up(attendant));
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
            DaemonError::Network(e) if e.is_unsupported() => ApiError::unsupported(text),
            DaemonError::Network(NetworkError::Overlap { .. } | NetworkError::NotOurs(_)) => {
                ApiError::conflict(text)
            }
            DaemonError::Machine(MachineError::Unsupported { .. })
            | DaemonError::Unsupported(_) => ApiError::unsupported(text),
            DaemonError::Pull(_) => ApiError::bad_gateway(text),
            DaemonError::Entrypoint { .. } => ApiError::bad_request(text),
            _ => ApiError::internal(text),
        };
        if self.has_state().await {
            self.set(Phase::Suspended(Some(e.to_string())));
            if let Some(reply) = self.retiring.take() {
                let _ = reply.send(Ok(()));
                return true;
            }
            return false;
        }
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

    /// How far the VM had come.
    fn stage(&self) -> &'static str {
        match self.phase() {
            Phase::Stopping => "while it was shutting down",
            Phase::Paused => "while it was paused",
            _ if self.view.borrow().ready => "while it was running",
            _ if self.was_ready => "while its agent was starting anew",
            _ => "while it was booting",
        }
    }

    /// The machine is gone. True when that is the end of the VM.
    async fn stopped(&mut self, reason: StopReason) -> bool {
        let name = self.record.hostname.clone();
        let asked = self.phase() == Phase::Stopping;
        let unready = self.unready.take();
        let stage = self.stage();
        let console = self.shared.work.console(&name);
        let panicked = match &reason {
            StopReason::Guest => console::panic(&console).await,
            _ => None,
        };
        let why = match (&reason, panicked) {
            (StopReason::Guest, Some(said)) => {
                Some(format!("its kernel panicked, {stage}: {said}"))
            }
            (StopReason::Crashed(how), _) => {
                let last = console::last_lines(&console, 3).await;
                Some(format!(
                    "{how}, {stage}{}{last}",
                    if last.is_empty() { "" } else { "; console: " }
                ))
            }
            (StopReason::Guest, None) if !asked && !self.was_ready => {
                let last = console::last_lines(&console, 3).await;
                Some(format!(
                    "the guest powered off before it was ready; console: {last}"
                ))
            }
            (StopReason::Killed, _) if self.is_unsettled() => unready,
            (StopReason::Guest | StopReason::Killed, _) => None,
        };
        match &why {
            Some(why) => warn!("{name} stopped: {why}"),
            None => info!("{name} stopped"),
        }
        if !self.record.is_kept() || (self.is_unsettled() && !asked) {
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
        slicer_fault::point("delete.ended");
        let (work, name) = (self.shared.work.clone(), self.record.hostname.clone());
        let gate = self.gate.clone();
        let templates = self.shared.templates.clone();
        let job = move || {
            let removed = gate.close(|| remove_files(&work, &name));
            if removed.is_ok() {
                templates.tidy();
            }
            removed
        };
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
        let network = self.network.clone();
        self.was_ready = false;
        self.unready = None;
        let first = self.first.take();
        tasks.spawn(async move {
            let launch = async {
                match first {
                    Some(First::Wake(spare)) => {
                        match spare.give(&shared, &record.hostname, gate.clone()).await {
                            Ok(launched) => return Ok(launched),
                            Err(e) => warn!(
                                "{}: it boots, for its spare can't be had: {e}",
                                record.hostname
                            ),
                        }
                    }
                    Some(First::Fork(snapshot)) => {
                        return live::begin(&shared, &image, &record, &network, gate, &snapshot)
                            .await;
                    }
                    None => {}
                }
                launch(&shared, &image, &record, &network, gate).await
            };
            let (launched, imported_keys) = tokio::join!(launch, import_keys(&shared, &record));
            Progress::Launched(launched.map(|launched| Launched {
                imported_keys,
                ..launched
            }))
        });
    }

    fn identity(&self) -> Identity {
        identity::of(
            &self.record,
            &self.shared,
            &self.image,
            &self.network,
            &self.dns,
        )
    }
}

async fn bring_up(mut attendant: Attendant) -> Progress {
    let ready = attendant.bring_up().await;
    Progress::Ready(ready.map(|()| attendant))
}
