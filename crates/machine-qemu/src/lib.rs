//! The QEMU backend of [`slicer_machine`], for Linux hosts.
//!
//! One QEMU process per VM, driven over QMP. Monitor and guest channel are socket pairs handed
//! down at the start: nothing of a VM can be reached through the file system, and no path is too
//! long. The process dies with the daemon.
#![cfg(target_os = "linux")]
#![deny(unsafe_code)]

mod accel;
mod args;
mod channel;
mod console;
mod links;
mod memory;
mod process;
mod qmp;
mod save;
mod shares;
mod userns;
mod version;
mod virtiofsd;
mod vm;

pub use accel::Accelerator;

use accel::AccelChoice;
use args::Memory;
use async_trait::async_trait;
use process::Spawner;
use slicer_machine::{
    Arch, Capabilities, DiskFormat, Hypervisor, Machine, MachineError, MachineSpec, Template,
};
use std::path::{Path, PathBuf};
use tokio::sync::OnceCell;
use version::Version;
use virtiofsd::Virtiofsd;

/// The name errors and configurations use.
const NAME: &str = "qemu";

/// Why no guest gets Rosetta.
const NO_ROSETTA: &str = "it is Apple's, for Linux guests of Macs with Apple silicon: leave out `rosetta`, and \
    run programs for x86-64 in a group with `arch: amd64`";

/// The QEMU backend.
pub struct Qemu {
    capabilities: Capabilities,
    programs: Vec<Program>,
    spawner: Spawner,
    accel: AccelChoice,
    virtiofsd: Result<Virtiofsd, String>,
}

/// A program of QEMU's.
struct Program {
    arch: Arch,
    path: PathBuf,
    /// Asked when it is first needed.
    version: OnceCell<Option<Version>>,
}

impl Qemu {
    /// Looks for QEMU's programs on `PATH`. `verdict_file` is where the outcome of the trial boot
    /// under KVM is kept.
    ///
    /// # Errors
    /// When there is no QEMU for this host's own architecture, or no thread can be started.
    pub fn new(verdict_file: PathBuf) -> Result<Self, MachineError> {
        let programs: Vec<Program> = [Arch::X86_64, Arch::Aarch64]
            .into_iter()
            .filter_map(|arch| {
                Some(Program {
                    arch,
                    path: find_program(args::program(arch))?,
                    version: OnceCell::new(),
                })
            })
            .collect();
        let host = Arch::host();
        if !programs.iter().any(|p| Some(p.arch) == host) {
            return Err(MachineError::ProgramMissing {
                program: host.map_or("qemu-system", args::program).to_owned(),
                hint: host.map_or("no guests run on this host", args::program_hint),
            });
        }
        let virtiofsd = Virtiofsd::find(rustix::process::geteuid().is_root());
        let capabilities = Capabilities {
            archs: programs.iter().map(|p| p.arch).collect(),
            save_restore: true,
            templates: true,
            shares: virtiofsd.as_ref().map(drop).map_err(Clone::clone),
            rosetta: Err(NO_ROSETTA.to_owned()),
            disk_formats: vec![DiskFormat::Raw, DiskFormat::Qcow2],
        };
        let spawner = Spawner::start()?;
        Ok(Self {
            capabilities,
            programs,
            spawner,
            accel: AccelChoice::new(verdict_file),
            virtiofsd,
        })
    }

    fn program(&self, arch: Arch) -> Result<&Program, MachineError> {
        let found = self.programs.iter().find(|p| p.arch == arch);
        found.ok_or_else(|| MachineError::ProgramMissing {
            program: args::program(arch).to_owned(),
            hint: args::program_hint(arch),
        })
    }

    /// The machine with all that its kernel is told when it boots on this accelerator.
    async fn told(&self, spec: &MachineSpec, accel: Accelerator, program: &Program) -> MachineSpec {
        let mut spec = spec.clone();
        if accel == Accelerator::Tcg {
            let ask = || Version::of(&self.spawner, &program.path);
            let version = *program.version.get_or_init(ask).await;
            spec.boot.cmdline += args::emulated_kernel_args(version);
        }
        spec
    }

    /// What serves the VM's shares, if it has any.
    fn virtiofsd(&self, spec: &MachineSpec) -> Result<Option<Virtiofsd>, MachineError> {
        if spec.shares.is_empty() {
            return Ok(None);
        }
        match &self.virtiofsd {
            Ok(found) => Ok(Some(found.clone())),
            Err(why) => Err(MachineError::Unsupported {
                what: "sharing a folder",
                backend: NAME,
                why: why.clone(),
            }),
        }
    }

    /// Starts a machine whose memory is there; `saved` is the file and the note of one that was saved,
    /// which it takes up.
    async fn start(
        &self,
        spec: &MachineSpec,
        memory: Memory<'_>,
        saved: Option<(&Path, &str)>,
    ) -> Result<Box<dyn Machine>, MachineError> {
        if spec.rosetta {
            return Err(MachineError::Unsupported {
                what: "Rosetta",
                backend: NAME,
                why: NO_ROSETTA.to_owned(),
            });
        }
        let program = self.program(spec.arch)?;
        let path = &program.path;
        let virtiofsd = self.virtiofsd(spec)?;
        let accel = self
            .accel
            .get(&self.spawner, path, spec.arch, &spec.boot)
            .await;
        // One that goes on has been told.
        let told = match saved {
            None => &self.told(spec, accel, program).await,
            Some(_) => spec,
        };
        let incoming = match saved {
            None => None,
            Some((state, note)) => {
                let note = save::Note::read(&spec.name, note)?;
                note.check(spec, accel)?;
                let state = save::open(state).await?;
                Some(vm::Incoming { state, note })
            }
        };
        let (spawner, begin) = (&self.spawner, vm::Begin { memory, incoming });
        let machine = vm::QemuMachine::launch(spawner, path, accel, told, virtiofsd, begin).await?;
        Ok(Box::new(machine))
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check_arch(&self, arch: Arch) -> Result<(), MachineError> {
        self.program(arch).map(drop)
    }

    fn kernel_args(&self, arch: Arch) -> String {
        args::kernel_args(arch).to_owned()
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Box<dyn Machine>, MachineError> {
        self.start(&spec, Memory::Own, None).await
    }

    async fn restore(
        &self,
        spec: MachineSpec,
        memory: &Path,
        note: &str,
    ) -> Result<Box<dyn Machine>, MachineError> {
        self.start(&spec, Memory::Own, Some((memory, note))).await
    }

    async fn launch_template(
        &self,
        spec: MachineSpec,
        memory: &Path,
    ) -> Result<Box<dyn Machine>, MachineError> {
        save::create(memory, spec.memory_bytes).await?;
        self.start(&spec, Memory::File(memory), None).await
    }

    async fn clone_template(
        &self,
        spec: MachineSpec,
        template: &Template<'_>,
    ) -> Result<Box<dyn Machine>, MachineError> {
        save::check_size(&spec.name, template.memory, spec.memory_bytes).await?;
        let memory = Memory::Copy(template.memory);
        let saved = Some((template.state, template.note));
        self.start(&spec, memory, saved).await
    }

    async fn reap(&self, state_dir: &Path) -> Result<(), MachineError> {
        process::reap(state_dir).await?;
        let dir = state_dir.to_owned();
        let cleared = tokio::task::spawn_blocking(move || links::clear(&dir)).await;
        cleared
            .unwrap_or_else(|e| Err(e.into()))
            .map_err(|source| MachineError::Io {
                action: "clear",
                path: state_dir.to_owned(),
                source,
            })
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
}
