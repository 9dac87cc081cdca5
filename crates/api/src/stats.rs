//! What a VM uses: `GET /nodes/stats` and `GET /node/{h}/stats`.

use crate::Timestamp;
use serde::{Deserialize, Serialize};

/// What the agent measures in its guest. Totals count since the guest's boot.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatsSnapshot {
    /// The guest's name for itself.
    pub hostname: String,
    /// The kernel's name of the architecture: `x86_64`, `aarch64`.
    pub arch: String,
    /// When it was measured, by the guest's clock.
    pub timestamp: Timestamp,
    /// Time since boot, as Go writes durations: `6m53s`.
    pub uptime: String,
    /// Number of CPUs.
    pub total_cpus: u64,
    /// Memory, bytes.
    pub total_memory: u64,
    /// Memory that is not available, bytes.
    pub memory_used: u64,
    /// Memory programs could still get without swapping, bytes.
    pub memory_available: u64,
    /// Share of memory that is not available, 0 to 100.
    pub memory_used_percent: f64,
    /// Load average of the last minute.
    pub load_avg1: f64,
    /// Load average of the last five minutes.
    pub load_avg5: f64,
    /// Load average of the last fifteen minutes.
    pub load_avg15: f64,
    /// Bytes read from disks.
    pub disk_read_total: u64,
    /// Bytes written to disks.
    pub disk_write_total: u64,
    /// Bytes received from the network.
    pub network_read_total: u64,
    /// Bytes sent to the network.
    pub network_write_total: u64,
    /// Disk operations under way.
    #[serde(rename = "diskIOInflight")]
    pub disk_io_inflight: u64,
    /// TCP sockets in use.
    pub open_connections: u64,
    /// Open files of the whole system.
    pub open_files: u64,
    /// Bits of entropy the kernel thinks it has.
    pub entropy: u64,
    /// Size of the root file system, bytes.
    pub disk_space_total: u64,
    /// Bytes used there.
    pub disk_space_used: u64,
    /// Bytes free there for users other than root.
    pub disk_space_free: u64,
    /// Share of what users could have that is used, 0 to 100.
    pub disk_space_used_percent: f64,
}

/// An element of `GET /nodes/stats`, and the only one of `GET /node/{h}/stats`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStats {
    /// The VM's name.
    pub hostname: String,
    /// Its bare IPv4 address.
    #[serde(default)]
    pub ip: String,
    /// When it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// What it uses; none when it could not be asked.
    #[serde(default)]
    pub snapshot: Option<StatsSnapshot>,
    /// Why it could not be asked.
    #[serde(default)]
    pub error: String,
    /// What it takes of the host's memory; none when it has no machine, or its hypervisor can't
    /// tell. Beyond SlicerVM's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_memory: Option<HostMemory>,
}

/// A VM's share of the host's memory.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// What it takes now, bytes, with what its hypervisor needs for itself.
    pub used: u64,
    /// What of its memory it had once and has given back, bytes.
    pub returned: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_names_clients_know() {
        let json = serde_json::to_value(StatsSnapshot::default()).unwrap();
        let mut names: Vec<&str> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut known = "hostname arch timestamp uptime totalCpus totalMemory memoryUsed \
             memoryAvailable memoryUsedPercent loadAvg1 loadAvg5 loadAvg15 diskReadTotal \
             diskWriteTotal networkReadTotal networkWriteTotal diskIOInflight openConnections \
             openFiles entropy diskSpaceTotal diskSpaceUsed diskSpaceFree diskSpaceUsedPercent"
            .split_whitespace()
            .collect::<Vec<_>>();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    #[test]
    fn a_vm_that_cannot_be_asked_has_a_null_snapshot() {
        let stats = NodeStats {
            hostname: "sbox-1".into(),
            ip: "192.168.64.3".into(),
            created_at: None,
            snapshot: None,
            error: "VM sbox-1 is paused".into(),
            host_memory: None,
        };
        let json = serde_json::to_value(&stats).unwrap();
        assert!(json["snapshot"].is_null());
        assert!(json.get("host_memory").is_none());
        assert_eq!(serde_json::from_value::<NodeStats>(json).unwrap(), stats);
    }
}
