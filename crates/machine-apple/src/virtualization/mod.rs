//! The Virtualization framework itself, for [`crate::framework`]. It translates and decides nothing.
//!
//! Configurations are plain objects that nobody shares, so they are made on any thread. A machine,
//! and all that belongs to it, is touched on its own serial queue only, see [`queue`].
#![expect(
    unsafe_code,
    reason = "the framework is Objective-C, and every call of it unsafe"
)]

mod configuration;
mod error;
pub mod power;
mod queue;
pub mod usage;
mod vm;

use crate::NAME;
use crate::framework::{Event, Framework, Host, Rosetta, VzError};
use crate::plan::Plan;
use objc2::available;
use objc2::rc::autoreleasepool;
use objc2_foundation::NSProcessInfo;
use objc2_virtualization::{
    VZGenericMachineIdentifier, VZLinuxRosettaAvailability, VZLinuxRosettaDirectoryShare,
    VZVirtualMachine, VZVirtualMachineConfiguration,
};
use slicer_machine::MachineError;
use tokio::sync::mpsc;
use vm::VzVm;

/// Apple's Virtualization framework.
pub struct Virtualization(());

impl Virtualization {
    /// The framework, if it can run VMs here.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] on Macs without Apple silicon, and where the system can't.
    pub fn new() -> Result<Self, MachineError> {
        let unsupported = |why: &str| {
            Err(MachineError::Unsupported {
                what: "running VMs",
                backend: NAME,
                why: why.to_owned(),
            })
        };
        if !cfg!(target_arch = "aarch64") {
            return unsupported("it needs a Mac with Apple silicon");
        }
        // SAFETY: a class method without arguments.
        if !unsafe { VZVirtualMachine::isSupported() } {
            return unsupported(
                "this system has no virtualization to give, as in a VM without nested \
                 virtualization: use the Mac itself",
            );
        }
        Ok(Self(()))
    }
}

impl Framework for Virtualization {
    type Vm = VzVm;

    fn host(&self) -> Host {
        autoreleasepool(|_| {
            // SAFETY: class methods without arguments.
            let (cpus, memory_bytes, rosetta) = unsafe {
                (
                    VZVirtualMachineConfiguration::minimumAllowedCPUCount()
                        ..=VZVirtualMachineConfiguration::maximumAllowedCPUCount(),
                    VZVirtualMachineConfiguration::minimumAllowedMemorySize()
                        ..=VZVirtualMachineConfiguration::maximumAllowedMemorySize(),
                    VZLinuxRosettaDirectoryShare::availability(),
                )
            };
            let version = NSProcessInfo::processInfo().operatingSystemVersionString();
            Host {
                cpus,
                memory_bytes,
                rosetta: match rosetta {
                    VZLinuxRosettaAvailability::Installed => Rosetta::Installed,
                    VZLinuxRosettaAvailability::NotInstalled => Rosetta::NotInstalled,
                    _ => Rosetta::NotSupported,
                },
                save_restore: available!(macos = 14.0),
                version: format!("macOS {version}"),
            }
        })
    }

    fn new_identifier(&self) -> Vec<u8> {
        autoreleasepool(|_| {
            // SAFETY: a constructor without arguments, and a getter of what it made.
            let data = unsafe { VZGenericMachineIdentifier::new().dataRepresentation() };
            data.to_vec()
        })
    }

    fn build(&self, plan: &Plan, events: mpsc::Sender<Event>) -> Result<VzVm, VzError> {
        autoreleasepool(|_| {
            error::caught(|| {
                let configuration = configuration::build(plan)?;
                let can_save = configuration::can_save(&configuration);
                VzVm::new(configuration, can_save, events)
            })
        })
    }
}
