//! Where a VM may connect to.

use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A network, an address, or a port of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The network; a single address is one of full length.
    pub net: IpNet,
    /// The port of TCP and UDP; none is all traffic.
    pub port: Option<u16>,
}

/// The text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a destination: give a network (10.0.0.0/8), an address, or an address and port \
     (10.0.0.1:443)"
)]
pub struct DestinationError(String);

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self {
                net: net.trunc(),
                port: None,
            });
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self {
                net: address.into(),
                port: None,
            });
        }
        match text.parse::<SocketAddr>() {
            Ok(socket) if socket.port() != 0 => Ok(Self {
                net: socket.ip().into(),
                port: Some(socket.port()),
            }),
            _ => Err(DestinationError(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (
            self.port,
            self.net.prefix_len() == self.net.max_prefix_len(),
        ) {
            (Some(port), _) => write!(f, "{}", SocketAddr::new(self.net.addr(), port)),
            (None, true) => write!(f, "{}", self.net.addr()),
            (None, false) => write!(f, "{}", self.net),
        }
    }
}

/// Lists of destinations. What is in `allow` may be reached in any case, and what is in `drop` not.
/// The rest may, unless there is an `allow` alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// What may be reached.
    pub allow: Vec<Destination>,
    /// What may not.
    pub drop: Vec<Destination>,
}

impl Policy {
    /// Whether what neither list has may be reached.
    #[must_use]
    pub fn rest(&self) -> bool {
        self.allow.is_empty() || !self.drop.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_networks_addresses_or_ports() {
        for (text, want) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3:443", "10.1.2.3:443"),
            ("fe80::1", "fe80::1"),
            ("[fe80::1]:80", "[fe80::1]:80"),
        ] {
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.to_string(), want);
            assert_eq!(want.parse(), Ok(destination));
        }
        for text in [
            "",
            "a",
            "10.0.0",
            "10.0.0.0/33",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:70000",
        ] {
            text.parse::<Destination>().unwrap_err();
        }
    }

    #[test]
    fn only_a_list_of_what_is_allowed_forbids_the_rest() {
        let some = vec!["10.0.0.1".parse().unwrap()];
        let rest = |allow: &Vec<_>, drop: &Vec<_>| {
            Policy {
                allow: allow.clone(),
                drop: drop.clone(),
            }
            .rest()
        };
        let none = Vec::new();
        assert!(rest(&none, &none));
        assert!(rest(&none, &some));
        assert!(rest(&some, &some));
        assert!(!rest(&some, &none));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            if let Ok(destination) = text.parse::<Destination>() {
                proptest::prop_assert_eq!(destination.to_string().parse(), Ok(destination));
            }
        }
    }
}
