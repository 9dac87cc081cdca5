//! A VM's state, all but its disks, to a file and back: a migration whose way is a file
//! (<https://www.qemu.org/docs/master/devel/migration/main.html>).

use crate::Accelerator;
use crate::args::{self, Memory};
use crate::version::Version;
use crate::vm::QemuMachine;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slicer_channel::Trigger;
use slicer_machine::{Machine, MachineError, MachineSpec, MachineState, StopReason};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

/// How long a state may take to be written or read, whatever the VM's size.
const MIGRATION_TIME: Duration = Duration::from_mins(10);
/// How long QEMU may take to end after it failed to load a state.
const LAST_WORDS_TIME: Duration = Duration::from_secs(2);
/// Between two looks whether QEMU has put a migration behind it.
const FINALIZE_PAUSE: Duration = Duration::from_millis(1);
/// Bytes a second at which a guest is written: as fast as it goes.
const BANDWIDTH: u64 = 1 << 40;
/// How long a guest that runs while it is written may be paused for what it has written to since, ms: when
/// less than that is left, it is paused. QEMU takes what it wrote of late for its speed, so that the
/// pause is far shorter.
const DOWNTIME_MS: u64 = 150;
/// One that writes faster than its memory can be written out is paused after so long, whatever is left.
const CONVERGE_TIME: Duration = Duration::from_secs(3);
/// The longest pause that can be asked for, ms.
const ANY_DOWNTIME_MS: u64 = 2_000_000;
/// The name under which QEMU is handed the file.
const FD_NAME: &str = "memory";

/// How far a state is that is being written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Migration {
    /// None was begun.
    None,
    /// All but the last of it is written; the machine is paused, and goes on when it is told to.
    Switching,
    Completed,
    Failed,
}

impl Migration {
    /// What an event says, if it says that there is something to do.
    pub(crate) fn of(data: &Value) -> Option<Self> {
        match data["status"].as_str()? {
            "pre-switchover" => Some(Self::Switching),
            "completed" => Some(Self::Completed),
            "failed" | "cancelled" => Some(Self::Failed),
            _ => None,
        }
    }
}

/// Where the memory of a machine is whose state is written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// In the state.
    Within,
    /// In a file that the machine's memory is mapped from.
    Elsewhere,
}

/// Of what machine a state is: another one can't take it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    accelerator: Accelerator,
    /// What of the command line makes the machine the guest sees.
    hardware: Vec<String>,
}

/// Options of QEMU that the guest sees. Others name files and sockets of the host.
const HARDWARE: [&str; 6] = ["-machine", "-bios", "-cpu", "-smp", "-m", "-device"];

impl Origin {
    pub(crate) fn of(spec: &MachineSpec, accelerator: Accelerator) -> Self {
        let args = args::build(spec, accelerator, Memory::Own).unwrap_or_default();
        let pairs = args.windows(2);
        let seen = pairs.filter(|pair| HARDWARE.iter().any(|option| pair[0] == *option));
        Self {
            accelerator,
            hardware: seen
                .map(|pair| format!("{} {}", pair[0].display(), pair[1].display()))
                .collect(),
        }
    }

    /// Without the address of its network card, which is part of the state, and which each clone has its
    /// own of.
    fn without_address(&self) -> Self {
        let bare = |option: &String| match option.split_once(",mac=") {
            Some((before, _)) => before.to_owned(),
            None => option.clone(),
        };
        Self {
            accelerator: self.accelerator,
            hardware: self.hardware.iter().map(bare).collect(),
        }
    }

    /// The first thing in which a machine differs from the one that was saved.
    fn differs(&self, saved: &Self) -> Option<String> {
        if self.accelerator != saved.accelerator {
            return Some(format!(
                "it ran on {:?}, and this host would run it on {:?}",
                saved.accelerator, self.accelerator
            ));
        }
        let now = self.hardware.iter().find(|h| !saved.hardware.contains(h));
        let then = saved.hardware.iter().find(|h| !self.hardware.contains(h));
        match (then, now) {
            (None, None) => None,
            (Some(then), Some(now)) => Some(format!("its machine had {then}, and now has {now}")),
            (Some(then), None) => Some(format!("its machine had {then}, and no longer has")),
            (None, Some(now)) => Some(format!("its machine now has {now}")),
        }
    }
}

/// What must be known of a saved state besides its bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The version of QEMU that wrote it: another one's machine of the same name may differ.
    qemu: String,
    origin: Origin,
    /// The trigger of the guest channel's session.
    #[serde(default)]
    resume: Option<[u8; 16]>,
}

impl Note {
    pub(crate) fn read(vm: &str, text: &str) -> Result<Self, MachineError> {
        serde_json::from_str(text).map_err(|e| incompatible(vm, format!("its note is torn: {e}")))
    }

    pub(crate) fn resume(&self) -> Option<Trigger> {
        self.resume.map(Trigger::from_bytes)
    }

    /// Refuses a state that is of another machine than `spec` makes now.
    pub(crate) fn check(
        &self,
        spec: &MachineSpec,
        accelerator: Accelerator,
    ) -> Result<(), MachineError> {
        let (now, then) = (Origin::of(spec, accelerator), &self.origin);
        match now.without_address().differs(&then.without_address()) {
            Some(why) => Err(incompatible(&spec.name, why)),
            None => Ok(()),
        }
    }
}

fn incompatible(vm: &str, why: String) -> MachineError {
    MachineError::Incompatible {
        vm: vm.to_owned(),
        why,
    }
}

fn io_failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MachineError {
    let path = path.to_owned();
    move |source| MachineError::Io {
        action,
        path,
        source,
    }
}

/// Whether a machine's memory can be written out while it runs.
fn writes_while_it_runs(accelerator: Accelerator, version: &Value) -> bool {
    accelerator == Accelerator::Kvm
        || Version::from_qmp(version).is_some_and(Version::knows_what_is_written)
}

/// Opens a saved state.
pub(crate) async fn open(path: &Path) -> Result<OwnedFd, MachineError> {
    let failed = io_failed("open", path);
    let path = path.to_owned();
    let opened = spawn_blocking(move || File::open(path)).await;
    let file = opened.unwrap_or_else(|e| Err(e.into())).map_err(failed)?;
    Ok(file.into())
}

/// Makes the file that a machine's memory is to be, of this many bytes, all of them zero.
pub(crate) async fn create(path: &Path, size: u64) -> Result<(), MachineError> {
    let failed = io_failed("create", path);
    let path = path.to_owned();
    let made = spawn_blocking(move || new_file(&path)?.set_len(size)).await;
    made.unwrap_or_else(|e| Err(e.into())).map_err(failed)
}

/// Refuses a file of memory that is of another size: one that ends early would end its VMs.
pub(crate) async fn check_size(vm: &str, path: &Path, size: u64) -> Result<(), MachineError> {
    let failed = io_failed("look at", path);
    let looked = tokio::fs::metadata(path).await.map_err(failed)?;
    if looked.len() == size {
        return Ok(());
    }
    let why = format!(
        "{} has {} bytes in place of {size}",
        path.display(),
        looked.len()
    );
    Err(incompatible(vm, why))
}

/// Makes the file a state is written to.
async fn create_new(path: &Path) -> Result<File, MachineError> {
    let create = path.to_owned();
    let created = spawn_blocking(move || new_file(&create));
    let file = created.await.unwrap_or_else(|e| Err(e.into()));
    file.map_err(io_failed("create", path))
}

fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

impl QemuMachine {
    pub(crate) async fn save_to(
        &self,
        path: &Path,
        kept: Kept,
        durable: bool,
    ) -> Result<String, MachineError> {
        let version = self.command("query-version").await?;
        let file = create_new(path).await?;
        let mut migration = self.begin_migration(&file, kept, false).await?;
        if let Err(e) = self.migrated(&mut migration).await {
            let _ = self.command("migrate_cancel").await;
            return Err(e);
        }
        self.finalized().await?;
        if durable {
            let synced = spawn_blocking(move || file.sync_all()).await;
            let synced = synced.unwrap_or_else(|e| Err(e.into()));
            synced.map_err(io_failed("write", path))?;
        }
        self.note(path, &version)
    }

    /// Writes the state of a machine that runs; `paused` is what is done once it doesn't, and says whether to
    /// go on.
    pub(crate) async fn snapshot_to(
        &self,
        path: &Path,
        paused: impl Future<Output = bool>,
    ) -> Result<String, MachineError> {
        let version = self.command("query-version").await?;
        if !writes_while_it_runs(self.origin.accelerator, &version) {
            self.pause().await?;
            if !paused.await {
                return Err(self.migrate_failed("it was called off".to_owned()));
            }
            return self.save_to(path, Kept::Within, false).await;
        }
        let file = create_new(path).await?;
        let mut migration = self.begin_migration(&file, Kept::Within, true).await?;
        let written = async {
            self.switching(&mut migration).await?;
            if !paused.await {
                return Err(self.migrate_failed("it was called off".to_owned()));
            }
            let state = json!({ "state": "pre-switchover" });
            self.command_with("migrate-continue", state, None).await?;
            self.migrated(&mut migration).await
        };
        if let Err(e) = written.await {
            self.call_off(&mut migration).await;
            return Err(e);
        }
        self.finalized().await?;
        self.note(path, &version)
    }

    /// Waits until a machine that is written while it runs is paused for the last of it, and has it paused
    /// when that does not come by itself.
    async fn switching(
        &self,
        migration: &mut watch::Receiver<Migration>,
    ) -> Result<(), MachineError> {
        let mut step = pin!(self.step(migration));
        let in_time = tokio::time::timeout(CONVERGE_TIME, &mut step).await;
        let step = match in_time {
            Ok(step) => step?,
            Err(_) => {
                let parameters = json!({ "downtime-limit": ANY_DOWNTIME_MS });
                self.command_with("migrate-set-parameters", parameters, None)
                    .await?;
                step.await?
            }
        };
        match step {
            Migration::Switching => Ok(()),
            _ => Err(self.why_failed().await),
        }
    }

    /// Ends a migration that came to nothing: the machine then runs as it did before.
    async fn call_off(&self, migration: &mut watch::Receiver<Migration>) {
        if *migration.borrow_and_update() != Migration::Failed
            && self.command("migrate_cancel").await.is_ok()
        {
            // How it ends is told, or nobody is left to tell.
            let _ = tokio::time::timeout(LAST_WORDS_TIME, migration.changed()).await;
        }
    }

    /// Begins to write the state to a file, of a machine that runs as long as it can, or not.
    async fn begin_migration(
        &self,
        file: &File,
        kept: Kept,
        live: bool,
    ) -> Result<watch::Receiver<Migration>, MachineError> {
        self.prepare_migration(file, kept, live).await?;
        let uri = json!({ "uri": format!("fd:{FD_NAME}") });
        let mut migration = self.migration.clone();
        migration.mark_unchanged();
        self.command_with("migrate", uri, None).await?;
        Ok(migration)
    }

    /// What must be known of the state that was just written.
    fn note(&self, path: &Path, version: &Value) -> Result<String, MachineError> {
        let note = Note {
            qemu: version["qemu"].to_string(),
            origin: self.origin.clone(),
            resume: self.channel.resume_trigger().map(Trigger::to_bytes),
        };
        serde_json::to_string(&note).map_err(|e| io_failed("describe", path)(io::Error::other(e)))
    }

    /// Waits until QEMU has put a migration behind it that it said is complete: until then a VM can't be
    /// resumed. It tells of that by no event.
    async fn finalized(&self) -> Result<(), MachineError> {
        let until = tokio::time::Instant::now() + LAST_WORDS_TIME;
        while self.command("query-status").await?["status"] == "finish-migrate" {
            if tokio::time::Instant::now() > until {
                break;
            }
            tokio::time::sleep(FINALIZE_PAUSE).await;
        }
        Ok(())
    }

    /// Reads the state that a machine of the same kind wrote.
    pub(crate) async fn load(
        &self,
        state: &OwnedFd,
        note: &Note,
        kept: Kept,
    ) -> Result<(), MachineError> {
        let version = self.command("query-version").await?["qemu"].to_string();
        if version != note.qemu {
            let why = format!("QEMU {} wrote it, and this is {version}", note.qemu);
            return Err(incompatible(&self.name, why));
        }
        self.prepare_migration(state, kept, false).await?;
        let uri = json!({ "uri": format!("fd:{FD_NAME}") });
        let mut migration = self.migration.clone();
        migration.mark_unchanged();
        self.command_with("migrate-incoming", uri, None).await?;
        if let Err(e) = self.migrated(&mut migration).await {
            let why = self.last_words().await.unwrap_or_else(|| e.to_string());
            return Err(incompatible(&self.name, why));
        }
        Ok(())
    }

    /// What QEMU says that ends because it can't load a state.
    async fn last_words(&self) -> Option<String> {
        let mut state = self.state.clone();
        let stopped = state.wait_for(|s| matches!(s, MachineState::Stopped(_)));
        match tokio::time::timeout(LAST_WORDS_TIME, stopped).await {
            Ok(Ok(state)) => match &*state {
                MachineState::Stopped(StopReason::Crashed(why)) => Some(why.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Readies QEMU for a migration whose way is `file`.
    async fn prepare_migration(
        &self,
        file: &impl AsFd,
        kept: Kept,
        live: bool,
    ) -> Result<(), MachineError> {
        // A clone that is saved itself has its memory's own state, but was told otherwise as it began.
        let capabilities = json!([
            { "capability": "events", "state": true },
            { "capability": "x-ignore-shared", "state": kept == Kept::Elsewhere },
            { "capability": "pause-before-switchover", "state": live },
        ]);
        let capabilities = json!({ "capabilities": capabilities });
        self.command_with("migrate-set-capabilities", capabilities, None)
            .await?;
        let parameters = json!({
            "max-bandwidth": BANDWIDTH,
            "downtime-limit": DOWNTIME_MS,
            // Nobody tells the network five times that this VM has come: the guest can't (see `args`), and
            // QEMU needn't. A fork is still its source then, or half, and neighbours would send to it what
            // is for its source. One that was suspended comes back to its bridge, which finds it by what it
            // sends.
            "announce-rounds": 0,
        });
        self.command_with("migrate-set-parameters", parameters, None)
            .await?;
        let name = json!({ "fdname": FD_NAME });
        let fd = Some(file.as_fd());
        self.command_with("getfd", name, fd).await.map(drop)
    }

    /// Waits until a migration that was begun is over.
    async fn migrated(
        &self,
        migration: &mut watch::Receiver<Migration>,
    ) -> Result<(), MachineError> {
        match self.step(migration).await? {
            Migration::Completed => Ok(()),
            _ => Err(self.why_failed().await),
        }
    }

    /// The next thing that is told of a migration.
    async fn step(
        &self,
        migration: &mut watch::Receiver<Migration>,
    ) -> Result<Migration, MachineError> {
        let gone = || MachineError::Gone {
            vm: self.name.clone(),
        };
        let mut state = self.state.clone();
        let step = async {
            tokio::select! {
                changed = migration.changed() => match changed {
                    Ok(()) => Ok(*migration.borrow()),
                    Err(_) => Err(gone()),
                },
                _ = state.wait_for(|s| matches!(s, MachineState::Stopped(_))) => Err(gone()),
            }
        };
        let step = tokio::time::timeout(MIGRATION_TIME, step).await;
        step.unwrap_or_else(|_| {
            Err(self.migrate_failed(format!("not done within {MIGRATION_TIME:?}")))
        })
    }

    /// Why a migration that was begun has failed.
    async fn why_failed(&self) -> MachineError {
        match self.command("query-migrate").await {
            Ok(query) => {
                let why = query["error-desc"].as_str();
                self.migrate_failed(why.unwrap_or("QEMU doesn't say why").to_owned())
            }
            Err(e) => e,
        }
    }

    fn migrate_failed(&self, why: String) -> MachineError {
        MachineError::Command {
            vm: self.name.clone(),
            command: "migrate",
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(hardware: &[&str]) -> Origin {
        Origin {
            accelerator: Accelerator::Tcg,
            hardware: hardware.iter().map(|h| (*h).to_owned()).collect(),
        }
    }

    #[test]
    fn only_an_emulated_guest_depends_on_the_version() {
        assert!(writes_while_it_runs(Accelerator::Kvm, &json!({})));
        assert!(!writes_while_it_runs(Accelerator::Tcg, &json!({})));
        let ten = json!({ "qemu": { "major": 10 } });
        assert!(writes_while_it_runs(Accelerator::Tcg, &ten));
    }

    #[test]
    fn another_machine_is_told_by_what_differs() {
        let saved = origin(&["-smp 1", "-m 512M"]);
        assert_eq!(saved.differs(&saved), None);
        for (now, why) in [
            (
                origin(&["-smp 2", "-m 512M"]),
                "had -smp 1, and now has -smp 2",
            ),
            (origin(&["-m 512M"]), "had -smp 1, and no longer has"),
            (
                origin(&["-smp 1", "-m 512M", "-device x"]),
                "now has -device x",
            ),
            (
                Origin {
                    accelerator: Accelerator::Kvm,
                    ..saved.clone()
                },
                "ran on Tcg",
            ),
        ] {
            let text = now.differs(&saved).unwrap();
            assert!(text.contains(why), "{text}");
        }
    }
}
