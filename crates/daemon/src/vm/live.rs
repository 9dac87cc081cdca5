//! Forks of a VM that runs: it is paused for a moment, others begin as what it was then, and it goes on.

use super::disk::DiskGate;
use super::launch::{derive, prepare, spec};
use super::{Launched, Phase, Vm};
use crate::DaemonError;
use crate::attend::UntilReady;
use crate::config::NetworkConfig;
use crate::files;
use crate::images::GroupImage;
use crate::record::{DiskKind, Origin, VmRecord, draw_id};
use crate::supervisor::Shared;
use crate::templates::{Place, Templates};
use crate::workdir::WorkDir;
use serde::{Deserialize, Serialize};
use slicer_api::ApiError;
use slicer_image::{backing_file, overlay_disk, reflink_file};
use slicer_machine::{Machine, MachineSpec};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

/// Most snapshots that a VM's disk lies over: each is a file that QEMU keeps open.
const MAX_DEPTH: usize = 64;

/// What a VM was at one moment. When it is dropped its memory is removed; its disk, when nobody reads from
/// it any more.
pub(crate) struct Snapshot {
    /// The VM's record at that moment.
    pub(crate) record: VmRecord,
    /// How long the VM was paused.
    pub(crate) paused: Duration,
    place: Place,
    disk: DiskKind,
    /// What the hypervisor has to know.
    note: String,
    origin: Origin,
    templates: Arc<Templates>,
}

impl Snapshot {
    /// What those began as that begin as this.
    pub(crate) fn origin(&self) -> Origin {
        self.origin.clone()
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let (templates, place) = (self.templates.clone(), self.place.clone());
        // What of this the daemon's end cuts short is left to the next.
        spawn_blocking(move || templates.clear_or_warn(&place));
    }
}

impl Vm {
    /// Takes a snapshot of the VM, which runs on.
    pub(super) async fn snapshot(&mut self) -> Result<Snapshot, ApiError> {
        let name = self.record.hostname.clone();
        let machine = match (self.phase(), self.machine()) {
            (Phase::Running, Some(machine)) if self.view.borrow().ready => machine,
            (Phase::Running | Phase::Launching, _) => {
                return Err(ApiError::unavailable(format!(
                    "VM {name} is not ready: it is booting, or its agent is starting anew; try \
                     again shortly"
                )));
            }
            (Phase::Paused, _) => {
                return Err(ApiError::conflict(format!(
                    "VM {name} is paused: resume it first"
                )));
            }
            _ => return Err(ApiError::conflict(format!("VM {name} is not running"))),
        };
        if !self.shared.hypervisor.capabilities().templates {
            return Err(ApiError::unsupported(format!(
                "{} can't fork a VM that runs: shut it down, commit it, and fork that",
                self.shared.hypervisor.name()
            )));
        }
        if !self.image.group().shares.is_empty() {
            return Err(ApiError::unsupported(format!(
                "VM {name} has shared folders, which can't be forked while it runs: shut it down, \
                 commit it, and fork that"
            )));
        }
        self.take(&name, &machine).await.map_err(|e| {
            let text = format!("cannot fork VM {name}: {e}");
            if e.is_disk_full() {
                ApiError::insufficient_storage(format!("{text}: {}", crate::error::FREE_SPACE))
            } else if matches!(e, DaemonError::TooDeep { .. }) {
                e.to_api()
            } else {
                ApiError::internal(text)
            }
        })
    }

    async fn take(
        &mut self,
        name: &str,
        machine: &Arc<dyn Machine>,
    ) -> Result<Snapshot, DaemonError> {
        let Some(disk) = self.record.disk else {
            return Err(DaemonError::Internal("forking a VM that has no disk"));
        };
        let id = draw_id("snap")?;
        let place = self.shared.templates.place(&id);
        let made = DirBuilder::new().mode(0o700).create(place.dir());
        made.map_err(DaemonError::io("create", place.dir()))?;
        let mut snapshot = Snapshot {
            record: self.record.clone(),
            paused: Duration::ZERO,
            place,
            disk,
            note: String::new(),
            origin: Origin {
                id,
                live: true,
                clonable: self.record.template.as_ref().is_some_and(|t| t.clonable),
                mac: self.record.mac,
            },
            templates: self.shared.templates.clone(),
        };
        if self.record.is_kept() && disk == DiskKind::Raw {
            let (place, before) = (snapshot.place.clone(), Before::of(&self.record));
            let noted = spawn_blocking(move || before.save(&place)).await;
            noted.map_err(|_| DaemonError::Internal("noting a fork"))??;
        }
        let mut started = None;
        let mut laid = Ok(false);
        let keep = async {
            started = Some(Instant::now());
            laid = keep_disk(&self.shared.work, name, machine, &snapshot).await;
            laid.is_ok()
        };
        let memory = snapshot.place.memory();
        let note = machine.snapshot(&memory, Box::pin(keep)).await;
        let resumed = machine.resume().await;
        snapshot.paused = started.map_or(Duration::ZERO, |started: Instant| started.elapsed());
        let laid = laid?;
        resumed?;
        if laid && disk != DiskKind::Qcow2 {
            self.record.disk = Some(DiskKind::Qcow2);
            self.save().await?;
        }
        let place = snapshot.place.clone();
        let forgotten = spawn_blocking(move || Before::forget(&place)).await;
        forgotten.map_err(|_| DaemonError::Internal("noting a fork"))??;
        snapshot.note = note?;
        info!("{name}: forked, paused for {:.0?}", snapshot.paused);
        Ok(snapshot)
    }
}

/// Gives a snapshot the disk of a VM that is paused. Answers whether the VM's disk is another one now.
async fn keep_disk(
    work: &Arc<WorkDir>,
    name: &str,
    machine: &Arc<dyn Machine>,
    snapshot: &Snapshot,
) -> Result<bool, DaemonError> {
    let internal = || DaemonError::Internal("taking a snapshot of a disk");
    let (dir, vm, kind) = (work.clone(), name.to_owned(), snapshot.disk);
    let place = snapshot.place.clone();
    let laid = spawn_blocking(move || lay_over(&dir, &vm, kind, &place)).await;
    let laid = laid.map_err(|_| internal())??;
    if laid {
        let overlay = work.disk(name);
        if let Err(e) = machine.snapshot_disk("root", &overlay).await {
            // It goes on in the disk it has, under its name of before.
            let (base, disk) = (snapshot.place.disk(), overlay);
            let back = spawn_blocking(move || fs::rename(base, &disk)).await;
            if !matches!(back, Ok(Ok(()))) {
                warn!("{name}: its disk is in {}", snapshot.place.dir().display());
            }
            return Err(e.into());
        }
    }
    Ok(laid)
}

/// Whose disk is about to become a snapshot's, in `before.json`: should the daemon die before the VM's
/// record says of what format its disk is then, the next one writes that down.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    hostname: String,
    mac: [u8; 6],
}

impl Before {
    fn of(record: &VmRecord) -> Self {
        Self {
            hostname: record.hostname.clone(),
            mac: record.mac,
        }
    }

    fn path(place: &Place) -> PathBuf {
        place.dir().join("before.json")
    }

    fn save(&self, place: &Place) -> Result<(), DaemonError> {
        let (path, text) = (
            Self::path(place),
            serde_json::to_vec(self).unwrap_or_default(),
        );
        files::write_atomically(&path, &text).map_err(DaemonError::io("write", path))?;
        let all = place.dir().parent().unwrap_or(place.dir());
        files::sync_dir(all).map_err(DaemonError::io("write", all))
    }

    fn forget(place: &Place) -> Result<(), DaemonError> {
        let path = Self::path(place);
        files::remove(&path).map_err(DaemonError::io("remove", path))
    }
}

/// Ends what a daemon that died had begun with a VM's disk for this place. Blocks.
pub(crate) fn settle(work: &WorkDir, place: &Place) -> Result<(), DaemonError> {
    let Ok(text) = fs::read(Before::path(place)) else {
        return Ok(());
    };
    if let Ok(before) = serde_json::from_slice::<Before>(&text) {
        let records = VmRecord::read_all(work)?;
        let found = records
            .into_iter()
            .find(|r| r.hostname == before.hostname && r.mac == before.mac);
        if let Some(mut record) = found
            && record.disk == Some(DiskKind::Raw)
            && is_another(&work.disk(&record.hostname), &place.disk())
        {
            record.disk = Some(DiskKind::Qcow2);
            record.save(work)?;
        }
    }
    Before::forget(place)
}

/// Whether both are there, and are not one file.
fn is_another(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one != other)
}

/// Gives a snapshot the disk of a VM that is paused. Where files can't share blocks, it gets the file
/// itself, and the VM a new one over it, to which its machine has yet to change: then true. Blocks.
fn lay_over(work: &WorkDir, vm: &str, kind: DiskKind, place: &Place) -> Result<bool, DaemonError> {
    let (disk, own) = (work.disk(vm), place.disk());
    if reflink_file(&disk, &own)? {
        return Ok(false);
    }
    check_depth(work, vm, kind)?;
    fs::hard_link(&disk, &own)
        .and_then(|()| files::sync_dir(place.dir()))
        .map_err(DaemonError::io("link", &own))?;
    // Under its name, in one step, and before the machine changes to it: whenever the daemon dies, and
    // the machine with it, the two together are what the VM has written.
    overlay_disk(&own, kind.into(), &disk)?;
    slicer_fault::point("snapshot.overlay");
    Ok(true)
}

/// Refuses to lay one more over a disk that lies over too many snapshots. Only what a record calls qcow2
/// is looked into: a guest may write a header into a raw disk, and name whatever it likes there.
fn check_depth(work: &WorkDir, vm: &str, kind: DiskKind) -> Result<(), DaemonError> {
    let mut disk = work.disk(vm);
    if kind == DiskKind::Raw {
        return Ok(());
    }
    for _ in 0..MAX_DEPTH {
        match backing_file(&disk)? {
            // Below the last snapshot is a template, a commit or a base.
            Some(below) if below.starts_with(work.templates()) => disk = below,
            _ => return Ok(()),
        }
    }
    Err(DaemonError::TooDeep {
        vm: vm.to_owned(),
        limit: MAX_DEPTH,
    })
}

/// Begins a VM as a snapshot.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    image: &Arc<GroupImage>,
    record: &VmRecord,
    network: &NetworkConfig,
    gate: DiskGate,
    snapshot: &Snapshot,
) -> Result<Launched, DaemonError> {
    let started = Instant::now();
    let name = &record.hostname;
    let prepared = prepare(shared, image, record).await?;
    let turn = shared.turns.take().await;
    let (base, kind) = (snapshot.place.disk(), snapshot.disk);
    let (disk, formats) = (
        shared.work.disk(name),
        shared.hypervisor.capabilities().disk_formats.clone(),
    );
    let job = move || gate.pass(|| derive(&base, kind, &disk, false, &formats));
    let made = spawn_blocking(job).await.ok().flatten();
    let disk = made.ok_or(DaemonError::Internal("making a fork's disk"))??;
    slicer_fault::point("snapshot.disk");
    let state_dir = shared.work.run(name);
    fs::create_dir_all(&state_dir).map_err(DaemonError::io("create", &state_dir))?;
    let card = shared.networking.card_apart(network, record).await?;
    let spec = MachineSpec {
        network: Some(card.network),
        ..spec(shared, record, &prepared, disk)
    };
    let memory = snapshot.place.memory();
    let machine = shared
        .hypervisor
        .restore(spec, &memory, &snapshot.note)
        .await?;
    shared.networking.keep(card.link, &*machine);
    info!("{name}: forked in {:.0?}", started.elapsed());
    Ok(Launched {
        template: Some(snapshot.origin()),
        until_ready: UntilReady {
            apart: card.apart,
            turn,
        },
        ..Launched::new(disk, Arc::from(machine))
    })
}
