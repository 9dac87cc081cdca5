//! `slicer vm ready`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::{Health, parse_duration};
use slicer_client::{Client, ClientError};
use std::time::Duration;

/// Wait until a VM can be used
#[derive(Debug, Args)]
pub(crate) struct Ready {
    /// Hostname or friendly name
    vm: String,
    /// Until the agent answers (the default)
    #[arg(long, conflicts_with = "userdata")]
    agent: bool,
    /// Until userdata has run as well
    #[arg(long)]
    userdata: bool,
    /// How long to wait, such as 90s or 5m; then exits with 124
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// How often to ask
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = parse_duration)]
    interval: Duration,
    /// Print the VM's health as JSON
    #[arg(long)]
    json: bool,
}

impl Ready {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let mut last = None;
        let wait = self.wait(&client, &mut last);
        let health = match tokio::time::timeout(self.timeout, wait).await {
            Ok(health) => health?,
            Err(_) => {
                return Err(CliError::NotReady {
                    vm: self.vm,
                    timeout: self.timeout,
                    last,
                });
            }
        };
        let text = if self.json {
            output::json(&health)?
        } else {
            format!("VM ready: {}\n", self.vm)
        };
        output::print(&text).await?;
        Ok(0)
    }

    async fn wait(&self, client: &Client, last: &mut Option<String>) -> Result<Health, CliError> {
        let mut hostname = self.vm.clone();
        let mut looked_up = false;
        loop {
            match client.health(&hostname).await {
                Ok(health) if health.userdata_ran || !self.userdata => return Ok(health),
                Ok(_) => *last = Some("userdata is still running".to_owned()),
                Err(e) if e.is_not_found() && !looked_up => {
                    looked_up = true;
                    hostname = client.hostname_of(&self.vm).await?.ok_or(e)?;
                    continue;
                }
                Err(e) if passes(&e) => *last = Some(e.to_string()),
                Err(e) => return Err(e.into()),
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}

/// Whether waiting can help: the daemon answered, but the VM isn't that far.
fn passes(e: &ClientError) -> bool {
    match e {
        ClientError::Api { status, .. } => !matches!(status, 401 | 403 | 404),
        ClientError::Timeout { .. } => true,
        _ => false,
    }
}
