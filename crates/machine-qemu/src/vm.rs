//! One running VM.

use crate::accel::Accelerator;
use crate::args::{self, Memory};
use crate::channel::{Channel, Keeper, channel};
use crate::links::Links;
use crate::memory::Status;
use crate::process::{QEMU_NOTE, Spawner, Start, write_note};
use crate::qmp::{Event, Qmp, QmpError};
use crate::save::{Kept, Migration, Note, Origin};
use crate::shares::Shares;
use crate::virtiofsd::Virtiofsd;
use async_trait::async_trait;
use serde_json::{Value, json};
use slicer_machine::{
    Disk, GuestStream, HostMemory, Machine, MachineError, MachineSpec, MachineState, Network,
    StopReason, WhilePaused,
};
use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};

/// QEMU answers its monitor within milliseconds unless the host is in deep trouble.
const COMMAND_TIME: Duration = Duration::from_secs(10);
/// How long QEMU may take to write out its caches when asked to end.
const QUIT_TIME: Duration = Duration::from_secs(2);

pub(crate) struct QemuMachine {
    pub(crate) name: String,
    qmp: Arc<Qmp>,
    pub(crate) channel: Channel,
    pub(crate) state: watch::Receiver<MachineState>,
    status: Status,
    /// How far a state is that is being written or read.
    pub(crate) migration: watch::Receiver<Migration>,
    pub(crate) origin: Origin,
    disks: Vec<Disk>,
    links: Arc<Links>,
    /// The node at the top of each disk that was snapshotted, by the disk, and how many were.
    tops: Mutex<(HashMap<String, String>, u64)>,
    kill: mpsc::Sender<()>,
    shares: Option<Shares>,
    /// The tasks of this VM; dropped with it, which kills the process.
    tasks: JoinSet<()>,
}

/// What a machine takes up that was saved.
pub(crate) struct Incoming {
    pub(crate) state: OwnedFd,
    pub(crate) note: Note,
}

/// What a machine begins with.
pub(crate) struct Begin<'a> {
    pub(crate) memory: Memory<'a>,
    /// Nothing, when it boots.
    pub(crate) incoming: Option<Incoming>,
}

impl QemuMachine {
    pub(crate) async fn launch(
        spawner: &Spawner,
        program: &Path,
        accel: Accelerator,
        spec: &MachineSpec,
        virtiofsd: Option<Virtiofsd>,
        begin: Begin<'_>,
    ) -> Result<Self, MachineError> {
        let Begin { memory, incoming } = begin;
        let io = |source| MachineError::Io {
            action: "make sockets in",
            path: spec.state_dir.clone(),
            source,
        };
        let (qmp_near, qmp_far) = StdUnixStream::pair().map_err(io)?;
        let (agent_near, agent_far) = StdUnixStream::pair().map_err(io)?;
        qmp_near.set_nonblocking(true).map_err(io)?;
        agent_near.set_nonblocking(true).map_err(io)?;
        let dir = spec.state_dir.clone();
        let disks = spec.disks.clone();
        let linked = spawn_blocking(move || {
            let links = Links::new(&dir)?;
            let disks = links.of(&disks);
            Ok::<_, MachineError>((links, disks))
        });
        let (links, disks) = linked.await.unwrap_or_else(|e| Err(io(e.into())))?;
        let named = MachineSpec {
            disks,
            ..spec.clone()
        };
        let mut args = args::build(&named, accel, memory)?;
        if incoming.is_some() || !spec.shares.is_empty() {
            args.push("-S".into());
        }
        if incoming.is_some() {
            args.extend(["-incoming", "defer"].map(Into::into));
        }
        let tap = match &spec.network {
            Some(Network::Tap(net)) => {
                let fd = net.tap.as_fd().try_clone_to_owned();
                Some(fd.map_err(|source| MachineError::Io {
                    action: "pass on the tap of",
                    path: spec.name.clone().into(),
                    source,
                })?)
            }
            _ => None,
        };
        let start = Start {
            program: program.to_owned(),
            args,
            sockets: Some((OwnedFd::from(qmp_far), OwnedFd::from(agent_far))),
            tap,
            share: None,
            dir: Some(spec.state_dir.clone()),
            nice: matches!(memory, Memory::File(_)),
        };
        let mut child = spawner.spawn(start).await?;
        write_note(&spec.state_dir.join(QEMU_NOTE), &child)?;
        let status = Status::open(&child)?;

        let (event_tx, events) = mpsc::channel(64);
        let connect = async {
            let stream = UnixStream::from_std(qmp_near)?;
            Qmp::connect(stream, event_tx).await
        };
        let (qmp, reader) = match tokio::time::timeout(COMMAND_TIME, connect).await {
            Ok(Ok(connected)) => connected,
            outcome => {
                let why = match stderr_tail(&mut child).await {
                    text if !text.is_empty() => text,
                    _ if outcome.is_err() => "its monitor does not answer".to_owned(),
                    _ => "it ended at once".to_owned(),
                };
                return Err(MachineError::Launch {
                    vm: spec.name.clone(),
                    why,
                });
            }
        };
        let (opened_tx, opened) = mpsc::channel(16);
        let resume = incoming.as_ref().and_then(|i| i.note.resume());
        let restored = incoming.is_some();
        let (channel, keeper) = channel(&spec.name, agent_near, opened, restored, resume);
        let (state_tx, state) = watch::channel(if restored || !spec.shares.is_empty() {
            MachineState::Paused
        } else {
            MachineState::Running
        });
        let (migration_tx, migration) = watch::channel(Migration::None);
        let (kill, kill_rx) = mpsc::channel(1);
        let (unplugged, _) = broadcast::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(reader.run());
        let qmp = Arc::new(qmp);
        let shares = virtiofsd.map(|virtiofsd| {
            let (qmp, state) = (qmp.clone(), state.clone());
            Shares::new(spec, spawner, virtiofsd, qmp, unplugged.clone(), state)
        });
        tasks.spawn(watch_vm(Watch {
            child,
            events,
            opened: opened_tx,
            unplugged,
            kill: kill_rx,
            migration: migration_tx,
            state: state_tx,
        }));
        let mut machine = Self {
            name: spec.name.clone(),
            qmp,
            channel,
            state,
            status,
            migration,
            origin: Origin::of(spec, accel),
            disks: spec.disks.clone(),
            links: Arc::new(links),
            tops: Mutex::default(),
            kill,
            shares,
            tasks,
        };
        if let Some(incoming) = incoming {
            let kept = match memory {
                Memory::Copy(_) => Kept::Elsewhere,
                Memory::Own | Memory::File(_) => Kept::Within,
            };
            machine.load(&incoming.state, &incoming.note, kept).await?;
        }
        if let Some(shares) = &machine.shares {
            shares.attach().await?;
        }
        if restored || machine.shares.is_some() {
            machine.resume().await?;
        }
        // Only now does the guest take what it is greeted with.
        machine.tasks.spawn(Keeper::run(keeper));
        Ok(machine)
    }

    pub(crate) async fn command(&self, command: &'static str) -> Result<Value, MachineError> {
        self.command_with(command, Value::Null, None).await
    }

    pub(crate) async fn command_with(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, MachineError> {
        let failed = |why| MachineError::Command {
            vm: self.name.clone(),
            command,
            why,
        };
        let run = self.qmp.execute(command, arguments, fd);
        match tokio::time::timeout(COMMAND_TIME, run).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(QmpError::Gone)) => Err(MachineError::Gone {
                vm: self.name.clone(),
            }),
            Ok(Err(QmpError::Refused(why))) => Err(failed(why)),
            Err(_) => Err(failed(format!("no answer within {COMMAND_TIME:?}"))),
        }
    }

    /// Waits until the state is this one, or the VM is gone.
    async fn settle(&self, want: &MachineState) -> Result<(), MachineError> {
        let mut state = self.state.clone();
        let there = |s: &MachineState| s == want || matches!(s, MachineState::Stopped(_));
        let settled = tokio::time::timeout(COMMAND_TIME, state.wait_for(there)).await;
        match settled {
            Ok(Ok(s)) if *s == *want => Ok(()),
            Ok(_) => Err(MachineError::Gone {
                vm: self.name.clone(),
            }),
            Err(_) => Err(MachineError::Command {
                vm: self.name.clone(),
                command: "query-status",
                why: match &*self.state.borrow() {
                    MachineState::Stalled(why) => why.clone(),
                    _ => "QEMU did not report the new state".to_owned(),
                },
            }),
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    async fn connect(&self) -> Result<Box<dyn GuestStream>, MachineError> {
        Ok(Box::new(self.channel.open().await?))
    }

    async fn pause(&self) -> Result<(), MachineError> {
        self.command("stop").await?;
        self.settle(&MachineState::Paused).await
    }

    async fn resume(&self) -> Result<(), MachineError> {
        self.command("cont").await?;
        self.settle(&MachineState::Running).await
    }

    async fn save(&self, memory: &Path) -> Result<String, MachineError> {
        self.save_to(memory, Kept::Within, true).await
    }

    async fn snapshot(
        &self,
        memory: &Path,
        paused: WhilePaused<'_>,
    ) -> Result<String, MachineError> {
        self.snapshot_to(memory, paused).await
    }

    async fn snapshot_disk(&self, disk: &str, overlay: &Path) -> Result<(), MachineError> {
        let Some(found) = self.disks.iter().find(|d| d.id == disk) else {
            return Err(MachineError::Gone {
                vm: self.name.clone(),
            });
        };
        let mut tops = self.tops.lock().await;
        let below = tops.0.get(disk).map_or(disk, String::as_str).to_owned();
        tops.1 += 1;
        let node = format!("{disk}-{}", tops.1);
        let (links, file, name) = (self.links.clone(), overlay.to_owned(), node.clone());
        let linked = spawn_blocking(move || links.add(&file, &name)).await;
        let overlay = linked.unwrap_or_else(|e| {
            Err(MachineError::Io {
                action: "link",
                path: overlay.to_owned(),
                source: e.into(),
            })
        })?;
        let add = args::overlay(found, &overlay, &node)?;
        self.command_with("blockdev-add", add, None).await?;
        let snapshot = json!({ "node": below, "overlay": node });
        if let Err(e) = self.command_with("blockdev-snapshot", snapshot, None).await {
            let node = json!({ "node-name": node });
            let _ = self.command_with("blockdev-del", node, None).await;
            return Err(e);
        }
        tops.0.insert(disk.to_owned(), node);
        Ok(())
    }

    async fn save_template(&self, state: &Path) -> Result<String, MachineError> {
        self.pause().await?;
        self.save_to(state, Kept::Elsewhere, true).await
    }

    async fn detach_shares(&self) -> Result<(), MachineError> {
        match &self.shares {
            Some(shares) => shares.detach().await,
            None => Ok(()),
        }
    }

    async fn attach_shares(&self) -> Result<(), MachineError> {
        match &self.shares {
            Some(shares) => shares.attach().await,
            None => Ok(()),
        }
    }

    async fn request_stop(&self) -> Result<(), MachineError> {
        self.command("system_powerdown").await.map(drop)
    }

    async fn kill(&self) -> Result<(), MachineError> {
        // A full mailbox already holds the wish; a closed one means that the VM is gone.
        let _ = self.kill.try_send(());
        let mut state = self.state.clone();
        let gone = state.wait_for(|s| matches!(s, MachineState::Stopped(_)));
        match tokio::time::timeout(QUIT_TIME * 5, gone).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MachineError::Command {
                vm: self.name.clone(),
                command: "quit",
                why: "the QEMU process does not end".to_owned(),
            }),
        }
    }

    fn host_memory(&self) -> Option<HostMemory> {
        self.status.memory()
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.state.clone()
    }

    fn shares_renewed(&self) -> watch::Receiver<u64> {
        match &self.shares {
            Some(shares) => shares.renewed(),
            None => watch::channel(0).1,
        }
    }
}

/// What follows a VM, and whom it tells.
struct Watch {
    child: Child,
    events: mpsc::Receiver<Event>,
    opened: mpsc::Sender<()>,
    unplugged: broadcast::Sender<String>,
    kill: mpsc::Receiver<()>,
    migration: watch::Sender<Migration>,
    state: watch::Sender<MachineState>,
}

/// Follows the VM's events until its process is gone, and says why it went. Owns the process.
async fn watch_vm(watch: Watch) {
    let Watch {
        mut child,
        mut events,
        opened,
        unplugged,
        mut kill,
        migration,
        state,
    } = watch;
    let mut reason = None;
    let mut killed = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            Some(()) = kill.recv(), if !killed => {
                killed = true;
                end(&mut child).await;
            }
            Some(event) = events.recv() => match event.name.as_str() {
                // QEMU stops the guest after this, and tells that, too.
                "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                    state.send_replace(MachineState::Stalled(stall_reason(&event.data)));
                }
                "STOP" => {
                    state.send_if_modified(|state| {
                        let running = *state == MachineState::Running;
                        if running {
                            *state = MachineState::Paused;
                        }
                        running
                    });
                }
                "RESUME" => { state.send_replace(MachineState::Running); }
                "SHUTDOWN" => reason = Some(shutdown_reason(&event.data)),
                "MIGRATION" => {
                    if let Some(new) = Migration::of(&event.data) {
                        migration.send_replace(new);
                    }
                }
                "VSERPORT_CHANGE"
                    if event.data["id"] == args::AGENT_PORT && event.data["open"] == true =>
                {
                    // A full queue already makes the keeper start over.
                    let _ = opened.try_send(());
                }
        "DEVICE_DELETED" => {
                if let Some(device) = event.data["device"].as_str() {
                    // Nobody may be waiting for it.
                    let _ = unplugged.send(device.to_owned());
                }
            }
                _ => {}
            },
        }
    };
    // Events that were under way when the process went.
    while let Ok(event) = events.try_recv() {
        if event.name == "SHUTDOWN" {
            reason = Some(shutdown_reason(&event.data));
        }
    }
    let reason = if killed {
        StopReason::Killed
    } else if let Some(reason) = reason {
        reason
    } else {
        let text = stderr_tail(&mut child).await;
        let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        StopReason::Crashed(
            format!("QEMU ended unexpectedly ({status}) {text}")
                .trim()
                .to_owned(),
        )
    };
    state.send_replace(MachineState::Stopped(reason));
}

/// Why a write came to nothing.
fn stall_reason(data: &Value) -> String {
    if data["nospace"] == true {
        return "the host has no room for what it writes to its disk".to_owned();
    }
    let why = data["reason"].as_str().unwrap_or("unknown");
    format!("the host can't write to its disk: {why}")
}

fn shutdown_reason(data: &Value) -> StopReason {
    match data["reason"].as_str().unwrap_or_default() {
        "guest-panic" => StopReason::Crashed("the guest's kernel panicked".to_owned()),
        "host-signal" | "host-qmp-quit" => StopReason::Killed,
        _ => StopReason::Guest,
    }
}

/// Ends QEMU: first so that it writes out what it holds, then for good.
async fn end(child: &mut Child) {
    let pid = child
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        // The child is not reaped yet, so the pid still is its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(QUIT_TIME, child.wait()).await.is_err() {
        let _ = child.start_kill();
    }
}

/// The last line QEMU wrote about itself.
async fn stderr_tail(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(err) = child.stderr.take() {
        let mut err = err.take(64 << 10);
        // A half-read text is better than none.
        let _ = tokio::time::timeout(Duration::from_secs(1), err.read_to_string(&mut text)).await;
    }
    text.lines()
        .rev()
        .find(|l| !l.trim().is_empty())
        .unwrap_or_default()
        .trim()
        .to_owned()
}
