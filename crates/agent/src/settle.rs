//! Readies a guest that is to be a template: its clones begin with what it did until here, and need not
//! do it each.

use crate::error::AgentError;
use crate::log;
use crate::renew::{self, SAVED_SEED};
use procfs::{CurrentSI, KernelStats};
use std::fs;
use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

/// Between two looks at what the guest does.
const LOOK: Duration = Duration::from_millis(500);
/// Looks in a row that found it idle before it is taken to be: longer than udev keeps a worker that has
/// nothing to do, or each clone would see it end.
const PATIENCE: u32 = 12;
/// For what follows on the last of it.
const AFTERMATH: Duration = Duration::from_secs(1);
/// Share of its processors that an idle guest may use, in percent.
const IDLE: u64 = 8;
/// A guest that is never idle is a template all the same.
const LIMIT: Duration = Duration::from_mins(2);
/// How long a program may take that only is to be in the page cache afterwards.
const PROGRAM_TIME: Duration = Duration::from_secs(20);

/// Waits until nothing goes on in the guest, bounded, and has it read what a clone's first command
/// needs.
///
/// # Errors
/// When it can't be noted that it is a template: its clones would not be told from their siblings.
pub(crate) async fn settle() -> Result<(), AgentError> {
    let start = Instant::now();
    let mut last = Ticks::now();
    let mut idle = 0;
    while idle < PATIENCE && start.elapsed() < LIMIT {
        sleep(LOOK).await;
        let now = Ticks::now();
        idle = match (&last, &now) {
            (Some(last), Some(now)) if now.idle_since(last) => idle + 1,
            _ => 0,
        };
        last = now;
    }
    if idle < PATIENCE {
        log::warn("the guest does not come to rest; its clones will be as busy");
    }
    run_a_program().await;
    renew::note_template()?;
    // From what the next boot of a clone would seed its random numbers, as all the others.
    match fs::remove_file(SAVED_SEED) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::warn(&format!("removing {SAVED_SEED} failed: {e}"));
        }
        _ => {}
    }
    // What is written out now, its clones need not write each.
    let _ = spawn_blocking(rustix::fs::sync).await;
    sleep(AFTERMATH).await;
    Ok(())
}

/// Runs a program, so that it and what it needs are in the page cache.
pub(crate) async fn run_a_program() {
    let program = Command::new("/bin/sh")
        .args(["-lc", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    if let Ok(mut program) = program {
        // What there is no shell for is in no hurry either.
        let _ = timeout(PROGRAM_TIME, program.wait()).await;
    }
}

/// Processor time since the guest's boot, ticks.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    /// None when the kernel doesn't tell.
    fn now() -> Option<Self> {
        let cpu = KernelStats::current().ok()?.total;
        let idle = cpu.idle.saturating_add(cpu.iowait.unwrap_or_default());
        let others = [cpu.irq, cpu.softirq];
        let busy = others
            .into_iter()
            .flatten()
            .chain([cpu.user, cpu.nice, cpu.system])
            .fold(0, u64::saturating_add);
        Some(Self {
            busy,
            all: busy.saturating_add(idle),
        })
    }

    fn idle_since(&self, before: &Self) -> bool {
        let all = self.all.saturating_sub(before.all);
        let busy = self.busy.saturating_sub(before.busy);
        all > 0 && busy.saturating_mul(100) <= all.saturating_mul(IDLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_little_of_all_there_was() {
        let at = |busy, all| Ticks { busy, all };
        assert!(at(104, 1050).idle_since(&at(100, 1000)));
        assert!(!at(105, 1050).idle_since(&at(100, 1000)));
        // A processor that was not counted at all tells nothing.
        assert!(!at(100, 1000).idle_since(&at(100, 1000)));
        assert!(Ticks::now().is_some_and(|t| t.all > 0));
    }
}
