//! `slicer-mac`: the daemon's command line.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use slicer_daemon::config::{self, Config, Host};
use slicer_daemon::{Daemon, DaemonError, power};
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
        Command::Version => print(&format!(
            "{} ({})\n",
            env!("CARGO_PKG_VERSION"),
            env!("SLICER_GIT_COMMIT")
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
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

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn print(text: &str) -> Outcome {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
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
    Ok(())
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
