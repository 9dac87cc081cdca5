//! What of the Virtualization framework the rest of this crate is written against.
//!
//! It is as thin as can be: operations that are begun and tell once how they ended, and events. So
//! the logic around it, which is where machines go wrong, runs against a script on any host.

use crate::plan::Plan;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::sync::{mpsc, oneshot};

/// What this host allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// How many CPUs a VM may have.
    pub cpus: RangeInclusive<usize>,
    /// How much memory a VM may have, bytes.
    pub memory_bytes: RangeInclusive<u64>,
    /// Whether guests can be given Rosetta.
    pub rosetta: Rosetta,
    /// Whether a VM can be saved, as it can from macOS 14 on.
    pub save_restore: bool,
    /// The system's name for its version.
    pub version: String,
}

/// Whether a host has Rosetta for Linux guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rosetta {
    /// It has.
    Installed,
    /// It could be installed.
    NotInstalled,
    /// It can't have it.
    NotSupported,
}

impl Rosetta {
    /// Why guests can't be given it, if so, and what to do about it.
    pub(crate) fn check(self) -> Result<(), String> {
        match self {
            Self::Installed => Ok(()),
            Self::NotInstalled => Err("it is not installed on this Mac: run \
                `softwareupdate --install-rosetta`"
                .to_owned()),
            Self::NotSupported => Err("this Mac has none for Linux guests, which needs macOS 13 \
                or later: leave out `rosetta`"
                .to_owned()),
        }
    }
}

/// What kind of failure an error of the framework is, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A state can't be taken up: `VZErrorRestore`.
    Restore,
    /// The VM isn't in a state for this: `VZErrorInvalidVirtualMachineState` and its transition.
    State,
    /// Anything else.
    Other,
}

/// An error of the framework, as plain data: the object it was stays on the queue that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VzError {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// What the framework says, with the error's domain and code.
    pub text: String,
}

impl VzError {
    /// An error of this crate's own making.
    pub fn other(text: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Other,
            text: text.into(),
        }
    }
}

impl fmt::Display for VzError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is begun on a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Boots it.
    Start,
    /// Freezes its CPUs.
    Pause,
    /// Lets them run on.
    Resume,
    /// Writes the state of a paused VM to this file.
    Save(PathBuf),
    /// Reads the state of a VM that was never started from this file; it is paused then.
    Restore(PathBuf),
    /// Presses the power button.
    RequestStop,
    /// Switches it off.
    Stop,
}

impl Operation {
    /// Its name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Save(_) => "save",
            Self::Restore(_) => "restore",
            Self::RequestStop => "request stop",
            Self::Stop => "stop",
        }
    }
}

/// What a VM tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest powered off.
    GuestStopped,
    /// The VM failed; it is gone.
    Failed(VzError),
    /// Its network card is no longer connected to anything.
    NetworkLost(VzError),
}

/// Where an operation tells how it ended. Dropped untold, it failed.
pub type Done<T> = oneshot::Sender<Result<T, VzError>>;

/// The framework.
pub trait Framework: Send + Sync + 'static {
    /// A machine it makes.
    type Vm: Vm;

    /// What this host allows.
    fn host(&self) -> Host;

    /// The identifier of a new machine.
    fn new_identifier(&self) -> Vec<u8>;

    /// Makes a machine, which is not started, and which tells events for as long as it is.
    ///
    /// # Errors
    /// When the framework finds its configuration invalid.
    fn build(&self, plan: &Plan, events: mpsc::Sender<Event>) -> Result<Self::Vm, VzError>;
}

/// A machine of the framework. None of its methods blocks.
pub trait Vm: Send + Sync + 'static {
    /// Whether it can be saved, or why not. Asked once, when it was made.
    fn can_save(&self) -> Result<(), VzError>;

    /// Begins an operation.
    fn begin(&self, operation: Operation, done: Done<()>);

    /// Begins to connect to a port of the guest's vsock.
    fn connect(&self, port: u32, done: Done<OwnedFd>);
}
