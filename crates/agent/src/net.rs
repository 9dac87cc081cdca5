//! The guest's network: one IPv4 address, one default route, set by the interface ioctls, which
//! every kernel has and no program is needed for.

use crate::error::{AgentError, io_error};
use crate::sys;
use slicer_api::NetworkIdentity;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long the modules of a slow guest may take to load.
const MODULES_WAIT: Duration = Duration::from_mins(1);
/// What the kernel calls its first network card, when nobody renames it.
const FIRST: &str = "eth0";
/// How long after that the interface may take to appear: nearly always no time at all.
const INTERFACE_WAIT: Duration = Duration::from_secs(10);

/// Gives the interface with the network's hardware address its address and the default route, and
/// brings it and the loopback up. With the address 0.0.0.0 it is only up: it is to have one later.
pub(crate) async fn configure(
    network: &NetworkIdentity,
    mut modules_loaded: watch::Receiver<bool>,
) -> Result<(), AgentError> {
    // Any datagram socket is a handle for these requests.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .map_err(io_error::<io::Error>("open", "a socket for network set-up"))?;
    let socket = socket.as_fd();
    sys::set_up(socket, "lo").map_err(io_error("bring up", "lo"))?;
    // Running out of time is no reason not to look.
    let _ = timeout(MODULES_WAIT, modules_loaded.wait_for(|done| *done)).await;
    let interface = wait_for_interface(socket, &network.mac).await?;
    if network.address.is_unspecified() {
        // A template's: it is up, which takes the longest, and has no address that its clones would have.
        set_ipv6(&interface, false)?;
        return sys::set_up(socket, &interface).map_err(io_error("bring up", &interface));
    }
    sys::set_address(socket, &interface, network.address, network.prefix)
        .map_err(io_error("set the address of", &interface))?;
    sys::set_up(socket, &interface).map_err(io_error("bring up", &interface))?;
    let add = || sys::add_default_route(socket, network.gateway);
    match add() {
        // By this gateway, or by that of another address.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
            let mut there = false;
            for gateway in default_gateways(&routes, &interface) {
                if gateway == network.gateway {
                    there = true;
                } else {
                    sys::delete_default_route(socket, gateway)
                        .map_err(io_error("delete the old default route of", &interface))?;
                }
            }
            if there { Ok(()) } else { add() }
        }
        added => added,
    }
    .map_err(io_error("add the default route of", &interface))
}

/// Gives the interface with one hardware address another. Without such a one, all is as it is: it has
/// the other already, or the machine has no network. Its IPv6 addresses, which follow from it, are gone,
/// and that of a template has none yet, see [`configure`]: answers the interface that is to draw some.
pub(crate) fn change_hardware_address(
    from: &str,
    to: &str,
    of_template: bool,
) -> Result<Option<String>, AgentError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .map_err(io_error::<io::Error>("open", "a socket for network set-up"))?;
    let socket = socket.as_fd();
    let (Some(interface), Some(address)) = (find_interface(socket, from), parse_mac(to)) else {
        return Ok(None);
    };
    sys::set_hardware_address(socket, &interface, address)
        .map_err(io_error("set the hardware address of", &interface))?;
    if of_template {
        return Ok(Some(interface));
    }
    let has_ipv6 = fs::read(ipv6_setting(&interface)).is_ok_and(|off| off.starts_with(b"0"));
    if !has_ipv6 {
        return Ok(None);
    }
    set_ipv6(&interface, false)?;
    Ok(Some(interface))
}

fn ipv6_setting(interface: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
}

/// Sets whether an interface is to have IPv6 addresses. A kernel that knows of none has no such setting.
///
/// # Errors
/// When it can't be set.
pub(crate) fn set_ipv6(interface: &str, on: bool) -> Result<(), AgentError> {
    let setting = ipv6_setting(interface);
    match fs::write(&setting, if on { "0" } else { "1" }) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("write", setting)(e)),
        _ => Ok(()),
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

/// The name of the interface with this hardware address, as soon as there is one.
async fn wait_for_interface(socket: BorrowedFd<'_>, mac: &str) -> Result<String, AgentError> {
    let look = async {
        loop {
            if let Some(name) = find_interface(socket, mac) {
                return name;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(INTERFACE_WAIT, look)
        .await
        .map_err(|_| AgentError::NoInterface {
            mac: mac.chars().take(32).collect(),
            seconds: INTERFACE_WAIT.as_secs(),
        })
}

fn find_interface(socket: BorrowedFd<'_>, mac: &str) -> Option<String> {
    // That it nearly always is, and asking for it takes a clone less time than a look through files.
    if parse_mac(mac)
        .is_some_and(|mac| sys::hardware_address(socket, FIRST).is_ok_and(|a| a == mac))
    {
        return Some(FIRST.to_owned());
    }
    fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .find(|entry| {
            fs::read_to_string(entry.path().join("address"))
                .is_ok_and(|address| address.trim().eq_ignore_ascii_case(mac))
        })
        .and_then(|entry| entry.file_name().into_string().ok())
}

/// The gateways of an interface's default routes. `table` is `/proc/net/route`: a heading, then a
/// line a route of interface, destination, gateway, flags, …, mask, the addresses in hexadecimal
/// and in the machine's byte order.
fn default_gateways(table: &str, interface: &str) -> Vec<Ipv4Addr> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let address = |field: &str| {
                let bits = u32::from_str_radix(field, 16).ok()?;
                Some(Ipv4Addr::from(bits.to_ne_bytes()))
            };
            let [name, destination, gateway, _, _, _, _, mask, ..] = fields.as_slice() else {
                return None;
            };
            let default = address(destination)?.is_unspecified() && address(mask)?.is_unspecified();
            if *name != interface || !default {
                return None;
            }
            address(gateway).filter(|g| !g.is_unspecified())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn default_routes_are_found() {
        let table =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0 short
";
        assert_eq!(
            default_gateways(table, "eth0"),
            [Ipv4Addr::new(10, 0, 2, 2)]
        );
        assert_eq!(
            default_gateways(table, "eth1"),
            [Ipv4Addr::new(192, 168, 0, 1)]
        );
        assert_eq!(default_gateways("", "eth0"), [Ipv4Addr::UNSPECIFIED; 0]);
    }

    #[test]
    fn hardware_addresses_are_read() {
        assert_eq!(parse_mac("02:00:00:0a:Ff:01"), Some([2, 0, 0, 10, 255, 1]));
        for bad in [
            "",
            "02:00:00:0a:ff",
            "02:00:00:0a:ff:01:02",
            "02:00:00:0a:ff:100",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(table in "\\PC{0,200}") {
            default_gateways(&table, "eth0");
        }
    }
}
