//! The supervisor: keeps a worker alive for as long as the guest runs. It does nothing else, so
//! that there is nothing in it to fail. Should somebody in the guest kill it all the same, with its
//! worker, a second one that systemd keeps waits to take its place.

use crate::error::io_error;
use crate::init::GuestInit;
use crate::{log, sys, worker};
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::{Pid, WaitOptions, wait, waitpid};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that lived this long died of something new.
const STABLE: Duration = Duration::from_secs(30);

/// Held by the supervisor and its worker, until both are gone.
const LOCK: &str = "/run/slicer/supervisor.lock";

/// Returns once there is no other supervisor and no worker. As a child inherits the lock, whoever
/// is left of the two keeps it.
fn take_turn() -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let locked = rustix::fs::open(LOCK, flags, Mode::RUSR | Mode::WUSR).and_then(|file| {
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                done => return done.map(|()| file),
            }
        }
    });
    // A guest without the lock is better off than one without an agent.
    let warn =
        |e| log::warn(&io_error::<rustix::io::Errno>("lock", Path::new(LOCK))(e).to_string());
    locked.map_err(warn).ok()
}

/// Runs workers one after the other. Returns in the worker, with its result; in the supervisor
/// only when no process can be made at all.
pub(crate) fn run(init: GuestInit) -> ExitCode {
    log::to_kernel();
    // As PID 1 it already leads a session, and is spared by the kernel's memory killer.
    let _ = rustix::process::setsid();
    let _turn = take_turn();
    // The one process through which a guest out of memory can still be helped.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let mut pause = FIRST_PAUSE;
    loop {
        let start = Instant::now();
        match sys::fork() {
            Ok(sys::Fork::Child) => return worker::run(init),
            Ok(sys::Fork::Parent(pid)) => {
                let end = wait_for(pid, init);
                log::warn(&format!("the worker ended ({end}), starting another"));
            }
            Err(e) => log::warn(&format!("cannot start a worker: {e}")),
        }
        if start.elapsed() > STABLE {
            pause = FIRST_PAUSE;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits for the worker, and as PID 1 for every orphan besides.
fn wait_for(worker: Pid, init: GuestInit) -> String {
    loop {
        let ended = if init == GuestInit::None {
            wait(WaitOptions::empty())
        } else {
            waitpid(Some(worker), WaitOptions::empty())
        };
        match ended {
            Ok(Some((pid, status))) if pid == worker => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit code {code}"),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => "unknown reason".to_owned(),
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return e.to_string(),
        }
    }
}
