//! What came of it, for people and for programs.

use super::stats::{Estimate, quantile};
use super::{Plan, Raw, launch};
use crate::text::{Align, say, table};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Above this share of the CPUs busy with something else, or this spread of what should always
/// take the same time, numbers are called noisy.
const NOISY_LOAD: f64 = 0.25;
const NOISY_SPREAD: f64 = 1.25;

/// A number and, where that is judged, what it may be at most.
#[derive(Serialize)]
pub(crate) struct Bar {
    name: &'static str,
    what: &'static str,
    value: f64,
    /// Absent for what was measured once.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<f64>,
    pass: Option<bool>,
}

impl Bar {
    /// A ratio that was measured many times.
    pub(crate) fn ratio(name: &'static str, what: &'static str, e: Estimate, limit: f64) -> Self {
        Self {
            estimate: Some(e),
            ..Self::limit(name, what, e.median, limit)
        }
    }

    /// A value that was measured once.
    pub(crate) fn limit(name: &'static str, what: &'static str, value: f64, limit: f64) -> Self {
        Self {
            name,
            what,
            value,
            estimate: None,
            limit: Some(limit),
            pass: Some(value <= limit),
        }
    }

    /// A ratio that is good to know.
    pub(crate) fn note(name: &'static str, what: &'static str, e: Estimate) -> Self {
        Self {
            limit: None,
            pass: None,
            ..Self::ratio(name, what, e, f64::INFINITY)
        }
    }

    fn row(&self) -> [String; 6] {
        let interval = self.estimate.map(|e| format!("{:.2}–{:.2}", e.low, e.high));
        [
            self.name.to_owned(),
            format!("{:.2}", self.value),
            interval.unwrap_or_default(),
            self.limit.map(|l| format!("≤ {l}")).unwrap_or_default(),
            match self.pass {
                Some(true) => "pass",
                Some(false) => "MISS",
                None => "",
            }
            .to_owned(),
            self.what.to_owned(),
        ]
    }
}

/// Where it was measured.
#[derive(Serialize)]
pub(crate) struct Environment {
    commit: String,
    cpus: usize,
    kernel: String,
    qemu: String,
    accelerator: String,
    /// Load average over one minute, before anything was measured.
    load_before: f64,
    unix_seconds: u64,
    noisy: Option<String>,
}

impl Environment {
    /// Looks before anything runs.
    pub(crate) fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg");
        let qemu = first_line(
            Command::new(if cfg!(target_arch = "aarch64") {
                "qemu-system-aarch64"
            } else {
                "qemu-system-x86_64"
            })
            .arg("--version"),
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            commit: first_line(
                Command::new("git")
                    .args(["describe", "--always", "--dirty"])
                    .current_dir(env!("CARGO_MANIFEST_DIR")),
            ),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            qemu,
            accelerator: String::new(),
            load_before: load
                .split_whitespace()
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or_default(),
            unix_seconds: now.unwrap_or_default().as_secs(),
            noisy: None,
        }
    }

    /// Adds what only the measurement shows.
    pub(crate) fn complete(self, accelerator: String, launch: Option<&launch::Samples>) -> Self {
        let cpus = u32::try_from(self.cpus).map_or(1.0, f64::from);
        let bare = launch.map_or(&[][..], |l| &l.bare);
        let spread = quantile(bare, 0.9) / quantile(bare, 0.1).max(f64::EPSILON);
        let mut why = Vec::new();
        if self.load_before > NOISY_LOAD * cpus {
            why.push(format!(
                "the load was {:.1} on {} CPUs before the start",
                self.load_before, self.cpus
            ));
        }
        if spread > NOISY_SPREAD {
            why.push(format!(
                "the slowest tenth of the bare boots took {spread:.1} times the fastest"
            ));
        }
        let noisy = (!why.is_empty()).then(|| why.join(", "));
        Self {
            accelerator,
            noisy,
            ..self
        }
    }
}

fn first_line(command: &mut Command) -> String {
    let text = command.output().map(|o| o.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

/// All of it.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) bars: Vec<Bar>,
    pub(crate) environment: Environment,
    pub(crate) plan: Plan,
    pub(crate) raw: Raw,
}

impl Report {
    /// Shows it on the terminal.
    pub(crate) fn show(&self) {
        let e = &self.environment;
        say(&format!(
            "\n{}, {} CPUs, {}, guests under {}",
            e.commit, e.cpus, e.qemu, e.accelerator
        ));
        if let Some(why) = &e.noisy {
            say(&format!("NOISY: {why}. Run it on an idle machine."));
        }
        let header = [
            ("bar", Align::Left),
            ("value", Align::Right),
            ("95 %", Align::Right),
            ("limit", Align::Right),
            ("", Align::Left),
            ("what", Align::Left),
        ];
        let rows: Vec<_> = self.bars.iter().map(Bar::row).collect();
        say("");
        for line in table(header, &rows) {
            say(&line);
        }
        say("\nMedians:");
        for line in self.raw.story() {
            say(&format!("  {line}"));
        }
    }

    /// Writes it below `dir`, under a name of its own.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join(format!("{}.json", self.environment.unix_seconds));
        let text = serde_json::to_vec_pretty(self)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}
