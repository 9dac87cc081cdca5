//! A daemon of our own, in a directory of its own, which never outlives us.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use slicer_api::Endpoint;
use slicer_client::Client;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// How long the daemon may take until it serves its API.
const START_TIME: Duration = Duration::from_secs(30);
/// How long it may take to shut its VMs down: a little more than it gives them.
const STOP_TIME: Duration = Duration::from_secs(100);
/// How long it may take to switch them off.
const FORCE_TIME: Duration = Duration::from_secs(10);

/// A running `slicer-mac`. Dropping it kills it, and with it its VMs.
pub(crate) struct Daemon {
    child: Child,
    pid: Pid,
    dir: PathBuf,
}

impl Daemon {
    /// Starts `slicer-mac up` in `dir`, which holds a `slicer-mac.yaml`, and waits until it
    /// answers.
    pub(crate) async fn start(program: &Path, dir: &Path) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::start_finding(program, dir, &path).await
    }

    /// The same, with another `PATH` for it to find QEMU by.
    pub(crate) async fn start_finding(
        program: &Path,
        dir: &Path,
        programs: &OsStr,
    ) -> Result<Self> {
        let path = log_path(dir);
        let log =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let child = Command::new(program)
            .arg("up")
            .env("PATH", programs)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is ours to handle, not the daemon's at the same time.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
            .context("the daemon ended at once")?;
        let mut this = Self {
            child,
            pid,
            dir: dir.to_owned(),
        };
        let client = this.client()?;
        let start = Instant::now();
        while client.healthz().await.is_err() {
            if let Some(status) = this.child.try_wait()? {
                bail!("the daemon ended ({status}) before it served its API");
            }
            if start.elapsed() > START_TIME {
                bail!("the daemon does not serve its API after {START_TIME:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(this)
    }

    /// Where its API is.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("slicer.sock")
    }

    /// A client of its API.
    pub(crate) fn client(&self) -> Result<Client> {
        let endpoint = Endpoint::Unix(self.socket());
        Ok(Client::new(endpoint, None, "slicer-xtask")?)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The command `slicer`, of this daemon and no other.
    pub(crate) fn cli(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(&self.dir)
            .env("SLICER_URL", self.socket())
            .env_remove("SLICER_TOKEN")
            .env_remove("SLICER_TOKEN_FILE")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Has it shut its VMs down and end; with `force`, switch them off.
    pub(crate) async fn stop(mut self, force: bool) -> Result<()> {
        self.signal();
        if !force && self.ended_within(STOP_TIME).await {
            return Ok(());
        }
        // The second signal is what makes it switch off; told apart from the first only once that
        // one was taken.
        let start = Instant::now();
        while start.elapsed() < FORCE_TIME {
            self.signal();
            if self.ended_within(Duration::from_millis(200)).await {
                return Ok(());
            }
        }
        self.child.kill().await?;
        bail!("the daemon did not stop when asked to and was killed")
    }

    fn signal(&self) {
        // Gone already is what is wanted. The child is not reaped yet, so the pid is its own.
        if self.child.id().is_some() {
            let _ = kill_process(self.pid, Signal::TERM);
        }
    }

    async fn ended_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.child.wait()).await.is_ok()
    }
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("daemon.log")
}

/// What the daemon that works or worked in `dir` has logged, as lines.
pub(crate) fn log(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(log_path(dir)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Does `work` unless we are told to end: by Ctrl-C, SIGTERM, or a terminal that goes away.
pub(crate) async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    let [interrupt, terminate, hangup] = &mut signals;
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("interrupted"),
        _ = hangup.recv() => bail!("interrupted"),
    }
}
