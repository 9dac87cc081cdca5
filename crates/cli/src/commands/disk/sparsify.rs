//! `slicer disk sparsify`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use indicatif::HumanBytes;

/// Give back to the host what a running VM's disk doesn't use
///
/// What is deleted in a VM is given back as it goes. This asks its file systems to say once more
/// what they don't use, as fstrim(8) does.
#[derive(Debug, Args)]
pub(crate) struct Sparsify {
    /// Hostname or friendly name
    vm: String,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Sparsify {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let done = client
            .with_vm(&self.vm, async |h| client.sparsify_disk(h).await)
            .await?;
        let text = if self.json {
            output::json(&done)?
        } else {
            let freed = done.disk_bytes_before.saturating_sub(done.disk_bytes);
            format!(
                "Freed {}: the disk of {} takes {} now\n",
                HumanBytes(freed),
                done.hostname,
                HumanBytes(done.disk_bytes)
            )
        };
        output::print(&text).await?;
        Ok(0)
    }
}
