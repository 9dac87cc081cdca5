//! ssh(1) to VMs by their names: `slicer ssh-config` tells it the way, `slicer ssh-proxy` is that
//! way.

mod config;
mod include;
mod proxy;

pub(crate) use config::SshConfig;
pub(crate) use proxy::SshProxy;

use slicer_client::ClientError;
use std::path::PathBuf;

/// With this behind it, any VM's name is one ssh takes to slicer, also a friendly one.
const SUFFIX: &str = ".slicer";

/// What keeps ssh from a VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    #[error("nothing listens on port {port} of VM {vm:?}: no SSH server runs in it")]
    NoServer {
        vm: String,
        port: u16,
        source: ClientError,
    },
    #[error("ssh's configuration can't name {}: its name has a character that can't be written there", .0.display())]
    Unwritable(PathBuf),
    #[error("no home directory: set HOME")]
    NoHome,
    #[error("the daemon has host group {0:?}, which is no name for ssh")]
    GroupName(String),
}

impl SshError {
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoServer { .. } => Some(
                "`slicer shell VM` needs no server; on Debian, `slicer exec --uid 0 VM -- apt-get \
                 install openssh-server` installs one",
            ),
            _ => None,
        }
    }
}
