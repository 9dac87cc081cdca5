//! Makes templates, one at a time, when nobody waits for the host.

use super::record::{Made, Place, Shape, Template};
use crate::attend;
use crate::error::FREE_SPACE;
use crate::guest::{self, GuestError};
use crate::images::{GroupImage, Prepared};
use crate::record::{VmRecord, draw_id};
use crate::supervisor::Shared;
use crate::vm::{DiskGate, Phase, template_spec};
use crate::{DaemonError, console};
use slicer_api::{Identity, NetworkIdentity};
use slicer_machine::{MacAddress, Machine, MachineState, StopReason};
use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long a template may take until its agent is there.
const BOOT_TIME: Duration = Duration::from_mins(10);
/// VMs that are about to be ready come first, this long at most.
const POLITE_TIME: Duration = Duration::from_mins(10);
/// Between two looks whether there are any.
const LOOK: Duration = Duration::from_millis(500);
/// Looks in a row that found none.
const PATIENCE: u32 = 4;
/// After one that could not be made.
const RETRY_TIME: Duration = Duration::from_mins(5);
/// Of the host's memory, what templates leave to others while they boot: one part in this many.
const RESERVE: u64 = 10;
/// Room on disk that is left besides a template, bytes.
const SPARE_ROOM: u64 = 1 << 30;

/// A wish for a template.
pub(crate) struct Want {
    pub(crate) image: Arc<GroupImage>,
    /// That of a VM that would have been its clone.
    pub(crate) record: VmRecord,
}

/// Makes what is wanted.
pub(crate) struct Maker {
    shared: Arc<Shared>,
    wants: mpsc::Receiver<Want>,
    /// Shapes that could not be made, and when.
    failed: Vec<(Shape, Instant)>,
}

impl Maker {
    pub(crate) fn new(shared: Arc<Shared>, wants: mpsc::Receiver<Want>) -> Self {
        Self {
            shared,
            wants,
            failed: Vec::new(),
        }
    }

    /// Works until it is told to end.
    pub(crate) async fn run(mut self, end: CancellationToken) {
        let shared = self.shared.clone();
        // To its end, for a thread can't be stopped; it only reads.
        let _ = spawn_blocking(move || shared.templates.check()).await;
        loop {
            let want = tokio::select! {
                () = end.cancelled() => return,
                want = self.wants.recv() => want,
            };
            let Some(want) = want else { return };
            let id = match draw_id("tpl") {
                Ok(id) => id,
                Err(e) => {
                    warn!("{e}");
                    continue;
                }
            };
            let place = self.shared.templates.place(&id);
            let group = want.image.group().name.clone();
            let made = tokio::select! {
                () = end.cancelled() => Err(None),
                made = self.serve(&want, &id, &place) => made.map_err(Some),
            };
            let ended = matches!(made, Err(None));
            if let Err(why) = made {
                match why {
                    Some(e) if e.is_disk_full() => {
                        warn!("group {group}: no template: {e}: {FREE_SPACE}");
                    }
                    Some(e) => warn!("group {group}: no template: {e}"),
                    None => {}
                }
                let shared = self.shared.clone();
                let cleared = spawn_blocking(move || shared.templates.clear(&place)).await;
                if let Ok(Err(e)) = cleared {
                    warn!("{e}");
                }
            }
            if ended {
                return;
            }
        }
    }

    async fn serve(&mut self, want: &Want, id: &str, place: &Place) -> Result<(), DaemonError> {
        let prepared = want.image.prepare().await?;
        let group = want.image.group();
        let shape = Shape::of(&want.record, group, &prepared);
        self.failed.retain(|(_, at)| at.elapsed() < RETRY_TIME);
        if self.failed.iter().any(|(s, _)| *s == shape) {
            return Ok(());
        }
        let (shared, wanted, files) = (self.shared.clone(), shape.clone(), prepared.clone());
        let there = spawn_blocking(move || {
            shared.templates.remove_outdated(&wanted, &files);
            let there = shared.templates.has(&wanted);
            if !there {
                shared.templates.make_room();
            }
            there
        });
        if there.await.unwrap_or(true) {
            return Ok(());
        }
        self.polite().await;
        let mut made = self.make(want, shape.clone(), &prepared, id, place).await;
        if let Err(e) = &made {
            // Nobody asks again before the next launch that has to boot.
            warn!(
                "group {}: trying once more to make a template: {e}",
                group.name
            );
            let (shared, left) = (self.shared.clone(), place.clone());
            let cleared = spawn_blocking(move || shared.templates.clear(&left)).await;
            cleared.map_err(|_| DaemonError::Internal("removing a template"))??;
            made = self.make(want, shape.clone(), &prepared, id, place).await;
        }
        if made.is_err() {
            self.failed.push((shape, Instant::now()));
        }
        made
    }

    /// Waits until no VM is about to be ready, within bounds.
    async fn polite(&self) {
        let start = Instant::now();
        let mut quiet = 0;
        while quiet < PATIENCE && start.elapsed() < POLITE_TIME {
            tokio::time::sleep(LOOK).await;
            let busy = self.shared.handles().iter().any(|vm| {
                let view = vm.view.borrow();
                match view.phase {
                    Phase::Launching => true,
                    Phase::Running => !view.ready,
                    _ => false,
                }
            });
            quiet = if busy { 0 } else { quiet + 1 };
        }
    }

    async fn make(
        &self,
        want: &Want,
        shape: Shape,
        prepared: &Arc<Prepared>,
        id: &str,
        place: &Place,
    ) -> Result<(), DaemonError> {
        let started = Instant::now();
        let shared = &self.shared;
        let (group, record) = (want.image.group(), &want.record);
        check_room(shared.work.root(), shape.ram_bytes)?;
        if crate::host::is_short_by(shape.ram_bytes, RESERVE) {
            return Err(DaemonError::Unsupported(
                "this host has too little memory to boot one more VM".to_owned(),
            ));
        }
        for dir in [place.dir().to_owned(), place.run()] {
            let made = DirBuilder::new().mode(0o700).create(&dir);
            made.map_err(DaemonError::io("create", dir))?;
        }
        slicer_fault::point("template.begun");
        let formats = &shared.hypervisor.capabilities().disk_formats;
        let gate = DiskGate::default();
        let disk = want
            .image
            .clone_disk(place.disk(), false, formats, gate)
            .await?;
        let card = shared.networking.card(&group.network, record).await?;
        let spec = template_spec(shared, record, prepared, disk, place, card.network);
        let machine = shared
            .hypervisor
            .launch_template(spec, &place.memory())
            .await?;
        slicer_fault::point("template.booting");
        let note = match come_to_rest(&*machine, &placeholder(want), place).await {
            Ok(note) => note,
            Err(e) => return Err(end_of(&*machine, place).await.unwrap_or(e)),
        };
        machine.kill().await?;
        drop(machine);
        slicer_fault::point("template.saved");
        let made = Made {
            id: id.to_owned(),
            shape,
            image: group.image.clone(),
            disk,
            mac: MacAddress(record.mac),
            note,
        };
        let (place, files) = (place.clone(), prepared.clone());
        let completed = spawn_blocking(move || Template::complete(&place, &files, made));
        let template = completed
            .await
            .map_err(|_| DaemonError::Internal("completing a template"))??;
        slicer_fault::point("template.complete");
        info!(
            "group {}: made a template in {:.1?}: launches begin as it",
            group.name,
            started.elapsed()
        );
        shared.templates.insert(template, true);
        Ok(())
    }
}

/// What a template's guest is told it is: nobody, without an address. What an identity needs is in place
/// then, and clones have less to do. The name is shorter than any VM's, which can be written over it.
fn placeholder(want: &Want) -> Identity {
    Identity {
        hostname: "vm".to_owned(),
        clock_unix_nanos: attend::clock(),
        network: Some(NetworkIdentity {
            mac: want.record.mac().to_string(),
            address: Ipv4Addr::UNSPECIFIED,
            prefix: 0,
            gateway: Ipv4Addr::UNSPECIFIED,
            dns: want.image.group().dns_servers.clone(),
        }),
        ..Identity::default()
    }
}

/// Waits until nothing goes on in a template's guest, and saves it.
async fn come_to_rest(
    machine: &dyn Machine,
    placeholder: &Identity,
    place: &Place,
) -> Result<String, DaemonError> {
    match tokio::time::timeout(BOOT_TIME, machine.connect()).await {
        Ok(stream) => drop(stream?),
        Err(_) => return Err(DaemonError::Internal("waiting for a template's agent")),
    }
    let refused = |e: GuestError| DaemonError::Unsupported(e.to_string());
    guest::rehearse(machine, placeholder)
        .await
        .map_err(refused)?;
    guest::settle(machine).await.map_err(refused)?;
    Ok(machine.save_template(&place.state()).await?)
}

/// Why a machine is gone, if it is.
async fn end_of(machine: &dyn Machine, place: &Place) -> Option<DaemonError> {
    let reason = match &*machine.state().borrow() {
        MachineState::Stopped(reason) => reason.clone(),
        _ => return None,
    };
    let last = console::last_lines(&place.console(), 3).await;
    let why = match reason {
        StopReason::Crashed(how) => how,
        StopReason::Guest | StopReason::Killed => "it powered off".to_owned(),
    };
    Some(DaemonError::Unsupported(format!("{why}; console: {last}")))
}

/// Refuses to fill up the disk: a guest whose memory finds no room there dies.
fn check_room(dir: &Path, memory: u64) -> Result<(), DaemonError> {
    let found = rustix::fs::statvfs(dir);
    let found = found.map_err(|e| DaemonError::io("look at", dir)(e.into()))?;
    let room = found.f_bavail.saturating_mul(found.f_frsize);
    if room >= memory.saturating_add(SPARE_ROOM) {
        return Ok(());
    }
    Err(DaemonError::io("keep a template in", dir)(
        std::io::ErrorKind::StorageFull.into(),
    ))
}

/// Whether what is in this directory is kept in memory.
#[cfg(target_os = "linux")]
pub(crate) fn in_memory(dir: &Path) -> bool {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const KINDS: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    rustix::fs::statfs(dir)
        .is_ok_and(|s| u64::try_from(s.f_type).is_ok_and(|kind| KINDS.contains(&kind)))
}

/// Whether what is in this directory is kept in memory.
#[cfg(not(target_os = "linux"))]
pub(crate) fn in_memory(_: &Path) -> bool {
    false
}
