//! `cargo xtask demo`: a sandbox, end to end, as a user would do it by hand.

use crate::daemon::{self, Daemon, unless_interrupted};
use crate::text::{Align, say, table};
use crate::{image, programs, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Lines of the daemon's log that are shown with a failure.
const LOG_LINES: usize = 20;
/// Longest wait for a command that boots a VM. The first one also unpacks the image.
const LAUNCH_TIME: Duration = Duration::from_mins(10);
/// Longest wait for any other command.
const COMMAND_TIME: Duration = Duration::from_mins(2);

/// The steps that are done, with the time each took.
#[derive(Default)]
struct Steps {
    rows: Vec<[String; 3]>,
    total: Duration,
}

impl Steps {
    fn done(&mut self, step: &str, what: &str, start: Instant) {
        let took = start.elapsed();
        self.total += took;
        self.rows
            .push([step.to_owned(), what.to_owned(), seconds(took)]);
    }

    /// Does a step whose output goes to the terminal by itself.
    fn run(&mut self, step: &str, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        say(&format!("\n==> {step}: {what}"));
        let start = Instant::now();
        work().with_context(|| failed(step, what))?;
        self.done(step, what, start);
        Ok(())
    }

    /// Does a step and shows what it returns.
    async fn show(
        &mut self,
        step: &str,
        what: &str,
        work: impl Future<Output = Result<String>>,
    ) -> Result<String> {
        say(&format!("\n==> {step}: {what}"));
        let start = Instant::now();
        let output = work.await.with_context(|| failed(step, what))?;
        self.done(step, what, start);
        for line in output.lines() {
            say(&format!("    {line}"));
        }
        Ok(output)
    }
}

fn failed(step: &str, what: &str) -> String {
    format!("the step {step:?} failed ({what})")
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

/// Runs the demo.
pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::default();
    steps.run("build", "make build", make_build)?;
    steps.run("image", "default guest image and kernel", || {
        image::run(&image::Args::default())
    })?;
    let dir = tempfile::Builder::new()
        .prefix("slicer-demo-")
        .tempdir()
        .context("cannot make a temporary directory for the daemon")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(in_daemon(&mut steps, dir.path()));
    if done.is_err() {
        say("\nThe daemon's last lines:");
        let log = daemon::log(dir.path());
        for line in &log[log.len().saturating_sub(LOG_LINES)..] {
            say(&format!("    {line}"));
        }
    }
    let removed = dir.close().context("cannot remove the daemon's directory");
    done.and(removed)?;

    let mut rows = steps.rows;
    rows.push(["total".to_owned(), String::new(), seconds(steps.total)]);
    let header = [
        ("step", Align::Left),
        ("what", Align::Left),
        ("seconds", Align::Right),
    ];
    say("");
    for line in table(header, &rows) {
        say(&line);
    }
    Ok(())
}

fn make_build() -> Result<()> {
    let status = Command::new("make")
        .args(["--no-print-directory", "build"])
        .current_dir(workspace()?)
        // This make is on its own: the options of one that runs us are not for it.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .status()
        .context("cannot run make")?;
    ensure!(status.success(), "make build ended with {status}");
    Ok(())
}

/// What needs a daemon: it is stopped whatever comes of it.
async fn in_daemon(steps: &mut Steps, dir: &Path) -> Result<()> {
    let programs = programs()?;
    let mut running = None;
    let done = unless_interrupted(async {
        let start = async {
            let config = configuration(&programs.join("slicer-mac")).await?;
            let file = dir.join("slicer-mac.yaml");
            fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
            running = Some(Daemon::start(&programs.join("slicer-mac"), dir).await?);
            Ok(format!("serving in {}", dir.display()))
        };
        steps
            .show("daemon", "slicer-mac new, slicer-mac up", start)
            .await?;
        let daemon = running.as_ref().context("there is no daemon")?;
        let slicer = Slicer {
            program: programs.join("slicer"),
            daemon,
        };
        use_sandbox(steps, &slicer, dir).await
    })
    .await;
    let Some(daemon) = running else { return done };
    if done.is_err() {
        // What went wrong is told; that stopping may fail, too, is no news.
        let _ = daemon.stop(true).await;
        return done;
    }
    let stop = async {
        daemon.stop(false).await?;
        Ok("slicer-1 is shut down, nothing runs any more".to_owned())
    };
    // Interrupted, it drops the daemon, which kills it.
    unless_interrupted(steps.show("stop", "SIGTERM", stop)).await?;
    Ok(())
}

/// What `slicer-mac new` prints.
async fn configuration(program: &Path) -> Result<Vec<u8>> {
    let output = tokio::process::Command::new(program)
        .arg("new")
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "slicer-mac new: {}", said.trim());
    Ok(output.stdout)
}

/// The command line of this demo's daemon.
struct Slicer<'a> {
    program: PathBuf,
    daemon: &'a Daemon,
}

impl Slicer<'_> {
    async fn run(&self, args: &[&str], limit: Duration) -> Result<String> {
        let output = self.daemon.cli(&self.program, args).output();
        let output = tokio::time::timeout(limit, output)
            .await
            .with_context(|| format!("no end after {limit:?}"))?
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("it ended with {}: {}", output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A step that runs `slicer` with these arguments.
    async fn step(
        &self,
        steps: &mut Steps,
        step: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<String> {
        let what = format!("slicer {}", args.join(" "));
        steps.show(step, &what, self.run(args, limit)).await
    }
}

async fn use_sandbox(steps: &mut Steps, slicer: &Slicer<'_>, dir: &Path) -> Result<()> {
    let vm = "sbox-1";
    let launch = ["vm", "launch", "sbox", "--wait"];
    slicer.step(steps, "launch", &launch, LAUNCH_TIME).await?;
    say("    The daemon meanwhile:");
    for line in daemon::log(dir) {
        say(&format!("    {line}"));
    }
    let uname = ["vm", "exec", vm, "--", "uname", "-a"];
    let said = slicer.step(steps, "exec", &uname, COMMAND_TIME).await?;
    ensure!(
        said.starts_with(&format!("Linux {vm} ")),
        "uname in the sandbox should name a Linux called {vm}"
    );
    let list = ["vm", "list"];
    let said = slicer.step(steps, "list", &list, COMMAND_TIME).await?;
    ensure!(said.contains(vm), "the list should name {vm}");
    let delete = ["vm", "delete", vm];
    slicer.step(steps, "delete", &delete, COMMAND_TIME).await?;
    let said = slicer.run(&list, COMMAND_TIME).await?;
    ensure!(!said.contains(vm), "the list still names {vm}");
    Ok(())
}
