//! The task that owns a VM: it alone begins operations, and knows the state.
//!
//! The framework refuses an operation while another is under way, and ends a VM whenever it likes.
//! So they come here one by one; each is waited for as long as the VM is there, and at most for a
//! time. The task ends with the VM, and switches it off when nobody holds its [`Handle`] any more.

use crate::framework::{Done, ErrorKind, Event, Operation, Vm, VzError};
use slicer_machine::{MachineError, MachineState, StopReason};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What the framework does at once on a host that is well.
const QUICK: Duration = Duration::from_secs(30);
/// Writing or reading the memory of a VM, at 100 MB/s for the largest there are.
const LONG: Duration = Duration::from_mins(10);
/// How long a VM may take to be switched off.
const STOP_TIME: Duration = Duration::from_secs(10);
/// Between two attempts to switch it off: it may be in the middle of something else.
const STOP_PAUSE: Duration = Duration::from_millis(50);

/// An operation that is asked for, and where the answer goes.
type Command = (Operation, oneshot::Sender<Result<(), VzError>>);

/// Asks the owner. The VM ends when this is dropped.
pub(crate) struct Handle {
    name: String,
    commands: mpsc::Sender<Command>,
    kill: CancellationToken,
    pub(crate) state: watch::Receiver<MachineState>,
}

/// The task, before it runs.
pub(crate) struct Owner<V> {
    name: String,
    vm: Arc<V>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Receiver<Event>,
    kill: CancellationToken,
    state: watch::Sender<MachineState>,
}

/// A VM that was made and not started: it counts as paused until it is.
pub(crate) fn own<V: Vm>(
    name: &str,
    vm: Arc<V>,
    events: mpsc::Receiver<Event>,
) -> (Handle, Owner<V>) {
    let (ask, commands) = mpsc::channel(8);
    let (tell, state) = watch::channel(MachineState::Paused);
    let kill = CancellationToken::new();
    let handle = Handle {
        name: name.to_owned(),
        commands: ask,
        kill: kill.clone(),
        state,
    };
    let owner = Owner {
        name: name.to_owned(),
        vm,
        commands,
        events,
        kill,
        state: tell,
    };
    (handle, owner)
}

impl Handle {
    /// Has an operation done. It goes on when nobody waits for it any more.
    pub(crate) async fn perform(&self, operation: Operation) -> Result<(), MachineError> {
        let command = operation.name();
        match self.ask(operation).await {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(MachineError::Command {
                vm: self.name.clone(),
                command,
                why: e.to_string(),
            }),
            None => Err(self.gone()),
        }
    }

    /// As [`Handle::perform`], with the framework's own error; none when the VM is gone.
    pub(crate) async fn ask(&self, operation: Operation) -> Option<Result<(), VzError>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send((operation, reply)).await.ok()?;
        answer.await.ok()
    }

    pub(crate) fn gone(&self) -> MachineError {
        MachineError::Gone {
            vm: self.name.clone(),
        }
    }

    /// Switches the VM off, whatever it is doing, and waits until it is gone.
    pub(crate) async fn kill(&self) -> Result<(), MachineError> {
        self.kill.cancel();
        let mut state = self.state.clone();
        let gone = state.wait_for(|s| matches!(s, MachineState::Stopped(_)));
        // The owner ends within this, unless the runtime is in trouble.
        match tokio::time::timeout(STOP_TIME * 3, gone).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MachineError::Command {
                vm: self.name.clone(),
                command: Operation::Stop.name(),
                why: format!("it is still there after {:?}", STOP_TIME * 3),
            }),
        }
    }
}

/// How waiting for an operation ended.
enum Waited {
    Done(Result<(), VzError>),
    Ended(StopReason),
    Killed,
}

impl<V: Vm> Owner<V> {
    /// Runs until the VM is gone.
    pub(crate) async fn run(mut self) {
        let reason = self.serve().await;
        self.state.send_replace(MachineState::Stopped(reason));
    }

    async fn serve(&mut self) -> StopReason {
        loop {
            tokio::select! {
                biased;
                reason = ended(&self.name, &mut self.events) => return reason,
                () = self.kill.cancelled() => return self.stop().await,
                command = self.commands.recv() => {
                    let Some((operation, reply)) = command else {
                        return self.stop().await;
                    };
                    if let Some(reason) = self.perform(operation, reply).await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Does what was asked for; answers with the reason when the VM ended meanwhile, in which case
    /// the asker gets no answer.
    async fn perform(
        &mut self,
        operation: Operation,
        reply: oneshot::Sender<Result<(), VzError>>,
    ) -> Option<StopReason> {
        let after = match operation {
            Operation::Start | Operation::Resume => Some(MachineState::Running),
            Operation::Pause => Some(MachineState::Paused),
            _ => None,
        };
        // The framework refuses to pause what is paused.
        let there = matches!(operation, Operation::Pause | Operation::Resume)
            && after.as_ref() == Some(&*self.state.borrow());
        if !there {
            let (name, limit) = (operation.name(), limit(&operation));
            let (done, mut answer) = oneshot::channel();
            self.vm.begin(operation, done);
            let waited = tokio::select! {
                biased;
                answer = &mut answer => Waited::Done(answer.unwrap_or_else(|_| Err(no_answer(name)))),
                reason = ended(&self.name, &mut self.events) => Waited::Ended(reason),
                () = self.kill.cancelled() => Waited::Killed,
                () = tokio::time::sleep(limit) => {
                    Waited::Done(Err(VzError::other(format!("no answer within {limit:?}"))))
                }
            };
            match waited {
                Waited::Done(Ok(())) => {}
                Waited::Done(Err(e)) => {
                    // Nobody may be waiting any more.
                    let _ = reply.send(Err(e));
                    return None;
                }
                Waited::Ended(reason) => return Some(reason),
                Waited::Killed => return Some(self.stop().await),
            }
        }
        if let Some(state) = after {
            self.state.send_replace(state);
        }
        let _ = reply.send(Ok(()));
        None
    }

    /// Switches the VM off. What was under way may have to end first, so it is asked again and
    /// again, for a time.
    async fn stop(&mut self) -> StopReason {
        let mut last = VzError::other("it was not asked");
        let stopped = async {
            loop {
                let (done, answer) = oneshot::channel();
                self.vm.begin(Operation::Stop, done);
                let answer = tokio::select! {
                    biased;
                    answer = answer => answer.unwrap_or_else(|_| Err(no_answer("stop"))),
                    reason = ended(&self.name, &mut self.events) => return reason,
                };
                match answer {
                    Ok(()) => return StopReason::Killed,
                    Err(e) if e.kind == ErrorKind::State => last = e,
                    Err(e) => return StopReason::Crashed(format!("it can't be stopped: {e}")),
                }
                tokio::time::sleep(STOP_PAUSE).await;
            }
        };
        match tokio::time::timeout(STOP_TIME, stopped).await {
            Ok(reason) => reason,
            Err(_) => {
                // Dropping the VM, which comes next, is all that is left.
                StopReason::Crashed(format!("it can't be stopped within {STOP_TIME:?}: {last}"))
            }
        }
    }
}

fn no_answer(operation: &str) -> VzError {
    VzError::other(format!("the framework dropped its answer to {operation}"))
}

fn limit(operation: &Operation) -> Duration {
    match operation {
        Operation::Save(_) | Operation::Restore(_) => LONG,
        _ => QUICK,
    }
}

/// Waits until the VM is gone by itself, and tells what it says before that.
async fn ended(name: &str, events: &mut mpsc::Receiver<Event>) -> StopReason {
    loop {
        match events.recv().await {
            Some(Event::GuestStopped) => return StopReason::Guest,
            Some(Event::Failed(e)) => return StopReason::Crashed(e.to_string()),
            Some(Event::NetworkLost(e)) => {
                warn!("{name} has no network any more, until it is started anew: {e}");
            }
            // The machine tells events for as long as it is, so this can't be.
            None => return StopReason::Crashed("the framework gave it up".to_owned()),
        }
    }
}

/// Does an operation that isn't the owner's: a connection.
pub(crate) async fn begun<T>(begin: impl FnOnce(Done<T>)) -> Result<T, VzError> {
    let (done, answer) = oneshot::channel();
    begin(done);
    answer.await.unwrap_or_else(|_| Err(no_answer("connect")))
}
