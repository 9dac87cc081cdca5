//! `slicer vm shutdown`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::ShutdownAction;

/// Ask a VM to power off
///
/// An ephemeral VM is removed once it is off, a persistent one stays as Stopped. Returns without
/// waiting for either.
#[derive(Debug, Args)]
pub(crate) struct Shutdown {
    /// Hostname or friendly name
    vm: String,
}

impl Shutdown {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        client
            .with_vm(&self.vm, async |h| {
                client.shutdown(h, ShutdownAction::Shutdown).await
            })
            .await?;
        output::print(&format!("VM shutting down: {}\n", self.vm)).await?;
        Ok(0)
    }
}
