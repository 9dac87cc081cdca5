//! Networks for VMs on a Linux host that lets us make them: a bridge which VMs and host share, or a
//! network namespace for each VM, with rules about where it may connect to.
//!
//! A VM gets a tap, as an open descriptor. Nothing else of it has to be taken down: the tap ends
//! with the last descriptor, a namespace with the tap in it, and the pair of devices that leads
//! there with the namespace. What VMs share, bridges and the table of rules, goes with the last
//! [`Link`] that needs it. All of it bears the owner's mark, by which the owner that follows one
//! that was killed finds what is left.
#![deny(unsafe_code)]

mod error;
mod plan;
mod policy;

#[cfg(target_os = "linux")]
mod links;
#[cfg(target_os = "linux")]
mod namespace;
#[cfg(target_os = "linux")]
mod nft;
#[cfg(target_os = "linux")]
mod rules;
#[cfg(target_os = "linux")]
mod tap;
#[cfg(target_os = "linux")]
mod worker;

#[cfg(not(target_os = "linux"))]
mod elsewhere;

pub use error::NetworkError;
pub use plan::{Bridge, Isolated, is_device_name, is_tap_prefix};
pub use policy::{Destination, DestinationError, Policy};

#[cfg(target_os = "linux")]
pub use worker::{Apart, Link, Networks};

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{Apart, Link, Networks};
