//! The programs that a build calls: whether they are there, and running one that can be stopped.

use crate::error::{Context as _, RecipeError};
use crate::{Arch, Result};
use rustix::process::{Pid, Signal, getuid, kill_process};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ends a build from another thread.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// The programs that run.
    running: Vec<Pid>,
}

impl Stop {
    /// Asks what runs to end, and the build to begin nothing more.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        // Who has ended already is still unreaped, so this is nobody else. mmdebstrap itself ignores
        // this and relies on a terminal, which interrupts what it runs, too.
        for pid in with_descendants(&state.running) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Fails once the build is to end.
    pub(crate) fn check(&self) -> Result<()> {
        if self.state().stopped {
            return Err(RecipeError::Stopped);
        }
        Ok(())
    }

    /// Runs a program, hands its standard output to `consume`, and waits for its end. What it says
    /// on standard error is shown only when it fails.
    pub(crate) fn run<T>(
        &self,
        command: &mut Command,
        consume: impl FnOnce(ChildStdout) -> io::Result<T>,
    ) -> Result<T> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = {
            let mut state = self.state();
            if state.stopped {
                return Err(RecipeError::Stopped);
            }
            let child = command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            state.running.push(Pid::from_child(&child));
            // Here ends this process's part of a pipe that it reads from.
            command.stdin(Stdio::null());
            child
        };
        let pid = Pid::from_child(&child);
        let stderr = child.stderr.take();
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.read_to_string(&mut said);
            }
            said
        });
        let consumed = match child.stdout.take() {
            Some(stdout) => consume(stdout),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let said = said.join().unwrap_or_default();
        self.state().running.retain(|p| *p != pid);
        let status = child.wait()?;
        self.check()?;
        if !status.success() {
            let said = said.trim_end().to_owned();
            return Err(RecipeError::Failed {
                program,
                status,
                said,
            });
        }
        consumed.with_context(|| format!("cannot use what {program} prints"))
    }

    /// Runs a program without input and returns what it printed.
    pub(crate) fn output(&self, command: &mut Command) -> Result<Vec<u8>> {
        self.run(command.stdin(Stdio::null()), |mut stdout| {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text)?;
            Ok(text)
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those processes, and all that they have begun, where there is a `/proc` to tell (proc(5)).
fn with_descendants(of: &[Pid]) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten();
    let parents: Vec<(Pid, Pid)> = processes
        .filter_map(|e| {
            let path = e.ok()?.path();
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            // The name, in parentheses, may hold anything.
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?;
            Some((Pid::from_raw(pid)?, Pid::from_raw(parent.parse().ok()?)?))
        })
        .collect();
    let mut all = of.to_vec();
    let mut next = 0;
    while let Some(parent) = all.get(next).copied() {
        let children = parents.iter().filter(|(_, p)| *p == parent);
        all.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    all
}

/// Fails when a program is missing that every build needs.
pub(crate) fn check() -> Result<()> {
    let mut wanted = vec![
        ("mmdebstrap", "mmdebstrap"),
        ("apt-get", "apt"),
        ("apt-cache", "apt"),
        ("zstd", "zstd"),
    ];
    if !getuid().is_root() {
        wanted.push(("newuidmap", "uidmap"));
    }
    find(&wanted)?;
    if depmod().is_none() {
        return Err(RecipeError::Missing {
            program: "depmod",
            package: "kmod",
        });
    }
    Ok(())
}

/// depmod, which Debian keeps out of the way of users who are not root.
pub(crate) fn depmod() -> Option<&'static str> {
    ["/usr/sbin/depmod", "/sbin/depmod"]
        .into_iter()
        .find(|p| Path::new(p).exists())
}

/// Fails when a program isn't on the PATH, and names the package it is in.
fn find(wanted: &[(&'static str, &'static str)]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| {
        std::env::split_paths(&path).any(|dir| {
            fs::metadata(dir.join(program))
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
    };
    match wanted.iter().find(|(program, _)| !is_there(program)) {
        Some(&(program, package)) => Err(RecipeError::Missing { program, package }),
        None => Ok(()),
    }
}

/// Fails when this machine can't run the programs of a guest of that architecture, which the
/// installation of packages does.
pub(crate) fn check_runs(arch: Arch) -> Result<()> {
    if arch == Arch::host() {
        return Ok(());
    }
    let formats = fs::read_dir("/proc/sys/fs/binfmt_misc")
        .into_iter()
        .flatten();
    let mut texts = formats.filter_map(|e| fs::read_to_string(e.ok()?.path()).ok());
    if !texts.any(|text| interprets(&text, arch)) {
        return Err(RecipeError::Foreign(arch));
    }
    // What mmdebstrap asks whether it's true.
    find(&[("arch-test", "arch-test")])
}

/// Whether a format of binfmt_misc, as the kernel describes it, is that of an architecture's
/// programs.
///
/// Source: Linux's Documentation/admin-guide/binfmt-misc.rst; the head of an ELF file, elf(5).
fn interprets(format: &str, arch: Arch) -> bool {
    let machine = match arch {
        Arch::Amd64 => 62,
        Arch::Arm64 => 183,
    };
    let mut head = [0_u8; 20];
    head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    head[16] = 2;
    head[18] = machine;
    let field = |name: &str| {
        let lines = format.lines();
        let mut values = lines.filter_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        values.next()
    };
    let Some(magic) = field("magic").and_then(bytes) else {
        return false;
    };
    let mask = field("mask").and_then(bytes);
    let mask = |i: usize| {
        mask.as_ref()
            .and_then(|m| m.get(i))
            .copied()
            .unwrap_or(0xff)
    };
    format.lines().next() == Some("enabled")
        && field("offset") == Some("0")
        && magic.len() > 18
        && head
            .iter()
            .zip(&magic)
            .enumerate()
            .all(|(i, (have, want))| have & mask(i) == want & mask(i))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_os = "linux")]
    use std::time::{Duration, Instant};

    const AARCH64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\n\
        flags: POCF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\n\
        mask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn a_registered_format_is_that_of_one_architecture() {
        assert!(interprets(AARCH64, Arch::Arm64));
        assert!(!interprets(AARCH64, Arch::Amd64));
        let off = AARCH64.replace("enabled", "disabled");
        assert!(!interprets(&off, Arch::Arm64));
        let by_name = "enabled\ninterpreter /usr/bin/x\nflags: \nextension .x\n";
        assert!(!interprets(by_name, Arch::Arm64));
        assert!(!interprets("enabled\n", Arch::Arm64));
    }

    #[test]
    fn what_a_program_says_is_told_when_it_fails() {
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo out; echo why >&2; exit 3"]);
        let error = Stop::default().output(&mut fails).unwrap_err().to_string();
        assert!(error.starts_with("sh failed"), "{error}");
        assert!(error.ends_with("\nwhy"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_is_stopped_and_none_is_begun_after() {
        let stop = Stop::default();
        let other = stop.clone();
        let begun = Instant::now();
        let mut nested = Command::new("sh");
        // As mmdebstrap: it ignores what ends what it runs.
        nested.args(["-c", "trap '' TERM; (trap - TERM; exec sleep 60); exit 1"]);
        let run = std::thread::spawn(move || other.output(&mut nested));
        let is_asleep = || {
            let all = with_descendants(&stop.state().running);
            all.iter().any(|pid| {
                let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
                name.is_ok_and(|name| name == "sleep\n")
            })
        };
        while !is_asleep() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it never ran");
            std::thread::sleep(Duration::from_millis(2));
        }
        stop.stop();
        assert!(matches!(run.join().unwrap(), Err(RecipeError::Stopped)));
        assert!(begun.elapsed() < Duration::from_secs(50));
        let next = stop.output(&mut Command::new("true"));
        assert!(matches!(next, Err(RecipeError::Stopped)));
    }
}
