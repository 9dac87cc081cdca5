//! The network of a host group.

use super::reader::{Field, Table};
use super::report::{Report, WarningKind};
use super::unserved;
use ipnet::Ipv4Net;
use slicer_network::{Destination, is_device_name, is_tap_prefix};
use std::net::Ipv4Addr;

const DEFAULT_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
const DEFAULT_PREFIX: u8 = 24;
/// Entries of a list of destinations: each is a rule that packets are held against.
pub(crate) const MAX_DESTINATIONS: usize = 256;
const DESTINATION: &str =
    "a network (10.0.0.0/8), an address, or an address and port (10.0.0.1:443)";
const POLICY_INSTEAD: &str = "VMs may connect to any destination";

/// How VMs are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// By the hypervisor, each behind a NAT of its own.
    #[default]
    Nat,
    /// On a bridge with the host and each other.
    Bridge,
    /// Each in a network namespace, with rules.
    Isolated,
}

impl NetworkMode {
    /// As configurations spell it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Bridge => "bridge",
            Self::Isolated => "isolated",
        }
    }
}

/// The network a group's VMs are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// How they are connected.
    pub mode: NetworkMode,
    /// The host's address in it, and the VMs' default route.
    pub gateway: Ipv4Addr,
    /// Length of the network prefix.
    pub prefix: u8,
    /// The only addresses VMs may have; when empty, any of the network.
    pub addresses: Vec<Ipv4Addr>,
    /// The first and the last of the addresses VMs may have, unless they are listed.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// The bridge's name; without one, it is made up.
    pub bridge: Option<String>,
    /// How the names of VMs' taps begin; without one, it is made up.
    pub tap_prefix: Option<String>,
    /// Where VMs may connect to in any case.
    pub allow: Vec<Destination>,
    /// Where they may not.
    pub drop: Vec<Destination>,
}

impl NetworkConfig {
    /// The addresses VMs may have, in the order they are to be given out: the listed ones, or all
    /// of the range or network but the network's first and last and the gateway.
    pub fn pool(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let open = if self.addresses.is_empty() {
            self.open()
        } else {
            // An empty range when there is a list.
            0..0
        };
        let any = open.map(Ipv4Addr::from).filter(|a| *a != self.gateway);
        self.addresses.iter().copied().chain(any)
    }

    /// How many addresses [`NetworkConfig::pool`] has.
    pub fn room(&self) -> usize {
        if !self.addresses.is_empty() {
            return self.addresses.len();
        }
        let open = self.open();
        let gateway = u32::from(open.contains(&u32::from(self.gateway)));
        usize::try_from(open.end - open.start - gateway).unwrap_or(usize::MAX)
    }

    fn open(&self) -> std::ops::Range<u32> {
        let (first, last) = self.bounds();
        match self.range {
            Some((from, to)) => {
                (u32::from(from).max(first + 1))..(u32::from(to).saturating_add(1).min(last))
            }
            None => first + 1..last,
        }
    }

    /// The network's own address and its broadcast address.
    fn bounds(&self) -> (u32, u32) {
        let host_bits = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        let gateway = u32::from(self.gateway);
        (gateway & !host_bits, gateway | host_bits)
    }

    /// Whether bridges can't be made for this and another network at once.
    pub(super) fn clashes(&self, other: &Self) -> bool {
        let (first, last) = self.bounds();
        let (others_first, others_last) = other.bounds();
        let one = |n: &Self| (n.gateway, n.prefix, n.bridge.clone());
        [self, other].iter().all(|n| n.mode == NetworkMode::Bridge)
            && first <= others_last
            && others_first <= last
            && one(self) != one(other)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let (first, last) = self.bounds();
        u32::from(address) > first && u32::from(address) < last
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            mode: NetworkMode::default(),
            gateway: DEFAULT_GATEWAY,
            prefix: DEFAULT_PREFIX,
            addresses: Vec::new(),
            range: None,
            bridge: None,
            tap_prefix: None,
            allow: Vec::new(),
            drop: Vec::new(),
        }
    }
}

pub(super) fn read_network(table: &mut Table<'_>, report: &mut Report) -> Option<NetworkConfig> {
    let [mode, gateway, addresses, range] =
        ["mode", "gateway", "addresses", "range"].map(|key| table.take(key));
    let [bridge, tap_prefix, allow, drop] =
        ["bridge", "tap_prefix", "allow", "drop"].map(|key| table.take(key));
    unserved::check("host_groups[].network", table, report);
    let mut network = NetworkConfig {
        mode: match &mode {
            Some(field) => read_mode(field, report)?,
            None => NetworkMode::default(),
        },
        ..NetworkConfig::default()
    };
    if let Some(field) = &gateway {
        (network.gateway, network.prefix) = read_gateway(field, report)?;
    }
    let range = range.filter(|f| f.text(report).is_none_or(|t| !t.is_empty()));
    if let Some(field) = &range {
        let net = field.text(report)?.parse::<Ipv4Net>().ok();
        if let (None, Some(net)) = (&gateway, net) {
            // The router is the first of the network then.
            network.prefix = net.prefix_len();
            network.gateway = Ipv4Addr::from(u32::from(net.network()).saturating_add(1));
            check_prefix(field, network.prefix, report)?;
        }
        network.range = Some(read_range(field, &network, report)?);
    }
    if let Some(field) = addresses {
        let items = field.list(report)?;
        if let (Some(range), false) = (&range, items.is_empty()) {
            let text = format!("{} is given too: keep one of the two", field.path());
            range.error(report, text);
            return None;
        }
        for item in items {
            let address = read_address(&item, &network, report)?;
            if network.addresses.contains(&address) {
                item.error(report, format!("{address} is in the list already"));
                return None;
            }
            network.addresses.push(address);
        }
    }
    let word = network.mode.word();
    let names = [
        (bridge, &mut network.bridge, BRIDGE),
        (tap_prefix, &mut network.tap_prefix, TAP_PREFIX),
    ];
    for (field, to, rule) in names {
        if let Some(field) = field {
            let name = read_name(&field, rule, report)?;
            *to = Some(name).filter(|n| !n.is_empty());
            if to.is_some() && word != "bridge" {
                let text = format!("has no effect: mode is {word}, not bridge");
                field.warn(report, WarningKind::Advice, text);
            }
        }
    }
    for (field, to) in [(allow, &mut network.allow), (drop, &mut network.drop)] {
        if let Some(field) = field {
            *to = read_destinations(&field, report)?;
            if !to.is_empty() && word != "isolated" {
                let text = format!("has no effect: mode is {word}, not isolated; {POLICY_INSTEAD}");
                field.warn(report, WarningKind::Advice, text);
            }
        }
    }
    Some(network)
}

fn read_mode(field: &Field<'_>, report: &mut Report) -> Option<NetworkMode> {
    let modes = [NetworkMode::Nat, NetworkMode::Bridge, NetworkMode::Isolated];
    let text = field.text(report)?;
    if text.is_empty() {
        return Some(NetworkMode::default());
    }
    if text == "macvtap" {
        let text = format!("macvtap is not served yet: {}", unserved::NAT_INSTEAD);
        field.warn(report, WarningKind::NotServed, text);
        return Some(NetworkMode::default());
    }
    let mode = modes.into_iter().find(|m| m.word() == text);
    if mode.is_none() {
        field.expected(report, "one of nat, bridge, isolated, macvtap");
    }
    mode
}

fn read_gateway(field: &Field<'_>, report: &mut Report) -> Option<(Ipv4Addr, u8)> {
    let net: Option<Ipv4Net> = field.text(report)?.parse().ok();
    let Some(net) = net else {
        field.expected(report, "an IPv4 address with its prefix: 192.168.64.1/24");
        return None;
    };
    let (address, prefix) = (net.addr(), net.prefix_len());
    check_prefix(field, prefix, report)?;
    if address == net.network() || address == net.broadcast() {
        let text = format!("{address} is an end of its network, not an address in it");
        field.error(report, text);
        return None;
    }
    Some((address, prefix))
}

fn check_prefix(field: &Field<'_>, prefix: u8, report: &mut Report) -> Option<()> {
    // In less than a /29 a backend has no address left for a service of its own, such as DNS.
    if !(8..=29).contains(&prefix) {
        field.error(report, format!("prefix /{prefix} is not within /8 to /29"));
        return None;
    }
    Some(())
}

/// `A-B`, or a network whose addresses they are.
fn read_range(
    field: &Field<'_>,
    network: &NetworkConfig,
    report: &mut Report,
) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let text = field.text(report)?;
    let range = match text.split_once('-') {
        Some((from, to)) => from.trim().parse().ok().zip(to.trim().parse().ok()),
        None => {
            let net = text.parse::<Ipv4Net>().ok();
            net.map(|net| (net.network(), net.broadcast()))
        }
    };
    let Some((from, to)) = range else {
        field.expected(
            report,
            "a range of addresses, 192.168.64.10-192.168.64.99, or a network, 192.168.64.128/25",
        );
        return None;
    };
    let ends = [from, to].map(u32::from);
    let (first, last) = network.bounds();
    if ends[0] < first || ends[1] > last || ends[0] > ends[1] {
        let text = format!(
            "{text} is no range in the network of the gateway, {}/{}",
            network.gateway, network.prefix
        );
        field.error(report, text);
        return None;
    }
    Some((from, to))
}

fn read_address(
    field: &Field<'_>,
    network: &NetworkConfig,
    report: &mut Report,
) -> Option<Ipv4Addr> {
    let text = field.text(report)?;
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, prefix.parse().ok()),
        None => (text, Some(network.prefix)),
    };
    let (Ok(address), Some(prefix)) = (address.parse::<Ipv4Addr>(), prefix) else {
        field.expected(report, "an IPv4 address, with or without its prefix");
        return None;
    };
    let NetworkConfig {
        gateway,
        prefix: length,
        ..
    } = network;
    let wrong = if prefix != *length {
        format!("its prefix /{prefix} is not the gateway's, /{length}")
    } else if address == *gateway {
        format!("{address} is the gateway")
    } else if !network.contains(address) {
        format!("{address} is not an address in the network of the gateway, {gateway}/{length}")
    } else {
        return Some(address);
    };
    field.error(report, wrong);
    None
}

/// What a name must be, and in words.
type NameRule = (fn(&str) -> bool, &'static str);

const BRIDGE: NameRule = (
    is_device_name,
    "a network device's name of at most 15 letters, digits and any of - _ .",
);
const TAP_PREFIX: NameRule = (
    is_tap_prefix,
    "at most 10 letters, digits and any of - _ . to begin network devices' names with",
);

/// A name, or an empty text.
fn read_name(field: &Field<'_>, (valid, words): NameRule, report: &mut Report) -> Option<String> {
    let text = field.text(report)?;
    if !text.is_empty() && !valid(text) {
        field.expected(report, words);
        return None;
    }
    Some(text.to_owned())
}

fn read_destinations(field: &Field<'_>, report: &mut Report) -> Option<Vec<Destination>> {
    let items = field.list(report)?;
    if items.len() > MAX_DESTINATIONS {
        let text = format!(
            "{} entries are more than {MAX_DESTINATIONS}: make them fewer and wider",
            items.len()
        );
        field.error(report, text);
        return None;
    }
    let read = items.iter().map(|item| {
        let destination = item.text(report)?.parse().ok();
        if destination.is_none() {
            item.expected(report, DESTINATION);
        }
        destination
    });
    // All are looked at before any is found wrong, so that all that are wrong are told.
    let read: Vec<Option<Destination>> = read.collect();
    read.into_iter().collect()
}
