//! `slicer vm relaunch`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;

/// Start a stopped VM again, with its disk
#[derive(Debug, Args)]
pub(crate) struct Relaunch {
    /// Hostname or friendly name
    vm: String,
}

impl Relaunch {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        client
            .with_vm(&self.vm, async |h| client.relaunch(h).await.map(drop))
            .await?;
        output::print(&format!("VM relaunched: {}\n", self.vm)).await?;
        Ok(0)
    }
}
