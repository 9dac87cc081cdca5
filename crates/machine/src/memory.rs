//! What a VM takes of the host's memory.

/// A VM's share of the host's memory, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// What it takes now, with what its hypervisor needs for itself.
    pub resident: u64,
    /// The most it took since it was launched or restored.
    pub peak: u64,
}
