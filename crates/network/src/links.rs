//! Network devices, by rtnetlink(7), in the network namespace of the thread that opened it.

use crate::NetworkError;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;
use tokio::runtime::Runtime;

/// The kernel answers at once, unless it is in deep trouble.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A way to ask for devices.
pub(crate) struct Links {
    runtime: Runtime,
    handle: Handle,
}

/// A device that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// What somebody wrote on it.
    pub(crate) alias: String,
}

impl Links {
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Device {
            action: "reach",
            device: "network devices".to_owned(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed)?;
        let guard = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        drop(guard);
        // It ends with the runtime.
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    fn run<T>(
        &self,
        action: &'static str,
        device: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetworkError> {
        let bounded = async { tokio::time::timeout(ANSWER_TIME, request).await };
        let source = match self.runtime.block_on(bounded) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(rtnetlink::Error::NetlinkError(e))) => e.to_io(),
            Ok(Err(e)) => io::Error::other(e.to_string()),
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        Err(NetworkError::Device {
            action,
            device: device.to_owned(),
            source,
        })
    }

    /// All devices.
    pub(crate) fn all(&self) -> Result<Vec<Device>, NetworkError> {
        let list = self.handle.link().get().execute();
        let read = list.map_ok(read).try_collect::<Vec<_>>();
        self.run("list", "network devices", read)
    }

    /// The device of this name, if it is there.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Device>, NetworkError> {
        let list = self.handle.link().get().match_name(name).execute();
        let first = async move { std::pin::pin!(list).next().await.transpose() };
        match self.run("look for", name, first) {
            Ok(found) => Ok(found.map(read)),
            Err(NetworkError::Device { source, .. })
                if source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// The device of this name.
    pub(crate) fn index(&self, name: &str) -> Result<u32, NetworkError> {
        let found = self.find(name)?.map(|d| d.index);
        found.ok_or_else(|| NetworkError::Device {
            action: "find",
            device: name.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Makes a bridge with this hardware address, which is down.
    pub(crate) fn add_bridge(&self, name: &str, mac: [u8; 6]) -> Result<u32, NetworkError> {
        let message = LinkBridge::new(name).down().address(mac.to_vec()).build();
        self.run("make", name, self.handle.link().add(message).execute())?;
        self.index(name)
    }

    /// Makes two devices of which each gets what the other sends.
    pub(crate) fn add_veth(&self, name: &str, peer: &str) -> Result<(), NetworkError> {
        let message = LinkVeth::new(name, peer).build();
        self.run("make", name, self.handle.link().add(message).execute())
    }

    fn change(
        &self,
        action: &'static str,
        index: u32,
        what: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetworkError> {
        let message = what(LinkUnspec::new_with_index(index)).build();
        let device = format!("network device {index}");
        self.run(
            action,
            &device,
            self.handle.link().change(message).execute(),
        )
    }

    /// Writes on a device whose it is.
    pub(crate) fn mark(&self, index: u32, alias: &str) -> Result<(), NetworkError> {
        let alias = LinkAttribute::IfAlias(alias.to_owned());
        self.change("mark", index, |m| m.append_extra_attribute(alias))
    }

    pub(crate) fn rename(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        self.change("rename", index, |m| m.name(name))
    }

    pub(crate) fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), NetworkError> {
        self.change("set the hardware address of", index, |m| {
            m.address(mac.to_vec())
        })
    }

    pub(crate) fn set_up(&self, index: u32) -> Result<(), NetworkError> {
        self.change("bring up", index, LinkMessageBuilder::up)
    }

    /// Puts a device on a bridge, and brings it up.
    pub(crate) fn join(&self, index: u32, bridge: u32) -> Result<(), NetworkError> {
        self.change("bridge", index, |m| m.controller(bridge).up())
    }

    /// Moves a device to another network namespace.
    pub(crate) fn move_to(
        &self,
        index: u32,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetworkError> {
        self.change("move", index, |m| m.setns_by_fd(namespace.as_raw_fd()))
    }

    pub(crate) fn add_address(&self, index: u32, address: Ipv4Net) -> Result<(), NetworkError> {
        let add =
            self.handle
                .address()
                .add(index, IpAddr::V4(address.addr()), address.prefix_len());
        let device = format!("network device {index}");
        self.run("give an address to", &device, add.replace().execute())
    }

    /// Has packets to `net` sent to `via`, which is found at the device itself.
    pub(crate) fn add_route(
        &self,
        net: Ipv4Net,
        via: Ipv4Addr,
        index: u32,
    ) -> Result<(), NetworkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .gateway(via)
            .output_interface(index)
            .onlink()
            .build();
        let device = format!("network device {index}");
        let add = self.handle.route().add(route).replace();
        self.run("add a route by", &device, add.execute())
    }

    /// The IPv4 addresses of all devices, by their devices' numbers.
    pub(crate) fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, NetworkError> {
        let list = self.handle.address().get().execute();
        let read = list.try_filter_map(async |message| {
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            let net = address.and_then(|a| Ipv4Net::new(a, message.header.prefix_len).ok());
            Ok(net.map(|net| (message.header.index, net)))
        });
        self.run("list", "addresses", read.try_collect::<Vec<_>>())
    }

    /// Removes a device; one that is gone is fine.
    pub(crate) fn remove(&self, device: &Device) -> Result<(), NetworkError> {
        let del = self.handle.link().del(device.index).execute();
        match self.run("remove", &device.name, del) {
            Err(NetworkError::Device { source, .. })
                if source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(())
            }
            done => done,
        }
    }
}

fn read(message: LinkMessage) -> Device {
    let mut device = Device {
        index: message.header.index,
        name: String::new(),
        alias: String::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::IfAlias(alias) => device.alias = alias,
            _ => {}
        }
    }
    device
}
