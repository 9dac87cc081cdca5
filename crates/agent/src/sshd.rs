//! The SSH server of a guest whose host keys were made anew.

use crate::log;
use procfs::net::{TcpState, tcp, tcp6};
use procfs::process::{FDTarget, Process, all_processes};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// What OpenSSH's is called. Those that serve one client are called so as well, or `sshd-session`.
const PROGRAM: &str = "sshd";
/// How long it may take until it listens again.
const AGAIN_TIME: Duration = Duration::from_secs(2);
/// Between two looks whether it does.
const AGAIN_PAUSE: Duration = Duration::from_millis(5);

/// Has the servers that listen take up the host keys in `dir`, for they have those of before in memory.
/// OpenSSH's reads all anew on SIGHUP (sshd(8)), and goes on with whoever is logged in; one that systemd
/// started for a connection ends, and is started for the next. Waits until they have listened again, for
/// a moment. Blocks.
pub(crate) fn take_up_keys(dir: &Path) {
    let Ok(processes) = all_processes() else {
        return;
    };
    for process in processes.flatten() {
        let is_server = process.stat().is_ok_and(|s| s.comm == PROGRAM);
        // A container's has keys of its own.
        if !is_server || !has(&process, dir) {
            continue;
        }
        let before = listeners(&process);
        if before.is_empty() {
            continue;
        }
        let Some(pid) = Pid::from_raw(process.pid()) else {
            continue;
        };
        if let Err(e) = kill_process(pid, Signal::HUP) {
            log::warn(&format!("the SSH server {}: {e}", process.pid()));
            continue;
        }
        let until = Instant::now() + AGAIN_TIME;
        while process.is_alive() && listeners(&process).is_subset(&before) && Instant::now() < until
        {
            std::thread::sleep(AGAIN_PAUSE);
        }
    }
}

/// Whether a process sees this directory under the same name.
fn has(process: &Process, dir: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let root = format!("/proc/{}/root", process.pid());
    let theirs = Path::new(&root).join(dir.strip_prefix("/").unwrap_or(dir));
    id(dir).is_some_and(|own| id(&theirs) == Some(own))
}

/// The sockets at which a process listens, by their inodes.
fn listeners(process: &Process) -> HashSet<u64> {
    let all: HashSet<u64> = [tcp(), tcp6()]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|socket| socket.state == TcpState::Listen)
        .map(|socket| socket.inode)
        .collect();
    let Ok(files) = process.fd() else {
        return HashSet::new();
    };
    files
        .flatten()
        .filter_map(|file| match file.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .filter(|inode| all.contains(inode))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn who_listens_is_seen() {
        let own = Process::myself().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
            assert!(listeners(&own).contains(&inode));
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            drop(listener);
            assert!(!listeners(&own).contains(&inode));
            let inode = rustix::fs::fstat(&client).unwrap().st_ino;
            assert!(!listeners(&own).contains(&inode));
        }
    }

    #[test]
    fn a_directory_is_the_same_for_whoever_has_the_same_root() {
        let dir = tempfile::tempdir().unwrap();
        let own = Process::myself().unwrap();
        assert!(has(&own, dir.path()));
        assert!(!has(&own, &dir.path().join("absent")));
    }
}
