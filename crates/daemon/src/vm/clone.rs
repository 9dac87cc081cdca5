//! From a VM's record to a machine that begins as a template.

use super::Launched;
use super::disk::DiskGate;
use super::launch::{derive, entrypoint, spec};
use crate::DaemonError;
use crate::attend::UntilReady;
use crate::config::NetworkConfig;
use crate::images::{GroupImage, Prepared};
use crate::record::{DiskKind, Origin, VmRecord};
use crate::supervisor::Shared;
use crate::templates::{Place, Shape, Template, Want, check_group, may_clone};
use slicer_machine::{self as machine, MachineSpec, Network};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

/// How long a clone may take until its agent is there: one that doesn't get that far in this time is of
/// a template that is worth nothing.
const WAKE_TIME: Duration = Duration::from_secs(20);

/// Begins a VM as the template of its shape. None when there is no such template, which is then asked
/// for, or when none is possible: the VM is to boot.
pub(super) async fn clone(
    shared: &Arc<Shared>,
    image: &Arc<GroupImage>,
    record: &VmRecord,
    prepared: &Arc<Prepared>,
    network: &NetworkConfig,
    gate: &DiskGate,
) -> Option<Launched> {
    let group = image.group();
    if !image.is_warm()
        || !may_clone(record)
        || check_group(group, shared.hypervisor.capabilities()).is_err()
    {
        return None;
    }
    let shape = Shape::of(record, group, prepared);
    let (store, files) = (shared.clone(), prepared.clone());
    let found = spawn_blocking(move || store.templates.find(&shape, &files)).await;
    let Some(template) = found.ok().flatten() else {
        shared.templates.want(Want {
            image: image.clone(),
            record: wish(record),
        });
        return None;
    };
    let (id, name) = (template.id.clone(), &record.hostname);
    match begin(shared, record, prepared, network, gate, &template).await {
        Ok(launched) => {
            shared.templates.used(&id);
            Some(launched)
        }
        Err(e) => {
            warn!("{name}: it boots, for it can't begin as template {id}: {e}");
            // A host that is full has no worse templates for that.
            if !e.is_disk_full() {
                let store = shared.clone();
                let why = format!("{name} could not begin as it");
                let _ = spawn_blocking(move || store.templates.discard(&id, &why)).await;
                shared.templates.want(Want {
                    image: image.clone(),
                    record: wish(record),
                });
            }
            let (disk, gate) = (shared.work.disk(name), gate.clone());
            let removed = spawn_blocking(move || gate.pass(|| crate::files::remove(&disk)));
            if let Ok(Some(Err(e))) = removed.await {
                warn!("{name}: {e}");
            }
            None
        }
    }
}

/// What a template is asked for by: nothing of whoever launched a VM.
fn wish(record: &VmRecord) -> VmRecord {
    VmRecord {
        tags: Vec::new(),
        ssh_keys: Vec::new(),
        import_user: String::new(),
        imported_keys: None,
        userdata: String::new(),
        secrets: None,
        wants_entrypoint: false,
        // Of its own, for the VM has this one.
        mac: crate::record::draw_mac().unwrap_or(record.mac),
        ..record.clone()
    }
}

async fn begin(
    shared: &Shared,
    record: &VmRecord,
    prepared: &Prepared,
    network: &NetworkConfig,
    gate: &DiskGate,
    template: &Arc<Template>,
) -> Result<Launched, DaemonError> {
    let entrypoint = entrypoint(record, prepared)?;
    let turn = shared.turns.take().await;
    let started = Instant::now();
    let name = &record.hostname;
    let place = shared.templates.place(&template.id);
    let disk = async {
        let disk = shared.work.disk(name);
        let formats = shared.hypervisor.capabilities().disk_formats.clone();
        let (base, kind) = (place.disk(), template.disk);
        let (gate, id) = (gate.clone(), template.id.clone());
        let job = move |store: &crate::templates::Templates| {
            gate.pass(|| store.while_there(&id, || derive(&base, kind, &disk, false, &formats)))
        };
        let store = shared.templates.clone();
        let made = spawn_blocking(move || job(&store)).await;
        let made = made.ok().flatten().flatten();
        made.ok_or(DaemonError::Internal("making a clone's disk"))?
    };
    let state_dir = shared.work.run(name);
    std::fs::create_dir_all(&state_dir).map_err(DaemonError::io("create", &state_dir))?;
    let (disk, card) = tokio::join!(disk, shared.networking.card(network, record));
    let (disk, card) = (disk?, card?);
    slicer_fault::point("clone.disk");
    let origin = Origin {
        id: template.id.clone(),
        live: false,
        clonable: true,
        mac: template.mac,
    };
    let spec = MachineSpec {
        clonable: true,
        network: Some(card.network),
        ..spec(shared, record, prepared, disk)
    };
    let saved = machine::Template {
        memory: &place.memory(),
        state: &place.state(),
        note: &template.note,
    };
    let machine = shared.hypervisor.clone_template(spec, &saved).await?;
    match tokio::time::timeout(WAKE_TIME, machine.connect()).await {
        Ok(stream) => drop(stream?),
        Err(_) => {
            machine.kill().await?;
            return Err(DaemonError::Internal("waiting for a clone's agent"));
        }
    }
    slicer_fault::point("clone.machine");
    shared.networking.keep(card.link, &*machine);
    info!("{name}: cloned in {:.0?}", started.elapsed());
    Ok(Launched {
        entrypoint,
        template: Some(origin),
        until_ready: UntilReady { apart: None, turn },
        ..Launched::new(disk, Arc::from(machine))
    })
}

/// What a template boots as, whose files are at this place.
pub(crate) fn template_spec(
    shared: &Shared,
    record: &VmRecord,
    prepared: &Prepared,
    disk: DiskKind,
    place: &Place,
    network: Network,
) -> MachineSpec {
    let mut spec = MachineSpec {
        name: format!("{}-template", record.group),
        clonable: true,
        network: Some(network),
        console: place.console(),
        state_dir: place.run(),
        ..spec(shared, record, prepared, disk)
    };
    for disk in spec.disks.iter_mut().filter(|d| !d.read_only) {
        disk.path = place.disk();
    }
    spec
}
