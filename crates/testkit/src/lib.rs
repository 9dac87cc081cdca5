//! Runs the programs users get, with real VMs, for tests; and a hypervisor without VMs, whose
//! guests are the real agent as a process of the host.
//!
//! Everything here panics on failure: a helper that can't do its work fails the test.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed helper fails the test and says why"
)]

mod cli;
mod daemon;
mod desktop;
mod fake;
mod layout;
mod logind;
mod process;
mod raw;
mod registry;
mod setup;
mod spawn;
mod template;
mod wait;

pub use cli::{CliOutput, run_command};
pub use daemon::{Exited, TestDaemon, bin_dir, docker_image, minimal_layout, run_daemon};
pub use desktop::{Desktop, MenuEntry};
pub use fake::{FakeGuest, FakeHypervisor};
pub use layout::{Image, image_layout, kernel_layout};
pub use logind::{Bus, Lock, Logind};
pub use process::{alive, children_of, processes_of, send_signal};
pub use raw::{Answer, RawClient};
pub use registry::{Layer, Proxy, Registry, debian_tool, foreign_debian_tool};
pub use rustix::process::Signal;
pub use setup::{Group, SBOX, SLICER, Setup, free_port};
pub use wait::{soon, wait_until};

use std::time::Duration;

/// Longer than a guest boots under software emulation on a busy host.
pub const BOOT: Duration = Duration::from_mins(3);
/// Longer than anything else here takes.
pub const LIMIT: Duration = Duration::from_mins(1);
