//! One VM of the framework.

use crate::NAME;
use crate::channel::Channel;
use crate::framework::{ErrorKind, Framework, Host, Operation, Vm as _};
use crate::note::{Note, incompatible};
use crate::owner::{Handle, own};
use crate::plan::Plan;
use async_trait::async_trait;
use slicer_machine::{GuestStream, Machine, MachineError, MachineState};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

/// Events that may wait for the owner: a VM has one to tell in its life, but for its network's.
const EVENTS: usize = 16;

pub(crate) struct AppleMachine {
    name: String,
    handle: Handle,
    channel: Channel,
    /// Why this machine can't be saved, if so.
    save_refused: Option<String>,
    note: String,
    _keeper: AbortOnDropHandle<()>,
}

/// Why nothing is saved on this host.
pub(crate) fn no_save(host: &Host) -> MachineError {
    MachineError::Unsupported {
        what: "suspending a VM",
        backend: NAME,
        why: format!(
            "it needs macOS 14 or later, and this is {}: shut the VM down instead",
            host.version
        ),
    }
}

impl AppleMachine {
    /// Makes a VM, which is not started.
    pub(crate) fn make<F: Framework>(
        framework: &F,
        name: &str,
        plan: &Plan,
        host: &Host,
    ) -> Result<Self, MachineError> {
        let (tell, events) = mpsc::channel(EVENTS);
        let vm = framework
            .build(plan, tell)
            .map_err(|e| MachineError::Launch {
                vm: name.to_owned(),
                why: e.to_string(),
            })?;
        let save_refused = if host.save_restore {
            vm.can_save().err().map(|e| e.to_string())
        } else {
            Some(no_save(host).to_string())
        };
        let vm = Arc::new(vm);
        let (handle, owner) = own(name, vm.clone(), events);
        // It ends with the VM, which ends with the handle: see there.
        tokio::spawn(owner.run());
        let (channel, keep) = Channel::new(name, vm, handle.state.clone());
        Ok(Self {
            name: name.to_owned(),
            handle,
            channel,
            save_refused,
            note: Note::new(plan, &host.version).write(),
            _keeper: AbortOnDropHandle::new(tokio::spawn(keep)),
        })
    }

    pub(crate) async fn start(&self) -> Result<(), MachineError> {
        match self.handle.ask(Operation::Start).await {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(self.not_started(e.to_string())),
            None => Err(self.not_started(self.last_words().await)),
        }
    }

    pub(crate) async fn restore(
        &self,
        memory: &Path,
        note: &Note,
        host: &Host,
    ) -> Result<(), MachineError> {
        let restored = self.handle.ask(Operation::Restore(memory.to_owned())).await;
        match restored {
            Some(Ok(())) => {}
            Some(Err(e)) if e.kind == ErrorKind::Restore => {
                let why = format!("{e}{}", note.context(&host.version));
                return Err(incompatible(&self.name, why));
            }
            Some(Err(e)) => return Err(self.not_started(e.to_string())),
            None => return Err(self.not_started(self.last_words().await)),
        }
        self.handle.perform(Operation::Resume).await
    }

    fn not_started(&self, why: String) -> MachineError {
        MachineError::Launch {
            vm: self.name.clone(),
            why,
        }
    }

    /// What became of a VM that is gone.
    async fn last_words(&self) -> String {
        let mut state = self.handle.state.clone();
        let stopped = state.wait_for(|s| matches!(s, MachineState::Stopped(_)));
        match stopped.await.as_deref() {
            Ok(MachineState::Stopped(reason)) => format!("it ended at once: {reason:?}"),
            _ => "it ended at once".to_owned(),
        }
    }
}

#[async_trait]
impl Machine for AppleMachine {
    async fn connect(&self) -> Result<Box<dyn GuestStream>, MachineError> {
        Ok(Box::new(self.channel.open().await?))
    }

    async fn pause(&self) -> Result<(), MachineError> {
        self.handle.perform(Operation::Pause).await
    }

    async fn resume(&self) -> Result<(), MachineError> {
        self.handle.perform(Operation::Resume).await
    }

    /// The framework writes to a file beside it first, which gets its name when it is whole.
    async fn save(&self, memory: &Path) -> Result<String, MachineError> {
        if let Some(why) = &self.save_refused {
            return Err(MachineError::Unsupported {
                what: "suspending this VM",
                backend: NAME,
                why: why.clone(),
            });
        }
        let partial = memory.with_added_extension("partial");
        let remove = Remove(partial.clone());
        self.handle
            .perform(Operation::Save(partial.clone()))
            .await?;
        let (from, to) = (partial.clone(), memory.to_owned());
        let named = spawn_blocking(move || give_name(&from, &to)).await;
        named
            .unwrap_or_else(|e| Err(e.into()))
            .map_err(|source| MachineError::Io {
                action: "write",
                path: memory.to_owned(),
                source,
            })?;
        drop(remove);
        Ok(self.note.clone())
    }

    async fn request_stop(&self) -> Result<(), MachineError> {
        self.handle.perform(Operation::RequestStop).await
    }

    async fn kill(&self) -> Result<(), MachineError> {
        self.handle.kill().await
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.handle.state.clone()
    }
}

/// Removes what a save that failed, or was given up, has left.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // After one that succeeded there is nothing of the name.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes a file durable under its final name.
fn give_name(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    fs::rename(from, to)?;
    match to.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
