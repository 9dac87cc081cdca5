//! `slicer vm group`.

use super::list::ram;
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::Args;

/// List the host groups VMs can be created in
#[derive(Debug, Args)]
pub(crate) struct Group {
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Group {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let groups = connection.client()?.host_groups().await?;
        let text = if self.json {
            output::json(&groups)?
        } else {
            let columns = ["NAME", "COUNT", "RAM", "CPUS", "ARCH"].map(|name| (name, 0));
            let mut table = Table::new(columns, 2);
            for g in groups {
                table.row([
                    g.name,
                    g.count.to_string(),
                    ram(g.ram_bytes),
                    g.cpus.to_string(),
                    g.arch,
                ]);
            }
            table.render()
        };
        output::print(&text).await?;
        Ok(0)
    }
}
