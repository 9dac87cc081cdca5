//! A VM that was booted ahead, and that nobody has yet: its guest has no identity.

use super::launch::launch;
use super::{DiskGate, Launched, identity, remove_files};
use crate::DaemonError;
use crate::config::NetworkConfig;
use crate::files;
use crate::guest;
use crate::images::GroupImage;
use crate::record::VmRecord;
use crate::supervisor::Shared;
use crate::workdir::WorkDir;
use slicer_machine::{Machine, MachineState};
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing::warn;

/// What no VM's name has in it, and a spare's has.
const MARK: char = '+';
/// How long a spare may take until its agent is there.
const BOOT_TIME: Duration = Duration::from_mins(10);

/// Its files have its own name until it is given away.
pub(crate) struct Spare {
    /// What it was launched by. Name, and what users ask for, are not its own.
    pub(crate) record: VmRecord,
    /// Of which image it is.
    pub(crate) image_digest: String,
    // Before the hold, which removes the files it uses.
    machine: Arc<dyn Machine>,
    hold: Hold,
}

/// The name of a group's spare with this number.
pub(crate) fn name(group: &str, number: u64) -> String {
    format!("{group}{MARK}{number}")
}

impl Spare {
    /// Boots one, and waits for its agent.
    ///
    /// # Errors
    /// When it can't be launched, or its agent isn't there in time. Nothing of it is left then.
    pub(crate) async fn boot(
        shared: &Arc<Shared>,
        image: &Arc<GroupImage>,
        network: &NetworkConfig,
        record: VmRecord,
        hold: Hold,
    ) -> Result<Self, DaemonError> {
        let gate = hold.gate.clone();
        let image_digest = image.prepare().await?.image_digest.clone();
        let launched = launch(shared, image, &record, network, gate).await?;
        let machine = launched.machine;
        // Nobody waits for the rest.
        drop(launched.until_ready);
        match tokio::time::timeout(BOOT_TIME, machine.connect()).await {
            Ok(stream) => drop(stream?),
            Err(_) => return Err(DaemonError::Internal("waiting for a spare VM's agent")),
        }
        let record = VmRecord {
            disk: Some(launched.disk),
            template: launched.template,
            ..record
        };
        // One who becomes somebody for the second time does so sooner.
        let rehearsed =
            guest::rehearse(&*machine, &identity::of_nobody(&record, image, network)).await;
        if let Err(e) = rehearsed {
            warn!("{}: it is not rehearsed: {e}", record.hostname);
        }
        Ok(Self {
            record,
            image_digest,
            machine,
            hold,
        })
    }

    /// Whether a VM of this record would be as this one is.
    pub(crate) fn fits(&self, record: &VmRecord) -> bool {
        let own = &self.record;
        let shape = |r: &VmRecord| (r.cpus, r.ram_bytes, r.arch.clone(), r.image.clone());
        shape(own) == shape(record)
            && !record.is_kept()
            && !record.wants_entrypoint
            && record.network.is_none()
            && record.parent_commit_id.is_none()
    }

    /// Whether its machine is there.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(*self.machine.state().borrow(), MachineState::Stopped(_))
    }

    /// Freezes it.
    pub(crate) async fn pause(&self) {
        if let Err(e) = self.machine.pause().await {
            warn!("{}: it is not paused: {e}", self.record.hostname);
        }
    }

    /// Host memory it takes, bytes, where that is known.
    pub(crate) fn memory(&self) -> u64 {
        self.machine.host_memory().map_or(0, |m| m.resident)
    }

    /// Ends it, and removes all there is of it.
    pub(crate) async fn discard(self) {
        let name = self.record.hostname.clone();
        if let Err(e) = self.machine.kill().await {
            warn!("{name}: {e}");
        }
        drop(self.machine);
        if let Some(removing) = self.hold.release()
            && let Err(e) = removing.await
        {
            warn!("{name}: {e}");
        }
    }

    /// Gives it to the VM of this name, whose disk and machine it is from then on.
    ///
    /// # Errors
    /// When its machine or one of its files is gone. What is left of it is removed.
    pub(super) async fn give(
        self,
        shared: &Shared,
        to: &str,
        gate: DiskGate,
    ) -> Result<Launched, DaemonError> {
        let from = self.record.hostname.clone();
        let (work, to) = (shared.work.clone(), to.to_owned());
        let renamed = tokio::task::spawn_blocking(move || {
            gate.pass(|| rename(&work, &from, &to))
                .unwrap_or(Err(DaemonError::Internal("taking over a spare VM")))
        });
        let renamed = renamed.await;
        renamed.unwrap_or(Err(DaemonError::Internal("taking over a spare VM")))?;
        self.machine.resume().await?;
        self.hold.keep();
        let disk = self.record.disk;
        let disk = disk.ok_or(DaemonError::Internal("finding a spare VM's disk"))?;
        Ok(Launched {
            template: self.record.template,
            ..Launched::new(disk, self.machine)
        })
    }
}

/// Gives a spare's files another name. What tells the next daemon of its process goes first: with it
/// the rest is the other VM's.
fn rename(work: &WorkDir, from: &str, to: &str) -> Result<(), DaemonError> {
    let (old, new) = (work.run(from), work.run(to));
    files::remove_tree(&new).map_err(DaemonError::io("remove", &new))?;
    fs::rename(&old, &new).map_err(DaemonError::io("rename", old))?;
    slicer_fault::point("spare.given");
    let (old, new) = (work.disk(from), work.disk(to));
    fs::rename(&old, &new).map_err(DaemonError::io("rename", old))?;
    let (old, new) = (work.console(from), work.console(to));
    fs::rename(&old, &new).map_err(DaemonError::io("rename", old))
}

/// A spare's address and files, given up when it is dropped, wherever that is.
pub(crate) struct Hold {
    shared: Arc<Shared>,
    name: Option<String>,
    ip: Ipv4Addr,
    gate: DiskGate,
}

impl Hold {
    /// Holds an address that was taken for the spare of this name.
    pub(crate) fn new(shared: &Arc<Shared>, name: String, ip: Ipv4Addr) -> Self {
        Self {
            shared: shared.clone(),
            name: Some(name),
            ip,
            gate: DiskGate::default(),
        }
    }

    /// Leaves all to the VM that has it now.
    fn keep(mut self) {
        self.name = None;
    }

    /// Gives all up; the files are gone when the task is done.
    fn release(mut self) -> Option<JoinHandle<()>> {
        self.give_up()
    }

    fn give_up(&mut self) -> Option<JoinHandle<()>> {
        let name = self.name.take()?;
        self.shared.release_address(self.ip);
        let (shared, gate) = (self.shared.clone(), self.gate.clone());
        // Its disk may be in the making. What of this the daemon's end cuts short is left to the next.
        Some(tokio::task::spawn_blocking(move || {
            match gate.close(|| remove_files(&shared.work, &name)) {
                Ok(()) => shared.templates.tidy(),
                Err(e) => warn!("{name}: {e}"),
            }
        }))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// The spares of which an earlier daemon has left something.
pub(crate) fn left(work: &WorkDir) -> Result<Vec<String>, DaemonError> {
    let mut names = Vec::new();
    let state = work.run("");
    let places = [(work.root(), Some("img")), (state.as_path(), None)];
    for (dir, extension) in places {
        for entry in fs::read_dir(dir).map_err(DaemonError::io("read", dir))? {
            let entry = entry.map_err(DaemonError::io("read", dir))?;
            let path = entry.path();
            let stem = match extension {
                Some(_) if path.extension().and_then(|e| e.to_str()) != extension => continue,
                Some(_) => path.file_stem(),
                None => path.file_name(),
            };
            if let Some(name) = stem.and_then(|s| s.to_str())
                && is_spare(name)
            {
                names.push(name.to_owned());
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn is_spare(name: &str) -> bool {
    name.rsplit_once(MARK)
        .is_some_and(|(group, n)| !group.is_empty() && n.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_spares_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        for file in [
            "sbox-1.img",
            "sbox+1.img",
            "sbox+x.img",
            "+1.img",
            "sbox+7.txt",
        ] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        for run in ["sbox-1", "sbox+1", "a-b+12"] {
            fs::create_dir_all(work.run(run)).unwrap();
        }
        assert_eq!(left(&work).unwrap(), ["a-b+12", "sbox+1"]);
    }

    #[test]
    fn files_change_hands() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let spare = name("sbox", 3);
        fs::write(work.disk(&spare), "disk").unwrap();
        fs::write(work.console(&spare), "console").unwrap();
        fs::create_dir_all(work.run(&spare)).unwrap();
        fs::write(work.run(&spare).join("note"), "pid").unwrap();
        fs::create_dir_all(work.run("sbox-1")).unwrap();
        rename(&work, &spare, "sbox-1").unwrap();
        assert_eq!(fs::read(work.disk("sbox-1")).unwrap(), b"disk");
        assert_eq!(fs::read(work.console("sbox-1")).unwrap(), b"console");
        assert_eq!(fs::read(work.run("sbox-1").join("note")).unwrap(), b"pid");
        assert!(left(&work).unwrap().is_empty());
    }
}
