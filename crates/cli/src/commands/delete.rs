//! `slicer vm delete`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;

/// End a VM at once and remove its disk
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Hostname or friendly name
    vm: String,
    /// The VM's host group; looked up unless given
    group: Option<String>,
    /// The VM's host group, as a flag
    #[arg(long, value_name = "GROUP", conflicts_with = "group")]
    hostgroup: Option<String>,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Delete {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let group = self.group.as_deref().or(self.hostgroup.as_deref());
        let answer = client
            .with_vm(&self.vm, async |h| {
                if let Some(group) = group {
                    return client.delete_node(group, h).await;
                }
                let node = client.node(h).await?.node;
                client.delete_node(&node.hostgroup, &node.hostname).await
            })
            .await?;
        let text = if self.json {
            output::json(&answer)?
        } else {
            format!("VM deleted: {}\n", self.vm)
        };
        output::print(&text).await?;
        Ok(0)
    }
}
