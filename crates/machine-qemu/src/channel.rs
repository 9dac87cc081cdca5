//! The guest channel over one virtio-serial port: kept up for as long as the VM lives.

use slicer_channel::{ChannelError, ChannelStream, Mux, Trigger, connect, wire};
use slicer_machine::MachineError;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// How long a guest of which it isn't known which hello it waits for gets to answer one of them.
const GREETING_TIME: Duration = Duration::from_secs(5);

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
    /// With what the agent may be greeted that had a session before.
    resume: Option<Trigger>,
    restored: bool,
}

/// `opened` tells each time that the guest has opened its port. A guest that was `restored` opened it
/// in its former life; `resume` is the trigger of the session it had then.
pub(crate) fn channel(
    vm: &str,
    pipe: StdUnixStream,
    opened: mpsc::Receiver<()>,
    restored: bool,
    resume: Option<Trigger>,
) -> (Channel, Keeper) {
    let (tx, rx) = watch::channel(None);
    let keeper = Keeper {
        vm: vm.to_owned(),
        pipe,
        opened,
        mux: tx,
        resume,
        restored,
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
    /// The trigger with which the guest starts its next session, if it has one now.
    pub(crate) fn resume_trigger(&self) -> Option<Trigger> {
        self.mux.borrow().as_ref().map(Mux::resume_trigger)
    }

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
            mut resume,
            mut restored,
        } = self;
        let mut first = wire::HELLO;
        let mut greet = if let (true, Some(trigger)) = (restored, resume) {
            first = trigger;
            true
        } else {
            opened.recv().await.is_some()
        };
        while greet {
            // A port that is opened anew ends the session before it.
            greet = tokio::select! {
                end = session(&pipe, &mux, first, &mut resume) => {
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
                again = reopened(&mut opened, restored) => again,
            };
            restored = false;
            first = wire::HELLO;
            mux.send_replace(None);
        }
    }
}

/// Waits until the guest opens its port anew; false when the VM is gone. Restored, QEMU tells once
/// more that the port is open, while the guest is greeted already.
async fn reopened(opened: &mut mpsc::Receiver<()>, restored: bool) -> bool {
    let mut known = restored;
    while opened.recv().await.is_some() {
        if !std::mem::take(&mut known) {
            return true;
        }
    }
    false
}

/// Runs a session. `first` is what the guest most likely waits for; should it have gone on with the
/// session it had, it waits for `resume`, which is kept up to date.
async fn session(
    pipe: &StdUnixStream,
    mux: &watch::Sender<Option<Mux>>,
    first: Trigger,
    resume: &mut Option<Trigger>,
) -> ChannelError {
    let mut trigger = first;
    loop {
        let io = match pipe.try_clone().and_then(UnixStream::from_std) {
            Ok(io) => io,
            Err(e) => return e.into(),
        };
        let connect = connect(io, trigger);
        let connected = match *resume {
            None => connect.await,
            Some(known) => match tokio::time::timeout(GREETING_TIME, connect).await {
                Ok(connected) => connected,
                Err(_) => {
                    trigger = if trigger == known { wire::HELLO } else { known };
                    continue;
                }
            },
        };
        return match connected {
            Ok((new, driver)) => {
                *resume = Some(new.resume_trigger());
                mux.send_replace(Some(new));
                driver.await
            }
            Err(e) => e,
        };
    }
}
