//! `slicer vm top`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::Args;
use rustix::termios::{isatty, tcgetwinsize};
use slicer_api::{NodeStats, StatsSnapshot};
use slicer_client::{Client, ClientError};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Time between two frames of the live table.
const REFRESH: Duration = Duration::from_secs(2);
/// Time over which rates are measured when the table is printed once.
const SAMPLE: Duration = Duration::from_millis(500);
/// The size of a terminal that doesn't say.
const FALLBACK_SIZE: (usize, usize) = (24, 160);

/// Show what VMs use, live on a terminal
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Hostname or friendly name; all VMs unless given
    vm: Option<String>,
    /// Print the daemon's answer as JSON, once
    #[arg(long)]
    json: bool,
}

impl Top {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let first = self.ask(&client).await?;
        if self.json {
            output::print(&output::json(&first)?).await?;
            return Ok(0);
        }
        if isatty(std::io::stdout()) {
            self.live(&client, first).await
        } else {
            tokio::time::sleep(SAMPLE).await;
            let text = render(&self.ask(&client).await?, &first);
            output::print(&text).await?;
            Ok(0)
        }
    }

    async fn ask(&self, client: &Client) -> Result<Vec<NodeStats>, ClientError> {
        match &self.vm {
            None => client.stats().await,
            Some(vm) => {
                client
                    .with_vm(vm, async |vm| client.node_stats(vm).await)
                    .await
            }
        }
    }

    /// Draws frame over frame until the user interrupts. No mode of the terminal is changed, so
    /// there is none to restore.
    async fn live(&self, client: &Client, first: Vec<NodeStats>) -> Result<u8, CliError> {
        let mut last = first;
        let mut drawn = draw(&render(&last, &last), 0).await?;
        let mut ticks = tokio::time::interval(REFRESH);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let now = self.ask(client).await?;
            drawn = draw(&render(&now, &last), drawn).await?;
            last = now;
        }
    }
}

/// Draws a frame over the `over` lines of the one before. Gives back its own number of lines.
async fn draw(text: &str, over: usize) -> Result<usize, CliError> {
    let (rows, columns) = match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 1 && size.ws_col > 0 => {
            (usize::from(size.ws_row), usize::from(size.ws_col))
        }
        _ => FALLBACK_SIZE,
    };
    let (frame, lines) = frame(text, over, rows, columns);
    output::print(&frame).await?;
    Ok(lines)
}

/// A frame that goes over `over` lines of the one before and leaves the cursor below its last
/// line. No line wraps and none scrolls, or the next frame could not find its place.
fn frame(text: &str, over: usize, rows: usize, columns: usize) -> (String, usize) {
    let mut frame = String::new();
    // The terminal may have become lower since.
    let up = over.min(rows - 1);
    if up > 0 {
        let _ = write!(frame, "\x1b[{up}A\r");
    }
    let mut lines = 0;
    for line in text.lines().take(rows - 1) {
        frame.extend(line.chars().take(columns));
        frame.push_str("\x1b[K\n");
        lines += 1;
    }
    frame.push_str("\x1b[J");
    (frame, lines)
}

fn render(now: &[NodeStats], before: &[NodeStats]) -> String {
    let mut table = Table::new(
        [
            ("HOST", 12),
            ("IP", 15),
            ("CPU", 3),
            ("L1", 5),
            ("L5", 5),
            ("L15", 5),
            ("MEM_USED", 8),
            ("MEM_FREE", 8),
            ("DISK_USED%", 10),
            ("DISK_FREE", 9),
            ("NET_RX/s", 8),
            ("NET_TX/s", 8),
            ("DR/s", 8),
            ("DW/s", 8),
            ("UP", 8),
            ("HOST_MEM", 8),
            ("RETURNED", 0),
        ],
        1,
    );
    let before: HashMap<&str, &StatsSnapshot> = before
        .iter()
        .filter_map(|n| Some((n.hostname.as_str(), n.snapshot.as_ref()?)))
        .collect();
    for node in now {
        let head = [node.hostname.clone(), node.ip.clone()];
        let Some(s) = &node.snapshot else {
            let mut cells: [String; 17] = Default::default();
            cells[..2].clone_from_slice(&head);
            cells[15..].clone_from_slice(&host_memory(node));
            table.row(cells);
            continue;
        };
        let old = before.get(node.hostname.as_str()).copied().unwrap_or(s);
        let seconds = s.timestamp.duration_since(old.timestamp).as_secs_f64();
        let rate = |pick: fn(&StatsSnapshot) -> u64| {
            // A guest that booted anew counts from 0 again.
            let bytes = pick(s).saturating_sub(pick(old));
            format!("{}/s", per_second(bytes, seconds))
        };
        let [host, ip] = head;
        let [used, returned] = host_memory(node);
        table.row([
            host,
            ip,
            s.total_cpus.to_string(),
            format!("{:.2}", s.load_avg1),
            format!("{:.2}", s.load_avg5),
            format!("{:.2}", s.load_avg15),
            size(s.memory_used),
            size(s.memory_available),
            format!("{:.1}%", s.disk_space_used_percent),
            size(s.disk_space_free),
            rate(|s| s.network_read_total),
            rate(|s| s.network_write_total),
            rate(|s| s.disk_read_total),
            rate(|s| s.disk_write_total),
            s.uptime.clone(),
            used,
            returned,
        ]);
    }
    table.render()
}

/// What the host says about it, which doesn't need the guest.
fn host_memory(node: &NodeStats) -> [String; 2] {
    node.host_memory
        .map(|m| [size(m.used), size(m.returned)])
        .unwrap_or_default()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "shown to two digits; negative times are excluded"
)]
fn per_second(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return size(0);
    }
    size((bytes as f64 / seconds).round() as u64)
}

/// A size as people read it: `0B`, `159MB`, `29.2GB`, in powers of 1024.
fn size(bytes: u64) -> String {
    slicer_api::short_size(bytes, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use slicer_api::HostMemory;

    fn node(hostname: &str, snapshot: Option<StatsSnapshot>) -> NodeStats {
        NodeStats {
            hostname: hostname.into(),
            ip: "192.168.64.3".into(),
            created_at: None,
            snapshot,
            error: String::new(),
            host_memory: Some(HostMemory {
                used: 300 << 20,
                returned: 1 << 30,
            }),
        }
    }

    #[test]
    fn rates_are_between_two_samples() {
        let early = StatsSnapshot {
            timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
            total_cpus: 2,
            memory_used: 159 << 20,
            memory_available: 853 << 20,
            load_avg1: 0.5,
            disk_space_free: 31_353_000_000,
            disk_space_used_percent: 12.34,
            network_read_total: 1000,
            uptime: "7m45s".into(),
            ..StatsSnapshot::default()
        };
        let late = StatsSnapshot {
            timestamp: "2026-01-02T03:04:07Z".parse().unwrap(),
            network_read_total: 1000 + 4096,
            ..early.clone()
        };
        let text = render(
            &[node("sbox-1", Some(late)), node("sbox-2", None)],
            &[node("sbox-1", Some(early))],
        );
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[2].join(" "),
            "sbox-1 192.168.64.3 2 0.50 0.00 0.00 159MB 853MB 12.3% 29.2GB 2KB/s 0B/s 0B/s 0B/s \
             7m45s 300MB 1.0GB"
        );
        assert_eq!(lines[3][0], "sbox-2");
        assert_eq!(lines[3][2..15], ["-"; 13]);
        assert_eq!(lines[3][15..], ["300MB", "1.0GB"]);
    }

    #[test]
    fn no_time_is_no_rate() {
        assert_eq!(per_second(5, 0.0), "0B");
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        assert_eq!(
            frame("abcdef\nb\nc\n", 3, 3, 4),
            ("\x1b[2A\rabcd\x1b[K\nb\x1b[K\n\x1b[J".to_owned(), 2)
        );
        assert_eq!(frame("a\n", 0, 3, 4), ("a\x1b[K\n\x1b[J".to_owned(), 1));
    }
}
