//! Hosts on which we make no networks: hypervisors bring their own.
#![expect(
    clippy::unused_async,
    reason = "as where there is something to wait for"
)]

use crate::{Bridge, Isolated, NetworkError};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A VM's place in a network. There is none here.
#[derive(Debug)]
pub struct Link(());

impl Link {
    /// There is none.
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        None
    }

    /// There is none.
    pub fn take_apart(&mut self) -> Option<Apart> {
        None
    }
}

/// A VM that is not on its bridge yet. There is none here.
#[derive(Debug)]
pub enum Apart {}

impl Apart {
    /// Nobody can ask for it.
    ///
    /// # Errors
    /// None.
    pub async fn join(self) -> Result<(), NetworkError> {
        match self {}
    }
}

/// The networks of one owner.
#[derive(Debug)]
pub struct Networks(());

impl Networks {
    /// The networks of an owner, who has none here.
    ///
    /// # Errors
    /// None.
    pub fn open(_owner: &Path, _note: PathBuf) -> Result<Self, NetworkError> {
        Ok(Self(()))
    }

    /// Says that there are no bridges here.
    ///
    /// # Errors
    /// Always.
    pub async fn bridge(&self, _bridge: Bridge) -> Result<Link, NetworkError> {
        Err(unsupported("bridge"))
    }

    /// Says that there are no namespaces here.
    ///
    /// # Errors
    /// Always.
    pub async fn isolated(&self, _isolated: Isolated) -> Result<Link, NetworkError> {
        Err(unsupported("isolated"))
    }

    /// Does nothing: there is nothing.
    ///
    /// # Errors
    /// None.
    pub async fn sweep(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}

fn unsupported(mode: &'static str) -> NetworkError {
    NetworkError::Unsupported {
        mode,
        why: "is not to be had on this platform",
        capabilities: "CAP_NET_ADMIN",
    }
}
