//! Userdata: a script that runs once, as root, when a guest has booted for the first time.

use crate::error::{AgentError, io_error};
use crate::init::GuestInit;
use crate::users::{DEFAULT_PATH, Database};
use crate::{log, sys};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Its presence says that userdata has run; the exit code is in it.
const GUARD: &str = "/etc/slicer/userdata-ran";
/// Where the script is while it runs: in memory, since it may hold what nobody should read.
const SCRIPT: &str = "/run/slicer/userdata";
/// All it has printed, which the console shows, too.
const LOG: &str = "/var/log/slicer-userdata.log";
/// How long a boot may take to come to its end before the script runs all the same.
const BOOT_TIME: Duration = Duration::from_mins(5);
/// How long output is waited for when the script is over and somebody else has its pipe.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// How far a guest's userdata is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// It isn't known yet whether there is any.
    #[default]
    Unknown,
    /// It waits for its turn, or runs.
    Running,
    /// There is none, or it has run: with this exit code, unless that is lost.
    Done(Option<i32>),
}

/// The userdata of this guest.
#[derive(Debug, Default)]
pub(crate) struct Userdata(watch::Sender<State>);

impl Userdata {
    /// How far it is.
    pub(crate) fn state(&self) -> State {
        *self.0.borrow()
    }

    /// Returns once there is nothing to run any more.
    pub(crate) async fn done(&self) {
        // The sender is self, so the channel can't close meanwhile.
        let done = |s: &State| matches!(s, State::Done(_));
        let _ = self.0.subscribe().wait_for(done).await;
    }

    /// Says what there is to run. True when `run` shall be called: it wasn't known before, and the
    /// script hasn't run in this guest.
    pub(crate) fn set(&self, script: Option<&str>, guard: bool) -> bool {
        let mut start = false;
        self.0.send_if_modified(|state| {
            if *state != State::Unknown {
                return false;
            }
            *state = match script {
                None => State::Done(None),
                Some(_) if guard => read_guard(Path::new(GUARD), Path::new(SCRIPT)),
                Some(_) => State::Running,
            };
            start = *state == State::Running;
            true
        });
        start
    }

    /// Runs the script when the boot is over, and notes that it has.
    pub(crate) async fn run(&self, script: &str, init: GuestInit, users: Arc<Database>) {
        if init == GuestInit::Systemd {
            boot_over().await;
        }
        log::notice("running userdata");
        let code = match execute(script, &users).await {
            Ok(code) => code,
            Err(e) => {
                log::warn(&format!("userdata: {e}"));
                127
            }
        };
        log::notice(&format!("userdata ended with exit code {code}"));
        let noted = tokio::task::spawn_blocking(move || write_guard(Path::new(GUARD), code)).await;
        if let Ok(Err(e)) = noted {
            log::warn(&format!("userdata will run again: {e}"));
        }
        let _ = fs::remove_file(SCRIPT);
        self.0.send_replace(State::Done(Some(code)));
    }
}

/// How far a guest says userdata is: still to run, or done. A script that is there before it was
/// run is that of an agent which ended meanwhile: it isn't begun a second time in the same boot,
/// and how it ended nobody knows.
fn read_guard(path: &Path, script: &Path) -> State {
    match fs::read_to_string(path) {
        Ok(text) => State::Done(text.trim().parse().ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && script.exists() => State::Done(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => State::Running,
        // Rather not twice.
        Err(_) => State::Done(None),
    }
}

fn write_guard(path: &Path, code: i32) -> Result<(), AgentError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(io_error("make directory", dir))?;
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        writeln!(file, "{code}")?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(io_error("write", path))
}

/// Returns when systemd has started all that boot starts, or has had its time.
async fn boot_over() {
    let mut command = tokio::process::Command::new("systemctl");
    command
        .args(["is-system-running", "--wait"])
        .env("PATH", DEFAULT_PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // A system with failed units has booted, too.
    if tokio::time::timeout(BOOT_TIME, command.status())
        .await
        .is_err()
    {
        let seconds = BOOT_TIME.as_secs();
        log::warn(&format!(
            "boot is not over after {seconds} s, not waiting for it"
        ));
    }
}

/// Who executes the script: it itself if it says by whom, else bash, else sh.
fn interpreter(script: &str) -> Option<&'static str> {
    if script.starts_with("#!") {
        None
    } else if Path::new("/bin/bash").exists() {
        Some("/bin/bash")
    } else {
        Some("/bin/sh")
    }
}

async fn execute(script: &str, users: &Database) -> Result<i32, AgentError> {
    let failed = |action| io_error::<io::Error>(action, SCRIPT);
    fs::write(SCRIPT, script).map_err(failed("write"))?;
    fs::set_permissions(SCRIPT, fs::Permissions::from_mode(0o700))
        .map_err(failed("change mode of"))?;
    let (reader, writer) = io::pipe().map_err(failed("make a pipe for"))?;
    let errors = writer.try_clone().map_err(failed("make a pipe for"))?;
    let mut command = match interpreter(script) {
        None => tokio::process::Command::new(SCRIPT),
        Some(program) => {
            let mut command = tokio::process::Command::new(program);
            command.arg(SCRIPT);
            command
        }
    };
    let home = if Path::new("/root").is_dir() {
        "/root"
    } else {
        "/"
    };
    let target = users.default_user().map_or("root", |u| &u.name);
    command
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("HOME", home)
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env("SHELL", "/bin/sh")
        .env("TARGET_USER", target)
        .current_dir(home)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors);
    sys::without_precedence(command.as_std_mut());
    let mut child = command.spawn().map_err(failed("execute"))?;
    // Its ends of the pipe, or the output would never end.
    drop(command);
    let output = tokio::task::spawn_blocking(move || copy_output(reader));
    let status = child.wait().await.map_err(failed("wait for"))?;
    let _ = tokio::time::timeout(OUTPUT_GRACE, output).await;
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

/// Copies what the script prints to its log and the console, until nobody can print any more.
fn copy_output(mut from: impl Read) {
    let mut log = OpenOptions::new().create(true).append(true).open(LOG).ok();
    let mut console = OpenOptions::new().write(true).open("/dev/console").ok();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        for to in [&mut log, &mut console].into_iter().flatten() {
            // A full disk or a console that is gone must not stop the script.
            let _ = to.write_all(&buffer[..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_tells_whether_and_how_it_ran() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/slicer/userdata-ran");
        let script = dir.path().join("script");
        let read_guard = |path: &Path| super::read_guard(path, &script);
        assert_eq!(read_guard(&path), State::Running);
        fs::write(&script, "true").unwrap();
        assert_eq!(read_guard(&path), State::Done(None));
        write_guard(&path, 3).unwrap();
        assert_eq!(read_guard(&path), State::Done(Some(3)));
        write_guard(&path, 0).unwrap();
        assert_eq!(read_guard(&path), State::Done(Some(0)));
        // As older agents left it.
        fs::write(&path, "").unwrap();
        assert_eq!(read_guard(&path), State::Done(None));
    }

    #[test]
    fn a_script_without_interpreter_gets_a_shell() {
        assert_eq!(interpreter("#!/usr/bin/env python3\n"), None);
        assert!(interpreter("apt update").is_some());
    }

    #[tokio::test]
    async fn what_there_is_to_run_is_said_once() {
        let none = Userdata::default();
        assert_eq!(none.state(), State::Unknown);
        assert!(!none.set(None, false));
        assert!(!none.set(Some("x"), false));
        assert_eq!(none.state(), State::Done(None));
        none.done().await;
        let some = Userdata::default();
        assert!(some.set(Some("x"), false));
        assert!(!some.set(Some("x"), false));
        assert_eq!(some.state(), State::Running);
    }
}
