//! `slicer-mac`: the daemon's command line.
#![forbid(unsafe_code)]

mod services;

use clap::{Parser, Subcommand};
use slicer_daemon::config::{self, Config, Host};
use slicer_daemon::{Daemon, DaemonError, check, power};
use slicer_machine::Hypervisor;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// The daemon of slicer: keeps a persistent Linux VM and disposable sandboxes.
#[derive(Parser)]
#[command(name = "slicer-mac", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a configuration to start from.
    ///
    /// Write it to a file of the directory the daemon is to work in:
    ///
    ///   slicer-mac new > slicer-mac.yaml
    New {
        /// Reference of the image VMs boot; without it, the default image.
        #[arg(long)]
        image: Option<String>,
        /// For which hypervisor: qemu or apple; without it, this host's.
        #[arg(long)]
        hypervisor: Option<String>,
    },
    /// Run the daemon in this directory, in the foreground.
    ///
    /// SIGTERM or Ctrl-C deletes the sandboxes, shuts down the persistent VMs and ends it; a second
    /// one switches them off.
    Up {
        /// The configuration.
        #[arg(default_value = "slicer-mac.yaml")]
        file: PathBuf,
        /// Suspend what runs when the daemon ends, for the next one to restore.
        #[arg(long)]
        suspend_on_shutdown: bool,
    },
    /// Check that this host runs VMs as slicer needs them.
    ///
    /// Goes through what the hypervisor must be able to do, step by step, with a VM of its own in a
    /// temporary directory; nothing of a daemon that runs is touched. The first step that fails is the
    /// last.
    Check {
        /// Print the steps as JSON, one a line.
        #[arg(long)]
        json: bool,
    },
    /// Have this user's daemon started at every login, and now; the menu-bar app as well.
    ///
    /// By launchd on macOS, by systemd on Linux, without sudo. Run it again after an update, or in
    /// another directory, to bring the services up to date.
    Install(services::Install),
    /// Stop both services and remove them; the VMs and the configuration stay.
    Uninstall,
    /// Manage what was installed.
    #[command(subcommand)]
    Service(services::Manage),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::New { image, hypervisor } => new(image, hypervisor.as_deref()),
        Command::Up {
            file,
            suspend_on_shutdown,
        } => up(&file, suspend_on_shutdown),
        Command::Check { json } => check(json),
        Command::Install(args) => services::install(&args),
        Command::Uninstall => services::uninstall(),
        Command::Service(command) => services::manage(&command),
        Command::Version => print(&format!(
            "{} ({})\n",
            env!("CARGO_PKG_VERSION"),
            env!("SLICER_GIT_COMMIT")
        )),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            let mut text = format!("Error: {e}");
            let mut source = std::error::Error::source(&*e);
            while let Some(e) = source {
                let more = e.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                source = e.source();
            }
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

fn print(text: &str) -> Outcome {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn new(image: Option<String>, hypervisor: Option<&str>) -> Outcome {
    let hypervisor = match hypervisor {
        None => Host::current().os.hypervisor(),
        Some("qemu") => config::Hypervisor::Qemu,
        Some("apple") => config::Hypervisor::Apple,
        Some(other) => {
            return Err(format!("there is no hypervisor {other:?}: it is qemu or apple").into());
        }
    };
    let image = match image {
        Some(image) => image,
        None => {
            let arch = slicer_api::go_arch(std::env::consts::ARCH);
            let layout = slicer_image::find_guest(arch)?.image;
            format!("oci:{}:latest", layout.display())
        }
    };
    print(&config::template(&image, hypervisor))
}

fn up(file: &Path, suspend: bool) -> Outcome {
    let filter = EnvFilter::try_from_env("SLICER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .init();
    let (config, warnings) = Config::load(file)?;
    for warning in warnings {
        warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(&config, suspend))
}

fn check(json: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let dir = tempfile::Builder::new().prefix("slicer-check").tempdir()?;
    // Where it leads to, since a hypervisor may not follow links.
    let at = dir.path().canonicalize()?;
    let hypervisor = runtime.block_on(async { hypervisor(&at) })?;
    if !json {
        print(&format!("Checking {} on this host\n", hypervisor.name()))?;
    }
    let mut steps = 0;
    let mut written = Ok(());
    let tell = |step: &check::Step| {
        steps += 1;
        let text = if json { as_json(step) } else { as_line(step) };
        if let Err(e) = print(&text) {
            written = Err(e);
        }
    };
    let well = runtime.block_on(async {
        tokio::select! {
            well = check::run(hypervisor, &at, tell) => Ok::<_, Box<dyn std::error::Error>>(well?),
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    })?;
    written?;
    if !well {
        return Err(format!("step {steps} failed").into());
    }
    Ok(ExitCode::SUCCESS)
}

fn as_line(step: &check::Step) -> String {
    let (word, more) = match &step.outcome {
        check::Outcome::Passed => ("ok", String::new()),
        check::Outcome::Skipped(why) => ("skip", format!("\n      {why}")),
        check::Outcome::Failed(why) => ("FAIL", format!("\n      {why}")),
    };
    let took = step.took.as_secs_f64();
    format!("{word:<5} {:<46} {took:>7.2} s{more}\n", step.name)
}

fn as_json(step: &check::Step) -> String {
    let (outcome, why) = match &step.outcome {
        check::Outcome::Passed => ("passed", None),
        check::Outcome::Skipped(why) => ("skipped", Some(why)),
        check::Outcome::Failed(why) => ("failed", Some(why)),
    };
    let value = serde_json::json!({
        "name": step.name,
        "outcome": outcome,
        "why": why,
        "seconds": step.took.as_secs_f64(),
    });
    format!("{value}\n")
}

async fn run(config: &Config, suspend: bool) -> Outcome {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut asked = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let work_dir = std::env::current_dir()?;
    let mut daemon = Daemon::start(config, &work_dir, hypervisor).await?;
    daemon.heed_sleep(power::this_host());
    tokio::select! {
        () = asked() => {}
        () = daemon.asked_to_end() => {}
    }
    info!("stopping; once more to switch everything off");
    daemon.stop(suspend, asked()).await;
    Ok(ExitCode::SUCCESS)
}

#[cfg(target_os = "linux")]
fn hypervisor(state: &Path) -> Result<Arc<dyn Hypervisor>, DaemonError> {
    Ok(Arc::new(slicer_machine_qemu::Qemu::new(
        state.join("accelerator.json"),
    )?))
}

#[cfg(target_os = "macos")]
fn hypervisor(_: &Path) -> Result<Arc<dyn Hypervisor>, DaemonError> {
    let framework = slicer_machine_apple::Virtualization::new()?;
    Ok(Arc::new(slicer_machine_apple::Apple::new(framework)))
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn hypervisor(_: &Path) -> Result<Arc<dyn Hypervisor>, DaemonError> {
    Err(DaemonError::Unsupported(
        "there is a hypervisor for Linux and for macOS only".to_owned(),
    ))
}
