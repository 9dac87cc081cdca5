//! The guest channel over one virtio-serial port: kept up for as long as the VM lives.

use slicer_channel::{ChannelError, ChannelStream, Mux, connect, wire};
use slicer_machine::MachineError;
use std::os::unix::net::UnixStream as StdUnixStream;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// Opens streams to the agent.
pub(crate) struct Channel {
    vm: String,
    mux: watch::Receiver<Option<Mux>>,
}

/// Keeps the channel up: starts a session each time the guest opens its port, which it does when
/// its agent starts or starts anew. Whoever launched the VM owns this task.
pub(crate) struct Keeper {
    vm: String,
    /// Held for as long as the VM lives: sessions come and go on duplicates of it.
    pipe: StdUnixStream,
    opened: mpsc::Receiver<()>,
    mux: watch::Sender<Option<Mux>>,
}

/// `opened` tells each time that the guest has opened its port.
pub(crate) fn channel(
    vm: &str,
    pipe: StdUnixStream,
    opened: mpsc::Receiver<()>,
) -> (Channel, Keeper) {
    let (tx, rx) = watch::channel(None);
    let keeper = Keeper {
        vm: vm.to_owned(),
        pipe,
        opened,
        mux: tx,
    };
    (
        Channel {
            vm: vm.to_owned(),
            mux: rx,
        },
        keeper,
    )
}

impl Channel {
    /// Opens a stream, waiting for an agent that isn't there yet.
    pub(crate) async fn open(&self) -> Result<ChannelStream, MachineError> {
        let mut rx = self.mux.clone();
        loop {
            let mux = match rx.wait_for(Option::is_some).await {
                Ok(mux) => mux.clone(),
                Err(_) => {
                    return Err(MachineError::Gone {
                        vm: self.vm.clone(),
                    });
                }
            };
            let Some(mux) = mux else { continue };
            match mux.open().await {
                Ok(stream) => return Ok(stream),
                // The session ended between the two steps: wait for the next.
                Err(ChannelError::Closed) => {
                    if rx.changed().await.is_err() {
                        return Err(MachineError::Gone {
                            vm: self.vm.clone(),
                        });
                    }
                }
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

impl Keeper {
    /// Runs until the events end, which they do with the VM.
    pub(crate) async fn run(self) {
        let Self {
            vm,
            pipe,
            mut opened,
            mux,
        } = self;
        let mut greet = opened.recv().await.is_some();
        while greet {
            // A port that is opened anew ends the session before it.
            greet = tokio::select! {
                end = session(&pipe, &mux) => {
                    match end {
                        // The VM went, or its agent did: seen, and told, elsewhere.
                        ChannelError::Closed | ChannelError::Io(_) => {
                            debug!("{vm}: the channel ended: {end}");
                        }
                        _ => warn!("{vm}: the channel ended: {end}"),
                    }
                    mux.send_replace(None);
                    opened.recv().await.is_some()
                }
                again = opened.recv() => again.is_some(),
            };
            mux.send_replace(None);
        }
    }
}

async fn session(pipe: &StdUnixStream, mux: &watch::Sender<Option<Mux>>) -> ChannelError {
    let io = match pipe.try_clone().and_then(UnixStream::from_std) {
        Ok(io) => io,
        Err(e) => return e.into(),
    };
    match connect(io, wire::HELLO).await {
        Ok((new, driver)) => {
            mux.send_replace(Some(new));
            driver.await
        }
        Err(e) => e,
    }
}
