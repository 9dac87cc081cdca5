//! `slicer vm pause`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;

/// Freeze a VM's CPUs; its memory stays
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Hostname or friendly name
    vm: String,
}

impl Pause {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        client
            .with_vm(&self.vm, async |h| client.pause(h).await)
            .await?;
        output::print(&format!("VM paused: {}\n", self.vm)).await?;
        Ok(0)
    }
}
