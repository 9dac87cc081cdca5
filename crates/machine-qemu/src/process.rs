//! Starting QEMU so that it never outlives the daemon, and ending what a dead daemon left.

use crate::args::{AGENT_FD, QMP_FD, TAP_FD};
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use slicer_machine::MachineError;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

/// How long a killed process may take to be gone.
const REAP_TIME: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// What a QEMU process is started with.
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// QMP and guest channel, in this order; none for a trial boot, whose console is stdout.
    pub(crate) sockets: Option<(OwnedFd, OwnedFd)>,
    /// The tap of its network card, if it has one.
    pub(crate) tap: Option<OwnedFd>,
}

struct Job {
    start: Start,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Starts processes from one thread that lives as long as the backend. The kernel's parent-death
/// signal is sent when the *thread* that forked ends, so no thread of a pool may do it.
pub(crate) struct Spawner {
    jobs: mpsc::Sender<Job>,
}

impl Spawner {
    pub(crate) fn start() -> Result<Self, MachineError> {
        let (jobs, mut queue) = mpsc::channel::<Job>(16);
        let thread = thread::Builder::new().name("qemu-spawner".into());
        let run = move || {
            while let Some(Job {
                start,
                runtime,
                reply,
            }) = queue.blocking_recv()
            {
                let _guard = runtime.enter();
                // A caller that has gone drops the child, which kills it.
                drop(reply.send(spawn(start)));
            }
        };
        thread.spawn(run).map_err(|source| MachineError::Io {
            action: "start a thread for",
            path: PathBuf::from("qemu"),
            source,
        })?;
        Ok(Self { jobs })
    }

    pub(crate) async fn spawn(&self, start: Start) -> Result<Child, MachineError> {
        let program = start.program.clone();
        let failed = |source| MachineError::Io {
            action: "start",
            path: program.clone(),
            source,
        };
        let gone = || failed(io::Error::other("the starting thread is gone"));
        let (reply, child) = oneshot::channel();
        let job = Job {
            start,
            runtime: tokio::runtime::Handle::current(),
            reply,
        };
        self.jobs.send(job).await.map_err(|_| gone())?;
        child.await.map_err(|_| gone())?.map_err(failed)
    }
}

#[expect(
    unsafe_code,
    reason = "pre_exec is the only way to set a parent-death signal"
)]
fn spawn(start: Start) -> io::Result<Child> {
    let mut command = std::process::Command::new(start.program);
    command
        .args(start.args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    if let Some((qmp, agent)) = start.sockets {
        command.stdout(Stdio::null());
        let mut mappings = vec![
            FdMapping {
                parent_fd: qmp,
                child_fd: QMP_FD,
            },
            FdMapping {
                parent_fd: agent,
                child_fd: AGENT_FD,
            },
        ];
        mappings.extend(start.tap.map(|parent_fd| FdMapping {
            parent_fd,
            child_fd: TAP_FD,
        }));
        command.fd_mappings(mappings).map_err(io::Error::other)?;
    } else {
        command.stdout(Stdio::piped());
    }
    let parent = rustix::process::getpid();
    let die_with_parent = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the signal was asked for.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::other("the daemon is gone"))
        }
    };
    // SAFETY: between fork and exec only prctl and getppid are called, both async-signal-safe;
    // nothing is allocated on the success path.
    unsafe { command.pre_exec(die_with_parent) };
    Command::from(command).kill_on_drop(true).spawn()
}

/// The note that lets a later daemon recognise the process of an earlier one.
#[derive(Serialize, Deserialize)]
struct Note {
    pid: i32,
    /// The process's start in clock ticks since boot: a reused pid has another.
    start_ticks: u64,
    boot_id: String,
}

fn note_path(state_dir: &Path) -> PathBuf {
    state_dir.join("qemu.json")
}

fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in parentheses, may hold anything; field 22 is the 20th after it.
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

pub(crate) fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Writes down which process runs the VM. A torn note names no process, so it needs no fsync: a
/// host that crashed has no orphans either.
pub(crate) fn write_note(state_dir: &Path, child: &Child) -> Result<(), MachineError> {
    let path = note_path(state_dir);
    let failed = |source| MachineError::Io {
        action: "write",
        path: path.clone(),
        source,
    };
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .unwrap_or_default();
    let note = Note {
        pid,
        start_ticks: start_ticks(pid).unwrap_or_default(),
        boot_id: boot_id(),
    };
    let text = serde_json::to_vec(&note).map_err(|e| failed(e.into()))?;
    fs::write(&path, text).map_err(failed)
}

/// Kills the process a dead daemon left for this VM, if it is still the one noted.
pub(crate) async fn reap(state_dir: &Path) -> Result<(), MachineError> {
    let path = note_path(state_dir);
    let failed = |source: io::Error| MachineError::Io {
        action: "end",
        path: path.clone(),
        source,
    };
    let Ok(text) = fs::read(&path) else {
        return Ok(());
    };
    let Ok(note) = serde_json::from_slice::<Note>(&text) else {
        return Ok(());
    };
    if note.boot_id != boot_id() {
        return Ok(());
    }
    let Some(pid) = Pid::from_raw(note.pid) else {
        return Ok(());
    };
    // The descriptor pins the process; only then is its start compared.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    if start_ticks(note.pid) != Some(note.start_ticks) {
        return Ok(());
    }
    pidfd_send_signal(&process, Signal::KILL).map_err(|e| failed(e.into()))?;
    // A descriptor of a process becomes readable when it ends. The wait is short and bounded.
    let wait = move || {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        poll(&mut fds, Some(&REAP_TIME))
    };
    match tokio::task::spawn_blocking(wait).await {
        Ok(Ok(1..)) => {}
        Ok(Ok(0)) => return Err(failed(io::Error::other("the process does not end"))),
        Ok(Err(e)) => return Err(failed(e.into())),
        Err(e) => return Err(failed(e.into())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Start {
        Start {
            program: "/bin/sleep".into(),
            args: vec!["600".into()],
            sockets: None,
            tap: None,
        }
    }

    #[tokio::test]
    async fn a_noted_process_is_ended_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        reap(dir.path()).await.unwrap();

        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(sleeper()).await.unwrap();
        write_note(dir.path(), &child).unwrap();
        let note = fs::read_to_string(note_path(dir.path())).unwrap();

        // The same pid with another start is another process.
        let mut other: Note = serde_json::from_str(&note).unwrap();
        other.start_ticks += 1;
        fs::write(note_path(dir.path()), serde_json::to_vec(&other).unwrap()).unwrap();
        reap(dir.path()).await.unwrap();
        assert!(child.try_wait().unwrap().is_none());

        fs::write(note_path(dir.path()), note).unwrap();
        reap(dir.path()).await.unwrap();
        assert!(!child.wait().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_torn_note_is_no_process() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(note_path(dir.path()), "{\"pid\": 1").unwrap();
        reap(dir.path()).await.unwrap();
    }
}
