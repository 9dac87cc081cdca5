//! `slicer vm restore`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::parse_duration;
use std::time::Duration;

/// Have a suspended VM run on where it was
///
/// Should that be impossible, because its disk was changed since or its machine is another one, the
/// VM is booted from its disk, and the command says why.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Hostname or friendly name
    vm: String,
    /// How long to wait for its agent, such as 90s or 5m; the VM goes on all the same
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
}

impl Restore {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let timeout = self.timeout;
        let restored = client.with_vm(&self.vm, async |h| client.restore(h, timeout).await);
        match restored.await? {
            None => output::print(&format!("VM restored: {}\n", self.vm)).await?,
            Some(why) => output::note(&why),
        }
        Ok(0)
    }
}
