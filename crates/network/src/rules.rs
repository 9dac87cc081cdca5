//! What may pass, in the language of nft(8). Everything in it is made of addresses, numbers and
//! names that we checked.

use crate::{Destination, Policy};
use ipnet::{IpNet, Ipv4Net};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// A network on the host that VMs are in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shared {
    /// All on this bridge.
    Bridge {
        /// The network.
        net: Ipv4Net,
        /// The bridge.
        device: String,
    },
    /// Each in a namespace of its own.
    Isolated {
        /// The network their addresses are of.
        net: Ipv4Net,
    },
}

/// So that a guest's programs fail at once, and need not run out of patience.
const REFUSE: &str = "reject with icmpx type admin-prohibited";

/// The name of an owner's table.
pub(crate) fn table(id: &str) -> String {
    format!("slicer-{id}")
}

/// Removes an owner's table, if it is there.
pub(crate) fn remove(id: &str) -> String {
    let table = table(id);
    // Which makes it first where there is none: nft before 1.0.8 has no other way.
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// An owner's table on the host, in place of what it was. `veths` is how the names of devices begin
/// that lead to namespaces.
pub(crate) fn host(id: &str, veths: &str, shared: &[Shared]) -> String {
    let mut text = remove(id);
    let (mut pass, mut masquerade) = (String::new(), String::new());
    for network in shared {
        match network {
            Shared::Bridge { net, device } => {
                // From one to another: asked about where bridges' frames are filtered as packets.
                let _ = writeln!(pass, "    iifname \"{device}\" oifname \"{device}\" accept");
                let _ = writeln!(pass, "    iifname \"{device}\" ip saddr != {net} drop");
                let _ = writeln!(
                    pass,
                    "    oifname \"{device}\" ct state established,related accept"
                );
                let _ = writeln!(pass, "    oifname \"{device}\" drop");
                let _ = writeln!(
                    masquerade,
                    "    ip saddr {net} oifname != \"{device}\" masquerade"
                );
            }
            Shared::Isolated { net } => {
                let _ = writeln!(
                    masquerade,
                    "    ip saddr {net} oifname != \"{veths}*\" masquerade"
                );
            }
        }
    }
    if shared.iter().any(|s| matches!(s, Shared::Isolated { .. })) {
        let _ = writeln!(
            pass,
            "    oifname \"{veths}*\" ct state established,related accept"
        );
        let _ = writeln!(
            pass,
            "    iifname \"{veths}*\" oifname \"{veths}*\" {REFUSE}"
        );
        let _ = writeln!(pass, "    oifname \"{veths}*\" drop");
    }
    let _ = write!(
        text,
        "table inet {} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
{pass}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{masquerade}  }}
}}
",
        table(id)
    );
    text
}

/// The rules in the namespace of a VM that has this address. `inside` is its tap, `outside` the
/// device that leads to the host.
///
/// `host` is the host's end of that: an address of the host that nobody can be expected to think of
/// who makes a list, and so refused.
pub(crate) fn isolated(
    policy: &Policy,
    address: Ipv4Addr,
    inside: &str,
    outside: &str,
    host: Ipv4Addr,
) -> String {
    let mut verdicts = String::new();
    for (list, verdict) in [(&policy.allow, "accept"), (&policy.drop, REFUSE)] {
        for destination in list {
            if let Some(matches) = matching(destination) {
                let _ = writeln!(verdicts, "    {matches} {verdict}");
            }
        }
    }
    let rest = if policy.rest() { "accept" } else { REFUSE };
    format!(
        "table inet slicer {{
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname \"{inside}\" ip saddr != {address} drop
    ct state established,related accept
    iifname \"{outside}\" oifname \"{inside}\" accept
    iifname != \"{inside}\" drop
    meta nfproto != ipv4 drop
    ip daddr {host} {REFUSE}
{verdicts}    {rest}
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    icmp type echo-request accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{inside}\" masquerade
  }}
}}
"
    )
}

/// VMs have no IPv6, so there is nothing to say about it.
fn matching(destination: &Destination) -> Option<String> {
    let IpNet::V4(net) = destination.net else {
        return None;
    };
    let mut text = String::new();
    if net.prefix_len() > 0 {
        let _ = write!(text, "ip daddr {net} ");
    }
    if let Some(port) = destination.port {
        let _ = write!(text, "meta l4proto {{ tcp, udp }} th dport {port} ");
    }
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<Destination> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_allowed_comes_before_what_is_dropped() {
        let policy = Policy {
            allow: list(&["10.0.0.1:443", "fe80::1"]),
            drop: list(&["10.0.0.0/8", "0.0.0.0/0"]),
        };
        let (vm, host) = (
            Ipv4Addr::new(192, 168, 64, 2),
            Ipv4Addr::new(169, 254, 0, 1),
        );
        let text = isolated(&policy, vm, "tap", "up", host);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = |line: &str| {
            let found = lines.iter().position(|l| *l == line);
            found.unwrap_or_else(|| panic!("no {line:?} in {text}"))
        };
        let spoofed = at("iifname \"tap\" ip saddr != 192.168.64.2 drop");
        let hidden = at("ip daddr 169.254.0.1 reject with icmpx type admin-prohibited");
        let allow = at("ip daddr 10.0.0.1/32 meta l4proto { tcp, udp } th dport 443 accept");
        let drop = at("ip daddr 10.0.0.0/8 reject with icmpx type admin-prohibited");
        assert!(spoofed < hidden && hidden < allow && allow < drop, "{text}");
        assert_eq!(lines[drop + 1], REFUSE);
        assert_eq!(lines[drop + 2], "accept");
        assert!(!text.contains("fe80"));
    }

    #[test]
    fn nothing_comes_in_from_elsewhere() {
        let shared = [
            Shared::Bridge {
                net: "10.1.0.0/24".parse().unwrap(),
                device: "br7".into(),
            },
            Shared::Isolated {
                net: "10.2.0.0/24".parse().unwrap(),
            },
        ];
        let text = host("ab", "svab", &shared);
        for line in [
            "oifname \"br7\" drop",
            "oifname \"svab*\" drop",
            "ip saddr 10.1.0.0/24 oifname != \"br7\" masquerade",
            "ip saddr 10.2.0.0/24 oifname != \"svab*\" masquerade",
        ] {
            assert!(text.lines().any(|l| l.trim() == line), "{line}: {text}");
        }
        assert!(text.starts_with("table inet slicer-ab\ndelete table inet slicer-ab\n"));
    }
}
