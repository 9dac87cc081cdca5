//! `slicer-mac install`, `uninstall` and `service`.

use crate::{Outcome, print};
use clap::{Args, Subcommand};
use slicer_daemon::config::Host;
use slicer_daemon::service::{self, Installation, Service, ServiceError, Status};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What `service status` exits with when a service doesn't run, as systemctl does.
const NOT_RUNNING: u8 = 3;

/// What `slicer-mac install` takes.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Where slicer-mac.yaml is; without it, this directory, or ~/slicer-mac.
    dir: Option<PathBuf>,
    /// Leave out the menu-bar app, or remove it.
    #[arg(long)]
    no_tray: bool,
}

/// What `slicer-mac service` does.
#[derive(Debug, Subcommand)]
pub(crate) enum Manage {
    /// Tell how a service is, or both. Exits with 3 when one doesn't run.
    Status {
        /// Which.
        service: Option<Service>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start a service that is installed.
    Start {
        /// Which.
        service: Service,
    },
    /// Stop a service, until it is started or you log in anew. The daemon ends its VMs.
    Stop {
        /// Which.
        service: Service,
    },
    /// Show what a service logged last.
    Logs {
        /// Which.
        service: Service,
        /// Go on with what comes.
        #[arg(long, short)]
        follow: bool,
        /// How many lines.
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: u32,
    },
}

fn run<T>(
    work: impl Future<Output = Result<T, ServiceError>>,
) -> std::io::Result<Result<T, ServiceError>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(work))
}

fn say(line: &str) {
    // Who doesn't listen any more has it done all the same.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn home(host: &Host) -> Result<&Path, ServiceError> {
    host.home.as_deref().ok_or(ServiceError::Home)
}

/// `slicer-mac install`.
pub(crate) fn install(args: &Install) -> Outcome {
    let host = Host::current();
    let home = home(&host)?;
    let manager = service::this_host(host.os, home)?;
    let current = std::env::current_dir()?;
    let wanted = Installation {
        // As it was called, symbolic links and all: those are what an update changes.
        program: std::path::absolute(std::env::current_exe()?)?,
        directory: service::find_directory(args.dir.as_deref(), &current, home),
        tray: !args.no_tray,
        os: host.os,
        variable: |name| std::env::var_os(name),
    };
    run(service::install(&*manager, &wanted, &mut say))??;
    Ok(ExitCode::SUCCESS)
}

/// `slicer-mac uninstall`.
pub(crate) fn uninstall() -> Outcome {
    let host = Host::current();
    let manager = service::this_host(host.os, home(&host)?)?;
    run(service::uninstall(&*manager, &mut say))??;
    Ok(ExitCode::SUCCESS)
}

/// `slicer-mac service`.
pub(crate) fn manage(command: &Manage) -> Outcome {
    let host = Host::current();
    let manager = service::this_host(host.os, home(&host)?)?;
    let manager = &*manager;
    match *command {
        Manage::Status { service, json } => {
            let all = run(async {
                let mut all = Vec::new();
                for which in [Service::Daemon, Service::Tray] {
                    if service.is_none_or(|service| service == which) {
                        all.push(service::status(manager, which).await?);
                    }
                }
                Ok(all)
            })??;
            let text = match (json, service, all.first()) {
                (true, Some(_), Some(one)) => serde_json::to_string_pretty(one)? + "\n",
                (true, ..) => serde_json::to_string_pretty(&all)? + "\n",
                _ => all
                    .iter()
                    .map(|status| describe(status, &|s, dir| manager.log_place(s, dir)))
                    .collect(),
            };
            print(&text)?;
            // Of both, a tray that was left out is no fault.
            let mut counted = all
                .iter()
                .filter(|s| service.is_some() || s.service == Service::Daemon || s.installed);
            if counted.any(|status| !status.running) {
                return Ok(NOT_RUNNING.into());
            }
        }
        Manage::Start { service } => run(service::start(manager, service, &mut say))??,
        Manage::Stop { service } => run(service::stop(manager, service, &mut say))??,
        Manage::Logs {
            service,
            follow,
            lines,
        } => {
            if !manager.definition(service).exists() {
                return Err(ServiceError::NotInstalled { service }.into());
            }
            let call = manager.logs(service, lines, follow)?;
            let mut command = std::process::Command::new(call.program);
            command.args(&call.args).envs(call.environment);
            // Only comes back when it fails.
            let source = command.exec();
            return Err(ServiceError::Run {
                program: call.program,
                source,
            }
            .into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A service as people read it.
fn describe(status: &Status, log_place: &dyn Fn(Service, &Path) -> String) -> String {
    let service = status.service;
    if !status.installed {
        return format!("{service}: not installed\n");
    }
    let mut text = match (status.running, status.pid) {
        (true, Some(pid)) => format!("{service}: running (pid {pid})\n"),
        _ => {
            let exit = status.last_exit.as_ref();
            let exit = exit.map(|e| format!(", ended by {e}")).unwrap_or_default();
            format!("{service}: not running ({}{exit})\n", status.state)
        }
    };
    if let Some(dir) = &status.directory {
        let line = format!(
            "  directory: {}\n  logs: {}\n",
            dir.display(),
            log_place(service, dir)
        );
        text.push_str(&line);
    }
    text
}
