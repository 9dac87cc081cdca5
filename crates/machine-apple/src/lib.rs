//! The backend of [`slicer_machine`] for Apple silicon, on the Virtualization framework.
//!
//! It can only run on a Mac, so all that can be decided without one is: what a machine is made of
//! ([`plan`]), and what happens when ([`machine`], and what it uses), against a framework that is a
//! trait ([`framework`]). What is left, `virtualization`, translates calls.
#![deny(unsafe_code)]

mod channel;
pub mod framework;
mod machine;
mod note;
mod owner;
pub mod plan;
pub mod power;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
#[cfg(target_os = "macos")]
mod virtualization;

#[cfg(target_os = "macos")]
pub use virtualization::{Virtualization, power as iokit};

use async_trait::async_trait;
use framework::{Framework, Host};
use note::Note;
use plan::Plan;
use slicer_machine::{
    Arch, Capabilities, DiskFormat, Hypervisor, Machine, MachineError, MachineSpec,
};
use std::path::Path;

/// The name errors and configurations use.
pub(crate) const NAME: &str = "apple";

/// The backend, over a framework.
pub struct Apple<F> {
    framework: F,
    host: Host,
    capabilities: Capabilities,
}

impl<F: Framework> Apple<F> {
    /// A backend on this host.
    pub fn new(framework: F) -> Self {
        let host = framework.host();
        let capabilities = Capabilities {
            archs: vec![Arch::Aarch64],
            save_restore: host.save_restore,
            templates: false,
            shares: Ok(()),
            rosetta: host.rosetta.check(),
            disk_formats: vec![DiskFormat::Raw],
        };
        Self {
            framework,
            host,
            capabilities,
        }
    }
}

#[async_trait]
impl<F: Framework> Hypervisor for Apple<F> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn kernel_args(&self, _: Arch) -> String {
        format!("console=hvc0 slicer.vsock={}", channel::PORT)
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Box<dyn Machine>, MachineError> {
        let plan = Plan::new(&spec, &self.host, self.framework.new_identifier())?;
        let machine = machine::AppleMachine::make(&self.framework, &spec.name, &plan, &self.host)?;
        machine.start().await?;
        Ok(Box::new(machine))
    }

    async fn restore(
        &self,
        spec: MachineSpec,
        memory: &Path,
        note: &str,
    ) -> Result<Box<dyn Machine>, MachineError> {
        if !self.host.save_restore {
            return Err(machine::no_save(&self.host));
        }
        let note = Note::read(&spec.name, note)?;
        let plan = Plan::new(&spec, &self.host, note.identifier(&spec.name)?)?;
        note.check(&spec.name, &plan)?;
        let machine = machine::AppleMachine::make(&self.framework, &spec.name, &plan, &self.host)?;
        machine.restore(memory, &note, &self.host).await?;
        Ok(Box::new(machine))
    }

    /// A machine is a process of the system's that ends with the one that made it.
    async fn reap(&self, _: &Path) -> Result<(), MachineError> {
        Ok(())
    }
}
