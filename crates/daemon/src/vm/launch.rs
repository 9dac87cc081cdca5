//! From a VM's record to its machine.

use super::Launched;
use super::clone::clone;
use super::disk::DiskGate;
use crate::DaemonError;
use crate::config::NetworkConfig;
use crate::images::{GroupImage, Prepared};
use crate::record::{DiskKind, VmRecord};
use crate::shares::for_machine;
use crate::supervisor::Shared;
use slicer_api::{Entrypoint, Fixup};
use slicer_image::{CloneKind, CloneOptions, clone_disk, disk_size, overlay_disk};
use slicer_machine::{Boot, Disk, DiskFormat, MachineSpec, Share};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tracing::{info, warn};

pub(super) async fn launch(
    shared: &Arc<Shared>,
    image: &Arc<GroupImage>,
    record: &VmRecord,
    network: &NetworkConfig,
    gate: DiskGate,
) -> Result<Launched, DaemonError> {
    let started = Instant::now();
    let shares = shares(shared, image, record)?;
    let prepared = prepare(shared, image, record).await?;
    let begun = clone(shared, image, record, &prepared, network, &gate).await;
    if let Some(launched) = begun {
        slicer_fault::point("launch.machine");
        return Ok(launched);
    }
    let entrypoint = entrypoint(record, &prepared)?;
    let name = &record.hostname;
    let disk = match record.disk {
        Some(kind) if shared.work.disk(name).exists() => kind,
        _ => match &record.parent_commit_id {
            Some(id) => fork_disk(shared, id, record, gate).await?,
            None => {
                let formats = &shared.hypervisor.capabilities().disk_formats;
                let disk = shared.work.disk(name);
                image
                    .clone_disk(disk, record.is_kept(), formats, gate)
                    .await?
            }
        },
    };
    slicer_fault::point(match record.parent_commit_id {
        None => "launch.disk",
        Some(_) => "fork.disk",
    });
    let state_dir = shared.work.run(name);
    std::fs::create_dir_all(&state_dir).map_err(DaemonError::io("create", &state_dir))?;
    let card = shared.networking.card(network, record).await?;
    let spec = MachineSpec {
        shares,
        rosetta: image.group().rosetta,
        network: Some(card.network),
        // It boots, whatever it was before.
        clonable: false,
        ..spec(shared, record, &prepared, disk)
    };
    let machine = shared.hypervisor.launch(spec).await?;
    slicer_fault::point("launch.machine");
    shared.networking.keep(card.link, &*machine);
    info!("{name}: launched in {:.0?}", started.elapsed());
    Ok(Launched {
        entrypoint,
        ..Launched::new(disk, Arc::from(machine))
    })
}

/// What a VM is made of, if the hypervisor can run it.
pub(super) async fn prepare(
    shared: &Shared,
    image: &GroupImage,
    record: &VmRecord,
) -> Result<Arc<Prepared>, DaemonError> {
    let arch = image.arch();
    if record.arch != arch.go_name() {
        return Err(DaemonError::OtherArch {
            vm: record.hostname.clone(),
            of: record.arch.clone(),
            group: record.group.clone(),
            now: arch.go_name(),
        });
    }
    // Before an image is fetched and unpacked for nothing.
    shared.hypervisor.check_arch(arch)?;
    image.prepare().await
}

/// The host folders a VM gets.
pub(super) fn shares(
    shared: &Shared,
    image: &GroupImage,
    record: &VmRecord,
) -> Result<Vec<Share>, DaemonError> {
    let capabilities = shared.hypervisor.capabilities();
    let shares = &image.group().shares;
    for_machine(&record.hostname, shares, capabilities, &shared.work)
}

/// What a VM's machine is made of, besides host folders and its network card, which is made anew each
/// time. Of the same record, image and configuration, it is the same.
pub(super) fn spec(
    shared: &Shared,
    record: &VmRecord,
    prepared: &Prepared,
    disk: DiskKind,
) -> MachineSpec {
    let name = &record.hostname;
    let mut cmdline = shared.hypervisor.kernel_args(prepared.arch);
    cmdline.push_str(KERNEL_ARGS);
    cmdline.push_str(&fresh(record.fixups.as_deref().unwrap_or_default()));
    MachineSpec {
        name: name.clone(),
        arch: prepared.arch,
        cpus: record.cpus,
        memory_bytes: record.ram_bytes,
        boot: Boot {
            kernel: prepared.boot.kernel.clone(),
            initramfs: prepared.boot.initramfs.clone(),
            cmdline,
        },
        disks: vec![
            Disk {
                id: "root",
                path: shared.work.disk(name),
                format: disk.into(),
                read_only: false,
                flush: record.is_kept(),
            },
            Disk {
                id: "modules",
                path: prepared.boot.modules.clone(),
                format: DiskFormat::Raw,
                read_only: true,
                flush: true,
            },
        ],
        network: None,
        shares: Vec::new(),
        rosetta: false,
        clonable: record.template.as_ref().is_some_and(|t| t.clonable),
        console: shared.work.console(name),
        state_dir: shared.work.run(name),
    }
}

/// What of its image a VM shall run. A disk keeps that of the image it was made from.
pub(super) fn entrypoint(
    record: &VmRecord,
    prepared: &Prepared,
) -> Result<Option<Entrypoint>, DaemonError> {
    if !record.wants_entrypoint {
        return Ok(None);
    }
    let refused = |why: String| DaemonError::Entrypoint {
        image: record.image.clone(),
        why,
    };
    let entrypoint = match (&record.entrypoint, &prepared.entrypoint) {
        (Some(known), _) => known,
        (None, Some(new)) => new,
        (None, None) => return Err(refused("the image has neither ENTRYPOINT nor CMD".into())),
    };
    entrypoint.check().map_err(refused)?;
    Ok(Some(entrypoint.clone()))
}

/// Makes the disk of a fork.
async fn fork_disk(
    shared: &Shared,
    id: &str,
    record: &VmRecord,
    gate: DiskGate,
) -> Result<DiskKind, DaemonError> {
    let commit = shared.commits.get(id);
    let format = commit
        .map_err(|e| DaemonError::Unsupported(e.message))?
        .disk;
    let base = shared.work.commit_disk(id);
    let disk = shared.work.disk(&record.hostname);
    let (kept, formats) = (
        record.is_kept(),
        shared.hypervisor.capabilities().disk_formats.clone(),
    );
    let job = move || gate.pass(|| derive(&base, format, &disk, kept, &formats));
    let made = tokio::task::spawn_blocking(job).await.ok().flatten();
    made.ok_or(DaemonError::Internal("making a fork's disk"))?
}

/// Makes a disk that begins as a commit's.
pub(super) fn derive(
    base: &Path,
    format: DiskKind,
    disk: &Path,
    kept: bool,
    formats: &[DiskFormat],
) -> Result<DiskKind, DaemonError> {
    if format == DiskKind::Qcow2 {
        overlay_disk(base, format.into(), disk)?;
        return Ok(DiskKind::Qcow2);
    }
    let mut kinds = vec![CloneKind::Reflink];
    if formats.contains(&DiskFormat::Qcow2) {
        kinds.push(CloneKind::Qcow2Overlay);
    }
    kinds.push(CloneKind::SparseCopy);
    let options = CloneOptions {
        size: disk_size(base, format.into())?,
        kinds: &kinds,
        durable: kept,
    };
    Ok(match clone_disk(base, disk, &options)? {
        CloneKind::Qcow2Overlay => DiskKind::Qcow2,
        CloneKind::Reflink | CloneKind::SparseCopy => DiskKind::Raw,
    })
}

/// What the agent of a fork is told on the command line, since it must know before the image's init
/// runs.
fn fresh(fixups: &[Fixup]) -> String {
    let words: Vec<&str> = fixups
        .iter()
        .filter(|f| **f != Fixup::Hostname)
        .map(|f| f.word())
        .collect();
    if words.is_empty() {
        String::new()
    } else {
        format!(" {}{}", Fixup::ARGUMENT, words.join(","))
    }
}

/// The keys of the user a VM's record names, unless they are in it. A VM whose configuration has
/// such a user starts without them when they can't be had, and asks again at its next start.
pub(super) async fn import_keys(shared: &Shared, record: &VmRecord) -> Option<Vec<String>> {
    if record.import_user.is_empty() || record.imported_keys.is_some() {
        return None;
    }
    match shared.github.keys(&record.import_user).await {
        Ok(keys) => Some(keys),
        Err(e) => {
            warn!("{}: {}", record.hostname, e.message);
            None
        }
    }
}

/// Nothing below notices, because every byte on an emulated console costs; no self-tests of
/// ciphers; a panic ends the VM, which its daemon sees.
const KERNEL_ARGS: &str =
    " quiet loglevel=6 panic=-1 cryptomgr.notests random.trust_cpu=on net.ifnames=0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_tells_what_is_done_before_init() {
        assert_eq!(fresh(&[]), "");
        assert_eq!(fresh(&[Fixup::Hostname]), "");
        let all = fresh(&Fixup::ALL);
        assert_eq!(all, " slicer.fresh=machine-id,ssh-host-keys");
    }
}
