//! Starting QEMU so that it never outlives the daemon, and ending what a dead daemon left.

use crate::args::{AGENT_FD, QMP_FD, TAP_FD};
use crate::userns;
use crate::virtiofsd::SOCKET_FD;
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};
use slicer_machine::MachineError;
use std::ffi::{CStr, CString, OsString};
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
    /// A virtiofsd's socket, and what it gives up before it is run.
    pub(crate) share: Option<ShareStart>,
    /// Its working directory; the daemon's without one.
    pub(crate) dir: Option<PathBuf>,
    /// Whether others have precedence.
    pub(crate) nice: bool,
}

/// How nice a process is before which others have precedence.
const NICE: i32 = 10;

/// What there is to the start of a virtiofsd.
pub(crate) struct ShareStart {
    pub(crate) socket: OwnedFd,
    /// The user namespace it becomes root of.
    pub(crate) namespace: Option<OwnedFd>,
    /// A folder it is to find read-only.
    pub(crate) read_only: Option<CString>,
}

struct Job {
    start: Start,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Starts processes from one thread that lives as long as the backend. The kernel's parent-death
/// signal is sent when the *thread* that forked ends, so no thread of a pool may do it.
#[derive(Clone)]
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
    reason = "pre_exec is the only way to set a parent-death signal, and to give up rights"
)]
fn spawn(start: Start) -> io::Result<Child> {
    let mut command = std::process::Command::new(start.program);
    command
        .args(start.args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(dir) = start.dir {
        command.current_dir(dir);
    }
    if let Some(ShareStart {
        socket,
        namespace,
        read_only,
    }) = start.share
    {
        let give_up = move || {
            if let Some(namespace) = &namespace {
                userns::enter(namespace)?;
            }
            read_only.as_deref().map_or(Ok(()), make_read_only)
        };
        // SAFETY: between fork and exec only system calls are made, in a process of one thread;
        // nothing is allocated on the success path. Before the descriptors are put in their places,
        // one of which may be the namespace's.
        unsafe { command.pre_exec(give_up) };
        command.stdout(Stdio::null());
        let mapping = FdMapping {
            parent_fd: socket,
            child_fd: SOCKET_FD,
        };
        command
            .fd_mappings(vec![mapping])
            .map_err(io::Error::other)?;
    } else if let Some((qmp, agent)) = start.sockets {
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
    if start.nice {
        // SAFETY: between fork and exec a single system call is made.
        unsafe {
            command.pre_exec(|| {
                // One that isn't gets its work done all the same.
                let _ = rustix::process::setpriority_process(None, NICE);
                Ok(())
            })
        };
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

/// Mounts a folder, and all that is mounted in it, read-only over itself, as the calling process
/// alone sees it.
#[expect(unsafe_code, reason = "rustix has no mount_setattr")]
fn make_read_only(path: &CStr) -> io::Result<()> {
    // SAFETY: the process shares no memory or files that the new mount namespace could confuse.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    mount_bind_recursive(path, path)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string and the attributes are as long as is said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The note that lets a later daemon recognise the process of an earlier one.
#[derive(Serialize, Deserialize)]
struct Note {
    pid: i32,
    /// The process's start in clock ticks since boot: a reused pid has another.
    start_ticks: u64,
    boot_id: String,
}

/// The note of the VM's own process.
pub(crate) const QEMU_NOTE: &str = "qemu.json";

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

/// Writes down which process it is that a later daemon may have to end. A torn note names no process,
/// so it needs no fsync: a host that crashed has no orphans either.
pub(crate) fn write_note(path: &Path, child: &Child) -> Result<(), MachineError> {
    let failed = |source| MachineError::Io {
        action: "write",
        path: path.to_owned(),
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
    fs::write(path, text).map_err(failed)
}

/// Kills the processes a dead daemon left for this VM, if they are still those noted.
pub(crate) async fn reap(state_dir: &Path) -> Result<(), MachineError> {
    end_noted(state_dir.join(QEMU_NOTE)).await?;
    for note in crate::shares::notes(state_dir) {
        end_noted(note).await?;
    }
    Ok(())
}

async fn end_noted(path: PathBuf) -> Result<(), MachineError> {
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
            share: None,
            dir: None,
            nice: false,
        }
    }

    #[tokio::test]
    async fn a_noted_process_is_ended_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        reap(dir.path()).await.unwrap();

        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(sleeper()).await.unwrap();
        write_note(&dir.path().join(QEMU_NOTE), &child).unwrap();
        let note = fs::read_to_string(dir.path().join(QEMU_NOTE)).unwrap();

        // The same pid with another start is another process.
        let mut other: Note = serde_json::from_str(&note).unwrap();
        other.start_ticks += 1;
        fs::write(
            dir.path().join(QEMU_NOTE),
            serde_json::to_vec(&other).unwrap(),
        )
        .unwrap();
        reap(dir.path()).await.unwrap();
        assert!(child.try_wait().unwrap().is_none());

        fs::write(dir.path().join(QEMU_NOTE), note).unwrap();
        reap(dir.path()).await.unwrap();
        assert!(!child.wait().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_torn_note_is_no_process() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(QEMU_NOTE), "{\"pid\": 1").unwrap();
        reap(dir.path()).await.unwrap();
    }
}
