//! `slicer vm logs`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;

/// Show the end of a VM's serial console
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Hostname or friendly name
    vm: String,
    /// How many lines; 0 is all
    #[arg(long, value_name = "N", default_value_t = 20)]
    lines: u64,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Logs {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let mut logs = client
            .with_vm(&self.vm, async |h| client.logs(h, Some(self.lines)).await)
            .await?;
        let text = if self.json {
            output::json(&logs)?
        } else {
            if !logs.content.is_empty() && !logs.content.ends_with('\n') {
                logs.content.push('\n');
            }
            logs.content
        };
        output::print(&text).await?;
        Ok(0)
    }
}
