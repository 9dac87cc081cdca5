//! The NAT network of a Mac.
//!
//! macOS gives it an address of its own choice, mostly 192.168.64.1, and another one when something
//! else has that: another virtualization product, say. Guests have addresses of the configuration, so
//! then they reach nobody.
#![cfg_attr(
    not(any(target_os = "macos", test)),
    expect(dead_code, reason = "asked on Macs only")
)]

#[cfg(target_os = "macos")]
use crate::config::HostGroupConfig;
use crate::config::{NetworkConfig, NetworkMode};
use std::net::Ipv4Addr;

/// Where macOS keeps what it chose. Everybody may read it.
#[cfg(target_os = "macos")]
const FILE: &str = "/Library/Preferences/SystemConfiguration/com.apple.vmnet.plist";
/// The host's address in the network.
const ADDRESS: &str = "Shared_Net_Address";

/// Says of which groups' networks this Mac's is another. One that never had any VM has none yet.
#[cfg(target_os = "macos")]
pub(crate) fn complaints(groups: &[HostGroupConfig]) -> Vec<String> {
    let file = std::fs::read(FILE).unwrap_or_default();
    let groups = groups.iter().map(|g| (g.name.as_str(), &g.network));
    address(&file).map_or_else(Vec::new, |address| differing(groups, address))
}

/// The host's address, of the file's content; none when it doesn't say.
fn address(file: &[u8]) -> Option<Ipv4Addr> {
    let value = plist::Value::from_reader(std::io::Cursor::new(file)).ok()?;
    let text = value.as_dictionary()?.get(ADDRESS)?.as_string()?;
    text.parse().ok()
}

fn differing<'c>(
    groups: impl Iterator<Item = (&'c str, &'c NetworkConfig)>,
    address: Ipv4Addr,
) -> Vec<String> {
    let differs = |(_, network): &(&str, &NetworkConfig)| {
        network.mode == NetworkMode::Nat && network.gateway != address
    };
    let complaint = |(name, network): (&str, &NetworkConfig)| {
        format!(
            "group {name}: its VMs may reach nobody: the gateway is {}, and macOS has its network at \
             {address}: set `network: {{gateway: {address}/{}}}`",
            network.gateway, network.prefix
        )
    };
    groups.filter(differs).map(complaint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(address: &str) -> Vec<u8> {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\"><dict>\
             <key>Shared_Net_Address</key><string>{address}</string>\
             <key>Shared_Net_Mask</key><string>255.255.255.0</string></dict></plist>"
        );
        text.into_bytes()
    }

    #[test]
    fn the_address_is_read_and_nothing_else_is_taken_for_one() {
        let at = |n| Some(Ipv4Addr::new(192, 168, n, 1));
        assert_eq!(address(&file("192.168.65.1")), at(65));
        for none in ["", "here", "192.168.64.1/24"] {
            assert_eq!(address(&file(none)), None, "{none}");
        }
        assert_eq!(address(b""), None);
        assert_eq!(address(b"bplist00"), None);
    }

    #[test]
    fn a_group_of_another_network_is_told_which_one_to_take() {
        let network = NetworkConfig::default();
        let elsewhere = NetworkConfig {
            mode: NetworkMode::Bridge,
            ..NetworkConfig::default()
        };
        let groups = [("sbox", &network), ("lab", &elsewhere)];
        assert!(differing(groups.into_iter(), network.gateway).is_empty());
        let other = Ipv4Addr::new(192, 168, 65, 1);
        let told = differing(groups.into_iter(), other);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("group sbox: "), "{told:?}");
        assert!(told[0].ends_with("{gateway: 192.168.65.1/24}`"), "{told:?}");
    }
}
