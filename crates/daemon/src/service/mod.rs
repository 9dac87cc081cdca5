//! The daemon and the menu-bar app as services of the user: installed, started at logins and anew
//! after a crash, by launchd on macOS and by systemd on Linux.
//!
//! All that is decided is the same everywhere, and in here: what a service is ([`Job`]), what file
//! and which calls make it one ([`Launchd`], [`Systemd`]), and in which order ([`install`] and the
//! others). [`System`] alone calls programs of the host.

mod error;
mod install;
mod job;
pub mod launchd;
mod manager;
#[cfg(test)]
mod script;
mod system;
pub mod systemd;

pub use error::ServiceError;
pub use install::{Installation, install, start, status, stop, uninstall};
pub use job::{Job, daemon, find_directory, tray};
pub use launchd::Launchd;
pub use manager::{Call, Done, Manager, Runner, Status};
pub use system::{System, this_host};
pub use systemd::Systemd;

use serde::Serialize;
use std::fmt;

/// What runs as a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// The daemon, slicer-mac.
    Daemon,
    /// The menu-bar app, slicer-tray.
    Tray,
}

impl Service {
    /// The file name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Daemon => "slicer-mac",
            Self::Tray => "slicer-tray",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "daemon",
            Self::Tray => "tray",
        })
    }
}
