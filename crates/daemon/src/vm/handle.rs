//! A VM as everybody but its actor sees it.

use crate::commits::CommitRecord;
use crate::forwards::Mappings;
use crate::guest;
use crate::record::VmRecord;
use crate::vm::live::Snapshot;
use slicer_api::{ApiError, CommitRequest, Node, NodeStatus, ShutdownAction, TagsChange, Wait};
use slicer_image::{Export, FileFormat};
use slicer_machine::Machine;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

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
    /// It is off, and what it was doing is on disk. After a restore that failed, with its reason.
    Suspended(Option<String>),
    /// It is gone for good. After a failure, with its reason.
    Gone(Option<ApiError>),
}

impl Phase {
    /// Whether it has no machine, nor is one being made.
    pub(crate) fn is_off(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Suspended(_) | Self::Gone(_))
    }
}

/// A VM as everybody may see it.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    /// The guest is sane and knows who it is.
    pub(crate) ready: bool,
    pub(crate) machine: Option<Arc<dyn Machine>>,
    pub(crate) tags: Arc<Vec<String>>,
    /// Why it is paused, if nobody asked for that.
    pub(crate) stalled: Option<Arc<str>>,
    /// Why its machine was booted anew in place of being restored.
    pub(crate) state_lost: Option<Arc<str>>,
    /// The newest commit of its disk.
    pub(crate) commit_id: Option<Arc<str>>,
}

impl View {
    pub(crate) fn status(&self) -> NodeStatus {
        match self.phase {
            Phase::Launching | Phase::Running | Phase::Stopping => NodeStatus::Running,
            Phase::Paused => NodeStatus::Paused,
            Phase::Suspended(_) => NodeStatus::Suspended,
            Phase::Stopped(_) | Phase::Gone(_) => NodeStatus::Stopped,
        }
    }
}

/// As long as somebody has it, a VM that is off or paused stays so, and nothing writes to its disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskLease {
    pub(super) _held: Arc<()>,
}

pub(super) type Reply = oneshot::Sender<Result<(), ApiError>>;

/// What the actor is asked to do.
pub(super) enum Command {
    Pause(Reply),
    Resume(Reply),
    /// Write it to disk and end it; true has the next daemon restore it unasked.
    Suspend(bool, Reply),
    Restore(Reply),
    Shutdown(ShutdownAction, Reply),
    Relaunch(Reply),
    Delete(Reply),
    Tags(TagsChange, oneshot::Sender<Result<Vec<String>, ApiError>>),
    Commit(
        CommitRequest,
        oneshot::Sender<Result<CommitRecord, ApiError>>,
    ),
    /// What it is now, for others to begin as.
    Snapshot(oneshot::Sender<Result<Snapshot, ApiError>>),
    /// The whole disk, in this format.
    Export(
        FileFormat,
        oneshot::Sender<Result<(Export, DiskLease), ApiError>>,
    ),
    /// Remove its disk, which its next start makes anew.
    ResetDisk(Reply),
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
    pub(super) mailbox: mpsc::Sender<Command>,
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

    /// Makes a commit of its disk, which is durable when this answers. The VM must be off.
    pub(crate) async fn commit(&self, request: CommitRequest) -> Result<CommitRecord, ApiError> {
        let (tx, rx) = oneshot::channel();
        let sent = self.mailbox.send(Command::Commit(request, tx)).await;
        sent.map_err(|_| self.gone())?;
        rx.await.map_err(|_| self.gone())?
    }

    /// Takes a snapshot of it; it runs on.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        let (tx, rx) = oneshot::channel();
        let sent = self.mailbox.send(Command::Snapshot(tx)).await;
        sent.map_err(|_| self.gone())?;
        rx.await.map_err(|_| self.gone())?
    }

    /// Its whole disk, in this format. It must be off or paused, and stays so as long as the lease
    /// lives.
    pub(crate) async fn export(&self, format: FileFormat) -> Result<(Export, DiskLease), ApiError> {
        let (tx, rx) = oneshot::channel();
        let sent = self.mailbox.send(Command::Export(format, tx)).await;
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

    /// Answers once the VM is on disk, durably, and its machine gone. `restore_at_start` has the next
    /// daemon restore it unasked.
    pub(crate) async fn suspend(&self, restore_at_start: bool) -> Result<(), ApiError> {
        self.call(|reply| Command::Suspend(restore_at_start, reply))
            .await
    }

    /// Has a suspended VM run on; answers once its machine runs. Where the saved state is worth
    /// nothing the VM is booted, and the answer is why.
    pub(crate) async fn restore(&self) -> Result<Option<Arc<str>>, ApiError> {
        self.call(Command::Restore).await?;
        self.launched().await?;
        Ok(self.view.borrow().state_lost.clone())
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

    /// Answers once the disk of the VM, which must be off, is gone. Its next start makes a fresh one.
    pub(crate) async fn reset_disk(&self) -> Result<(), ApiError> {
        self.call(Command::ResetDisk).await
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

    /// Waits for what a client wants to wait for, or tells why it never will be. The caller bounds it.
    pub(crate) async fn reached(&self, wait: Option<Wait>) -> Result<(), ApiError> {
        match wait {
            None => Ok(()),
            Some(Wait::Agent) => self.ready().await,
            Some(Wait::Userdata) => self.userdata_ran().await,
        }
    }

    async fn until(&self, there: impl Fn(&View) -> bool) -> Result<(), ApiError> {
        let mut view = self.view.clone();
        let done = |v: &View| there(v) || v.phase.is_off();
        let name = &self.record.hostname;
        match view.wait_for(done).await.map(|v| v.phase.clone()) {
            Ok(Phase::Stopped(why)) => Err(ApiError::internal(match why {
                Some(why) => format!("VM {name} stopped: {why}"),
                None => format!("VM {name} stopped"),
            })),
            Ok(Phase::Suspended(Some(why))) => Err(ApiError::internal(format!(
                "cannot restore VM {name}, it stays suspended: {why}"
            ))),
            Ok(Phase::Suspended(None)) => {
                Err(ApiError::conflict(format!("VM {name} was suspended")))
            }
            Ok(Phase::Gone(Some(e))) => Err(e),
            Ok(Phase::Gone(None)) | Err(_) => {
                Err(ApiError::not_found(format!("VM {name:?} was deleted")))
            }
            Ok(_) => Ok(()),
        }
    }
}
