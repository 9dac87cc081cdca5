//! The guest channel over a vsock, where the host has no port for it but connects to one of ours.
//!
//! vsock(7). Programs of the guest can connect to the port as well, by the address of the guest
//! itself; they are no host, and turned away.

use crate::error::{AgentError, io_error};
use crate::log;
use crate::server::Agent;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// What the host says on the kernel's command line: the port.
const ARGUMENT: &str = "slicer.vsock=";
/// Between two looks for the kernel's driver, which is a module that may come late.
const DRIVER_PAUSE: Duration = Duration::from_millis(20);

/// The port the host asks for, if it does.
pub(crate) fn wanted(command_line: &str) -> Option<u32> {
    let mut words = command_line.split_whitespace();
    words.find_map(|w| w.strip_prefix(ARGUMENT))?.parse().ok()
}

/// Serves the channel on this port, one host's connection at a time: the newest, for a host that
/// comes back has given up the one of before, of which the guest may not know. Ends when it can't
/// listen.
pub(crate) async fn serve(agent: &Arc<Agent>, port: u32) -> Result<(), AgentError> {
    let name = format!("vsock port {port}");
    let mut listener = listen(port).await.map_err(io_error("listen on", &name))?;
    log::info(&format!("serving on {name}"));
    let mut next = accept(&mut listener)
        .await
        .map_err(io_error("listen on", &name))?;
    loop {
        next = tokio::select! {
            end = slicer_channel::serve(next, |stream| agent.accept(stream)) => {
                if let Err(source) = end {
                    let path = name.clone().into();
                    log::info(&AgentError::Channel { path, source }.to_string());
                }
                accept(&mut listener).await
            }
            newer = accept(&mut listener) => newer,
        }
        .map_err(io_error("listen on", &name))?;
    }
}

/// Listens as soon as the kernel has a driver.
async fn listen(port: u32) -> io::Result<VsockListener> {
    loop {
        match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)) {
            Err(e) if is_early(&e) => tokio::time::sleep(DRIVER_PAUSE).await,
            bound => return bound,
        }
    }
}

/// Whether the kernel knows no vsock, or has no device for it.
fn is_early(e: &io::Error) -> bool {
    let early = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL, libc::ENODEV];
    e.raw_os_error().is_some_and(|code| early.contains(&code))
}

/// The next connection of the host.
async fn accept(listener: &mut VsockListener) -> io::Result<VsockStream> {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if is_host(peer) => return Ok(stream),
            Ok((_, peer)) => log::warn(&format!("not the host: {peer} is turned away")),
            // Of a connection that was given up while it waited.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(e),
        }
    }
}

fn is_host(peer: VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_hosts_word() {
        assert_eq!(wanted("console=hvc0 slicer.vsock=1024 quiet"), Some(1024));
        for none in [
            "",
            "slicer.vsock=",
            "slicer.vsock=x",
            "xslicer.vsock=1",
            "slicer.vsock=-1",
        ] {
            assert_eq!(wanted(none), None, "{none}");
        }
    }

    #[test]
    fn only_the_host_is_the_host() {
        for (cid, host) in [
            (0, false),
            (1, false),
            (2, true),
            (3, false),
            (u32::MAX, false),
        ] {
            assert_eq!(is_host(VsockAddr::new(cid, 5)), host);
        }
    }
}
