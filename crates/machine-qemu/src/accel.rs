//! KVM or software emulation: only a guest that ran is proof.
//!
//! A `/dev/kvm` that opens may still belong to a host that can't run a stock kernel, and hang. So
//! the first launch boots the very kernel and initramfs it is about to use, under KVM, with
//! `slicer.probe` on its command line; the initramfs' `/init` then prints [`PROBE_OK`] and powers
//! off. What came of it is kept until the host reboots or QEMU changes.

use crate::args;
use crate::process::{Spawner, Start, boot_id};
use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};
use slicer_machine::{Arch, Boot};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;
use tracing::{info, warn};

/// What the guest prints when it runs.
const PROBE_OK: &str = "slicer-probe-ok";
/// Where KVM works, a kernel is up in a fraction of this.
const PROBE_TIME: Duration = Duration::from_secs(8);

/// How a guest's CPUs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the host's CPU.
    Kvm,
    /// By emulation in software.
    Tcg,
}

#[derive(Serialize, Deserialize)]
struct Verdict {
    accelerator: Accelerator,
    boot_id: String,
    /// QEMU's program: path, size, modification time.
    program: (PathBuf, u64, i64),
}

pub(crate) struct AccelChoice {
    file: PathBuf,
    cell: OnceCell<Accelerator>,
}

impl AccelChoice {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self {
            file,
            cell: OnceCell::new(),
        }
    }

    /// The accelerator for guests of this architecture.
    pub(crate) async fn get(
        &self,
        spawner: &Spawner,
        program: &Path,
        arch: Arch,
        boot: &Boot,
    ) -> Accelerator {
        if Some(arch) != Arch::host() {
            return Accelerator::Tcg;
        }
        *self
            .cell
            .get_or_init(|| self.decide(spawner, program, arch, boot))
            .await
    }

    async fn decide(
        &self,
        spawner: &Spawner,
        program: &Path,
        arch: Arch,
        boot: &Boot,
    ) -> Accelerator {
        if access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_err() {
            info!("no usable /dev/kvm: running guests in software emulation");
            return Accelerator::Tcg;
        }
        let program_id = std::fs::metadata(program)
            .map(|m| (program.to_owned(), m.len(), m.mtime()))
            .unwrap_or_default();
        if let Ok(text) = std::fs::read(&self.file)
            && let Ok(kept) = serde_json::from_slice::<Verdict>(&text)
            && (kept.boot_id == boot_id() && kept.program == program_id)
        {
            return kept.accelerator;
        }
        info!("trying a guest under KVM");
        let accelerator = match probe(spawner, program, arch, boot).await {
            Ok(()) => Accelerator::Kvm,
            Err(why) => {
                warn!("KVM does not run a guest here ({why}): using software emulation");
                Accelerator::Tcg
            }
        };
        let verdict = Verdict {
            accelerator,
            boot_id: boot_id(),
            program: program_id,
        };
        if let Err(e) = self.keep(&verdict) {
            warn!(
                "cannot keep the verdict on KVM in {}: {e}",
                self.file.display()
            );
        }
        accelerator
    }

    fn keep(&self, verdict: &Verdict) -> std::io::Result<()> {
        let dir = self.file.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(verdict)?)?;
        file.persist(&self.file)?;
        Ok(())
    }
}

/// Boots a guest that only says it is there.
async fn probe(spawner: &Spawner, program: &Path, arch: Arch, boot: &Boot) -> Result<(), String> {
    let mut args = args::base(arch, Accelerator::Kvm, 1, 256 << 20);
    args.extend(["-kernel".into(), boot.kernel.clone().into_os_string()]);
    args.extend(["-initrd".into(), boot.initramfs.clone().into_os_string()]);
    let cmdline = format!("{} quiet panic=-1 slicer.probe", args::kernel_args(arch));
    args.extend([
        "-append".into(),
        cmdline.into(),
        "-serial".into(),
        "stdio".into(),
    ]);
    let start = Start {
        program: program.to_owned(),
        args,
        sockets: None,
        tap: None,
        dir: None,
        nice: false,
        share: None,
    };
    let mut child = spawner.spawn(start).await.map_err(|e| e.to_string())?;
    let mut seen = Vec::new();
    let read = async {
        let Some(out) = child.stdout.take() else {
            return;
        };
        // Whatever it prints, a trial boot is not listened to for long.
        let mut out = out.take(1 << 20);
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut chunk).await {
            seen.extend_from_slice(&chunk[..n]);
            if String::from_utf8_lossy(&seen).contains(PROBE_OK) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(PROBE_TIME, read).await.is_ok();
    let ok = String::from_utf8_lossy(&seen).contains(PROBE_OK);
    // A guest wedged in the kernel may not die of this; the process is then left to the system,
    // which ends it with the daemon.
    let _ = tokio::time::timeout(Duration::from_secs(2), child.kill()).await;
    match (ok, in_time) {
        (true, _) => Ok(()),
        (false, false) => Err(format!("no sign of life within {PROBE_TIME:?}")),
        (false, true) => {
            let mut text = String::new();
            if let Some(err) = child.stderr.take() {
                let mut err = err.take(4096);
                let read = err.read_to_string(&mut text);
                let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
            }
            Err(text
                .lines()
                .last()
                .unwrap_or("it ended early")
                .trim()
                .to_owned())
        }
    }
}
