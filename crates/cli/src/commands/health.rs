//! `slicer vm health`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::Args;
use serde::Serialize;
use slicer_api::{NodeStatus, format_duration};
use slicer_client::{Client, NodeFilter};
use std::time::Duration;

/// Show what a VM's agent says about itself
///
/// Answers at once; `slicer vm ready` waits. Without a VM, shows all of them.
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Hostname or friendly name
    vm: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// A VM in the answer about all of them.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Found {
    Healthy(slicer_api::Health),
    Silent { hostname: String, error: String },
}

impl Health {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let text = if let Some(vm) = &self.vm {
            let health = client.with_vm(vm, async |h| client.health(h).await).await?;
            if self.json {
                output::json(&health)?
            } else {
                render(&[Found::Healthy(health)])
            }
        } else {
            let all = all(&client).await?;
            if self.json {
                output::json(&all)?
            } else {
                render(&all)
            }
        };
        output::print(&text).await?;
        Ok(0)
    }
}

async fn all(client: &Client) -> Result<Vec<Found>, CliError> {
    let mut found = Vec::new();
    for node in client.nodes(&NodeFilter::default()).await? {
        let hostname = node.hostname;
        if node.status != NodeStatus::Running {
            let error = format!("VM is {}", node.status);
            found.push(Found::Silent { hostname, error });
            continue;
        }
        // One VM that is still booting must not hide the others.
        found.push(match client.health(&hostname).await {
            Ok(health) => Found::Healthy(health),
            Err(e) if e.status().is_some() => Found::Silent {
                hostname,
                error: e.to_string(),
            },
            Err(e) => return Err(e.into()),
        });
    }
    Ok(found)
}

fn render(all: &[Found]) -> String {
    let columns = [
        "HOSTNAME",
        "AGENT UPTIME",
        "SYSTEM UPTIME",
        "AGENT VERSION",
        "USERDATA RAN",
    ];
    let mut table = Table::new(columns.map(|name| (name, 0)), 2);
    for found in all {
        table.row(match found {
            Found::Healthy(h) => [
                h.hostname.clone(),
                format_duration(Duration::from_nanos(h.agent_uptime)),
                format_duration(Duration::from_nanos(h.system_uptime)),
                h.agent_version.clone(),
                u8::from(h.userdata_ran).to_string(),
            ],
            Found::Silent { hostname, .. } => {
                let none = String::new;
                [hostname.clone(), none(), none(), none(), none()]
            }
        });
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_rounds_and_keeps_the_silent() {
        let healthy = slicer_api::Health {
            hostname: "sbox-1".into(),
            agent_uptime: 53_200_000_000,
            agent_version: "0.1.0".into(),
            system_uptime: 465_000_000_000,
            userdata_ran: true,
            ..slicer_api::Health::default()
        };
        let silent = Found::Silent {
            hostname: "sbox-2".into(),
            error: "VM is Paused".into(),
        };
        assert_eq!(
            render(&[Found::Healthy(healthy), silent]),
            "\
HOSTNAME  AGENT UPTIME  SYSTEM UPTIME  AGENT VERSION  USERDATA RAN
--------  ------------  -------------  -------------  ------------
sbox-1    53s           7m45s          0.1.0          1
sbox-2    -             -              -              -
"
        );
    }
}
