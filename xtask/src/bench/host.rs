//! The machine it runs on, and what else that does meanwhile.

use super::floor::Floor;
use super::launch;
use super::report::Environment;
use super::stats::quantile;
use std::fs;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Above this share of the CPUs busy with something else, or this spread of what should always
/// take the same time, numbers are called noisy.
const NOISY_SHARE: f64 = 0.1;
const NOISY_LOAD: f64 = 0.25;
const NOISY_SPREAD: f64 = 1.25;

/// The machine before anything runs.
pub(crate) struct Before {
    environment: Environment,
    start: Instant,
    /// CPU time of the machine: all that was used, and all there was; and our own. In ticks.
    busy: f64,
    all: f64,
    own: f64,
}

impl Before {
    /// Looks.
    pub(crate) fn look() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let (busy, all) = machine_ticks();
        let environment = Environment {
            commit: first_line(
                Command::new("git")
                    .args(["describe", "--always", "--dirty", "--abbrev=12"])
                    .current_dir(env!("CARGO_MANIFEST_DIR")),
            ),
            os: field("/etc/os-release", "PRETTY_NAME=")
                .trim_matches('"')
                .to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field("/proc/cpuinfo", "model name")
                .trim_start_matches([':', ' ', '\t'])
                .to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: field("/proc/meminfo", "MemTotal:")
                .split_whitespace()
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or_default()
                >> 10,
            qemu: first_line(
                Command::new(if cfg!(target_arch = "aarch64") {
                    "qemu-system-aarch64"
                } else {
                    "qemu-system-x86_64"
                })
                .arg("--version"),
            ),
            load_before: load(),
            unix_seconds: now.unwrap_or_default().as_secs(),
            ..Environment::default()
        };
        Self {
            environment,
            start: Instant::now(),
            busy,
            all,
            own: own_ticks(),
        }
    }

    /// Adds what only the measurement shows.
    pub(crate) fn complete(
        self,
        floor: Option<&Floor>,
        launch: Option<&launch::Samples>,
    ) -> Environment {
        let e = self.environment;
        let (busy, all) = machine_ticks();
        let others = (busy - self.busy) - (own_ticks() - self.own);
        let share = (others / (all - self.all).max(1.0)).max(0.0);
        let bare = launch.map_or(&[][..], |l| &l.bare);
        let spread = quantile(bare, 0.9) / quantile(bare, 0.1).max(f64::EPSILON);
        let cpus = u32::try_from(e.cpus).map_or(1.0, f64::from);
        let mut why = Vec::new();
        if e.load_before > NOISY_LOAD * cpus {
            let load = e.load_before;
            why.push(format!("the load was {load:.1} before the start"));
        }
        if share > NOISY_SHARE {
            let percent = 100.0 * share;
            why.push(format!(
                "{percent:.0} % of the CPU time went to something else"
            ));
        }
        if spread > NOISY_SPREAD {
            why.push(format!(
                "the slowest tenth of the bare boots took {spread:.1} times the fastest"
            ));
        }
        Environment {
            accelerator: floor.map(|f| f.accelerator.clone()).unwrap_or_default(),
            guest_kernel: floor.map(Floor::kernel_release).unwrap_or_default(),
            load_after: load(),
            others_percent: 100.0 * share,
            seconds: self.start.elapsed().as_secs_f64(),
            noisy: (!why.is_empty()).then(|| why.join(", ")),
            ..e
        }
    }
}

/// The load average over one minute.
pub(crate) fn load() -> f64 {
    let text = read("/proc/loadavg");
    let first = text.split_whitespace().next();
    first.and_then(|l| l.parse().ok()).unwrap_or_default()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What follows a key at the beginning of a line.
fn field(path: &str, key: &str) -> String {
    let text = read(path);
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or("unknown").trim().to_owned()
}

fn first_line(command: &mut Command) -> String {
    let text = command.output().map(|o| o.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

/// CPU time the machine has used, and all it had.
fn machine_ticks() -> (f64, f64) {
    let text = read("/proc/stat");
    let line = text.lines().next().unwrap_or_default();
    // User, nice, system, idle, waiting for disks, interrupts (two kinds), stolen; what guests used is
    // in the first two.
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|t| t.parse().ok())
        .collect();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let all: f64 = ticks.iter().sum();
    (all - idle, all)
}

/// CPU time of ours, and of what we started that has ended.
fn own_ticks() -> f64 {
    let text = read("/proc/self/stat");
    let rest = text.rsplit_once(')').map(|(_, rest)| rest);
    let fields = rest.unwrap_or_default().split_whitespace().skip(11).take(4);
    fields.filter_map(|t| t.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_as_busy_as_its_processes() {
        let (busy, all) = machine_ticks();
        assert!(busy > 0.0 && busy < all, "{busy} of {all}");
        assert!(own_ticks() <= busy);
        assert!(load() >= 0.0);
    }
}
