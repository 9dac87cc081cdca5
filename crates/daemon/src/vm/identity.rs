//! What a VM's guest is told of who it is.

use crate::attend;
use crate::config::NetworkConfig;
use crate::images::GroupImage;
use crate::record::VmRecord;
use crate::shares::for_guest;
use crate::supervisor::Shared;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use slicer_api::{Identity, NetworkIdentity, Renewal};
use slicer_machine::MacAddress;
use std::net::Ipv4Addr;

/// Random bytes that a clone is given.
const SEED: usize = 64;
/// The hostname of a spare until it has one: as long as a template's, another, and shorter than any VM's, for
/// the agent writes over what is no longer.
const NOBODY: &str = "me";

/// The identity of the VM of this record.
pub(super) fn of(
    record: &VmRecord,
    shared: &Shared,
    image: &GroupImage,
    network: &NetworkConfig,
    dns: &[Ipv4Addr],
) -> Identity {
    let group = image.group();
    Identity {
        hostname: record.guest_hostname().to_owned(),
        clock_unix_nanos: attend::clock(),
        network: Some(of_network(record, network, dns)),
        ssh_keys: record.ssh_keys.clone(),
        imported_keys: record.imported_keys.clone().unwrap_or_default(),
        userdata: Some(record.userdata.clone()).filter(|u| !u.is_empty()),
        entrypoint: record.entrypoint.clone(),
        shares: for_guest(&group.shares, shared.hypervisor.capabilities()),
        rosetta: group.rosetta,
        renewal: renewal(record),
    }
}

/// An identity that is nobody's, as like as can be to that which a launch gives a spare.
pub(super) fn of_nobody(
    record: &VmRecord,
    image: &GroupImage,
    network: &NetworkConfig,
) -> Identity {
    let dns = &image.group().dns_servers;
    Identity {
        hostname: NOBODY.to_owned(),
        clock_unix_nanos: attend::clock(),
        network: Some(of_network(record, network, dns)),
        renewal: renewal(record).map(|renewal| Renewal {
            // No longer than the one that comes, which is written over it.
            id: "rehearsed".to_owned(),
            ..renewal
        }),
        ..Identity::default()
    }
}

fn of_network(record: &VmRecord, network: &NetworkConfig, dns: &[Ipv4Addr]) -> NetworkIdentity {
    NetworkIdentity {
        mac: record.mac().to_string(),
        address: record.ip,
        prefix: network.prefix,
        gateway: network.gateway,
        dns: dns.to_vec(),
    }
}

/// What a clone needs to become one of its own.
fn renewal(record: &VmRecord) -> Option<Renewal> {
    let origin = record.template.as_ref()?;
    let mut seed = [0; SEED];
    let drawn = getrandom::fill(&mut seed);
    Some(Renewal {
        id: record.mac().to_string(),
        // An agent takes no clone for ready that has none.
        seed: drawn.map_or_else(|_| String::new(), |()| BASE64.encode(seed)),
        mac: MacAddress(origin.mac).to_string(),
    })
}
