//! VMs' networks: from what a host group's configuration and a VM's record say to a network card.

use crate::DaemonError;
use crate::config::{MAX_DESTINATIONS, NetworkConfig, NetworkMode};
use crate::record::VmRecord;
use crate::workdir::WorkDir;
use ipnet::Ipv4Net;
use slicer_api::{ApiError, NetworkPolicy, NodeNetwork};
use slicer_machine::{Machine, MachineState, Network, Tap, TapNetwork, UserNetwork};
use slicer_network::{Apart, Bridge, Destination, Isolated, Link, NetworkError, Networks, Policy};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Makes what VMs are connected by, and sees to its end.
pub(crate) struct Networking {
    networks: Networks,
    /// Ends with the VMs it waits for.
    tasks: TaskTracker,
}

/// A network card for a VM about to be launched, and its place in a network, if that is ours.
pub(crate) struct Card {
    pub(crate) network: Network,
    pub(crate) link: Option<Link>,
    /// What brings the VM onto its bridge, when it is not there yet.
    pub(crate) apart: Option<Apart>,
}

impl Networking {
    /// Takes down what an earlier daemon left.
    pub(crate) async fn open(work: &WorkDir, tasks: TaskTracker) -> Result<Self, DaemonError> {
        let networks = Networks::open(work.root(), work.networks_note())?;
        if let Err(e) = networks.sweep().await {
            warn!("networks of an earlier daemon are left: {e}");
        }
        Ok(Self { networks, tasks })
    }

    /// The card of a VM. What it leads to goes with [`Card::link`].
    pub(crate) async fn card(
        &self,
        config: &NetworkConfig,
        record: &VmRecord,
    ) -> Result<Card, DaemonError> {
        self.make_card(config, record, false).await
    }

    /// The card of a VM that is taken for another one at first: no VM hears it before it has joined.
    pub(crate) async fn card_apart(
        &self,
        config: &NetworkConfig,
        record: &VmRecord,
    ) -> Result<Card, DaemonError> {
        self.make_card(config, record, true).await
    }

    async fn make_card(
        &self,
        config: &NetworkConfig,
        record: &VmRecord,
        apart: bool,
    ) -> Result<Card, DaemonError> {
        let mac = record.mac();
        // The configuration has no other prefixes.
        let gateway = Ipv4Net::new(config.gateway, config.prefix)
            .map_err(|_| DaemonError::Internal("reading a network's prefix"))?;
        let mut link = match config.mode {
            NetworkMode::Nat => {
                let network = UserNetwork {
                    mac,
                    address: record.ip,
                    gateway: config.gateway,
                    dns: resolver(config.gateway, config.prefix, record.ip),
                    prefix: config.prefix,
                };
                return Ok(Card {
                    network: Network::User(network),
                    link: None,
                    apart: None,
                });
            }
            NetworkMode::Bridge => {
                let bridge = Bridge {
                    gateway,
                    name: config.bridge.clone(),
                    tap_prefix: config.tap_prefix.clone(),
                    apart,
                };
                self.networks.bridge(bridge).await?
            }
            NetworkMode::Isolated => {
                let isolated = Isolated {
                    gateway,
                    address: record.ip,
                    policy: effective(config, record.network.as_ref())
                        .map_err(DaemonError::Unsupported)?,
                };
                self.networks.isolated(isolated).await?
            }
        };
        let tap = link
            .take_tap()
            .ok_or(DaemonError::Internal("making a tap"))?;
        let tap = Tap::new(tap);
        Ok(Card {
            network: Network::Tap(TapNetwork { mac, tap }),
            apart: link.take_apart(),
            link: Some(link),
        })
    }

    /// Keeps a VM's place in its network for as long as its machine is there.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(clippy::drop_non_drop, reason = "there are no links here")
    )]
    pub(crate) fn keep(&self, link: Option<Link>, machine: &dyn Machine) {
        let Some(link) = link else {
            return;
        };
        let mut state = machine.state();
        self.tasks.spawn(async move {
            // One that went without a word is gone, too.
            let stopped = state.wait_for(|s| matches!(s, MachineState::Stopped(_)));
            let _ = stopped.await;
            drop(link);
        });
    }

    /// Takes everything down, once no VM runs.
    pub(crate) async fn close(&self) -> Result<(), NetworkError> {
        self.networks.sweep().await
    }
}

/// Refuses lists that have no effect in this network, or that can't be read.
pub(crate) fn check_override(
    config: &NetworkConfig,
    policy: &NetworkPolicy,
) -> Result<(), ApiError> {
    if config.mode != NetworkMode::Isolated {
        return Err(ApiError::bad_request(format!(
            "network allow and drop lists need an isolated network, which host groups of mode {} \
             don't have",
            config.mode.word()
        )));
    }
    effective(config, Some(policy))
        .map(drop)
        .map_err(ApiError::bad_request)
}

/// What is in force for a VM: its own lists, and those of its group that it has none of.
fn effective(config: &NetworkConfig, own: Option<&NetworkPolicy>) -> Result<Policy, String> {
    let list = |own: Option<&Vec<String>>, of_group: &[Destination]| match own {
        None => Ok(of_group.to_vec()),
        Some(texts) if texts.len() > MAX_DESTINATIONS => Err(format!(
            "{} entries in a network list are more than {MAX_DESTINATIONS}: make them fewer and \
             wider",
            texts.len()
        )),
        Some(texts) => texts
            .iter()
            .map(|t| t.parse().map_err(|e| format!("network: {e}")))
            .collect(),
    };
    Ok(Policy {
        allow: list(own.and_then(|o| o.allow.as_ref()), &config.allow)?,
        drop: list(own.and_then(|o| o.drop.as_ref()), &config.drop)?,
    })
}

/// The network of a VM, as the API tells it.
pub(crate) fn shown(config: &NetworkConfig, own: Option<&NetworkPolicy>) -> NodeNetwork {
    let lists = |policy: &Policy| {
        let texts = |list: &[Destination]| list.iter().map(ToString::to_string).collect();
        NetworkPolicy {
            allow: Some(texts(&policy.allow)),
            drop: Some(texts(&policy.drop)),
        }
    };
    let of_group = Policy {
        allow: config.allow.clone(),
        drop: config.drop.clone(),
    };
    NodeNetwork {
        mode: config.mode.word().to_owned(),
        policy_source: if own.is_some() {
            "override"
        } else {
            "host_group"
        }
        .to_owned(),
        host_group: lists(&of_group),
        override_: own.cloned(),
        // One that can't be read was never let in.
        effective: lists(&effective(config, own).unwrap_or_default()),
    }
}

/// Gives a VM another address where its own is none of its group's any more, since the configuration
/// was changed. `taken` are those of all VMs.
pub(crate) fn readdress(
    config: &NetworkConfig,
    record: &mut VmRecord,
    taken: &mut BTreeSet<Ipv4Addr>,
) -> bool {
    if config.pool().any(|ip| ip == record.ip) {
        return false;
    }
    let (name, old) = (&record.hostname, record.ip);
    let Some(ip) = config.pool().find(|ip| !taken.contains(ip)) else {
        warn!("{name}: its address {old} is none of its host group's, which has no other free");
        return false;
    };
    info!("{name}: its address is {ip}, since {old} is none of its host group's any more");
    taken.insert(ip);
    record.ip = ip;
    true
}

/// The address of the user-mode network's own resolver: the last of the network that is free.
fn resolver(gateway: Ipv4Addr, prefix: u8, vm: Ipv4Addr) -> Ipv4Addr {
    let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let last = (u32::from(gateway) | host_bits) - 1;
    let mut from_the_end = (0..3).map(|n| Ipv4Addr::from(last - n));
    let free = from_the_end.find(|a| *a != gateway && *a != vm);
    // Of three there always is one.
    free.unwrap_or(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    fn config(mode: NetworkMode) -> NetworkConfig {
        NetworkConfig {
            mode,
            allow: vec!["10.0.0.0/8".parse().unwrap()],
            drop: vec!["0.0.0.0/0".parse().unwrap()],
            ..NetworkConfig::default()
        }
    }

    fn lists(allow: Option<&[&str]>, drop: Option<&[&str]>) -> NetworkPolicy {
        let owned =
            |list: Option<&[&str]>| list.map(|l| l.iter().map(|t| (*t).to_owned()).collect());
        NetworkPolicy {
            allow: owned(allow),
            drop: owned(drop),
        }
    }

    #[test]
    fn a_list_of_ones_own_takes_the_place_of_the_groups() {
        let config = config(NetworkMode::Isolated);
        let own = lists(Some(&[]), None);
        let policy = effective(&config, Some(&own)).unwrap();
        assert!(policy.allow.is_empty());
        assert_eq!(policy.drop, config.drop);
        let shown = shown(&config, Some(&own));
        assert_eq!(shown.policy_source, "override");
        assert_eq!(shown.override_, Some(own));
        assert_eq!(shown.host_group.allow.unwrap(), ["10.0.0.0/8"]);
        assert_eq!(shown.effective.drop.unwrap(), ["0.0.0.0/0"]);
    }

    #[test]
    fn lists_need_an_isolated_network_and_destinations() {
        let own = lists(None, Some(&["10.0.0.1:443"]));
        check_override(&config(NetworkMode::Isolated), &own).unwrap();
        for mode in [NetworkMode::Nat, NetworkMode::Bridge] {
            let e = check_override(&config(mode), &own).unwrap_err();
            assert!(e.message.contains(mode.word()), "{e:?}");
        }
        let isolated = config(NetworkMode::Isolated);
        let e = check_override(&isolated, &lists(Some(&["nowhere"]), None)).unwrap_err();
        assert!(e.message.contains("nowhere"), "{e:?}");
        let many = vec!["10.0.0.1"; MAX_DESTINATIONS + 1];
        check_override(&isolated, &lists(Some(&many), None)).unwrap_err();
    }

    #[test]
    fn an_address_of_another_network_is_replaced() {
        let config = NetworkConfig {
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            ..NetworkConfig::default()
        };
        let mut record = sample("sbox-1");
        let old = record.ip;
        let mut taken = BTreeSet::from([old, Ipv4Addr::new(10, 0, 0, 2)]);
        assert!(readdress(&config, &mut record, &mut taken));
        assert_eq!(record.ip, Ipv4Addr::new(10, 0, 0, 3));
        assert!(taken.contains(&record.ip));
        assert!(!readdress(&config, &mut record, &mut taken));
    }

    #[test]
    fn the_resolver_has_an_address_of_its_own() {
        let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        assert_eq!(resolver(at(1), 29, at(2)), at(6));
        assert_eq!(resolver(at(6), 29, at(2)), at(5));
        assert_eq!(resolver(at(6), 29, at(5)), at(4));
        assert_eq!(resolver(at(1), 29, at(6)), at(5));
    }
}
