//! Why the daemon could not start or do something.

use crate::config::ConfigError;
use slicer_api::ApiError;
use slicer_image::ImageError;
use slicer_machine::MachineError;
use slicer_network::NetworkError;
use slicer_registry::PullError;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What to do about a disk that is full.
pub(crate) const FREE_SPACE: &str = "free some space and try again";

/// An error of the daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An image could not be found or prepared.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image could not be fetched.
    #[error(transparent)]
    Pull(Arc<PullError>),
    /// The hypervisor failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A network could not be made, or taken down.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Another daemon works in this directory.
    #[error(
        "another slicer-mac{} already runs in {}: stop it first, or use another directory",
        pid.map(|p| format!(" (pid {p})")).unwrap_or_default(), dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other daemon.
        pid: Option<i32>,
    },
    /// An address can't be listened at.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, such as `write`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// This build can't boot guests of this architecture.
    #[error(
        "this slicer-mac was built without the agent for guests of {arch}: `make agents build` builds \
         one with it"
    )]
    NoAgent {
        /// Go's name of the architecture.
        arch: &'static str,
    },
    /// A VM's disk is for another architecture than its group's VMs have now.
    #[error(
        "VM {vm} was made for {of}, and the VMs of host group {group} are of {now} now: set its arch \
         to {of} again, or make the VM anew"
    )]
    OtherArch {
        /// The VM.
        vm: String,
        /// Go's name of its architecture.
        of: String,
        /// Its group.
        group: String,
        /// Go's name of the group's architecture.
        now: &'static str,
    },
    /// A disk lies over more others than are opened with it.
    #[error(
        "the disk of VM {vm} lies over {limit} others and can't be committed once more: copy what is \
         in it to a new VM"
    )]
    TooDeep {
        /// The VM.
        vm: String,
        /// How many it may lie over.
        limit: usize,
    },
    /// An image's entrypoint can't be run.
    #[error("cannot run the entrypoint of {image}: {why}")]
    Entrypoint {
        /// The image's reference.
        image: String,
        /// What is wrong with it.
        why: String,
    },
    /// A folder that VMs are to see can't be used.
    #[error(
        "cannot share {} with the VM: {source}: make the folder, or change the host group's shares",
        path.display()
    )]
    Share {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The daemon is on its way out.
    #[error("the daemon is stopping")]
    Stopping,
    /// This platform can't run VMs.
    #[error("{0}")]
    Unsupported(String),
    /// A background task failed in a way it never should.
    #[error("internal error while {0}")]
    Internal(&'static str),
}

impl From<PullError> for DaemonError {
    fn from(e: PullError) -> Self {
        Self::Pull(Arc::new(e))
    }
}

impl DaemonError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// What a client is told whose request failed by it.
    pub(crate) fn to_api(&self) -> ApiError {
        if self.is_disk_full() {
            ApiError::insufficient_storage(format!("{self}: {FREE_SPACE}"))
        } else if matches!(self, Self::TooDeep { .. }) {
            ApiError::conflict(self.to_string())
        } else if matches!(self, Self::Stopping) {
            ApiError::unavailable(self.to_string())
        } else {
            ApiError::internal(self.to_string())
        }
    }

    /// Whether the disk is full: answered as 507.
    pub(crate) fn is_disk_full(&self) -> bool {
        let full = |e: &io::Error| -> bool {
            matches!(
                e.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match self {
            Self::Io { source, .. } | Self::Machine(MachineError::Io { source, .. }) => {
                full(source)
            }
            Self::Image(e) => in_chain(e, full),
            Self::Pull(e) => in_chain(&**e, full),
            _ => false,
        }
    }
}

/// Whether an error, or a cause of it, is such an error of the system.
fn in_chain(e: &(dyn Error + 'static), is: impl Fn(&io::Error) -> bool) -> bool {
    let mut source = Some(e);
    while let Some(e) = source {
        if e.downcast_ref::<io::Error>().is_some_and(&is) {
            return true;
        }
        source = e.source();
    }
    false
}
