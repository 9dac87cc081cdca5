//! Why a network could not be made.

use std::io;
use std::path::PathBuf;

/// An error of making a network, or of taking one down.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// This host, or this user, can't have such a network.
    #[error(
        "network mode {mode} {why}: use `mode: nat`, or run the daemon on Linux with \
         {capabilities} (as root)"
    )]
    Unsupported {
        /// The mode, as configurations spell it.
        mode: &'static str,
        /// What is in the way.
        why: &'static str,
        /// What is needed.
        capabilities: &'static str,
    },
    /// There is no program to set rules with.
    #[error("nft not found: install nftables (on Debian, `apt-get install nftables`)")]
    NftMissing,
    /// The rules were not taken.
    #[error("nft refused the rules of a network: {0}")]
    Nft(String),
    /// A device has the name already.
    #[error(
        "there is a network device {0} that slicer did not make: give network.bridge another name"
    )]
    NotOurs(String),
    /// The host is in such a network already.
    #[error(
        "the host's device {device} has the address {address}, which is in the network of {gateway}: \
         give network.gateway another network"
    )]
    Overlap {
        /// The device.
        device: String,
        /// Its address and prefix.
        address: ipnet::Ipv4Net,
        /// The network that was to be made.
        gateway: ipnet::Ipv4Net,
    },
    /// A device could not be made or changed.
    #[error("cannot {action} {device}: {source}")]
    Device {
        /// What was attempted.
        action: &'static str,
        /// On which network device.
        device: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file operation or system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel, or nft, hangs.
    #[error("a network was not made within {0:?}")]
    Timeout(std::time::Duration),
    /// The thread that does the work has ended.
    #[error("nobody is there to make networks any more")]
    Gone,
}

impl NetworkError {
    /// Whether this host or user can't have such a network at all.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::NftMissing)
    }

    #[cfg(target_os = "linux")]
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
}
