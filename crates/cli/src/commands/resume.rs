//! `slicer vm resume`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;

/// Let a paused VM run on
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// Hostname or friendly name
    vm: String,
}

impl Resume {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        client
            .with_vm(&self.vm, async |h| client.resume(h).await)
            .await?;
        output::print(&format!("VM resumed: {}\n", self.vm)).await?;
        Ok(0)
    }
}
