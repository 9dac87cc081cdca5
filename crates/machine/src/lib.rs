//! The one seam between slicer and a hypervisor.
//!
//! It sits at the level of a managed VM: launch, connect, pause, resume, stop. Nothing here speaks
//! of vCPU loops or devices, so that Apple's Virtualization framework and QEMU both fit behind it
//! unchanged, and nothing above it may ask which of the two it talks to: what differs is a
//! [`Capabilities`] flag or an [`MachineError::Unsupported`].
#![forbid(unsafe_code)]

mod error;
mod memory;
mod spec;

pub use error::MachineError;
pub use memory::HostMemory;
pub use spec::{
    Arch, Boot, Disk, DiskFormat, MacAddress, MachineSpec, Network, ROSETTA_TAG, Share, Tap,
    TapNetwork, UserNetwork,
};

use async_trait::async_trait;
use std::path::Path;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// A fresh, reliable, ordered byte stream to the guest's agent.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestStream for T {}

/// What a backend can do here, on this host. Asked once at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Guest architectures it can run.
    pub archs: Vec<Arch>,
    /// Whether a paused VM's memory can be saved to a file and restored.
    pub save_restore: bool,
    /// Whether templates can be made of VMs, see [`Hypervisor::launch_template`], and VMs that run be
    /// forked, see [`Machine::snapshot`].
    pub templates: bool,
    /// Whether host folders can be shared into a guest, or why not and what to do about it.
    pub shares: Result<(), String>,
    /// Whether guests can be given Rosetta, or why not and what to do about it.
    pub rosetta: Result<(), String>,
    /// The disk formats it can attach.
    pub disk_formats: Vec<DiskFormat>,
}

/// How a VM is doing, as its backend sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// Its CPUs run.
    Running,
    /// Its CPUs are frozen.
    Paused,
    /// Its backend froze its CPUs, for this reason, in the midst of a write that the host can't take
    /// now. Resumed, it tries again; nothing is lost meanwhile.
    Stalled(String),
    /// It is gone, for this reason. Nothing follows.
    Stopped(StopReason),
}

/// Why a VM is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The guest powered off or asked for a reboot, which never restarts it.
    Guest,
    /// It was told to, by [`Machine::kill`].
    Killed,
    /// The backend or its process failed; the text says how.
    Crashed(String),
}

/// What was saved of a VM that was to be a template.
#[derive(Debug, Clone, Copy)]
pub struct Template<'a> {
    /// Its memory.
    pub memory: &'a Path,
    /// The state of its devices.
    pub state: &'a Path,
    /// What [`Machine::save_template`] answered.
    pub note: &'a str,
}

/// A way to run virtual machines. One exists per daemon.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// The name a configuration selects it by: `qemu`, `apple`.
    fn name(&self) -> &'static str;

    /// What it can do on this host.
    fn capabilities(&self) -> &Capabilities;

    /// Fails when it can't run guests of this architecture, and says what to do about it.
    fn check_arch(&self, arch: Arch) -> Result<(), MachineError> {
        if self.capabilities().archs.contains(&arch) {
            return Ok(());
        }
        Err(MachineError::Unsupported {
            what: "a guest of another architecture",
            backend: self.name(),
            why: format!("it runs no {} guests: leave `arch` out", arch.go_name()),
        })
    }

    /// The kernel command line's parts that depend on the machine's devices, such as `console=`.
    fn kernel_args(&self, arch: Arch) -> String;

    /// Starts a VM. When this returns, the VM runs; the guest need not have booted. Dropping the
    /// future before that leaves nothing behind.
    async fn launch(&self, spec: MachineSpec) -> Result<Box<dyn Machine>, MachineError>;

    /// Starts a VM whose state [`Machine::save`] wrote to `memory`, with what it answered. `spec` is
    /// of the same machine, over the same disks. When this returns, the VM runs on where it was; on
    /// failure nothing of it has run, and the saved state is as it was.
    ///
    /// # Errors
    /// [`MachineError::Incompatible`] when this machine can never take up that state,
    /// [`MachineError::Unsupported`] where the backend can't.
    async fn restore(
        &self,
        spec: MachineSpec,
        memory: &Path,
        note: &str,
    ) -> Result<Box<dyn Machine>, MachineError>;

    /// Starts a VM of which a template is to be made: its memory is the new file `memory`, so that
    /// nothing of it needs to be copied. What else runs on the host has precedence.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] where the backend can't.
    async fn launch_template(
        &self,
        spec: MachineSpec,
        memory: &Path,
    ) -> Result<Box<dyn Machine>, MachineError> {
        let _ = (spec, memory);
        Err(self.no_templates())
    }

    /// Starts a VM that begins as the one of which `template` was made, all of whose memory it shares
    /// until it writes to it. Its disk is a copy of the template's. When this returns, it runs on where
    /// the other was saved, and is its twin until its agent has been told otherwise. The template's
    /// files are only read.
    ///
    /// # Errors
    /// [`MachineError::Incompatible`] when this machine can never begin as that one,
    /// [`MachineError::Unsupported`] where the backend can't.
    async fn clone_template(
        &self,
        spec: MachineSpec,
        template: &Template<'_>,
    ) -> Result<Box<dyn Machine>, MachineError> {
        let _ = (spec, template);
        Err(self.no_templates())
    }

    /// That there are no templates here.
    fn no_templates(&self) -> MachineError {
        MachineError::Unsupported {
            what: "a template",
            backend: self.name(),
            why: "it can't start VMs from shared memory: have spare ones booted, by `warm_pool`"
                .to_owned(),
        }
    }

    /// Ends whatever a daemon that died left running for the VM whose [`MachineSpec::state_dir`]
    /// this is. Nothing to do is success.
    async fn reap(&self, state_dir: &Path) -> Result<(), MachineError>;
}

fn no_snapshot() -> MachineError {
    MachineError::Unsupported {
        what: "forking a running VM",
        backend: "this hypervisor",
        why: "it can't save a VM that goes on: shut it down, commit it, and fork that".to_owned(),
    }
}

/// What is done while a VM is paused for [`Machine::snapshot`]. It says whether to go on with it.
pub type WhilePaused<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// A VM that was launched. Dropping it kills the VM.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Opens a stream to the agent. Waits for a guest that has not got that far yet, so the caller
    /// bounds it; fails at once when the VM is gone.
    async fn connect(&self) -> Result<Box<dyn GuestStream>, MachineError>;

    /// Freezes the CPUs. Done when it returns; pausing a paused VM is success.
    async fn pause(&self) -> Result<(), MachineError>;

    /// Lets the CPUs run on. Done when it returns; resuming a running VM is success.
    async fn resume(&self) -> Result<(), MachineError>;

    /// Writes the state of a VM that is paused, all but its disks, to a new file, durably. The VM
    /// stays paused, and its disks are not written to until it is resumed. Answers with what
    /// [`Hypervisor::restore`] needs to know besides.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] where the backend can't. Whatever the error, the VM is as it was,
    /// and the file worthless.
    async fn save(&self, memory: &Path) -> Result<String, MachineError>;

    /// Makes a VM that [`Hypervisor::launch_template`] started a template: writes the state of its
    /// devices to a new file, durably, as its memory is then. The VM doesn't run any more: it is to be
    /// killed, which leaves memory and disk as they are. Answers with [`Template::note`].
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] for any other VM. Whatever the error, the template is worthless.
    async fn save_template(&self, state: &Path) -> Result<String, MachineError> {
        let _ = state;
        Err(MachineError::Unsupported {
            what: "a template",
            backend: "this one",
            why: "the VM was not started to be one".to_owned(),
        })
    }

    /// Writes the state of a VM that runs, all but its disks, to a new file, for others to begin as:
    /// as [`Machine::save`], but it need not survive the host. Most is written while the VM runs. Then it is
    /// paused, and `paused` is awaited: the disks are to be kept as they are now; and the rest is written.
    /// It is to be resumed by the caller, also after an error.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] where the backend can't. Whatever the error, the file is worthless.
    async fn snapshot(
        &self,
        memory: &Path,
        paused: WhilePaused<'_>,
    ) -> Result<String, MachineError> {
        let _ = (memory, paused);
        Err(no_snapshot())
    }

    /// Has a disk of a VM that is paused go on in `overlay`, an empty qcow2 image over the disk's file,
    /// which is never written to again.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] where the backend can't. Whatever the error, the disk is as it was.
    async fn snapshot_disk(&self, disk: &str, overlay: &Path) -> Result<(), MachineError> {
        let _ = (disk, overlay);
        Err(no_snapshot())
    }

    /// Takes the host folders out of a running guest, with which [`Machine::save`] may not be able to
    /// cope. The guest is to have unmounted them: what still uses them fails. Without any, success.
    async fn detach_shares(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Brings back those that were taken out, as a restore does by itself. The guest is to mount
    /// them again.
    async fn attach_shares(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Presses the power button; whether the guest heeds it shows in [`Machine::state`].
    async fn request_stop(&self) -> Result<(), MachineError>;

    /// Ends the VM at once. When it returns, no process and no lock of it is left; killing a VM
    /// that is gone is success.
    async fn kill(&self) -> Result<(), MachineError>;

    /// What the VM takes of the host's memory now; none where the backend can't tell, or the VM is
    /// gone. Doesn't block.
    fn host_memory(&self) -> Option<HostMemory> {
        None
    }

    /// The VM's state, now and as it changes.
    fn state(&self) -> watch::Receiver<MachineState>;

    /// Counts how often a share came anew by itself, after what served it had failed: the guest is to
    /// mount it again then. Closed at once, or with the VM, when that can't happen.
    fn shares_renewed(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}
