//! Flags about where a VM may connect to.

use clap::Args;
use slicer_api::NetworkPolicy;

/// Lists of a VM's own, for host groups with isolated networks.
#[derive(Debug, Args)]
pub(crate) struct PolicyFlags {
    /// Let the VM reach this, in place of what its group allows: CIDR, IP or IP:PORT; may be repeated
    #[arg(long, value_name = "CIDR", conflicts_with = "no_allow")]
    allow: Vec<String>,
    /// Let the VM have no such list, whatever its group has
    #[arg(long)]
    no_allow: bool,
    /// Keep the VM from reaching this, in place of what its group does; may be repeated
    #[arg(long, value_name = "CIDR")]
    drop: Vec<String>,
}

impl PolicyFlags {
    /// The lists, if there is one.
    pub(crate) fn lists(&self) -> Option<NetworkPolicy> {
        let allow = self.no_allow || !self.allow.is_empty();
        let drop = !self.drop.is_empty();
        let lists = NetworkPolicy {
            allow: allow.then(|| self.allow.clone()),
            drop: drop.then(|| self.drop.clone()),
        };
        (allow || drop).then_some(lists)
    }
}
