//! `slicer vm bg list`, `info`, `wait`, `kill` and `remove`.

use super::Target;
use crate::connection::Connection;
use crate::error::{CliError, FAILURE, TIMED_OUT};
use crate::output;
use crate::table::Table;
use clap::Args;
use slicer_api::{ExecInfo, KillRequest, KillSignal, MAX_WAIT, parse_duration};
use std::time::{Duration, Instant};

/// List a VM's background commands: running, or ended and not removed yet
#[derive(Debug, Args)]
#[command(visible_alias = "ls")]
pub(crate) struct List {
    /// Hostname or friendly name
    vm: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show all about a background command, as JSON
#[derive(Debug, Args)]
pub(crate) struct Info {
    #[command(flatten)]
    target: Target,
}

/// Wait until a background command ends, and exit with its exit code
#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    target: Target,
    /// How long to wait, such as 90s or 10m; then exits with 124. For ever unless given
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// Send a background command and its children a signal
#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    target: Target,
    /// TERM, KILL, INT, HUP, QUIT, USR1 or USR2
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = KillSignal::parse)]
    signal: KillSignal,
    /// After TERM: how long until those that don't heed it are killed
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    grace: Duration,
}

/// Forget a background command that has ended, with its output
#[derive(Debug, Args)]
#[command(visible_alias = "rm")]
pub(crate) struct Remove {
    #[command(flatten)]
    target: Target,
}

impl List {
    pub(super) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let execs = client
            .with_vm(&self.vm, async |vm| client.background_execs(vm).await)
            .await?;
        let text = if self.json {
            output::json(&execs)?
        } else {
            table(&execs)
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn table(execs: &[ExecInfo]) -> String {
    let mut table = Table::new(
        [
            ("EXEC ID", 19),
            ("PID", 6),
            ("STATUS", 7),
            ("EXIT", 4),
            ("STARTED", 20),
            ("BYTES", 8),
            ("COMMAND", 0),
        ],
        2,
    );
    for exec in execs {
        let words: Vec<&str> = std::iter::once(&exec.command)
            .chain(&exec.args)
            .map(String::as_str)
            .collect();
        table.row([
            exec.exec_id.clone(),
            exec.pid.to_string(),
            if exec.running { "running" } else { "exited" }.to_owned(),
            exec.exit_code.map(|c| c.to_string()).unwrap_or_default(),
            exec.started_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            exec.bytes_written.to_string(),
            words.join(" ").chars().take(60).collect(),
        ]);
    }
    table.render()
}

impl Info {
    pub(super) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let info = client
            .with_vm(&self.target.vm, async |vm| {
                client.background_exec(vm, &self.target.id).await
            })
            .await?;
        output::print(&output::json(&info)?).await?;
        Ok(0)
    }
}

impl Wait {
    pub(super) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let start = Instant::now();
        loop {
            let left = self.timeout.map(|t| t.saturating_sub(start.elapsed()));
            let ended = client
                .with_vm(&self.target.vm, async |vm| {
                    let turn = left.unwrap_or(MAX_WAIT);
                    client.wait_background(vm, &self.target.id, turn).await
                })
                .await?;
            let over = self.timeout.is_some_and(|t| start.elapsed() >= t);
            if ended.running && !over {
                continue;
            }
            output::print(&output::json(&ended)?).await?;
            return Ok(match ended.exit_code {
                None if ended.running => TIMED_OUT,
                None => FAILURE,
                Some(code) => u8::try_from(code).unwrap_or(u8::MAX),
            });
        }
    }
}

impl Kill {
    pub(super) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let request = KillRequest {
            signal: self.signal.name().to_owned(),
            // 0 would be the daemon's default.
            grace_ms: u64::try_from(self.grace.as_millis())
                .unwrap_or(u64::MAX)
                .max(1),
        };
        let killed = client
            .with_vm(&self.target.vm, async |vm| {
                client.kill_background(vm, &self.target.id, &request).await
            })
            .await?;
        output::print(&output::json(&killed)?).await?;
        Ok(0)
    }
}

impl Remove {
    pub(super) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let reaped = client
            .with_vm(&self.target.vm, async |vm| {
                client.remove_background(vm, &self.target.id).await
            })
            .await?;
        output::print(&format!("Removed {}\n", reaped.exec_id)).await?;
        Ok(0)
    }
}
