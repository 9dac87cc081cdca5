//! What is asked for.

use crate::Policy;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// A place for a VM on a bridge, which its host and other VMs are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The host's address on it, with the network's prefix.
    pub gateway: Ipv4Net,
    /// The bridge's name; without one, it is made up.
    pub name: Option<String>,
    /// How the name of the VM's tap begins; without one, it is made up.
    pub tap_prefix: Option<String>,
    /// Whether the VM's tap is not on the bridge, and takes nothing, until its [`Apart`](crate::Apart) joins.
    pub apart: bool,
}

/// A network namespace for one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolated {
    /// The address the VM takes for its router's, with the network's prefix.
    pub gateway: Ipv4Net,
    /// The VM's address.
    pub address: Ipv4Addr,
    /// Where it may connect to.
    pub policy: Policy,
}

/// Longest name of a network device, bytes.
const MAX_NAME: usize = 15;
/// Room for the number behind a tap's prefix.
const NUMBER: usize = 5;

/// Whether a network device can have this name.
#[must_use]
pub fn is_device_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    name.len() <= MAX_NAME
        && name.bytes().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether the names of taps can begin with this.
#[must_use]
pub fn is_tap_prefix(prefix: &str) -> bool {
    is_device_name(prefix) && prefix.len() + NUMBER <= MAX_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels_and_nfts() {
        for name in ["br0", "a-b_c.d", "123456789012345"] {
            assert!(is_device_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "a b",
            "a/b",
            "a\"b",
            "a*",
            "%d",
            "1234567890123456",
        ] {
            assert!(!is_device_name(name), "{name}");
        }
        assert!(is_tap_prefix("1234567890"));
        assert!(!is_tap_prefix("12345678901"));
        assert!(!is_tap_prefix(""));
    }
}
