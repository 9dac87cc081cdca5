//! The guest channel over one connection of the guest's vsock: made anew whenever it breaks.
//!
//! All streams go over one connection, as over QEMU's port. The framework moves the bytes of all of
//! a VM's connections in turn, so one that isn't read would hold up the others; of a channel, all
//! streams are read into windows of their own.

use crate::framework::{Vm, VzError};
use crate::owner::begun;
use slicer_channel::{ChannelError, ChannelStream, Mux, connect, wire};
use slicer_machine::{MachineError, MachineState};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::{debug, warn};

/// The vsock port on which the agent serves the channel.
pub(crate) const PORT: u32 = 1024;
/// How long a connection may take, and the agent's greeting.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Between two attempts while the guest boots: each costs a message to the framework.
const PAUSE: Duration = Duration::from_millis(10);
/// What that grows to for a guest that stays silent.
const LONG_PAUSE: Duration = Duration::from_millis(250);

/// Opens streams to the agent.
pub(crate) struct Channel {
    vm: String,
    mux: watch::Receiver<Option<Mux>>,
}

impl Channel {
    /// The channel, and the task that keeps it up until the VM is gone.
    pub(crate) fn new<V: Vm>(
        name: &str,
        vm: Arc<V>,
        state: watch::Receiver<MachineState>,
    ) -> (Self, impl Future<Output = ()> + Send + use<V>) {
        let (tell, mux) = watch::channel(None);
        let channel = Self {
            vm: name.to_owned(),
            mux,
        };
        (channel, keep(name.to_owned(), vm, state, tell))
    }

    /// Opens a stream, waiting for an agent that isn't there yet.
    pub(crate) async fn open(&self) -> Result<ChannelStream, MachineError> {
        let gone = || MachineError::Gone {
            vm: self.vm.clone(),
        };
        let mut rx = self.mux.clone();
        loop {
            let mux = rx
                .wait_for(Option::is_some)
                .await
                .map_err(|_| gone())?
                .clone();
            let Some(mux) = mux else { continue };
            match mux.open().await {
                Ok(stream) => return Ok(stream),
                // The session ended between the two steps: wait for the next.
                Err(ChannelError::Closed) => rx.changed().await.map_err(|_| gone())?,
                Err(e) => {
                    return Err(MachineError::Channel {
                        vm: self.vm.clone(),
                        why: e.to_string(),
                    });
                }
            }
        }
    }
}

async fn keep<V: Vm>(
    name: String,
    vm: Arc<V>,
    mut state: watch::Receiver<MachineState>,
    mux: watch::Sender<Option<Mux>>,
) {
    let mut over = state.clone();
    let stopped = over.wait_for(|s| matches!(s, MachineState::Stopped(_)));
    let serve = async {
        let mut pause = PAUSE;
        loop {
            // The guest of a VM that is paused doesn't answer.
            let running = state.wait_for(|s| *s == MachineState::Running);
            if running.await.is_err() {
                return;
            }
            match session(&*vm).await {
                Ok((new, driver)) => {
                    pause = PAUSE;
                    mux.send_replace(Some(new));
                    match driver.await {
                        // The VM went, or its agent did: seen, and told, elsewhere.
                        ChannelError::Closed | ChannelError::Io(_) => {
                            debug!("{name}: the channel ended");
                        }
                        e => warn!("{name}: the channel ended: {e}"),
                    }
                    mux.send_replace(None);
                }
                Err(e) => debug!("{name}: no channel yet: {e}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONG_PAUSE);
        }
    };
    tokio::select! {
        _ = stopped => {}
        () = serve => {}
    }
}

/// Connects to the agent and greets it.
async fn session<V: Vm>(vm: &V) -> Result<(Mux, slicer_channel::Driver<UnixStream>), VzError> {
    let late = |_| VzError::other(format!("no answer within {CONNECT_TIME:?}"));
    let connection = begun(|done| vm.connect(PORT, done));
    let fd = tokio::time::timeout(CONNECT_TIME, connection)
        .await
        .map_err(late)??;
    let io = stream(fd).map_err(|e| VzError::other(format!("the connection is unusable: {e}")))?;
    tokio::time::timeout(CONNECT_TIME, connect(io, wire::HELLO))
        .await
        .map_err(late)?
        .map_err(|e| VzError::other(e.to_string()))
}

/// What the framework gives is a stream socket; of which kind does not matter.
fn stream(fd: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = StdUnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
