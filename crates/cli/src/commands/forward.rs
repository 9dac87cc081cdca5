//! `slicer vm forward`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::Forward as Mapping;
use slicer_forward::Forwarder;
use std::fmt::Write as _;
use tokio::signal::unix::{SignalKind, signal};

/// Forward ports and sockets of this host into a VM, until interrupted
///
/// A mapping is one of HOST:PORT, LPORT:HOST:PORT, LADDR:LPORT:HOST:PORT, LPORT:/SOCKET,
/// LADDR:LPORT:/SOCKET, LSOCKET:/SOCKET and LSOCKET:HOST:PORT. What begins with L is on this
/// host, 127.0.0.1 unless LADDR is given; LPORT 0 is any free port. The rest is as the VM sees it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer vm forward sbox-1 -L 8080:127.0.0.1:80
  slicer vm forward sbox-1 127.0.0.1:5432 0.0.0.0:8000:127.0.0.1:8000
  slicer vm forward sbox-1 -L ./docker.sock:/var/run/docker.sock")]
pub(crate) struct Forward {
    /// Hostname or friendly name
    vm: String,
    /// Mapping; may be repeated
    #[arg(short = 'L', long = "local", value_name = "MAPPING")]
    local: Vec<Mapping>,
    /// Further mappings
    #[arg(value_name = "MAPPING", required_unless_present = "local")]
    mappings: Vec<Mapping>,
}

impl Forward {
    pub(crate) async fn run(mut self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let hostname = client
            .with_vm(&self.vm, async |h| Ok(client.node(h).await?.node.hostname))
            .await?;
        self.local.append(&mut self.mappings);
        let mut terminated = signal(SignalKind::terminate()).map_err(CliError::Terminal)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(CliError::Terminal)?;
        let forwarder = Forwarder::bind(&self.local).await?;
        let mut text = String::new();
        for Mapping { listen, target } in forwarder.forwards() {
            let _ = writeln!(text, "Forwarding {listen} -> {target}");
        }
        output::print(&text).await?;
        let dial = move |target| {
            let (client, hostname) = (client.clone(), hostname.clone());
            async move { client.forward(&hostname, &target).await }
        };
        let failed = |_: &_, e| {
            CliError::Client(e).report();
        };
        tokio::select! {
            () = forwarder.serve(dial, failed) => {}
            _ = terminated.recv() => {}
            _ = hung_up.recv() => {}
        }
        Ok(0)
    }
}
