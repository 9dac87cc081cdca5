//! Looking at the host's processes, by `/proc` (proc(5)).

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// State and parent of a process; none when it isn't there.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// Whether a process runs: one that has ended and is only waited for does not.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// The running processes with a path below `dir` among their arguments, such as the QEMUs of a
/// daemon that works there.
pub fn processes_of(dir: &Path) -> Vec<u32> {
    let mut part = dir.as_os_str().as_bytes().to_vec();
    part.push(b'/');
    let mentions = |pid: &u32| {
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        args.windows(part.len()).any(|w| w == part)
    };
    all()
        .filter(|pid| *pid != std::process::id() && mentions(pid) && alive(*pid))
        .collect()
}

/// The running processes whose parent is this one.
pub fn children_of(parent: u32) -> Vec<u32> {
    all()
        .filter(|pid| stat(*pid).is_some_and(|(state, p)| p == parent && state != 'Z'))
        .collect()
}

/// The process of a VM: the one among `pids` whose arguments hold this word.
pub(crate) fn with_argument(pids: &[u32], word: &str) -> Option<u32> {
    let has = |pid: &u32| {
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        args.split(|b| *b == 0)
            .any(|arg| OsStr::from_bytes(arg).to_string_lossy().contains(word))
    };
    pids.iter().copied().find(has)
}

/// Sends a signal to a process; one that is gone gets none.
pub fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
