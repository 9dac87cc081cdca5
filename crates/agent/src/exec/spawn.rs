//! From a request to a running process.

use crate::sys;
use crate::users::{DEFAULT_PATH, Database, User};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Signal, Uid};
use slicer_api::{AUTO_ID, ExecRequest};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

/// How long a command whose client has left has between SIGTERM and SIGKILL, and after that to
/// disappear.
const KILL_GRACE: Duration = Duration::from_secs(5);
const KILL_POLL: Duration = Duration::from_millis(50);

/// Added to the error numbers of what the child does before it executes the program, since one
/// number is all that comes back from there. Linux's own end at 4095 and are all below 1000.
const AT_USER: i32 = 1000;
const AT_CWD: i32 = 2000;

/// A command that could not be started, in the words and with the exit code of a shell.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// 127 when there is no such program, 126 when it can't be executed, 1 for all else.
    pub(crate) exit_code: i32,
    /// What was wrong, in the form Go's `os/exec` has made familiar.
    pub(crate) error: String,
}

impl Failure {
    fn missing(program: &str) -> Self {
        Self {
            exit_code: 127,
            error: format!("exec: {program:?}: not found"),
        }
    }

    fn forbidden(program: &str) -> Self {
        Self {
            exit_code: 126,
            error: format!("exec: {program:?}: permission denied"),
        }
    }

    fn cwd(cwd: &Path, e: &io::Error) -> Self {
        Self {
            exit_code: 1,
            error: format!("chdir {}: {}", cwd.display(), errno_text(e)),
        }
    }
}

/// The system's text for an error, without Rust's addition of its number.
fn errno_text(e: &io::Error) -> String {
    let text = e.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}

/// User and groups a command gets.
#[derive(Debug, PartialEq, Eq)]
struct Ids {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Everything about a command that is settled before the fork.
#[derive(Debug)]
pub(crate) struct Plan {
    program: PathBuf,
    arg0: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
    /// `None` when it runs as who the agent is.
    ids: Option<Ids>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// Who a user id is; [`AUTO_ID`] is the image's default user, or whoever an agent without rights
/// runs as.
pub(super) fn user(uid: u32, database: &Database) -> Result<&User, Failure> {
    let own_uid = rustix::process::geteuid();
    match uid {
        AUTO_ID if own_uid.is_root() => database.default_user(),
        AUTO_ID => database.by_uid(own_uid.as_raw()),
        uid => database.by_uid(uid),
    }
    .ok_or_else(|| Failure {
        exit_code: 1,
        error: format!("user: unknown userid {uid}"),
    })
}

/// Settles who runs what, where, and with which environment.
pub(super) fn plan(request: &ExecRequest, database: &Database) -> Result<Plan, Failure> {
    let user = user(request.uid, database)?;
    let gid = match request.gid {
        AUTO_ID => user.gid,
        gid => gid,
    };
    plan_as(request, user, database.groups_of(user, gid), database)
}

/// Settles it for a user with these groups, the primary one first.
pub(crate) fn plan_as(
    request: &ExecRequest,
    user: &User,
    groups: Vec<u32>,
    database: &Database,
) -> Result<Plan, Failure> {
    let own_uid = rustix::process::geteuid();
    let gid = groups.first().copied().unwrap_or(user.gid);
    // An agent that isn't root, as in tests, can run commands as itself and nobody else.
    let as_self = !own_uid.is_root()
        && own_uid.as_raw() == user.uid
        && gid == rustix::process::getegid().as_raw();
    let ids = (!as_self).then_some(Ids {
        uid: user.uid,
        gid,
        groups,
    });

    let env = environment(user, database, &request.env);
    let cwd = working_directory(request.cwd.as_deref(), user)?;
    let (arg0, args) = match &request.shell {
        None => (request.cmd.clone(), request.args.clone()),
        Some(shell) => {
            let script = std::iter::once(&request.cmd)
                .chain(&request.args)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(" ");
            (
                present_shell(shell).to_owned(),
                vec!["-lc".to_owned(), script],
            )
        }
    };
    let path = env
        .iter()
        .rfind(|(key, _)| key == "PATH")
        .map_or(DEFAULT_PATH, |(_, value)| value);
    Ok(Plan {
        program: look_up(&arg0, path, &cwd)?,
        arg0,
        args,
        env,
        cwd,
        ids,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    })
}

/// The shell that is asked for, or sh for the bash of an image that has none: bash is what clients
/// ask for when their users didn't.
fn present_shell(asked: &str) -> &str {
    if asked == "/bin/bash" && !Path::new(asked).exists() {
        "/bin/sh"
    } else {
        asked
    }
}

/// The user's default environment, then `/etc/environment`, then the request's own; of equal keys
/// the last counts.
fn environment(user: &User, database: &Database, extra: &[String]) -> Vec<(String, String)> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut env = vec![
        pair("PATH", DEFAULT_PATH),
        pair("HOME", &user.home),
        pair("USER", &user.name),
        pair("LOGNAME", &user.name),
        pair("SHELL", &user.shell),
    ];
    env.extend(database.environment.iter().cloned());
    env.extend(
        extra
            .iter()
            .filter_map(|e| e.split_once('='))
            .map(|(key, value)| pair(key, value)),
    );
    env
}

fn working_directory(asked: Option<&str>, user: &User) -> Result<PathBuf, Failure> {
    let home = Path::new(&user.home);
    let Some(asked) = asked else {
        // A user without a home can still run things.
        return Ok(if home.is_dir() { home } else { Path::new("/") }.to_owned());
    };
    let cwd = match asked.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => home.join(asked),
    };
    match std::fs::metadata(&cwd) {
        Ok(m) if m.is_dir() => Ok(cwd),
        Ok(_) => Err(Failure::cwd(&cwd, &Errno::NOTDIR.into())),
        Err(e) => Err(Failure::cwd(&cwd, &e)),
    }
}

/// Finds a program as a shell does: a name with a slash is a path, any other is looked for along
/// `path`.
fn look_up(program: &str, path: &str, cwd: &Path) -> Result<PathBuf, Failure> {
    let executable = |file: &Path| {
        let meta = std::fs::metadata(file).ok()?;
        Some(meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return match executable(&cwd.join(program)) {
            Some(true) => Ok(PathBuf::from(program)),
            Some(false) => Err(Failure::forbidden(program)),
            None => Err(Failure::missing(program)),
        };
    }
    let mut found = None;
    for dir in path.split(':') {
        let file = cwd.join(dir).join(program);
        match executable(&file) {
            Some(true) => return Ok(file),
            Some(false) => found = Some(()),
            None => {}
        }
    }
    Err(match found {
        Some(()) => Failure::forbidden(program),
        None => Failure::missing(program),
    })
}

impl Plan {
    /// Where it will run.
    pub(super) fn cwd(&self) -> &Path {
        &self.cwd
    }

    /// Whom it will run as.
    pub(super) fn uid(&self) -> u32 {
        let own = || rustix::process::geteuid().as_raw();
        self.ids.as_ref().map_or_else(own, |ids| ids.uid)
    }

    /// Has a shell know that it is a login's, as login(1) tells it: by a dash before its name.
    pub(super) fn into_login(mut self, program: &str) -> Self {
        let name = program.rsplit('/').next().unwrap_or_default();
        if name.ends_with("sh") {
            self.arg0 = format!("-{name}");
        }
        self
    }

    /// Starts the process: in a session and process group of its own, with nothing of the agent's
    /// but the pipes.
    pub(crate) fn spawn(self) -> Result<Process, Failure> {
        self.start(None)
    }

    /// Like `spawn`, with a terminal in place of the pipes, which becomes that of the session.
    pub(super) fn spawn_on(self, terminal: OwnedFd) -> Result<Process, Failure> {
        self.start(Some(terminal))
    }

    fn start(self, terminal: Option<OwnedFd>) -> Result<Process, Failure> {
        let cwd = CString::new(self.cwd.as_os_str().as_encoded_bytes())
            .map_err(|e| Failure::cwd(&self.cwd, &e.into()))?;
        let piped = |wanted| {
            if wanted {
                Stdio::piped()
            } else {
                Stdio::null()
            }
        };
        let mut command = Command::new(&self.program);
        command
            .arg0(&self.arg0)
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(piped(self.stdin))
            .stdout(piped(self.stdout))
            .stderr(piped(self.stderr));
        let on_terminal = terminal.is_some();
        if let Some(terminal) = terminal {
            let no_copy = |e: io::Error| Failure {
                exit_code: 1,
                error: format!("terminal: {}", errno_text(&e)),
            };
            command
                .stdin(terminal.try_clone().map_err(no_copy)?)
                .stdout(terminal.try_clone().map_err(no_copy)?)
                .stderr(terminal);
        }
        let ids = self.ids.map(|ids| {
            let groups: Vec<Gid> = ids.groups.iter().map(|g| Gid::from_raw(*g)).collect();
            (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid), groups)
        });
        sys::before_exec(&mut command, move || {
            rustix::process::setsid()?;
            if on_terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
            // The kernel's memory killer spares the agent, but not what it runs. Giving up a
            // privilege is allowed to all, and where it fails there was none.
            if let Ok(file) = rustix::fs::open(
                c"/proc/self/oom_score_adj",
                rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            ) {
                let _ = rustix::io::write(file, b"0");
            }
            if let Some((uid, gid, groups)) = &ids {
                let at_user = |e: Errno| Errno::from_raw_os_error(e.raw_os_error() + AT_USER);
                // Only this thread exists in the child, so setting it for the thread is enough.
                rustix::thread::set_thread_groups(groups)
                    .and_then(|()| rustix::thread::set_thread_res_gid(*gid, *gid, *gid))
                    .and_then(|()| rustix::thread::set_thread_res_uid(*uid, *uid, *uid))
                    .map_err(at_user)?;
            }
            // The kernel kills it should the agent die: nobody could find it again. After the
            // change of user, which would undo it.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // As the user, who may not be allowed in.
            rustix::process::chdir(&*cwd)
                .map_err(|e| Errno::from_raw_os_error(e.raw_os_error() + AT_CWD))
        });
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .map_err(|e| explain(&e, &self.program, &self.cwd))?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| Failure {
                exit_code: 1,
                error: format!("fork/exec {}: it has no process id", self.program.display()),
            })?;
        Ok(Process {
            pid,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
        })
    }
}

/// What a failed spawn means.
fn explain(e: &io::Error, program: &Path, cwd: &Path) -> Failure {
    let number = e.raw_os_error().unwrap_or_default();
    if number >= AT_CWD {
        return Failure::cwd(cwd, &io::Error::from_raw_os_error(number - AT_CWD));
    }
    let (exit_code, number) = if number >= AT_USER {
        (1, number - AT_USER)
    } else {
        let code = match Errno::from_raw_os_error(number) {
            // It was there a moment ago, so what is missing is its interpreter.
            Errno::NOENT => 127,
            Errno::ACCESS | Errno::NOEXEC => 126,
            _ => 1,
        };
        (code, number)
    };
    let reason = errno_text(&io::Error::from_raw_os_error(number));
    Failure {
        exit_code,
        error: format!("fork/exec {}: {reason}", program.display()),
    }
}

/// A running command.
pub(crate) struct Process {
    pid: Pid,
    /// To be waited for.
    pub(crate) child: Child,
    /// Its ends of the pipes, as far as they were asked for.
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

impl Process {
    /// Its process id, which is also that of its session and group.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The id of its process group.
    pub(super) fn group(&self) -> Pid {
        self.pid
    }

    /// Ends the whole process group at once.
    pub(super) fn kill(&self) {
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }

    /// Ends the process group of a client that has left: SIGTERM, then SIGKILL for those that
    /// don't heed it.
    pub(super) async fn abandon(mut self) {
        // Writers learn at once that nobody reads.
        drop((self.stdin.take(), self.stdout.take(), self.stderr.take()));
        let _ = rustix::process::kill_process_group(self.pid, Signal::TERM);
        if !self.wait_for_group().await {
            self.kill();
            // A process in an uninterruptible sleep is the kernel's to keep; the runtime reaps it
            // when it comes out.
            self.wait_for_group().await;
        }
    }

    /// Waits until no process of the group is left; false when its time runs out first.
    async fn wait_for_group(&mut self) -> bool {
        let start = tokio::time::Instant::now();
        loop {
            // Until it is waited for, even a dead leader counts as a member.
            let _ = tokio::time::timeout(KILL_POLL, self.child.wait()).await;
            if rustix::process::test_kill_process_group(self.pid).is_err() {
                return true;
            }
            if start.elapsed() > KILL_GRACE {
                return false;
            }
            // The leader is gone, and others have no way to tell us when they are.
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                tokio::time::sleep(KILL_POLL).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            name: "me".into(),
            uid: 1000,
            gid: 1000,
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn programs_are_found_as_a_shell_does() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for (name, mode) in [("run", 0o755), ("plain", 0o644)] {
            let file = bin.join(name);
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        }
        let path = format!("/nowhere:{}", bin.display());
        let look = |program| look_up(program, &path, dir.path());
        assert_eq!(look("run"), Ok(bin.join("run")));
        assert_eq!(look("./bin/run"), Ok(PathBuf::from("./bin/run")));
        assert_eq!(look("plain"), Err(Failure::forbidden("plain")));
        assert_eq!(look("bin/plain"), Err(Failure::forbidden("bin/plain")));
        assert_eq!(look("./bin"), Err(Failure::forbidden("./bin")));
        let missing = look("absent").unwrap_err();
        assert_eq!(
            (missing.exit_code, missing.error.as_str()),
            (127, "exec: \"absent\": not found")
        );
    }

    #[test]
    fn working_directories() {
        assert_eq!(working_directory(None, &user()), Ok(PathBuf::from("/")));
        let homeless = User {
            home: "/no/such/home".into(),
            ..user()
        };
        assert_eq!(working_directory(None, &homeless), Ok(PathBuf::from("/")));
        for (asked, dir) in [
            ("~", "/"),
            ("~/tmp", "/tmp"),
            ("tmp", "/tmp"),
            ("/tmp", "/tmp"),
        ] {
            assert_eq!(
                working_directory(Some(asked), &user()),
                Ok(dir.into()),
                "{asked}"
            );
        }
        assert_eq!(
            working_directory(Some("/no/such"), &user()).unwrap_err(),
            Failure {
                exit_code: 1,
                error: "chdir /no/such: no such file or directory".into()
            }
        );
    }

    #[test]
    fn a_failure_in_the_child_is_told_by_its_stage() {
        let explain = |number| {
            let e = io::Error::from_raw_os_error(number);
            let f = explain(&e, Path::new("/bin/x"), Path::new("/root"));
            (f.exit_code, f.error)
        };
        let acces = Errno::ACCESS.raw_os_error();
        assert_eq!(
            explain(acces),
            (126, "fork/exec /bin/x: permission denied".into())
        );
        assert_eq!(
            explain(acces + AT_CWD),
            (1, "chdir /root: permission denied".into())
        );
        assert_eq!(
            explain(Errno::PERM.raw_os_error() + AT_USER),
            (1, "fork/exec /bin/x: operation not permitted".into())
        );
        assert_eq!(explain(Errno::NOENT.raw_os_error()).0, 127);
    }
}
