//! The real binary against a daemon of canned answers.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

mod bg;
mod cp;
mod docker;
mod exec;
mod image;
mod process;
#[path = "../../../client/tests/support/mod.rs"]
mod support;
mod vms;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::FakeDaemon;

const SLICER: &str = env!("CARGO_BIN_EXE_slicer");
/// How long a command may take that should end by itself.
const LIMIT: Duration = Duration::from_secs(20);

/// A command with an environment of its own and no daemon named.
fn bare(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(SLICER);
    command
        .args(args)
        .env_clear()
        .envs([("TZ", "UTC"), ("PATH", "/usr/bin:/bin")])
        .env("HOME", home)
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn slicer(daemon: &FakeDaemon, args: &[&str]) -> Command {
    let mut command = bare(daemon.dir(), args);
    command.env("SLICER_URL", daemon.socket());
    command
}

/// Waits for a child that must end; kills it when it doesn't.
fn wait(mut child: Child) -> i32 {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| panic!("{status}"));
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("the command hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

fn done(output: Output) -> Done {
    assert_eq!(output.status.signal(), None);
    Done {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(daemon: &FakeDaemon, args: &[&str]) -> Done {
    done(slicer(daemon, args).output().unwrap())
}
