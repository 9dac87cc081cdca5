//! `slicer vm suspend`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;

/// Write a VM to disk and free its memory; restore lets it run on
///
/// When the command returns, the VM is on disk, and survives the daemon and the host. A suspended VM
/// can be restored, shut down (which gives up what it was doing, not its disk) or deleted.
#[derive(Debug, Args)]
pub(crate) struct Suspend {
    /// Hostname or friendly name
    vm: String,
}

impl Suspend {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        client
            .with_vm(&self.vm, async |h| client.suspend(h).await)
            .await?;
        output::print(&format!("VM suspended: {}\n", self.vm)).await?;
        Ok(0)
    }
}
