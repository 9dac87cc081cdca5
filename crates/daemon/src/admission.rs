//! What a new VM may be: its size, its name, its userdata, its network.

use crate::DaemonError;
use crate::config::{HostGroupConfig, NetworkMode, Userdata};
use crate::network::check_override;
use crate::tags;
use crate::vm::VmHandle;
use crate::workdir::WorkDir;
use slicer_api::{ApiError, CreateNode};
use std::collections::BTreeMap;

/// Longest userdata, bytes.
const MAX_USERDATA: usize = 1 << 20;
/// Smallest memory a guest boots with, bytes.
const MIN_RAM: u64 = 128 << 20;
/// Rounds of memory a machine is given, bytes.
const RAM_GRAIN: u64 = 1 << 20;

/// The script of a host group.
pub(crate) fn read_userdata(work: &WorkDir, userdata: &Userdata) -> Result<String, DaemonError> {
    let path = match userdata {
        Userdata::None => return Ok(String::new()),
        Userdata::Script(text) => return Ok(text.clone()),
        Userdata::File(path) => work.root().join(path),
    };
    let failed = |e| DaemonError::io("read userdata from", &path)(e);
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    if text.len() > MAX_USERDATA {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

/// Refuses a friendly name among `tags` that is another VM's.
pub(crate) fn check_name(
    vms: &BTreeMap<String, VmHandle>,
    tags: &[String],
) -> Result<(), ApiError> {
    let Some(tag) = tags.iter().find(|t| t.starts_with(tags::NAME)) else {
        return Ok(());
    };
    let name = &tag[tags::NAME.len()..];
    if vms.contains_key(name) || vms.values().any(|h| h.tags().contains(tag)) {
        return Err(ApiError::conflict(format!(
            "a VM named {name:?} exists already"
        )));
    }
    Ok(())
}

/// Checks CPUs and memory against a group; 0 is its default.
pub(crate) fn check_size(
    group: &HostGroupConfig,
    cpus_name: &str,
    cpus: u32,
    ram_bytes: u64,
) -> Result<(), ApiError> {
    let name = &group.name;
    let bad = |text| Err(ApiError::bad_request(text));
    if cpus > group.vcpu {
        return bad(format!(
            "{cpus_name} {cpus} is more than host group {name} allows ({})",
            group.vcpu
        ));
    }
    if ram_bytes > group.ram_bytes {
        return bad(format!(
            "ram_bytes {ram_bytes} is more than host group {name} allows ({})",
            group.ram_bytes
        ));
    }
    if ram_bytes != 0 && (ram_bytes < MIN_RAM || !ram_bytes.is_multiple_of(RAM_GRAIN)) {
        return bad(format!(
            "ram_bytes {ram_bytes} can't be used: give a multiple of 1 MiB, at least 128 MiB"
        ));
    }
    Ok(())
}

/// Checks what a create asks for against its group and what there is.
pub(crate) fn check_request(group: &HostGroupConfig, request: &CreateNode) -> Result<(), ApiError> {
    check_size(group, "cpus", request.cpus, request.ram_bytes)?;
    let refuse = |what: &str| {
        Err(ApiError::bad_request(format!(
            "{what} is not supported yet"
        )))
    };
    if request.gpu_count != 0 {
        return Err(ApiError::bad_request(
            "gpu_count must be 0: VMs here have no GPUs",
        ));
    }
    if !request.disk_image.is_empty() {
        return refuse("disk_image");
    }
    if request.userdata.len() > MAX_USERDATA {
        return Err(ApiError::bad_request(format!(
            "userdata is larger than {} KiB: have it fetch the rest",
            MAX_USERDATA >> 10
        )));
    }
    if let Some(policy) = &request.network
        && !(policy.is_empty() && group.network.mode != NetworkMode::Isolated)
    {
        check_override(&group.network, policy)?;
    }
    tags::check(&request.tags)
}
