//! The process that an image's `ENTRYPOINT` and `CMD` name, for VMs that are launched with it.
//!
//! It runs once in each boot, like a container's, under a keeper: a process of this program that
//! starts it, writes its log and notes how it ended. The keeper is not the worker, so the service
//! goes on when that is killed; who comes next finds its note and starts no second one.

use crate::error::{AgentError, io_error};
use crate::exec::spawn::{self, Failure, Process};
use crate::init::AGENT;
use crate::users::Users;
use crate::{log, sys};
use slicer_api::{Entrypoint, EntrypointState, ExecRequest};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How far it is, as JSON. That it exists says that it was begun in this boot.
const STATE: &str = "/run/slicer/entrypoint.json";
/// What to run, for the keeper, which takes it away: it may hold what nobody should read.
const REQUEST: &str = "/run/slicer/entrypoint.request";
/// All it prints; once this is full, what was before is in the same file with `.1` behind it.
const LOG: &str = "/var/log/slicer/entrypoint.log";
/// Bytes a log has when the next one is begun.
const LOG_LIMIT: u64 = 16 << 20;
/// How long output is waited for when the process is over and others have its pipes.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// Bytes of output that are taken at once.
const PIECE: usize = 16 << 10;
/// More than a state or a request ever has, bytes.
const FILE_LIMIT: u64 = 8 << 20;

/// Begins it, unless it was begun in this boot already.
pub(crate) fn begin(entrypoint: &Entrypoint) -> Result<(), AgentError> {
    let state = Path::new(STATE);
    if state.exists() {
        return Ok(());
    }
    let text = serde_json::to_vec(entrypoint).unwrap_or_default();
    write_private(Path::new(REQUEST), &text).map_err(io_error("write", REQUEST))?;
    note(state, &EntrypointState::default())?;
    // What kills the worker by its group spares it.
    let mut keeper = Command::new(AGENT);
    keeper
        .arg("entrypoint")
        .process_group(0)
        .stdin(Stdio::null());
    sys::without_precedence(&mut keeper);
    let spawned = keeper.spawn();
    match spawned {
        Ok(mut keeper) => {
            // Only so that it is no zombie for as long as this worker lives.
            std::thread::spawn(move || keeper.wait());
            log::notice("starting the image's entrypoint");
            Ok(())
        }
        Err(e) => {
            let failed = io_error::<io::Error>("execute", AGENT)(e);
            note(state, &not_started(1, failed.to_string()))?;
            Err(failed)
        }
    }
}

/// How far it is; `None` when it wasn't begun.
pub(crate) fn state() -> Option<EntrypointState> {
    use io::Read as _;
    let mut text = Vec::new();
    let file = File::open(STATE).ok()?;
    file.take(FILE_LIMIT).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The keeper: runs what the worker left to it.
pub(crate) fn keep() -> ExitCode {
    log::to_kernel();
    let done = read_request().and_then(|entrypoint| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(io_error("start the runtime of", AGENT))?;
        runtime.block_on(run(&entrypoint))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::warn(&format!("entrypoint: {e}"));
            let _ = note(Path::new(STATE), &not_started(1, e.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn read_request() -> Result<Entrypoint, AgentError> {
    let text = fs::read(REQUEST).map_err(io_error("read", REQUEST))?;
    let _ = fs::remove_file(REQUEST);
    serde_json::from_slice(&text)
        .map_err(|e| io_error::<io::Error>("read", REQUEST)(io::Error::other(e)))
}

async fn run(entrypoint: &Entrypoint) -> Result<(), AgentError> {
    let state = Path::new(STATE);
    let mut log_file = Log::open(Path::new(LOG), LOG_LIMIT)?;
    let process = match start(entrypoint) {
        Ok(process) => process,
        Err(failure) => {
            log_file.write(format!("slicer: {}\n", failure.error).as_bytes());
            log::notice(&format!("the entrypoint did not start: {}", failure.error));
            return note(state, &not_started(failure.exit_code, failure.error));
        }
    };
    let pid = Some(process.pid());
    note(
        state,
        &EntrypointState {
            running: true,
            pid,
            ..EntrypointState::default()
        },
    )?;
    let code = follow(process, &mut log_file).await?;
    log::notice(&format!("the entrypoint ended with exit code {code}"));
    note(
        state,
        &EntrypointState {
            pid,
            exit_code: Some(code),
            ..EntrypointState::default()
        },
    )
}

fn start(entrypoint: &Entrypoint) -> Result<Process, Failure> {
    let failed = |error| Failure {
        exit_code: 1,
        error,
    };
    let users = Users::new(Path::new("/etc")).get();
    let (user, groups) = users.named(&entrypoint.user).map_err(failed)?;
    let (program, args) = entrypoint
        .args
        .split_first()
        .ok_or_else(|| failed("it names no program".to_owned()))?;
    let request = ExecRequest {
        cmd: program.clone(),
        args: args.to_vec(),
        env: entrypoint.env.clone(),
        cwd: Some(format!("/{}", entrypoint.cwd.trim_start_matches('/'))),
        stdin: false,
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    };
    spawn::plan_as(&request, &user, groups, &users)?.spawn()
}

/// Writes to the log what it prints, until it has ended; gives its exit code.
async fn follow(mut process: Process, log: &mut Log) -> Result<i32, AgentError> {
    let (mut stdout, mut stderr) = (process.stdout.take(), process.stderr.take());
    let (mut out, mut err) = (vec![0; PIECE], vec![0; PIECE]);
    let mut ended = None;
    while ended.is_none() || stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read_some(&mut stdout, &mut out), if stdout.is_some() => log.write(&out[..read]),
            read = read_some(&mut stderr, &mut err), if stderr.is_some() => log.write(&err[..read]),
            status = process.child.wait(), if ended.is_none() => {
                let status = status.map_err(io_error("wait for", "the entrypoint"))?;
                let signal = || 128 + status.signal().unwrap_or_default();
                ended = Some(status.code().unwrap_or_else(signal));
            }
            // Its own children may have its pipes for ever.
            () = tokio::time::sleep(OUTPUT_GRACE), if ended.is_some() => break,
        }
    }
    Ok(ended.unwrap_or_default())
}

/// Reads from a pipe, and drops it when it has come to its end.
async fn read_some(pipe: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    let read = match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or_default(),
        None => 0,
    };
    if read == 0 {
        *pipe = None;
    }
    read
}

fn not_started(exit_code: i32, error: String) -> EntrypointState {
    EntrypointState {
        exit_code: Some(exit_code),
        error: Some(error),
        ..EntrypointState::default()
    }
}

/// Replaces the state in one step.
fn note(path: &Path, state: &EntrypointState) -> Result<(), AgentError> {
    let temporary = path.with_extension("new");
    let text = serde_json::to_vec(state).unwrap_or_default();
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(io_error("write", path))
}

/// Writes a file that only root can read.
fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(text)
}

/// The log, of which there is never more than twice its limit.
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl Log {
    fn open(path: &Path, limit: u64) -> Result<Self, AgentError> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(io_error("make directory", dir))?;
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path);
        let file = file.map_err(io_error("open", path))?;
        let size = file.metadata().map(|m| m.len()).unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            limit,
        })
    }

    /// Writes what can be written: a full disk must not stop the service.
    fn write(&mut self, text: &[u8]) {
        if self.size >= self.limit {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            let _ = fs::rename(&self.path, old);
            if let Ok(next) = Self::open(&self.path, self.limit) {
                *self = next;
            }
        }
        if self.file.write_all(text).is_ok() {
            self.size += text.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_never_more_than_two_of_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/entrypoint.log");
        let mut log = Log::open(&path, 10).unwrap();
        for line in ["12345678\n", "abc\n", "next\n"] {
            log.write(line.as_bytes());
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "next\n");
        let old = dir.path().join("deep/entrypoint.log.1");
        assert_eq!(fs::read_to_string(old).unwrap(), "12345678\nabc\n");
        // What was there at the last boot stays.
        Log::open(&path, 10).unwrap().write(b"more\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "next\nmore\n");
    }

    #[tokio::test]
    async fn output_and_exit_code_are_kept() {
        let me = rustix::process::geteuid().as_raw();
        let entrypoint = Entrypoint {
            args: ["sh", "-c", "echo $A; pwd; echo err >&2; exit 7"]
                .map(Into::into)
                .into(),
            env: vec!["A=b c".into()],
            cwd: "usr".into(),
            user: format!("{me}:{}", rustix::process::getegid().as_raw()),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, 1 << 20).unwrap();
        let process = start(&entrypoint).unwrap();
        assert_eq!(follow(process, &mut log).await.unwrap(), 7);
        let mut lines: Vec<_> = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        assert_eq!(lines, ["/usr", "b c", "err"]);
        let missing = Entrypoint {
            args: vec!["/no/such".into()],
            ..entrypoint
        };
        assert_eq!(start(&missing).map(|p| p.pid()).unwrap_err().exit_code, 127);
    }
}
