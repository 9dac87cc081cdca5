//! Installing services, starting, stopping and removing them: the order of things.

use super::job::{self, CONFIG};
use super::manager::{Manager, Status};
use super::{Job, Service, ServiceError};
use crate::config::{Config, HostOs, ListenAddress};
use crate::workdir;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

/// How long a service may take to be there.
const START_TIME: Duration = Duration::from_mins(1);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(100);
/// How long one look may take.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// What is to be installed.
#[derive(Debug)]
pub struct Installation {
    /// The daemon's program.
    pub program: PathBuf,
    /// The directory it is to work in.
    pub directory: PathBuf,
    /// Whether the menu-bar app is wanted.
    pub tray: bool,
    /// The system.
    pub os: HostOs,
    /// What the environment says.
    pub variable: fn(&str) -> Option<OsString>,
}

/// Installs the daemon and, if it is wanted and there, the menu-bar app, and starts them. What is
/// installed already is brought up to date. Tells `say` a line about each.
pub async fn install(
    manager: &dyn Manager,
    wanted: &Installation,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ServiceError> {
    if !wanted.program.is_file() {
        return Err(ServiceError::Program {
            path: wanted.program.clone(),
        });
    }
    let (config, _) = Config::load(&wanted.directory.join(CONFIG))?;
    let dir = &wanted.directory;
    let dir = dir.canonicalize().map_err(ServiceError::io("open", dir))?;
    let daemon = job::daemon(&wanted.program, &dir, wanted.os, wanted.variable)?;
    let tray = wanted.program.with_file_name(Service::Tray.program());
    manager.check().await?;
    put(manager, &daemon, &config, say).await?;
    let mut tray_done = Ok(());
    if wanted.tray && tray.is_file() {
        let job = job::tray(&tray, &dir, &config, wanted.os)?;
        // The daemon does without.
        tray_done = put(manager, &job, &config, say).await;
    } else {
        if manager.definition(Service::Tray).exists() {
            remove(manager, Service::Tray, say).await?;
        }
        if wanted.tray {
            let beside = wanted.program.display();
            say(&format!(
                "tray: not installed, for there is no slicer-tray beside {beside}"
            ));
        }
    }
    let place = manager.log_place(Service::Daemon, &dir);
    say(&format!("logs: slicer-mac service logs daemon ({place})"));
    if let Some(advice) = manager.advice().await {
        say(&format!("note: {advice}"));
    }
    tray_done
}

/// Makes a job's service what it is to be, and running.
async fn put(
    manager: &dyn Manager,
    job: &Job,
    config: &Config,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ServiceError> {
    let (service, dir) = (job.service, Path::new(&job.directory));
    let file = manager.definition(service);
    let text = manager.render(job)?;
    let old = match fs::read(&file) {
        Ok(old) => Some(old),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(ServiceError::io("read", file)(e)),
    };
    let before = manager.status(service).await?;
    let same = old.as_deref() == Some(&text);
    if same && before.running {
        let pid = pid(&before);
        say(&format!(
            "{service}: installed already, running{pid} in {}",
            job.directory
        ));
        return Ok(());
    }
    let own = before.pid.and_then(|pid| i32::try_from(pid).ok());
    if service == Service::Daemon
        && let Some(holder) = workdir::holder(dir)
        && (own.is_none() || own != holder.pid)
    {
        return Err(ServiceError::Busy {
            dir: dir.to_owned(),
            pid: holder.pid,
        });
    }
    if !same {
        if before.running {
            say(&format!("{service}: stopping the one that is installed"));
        }
        if old.is_some() {
            manager.stop(service).await?;
        }
        let secret = job.environment.values().any(|v| v.contains('@'));
        write(&file, &text, secret)?;
    }
    manager.enable(service).await?;
    let done = match old {
        None => "installed",
        Some(_) if same => "installed already",
        Some(_) => "updated",
    };
    if !manager.can_run(service).await? {
        say(&format!("{service}: {done}, starts with your desktop"));
        return Ok(());
    }
    manager.start(service).await?;
    let running = started(manager, service, dir, Some(config)).await?;
    say(&format!(
        "{service}: {done}, {running} in {}",
        job.directory
    ));
    Ok(())
}

/// Removes both services and what belongs to them, not what the daemon works on.
pub async fn uninstall(
    manager: &dyn Manager,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ServiceError> {
    reach(manager).await?;
    for service in [Service::Tray, Service::Daemon] {
        if manager.definition(service).exists() {
            remove(manager, service, say).await?;
        } else {
            say(&format!("{service}: not installed"));
        }
    }
    Ok(())
}

async fn remove(
    manager: &dyn Manager,
    service: Service,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ServiceError> {
    // What is broken can be removed, too.
    let directory = manager.status(service).await.ok().and_then(|s| s.directory);
    manager.stop(service).await?;
    manager.disable(service).await?;
    let file = manager.definition(service);
    match fs::remove_file(&file) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(ServiceError::io("remove", file)(e));
        }
        _ => {}
    }
    manager.forget(service).await?;
    match directory.filter(|_| service == Service::Daemon) {
        Some(dir) => say(&format!(
            "{service}: removed; {} stays as it is",
            dir.display()
        )),
        None => say(&format!("{service}: removed")),
    }
    Ok(())
}

/// How an installed service is, or one that isn't.
pub async fn status(manager: &dyn Manager, service: Service) -> Result<Status, ServiceError> {
    reach(manager).await?;
    manager.status(service).await
}

/// Checks that the manager can be asked. Where nobody is logged in, nothing runs, which is an answer.
async fn reach(manager: &dyn Manager) -> Result<(), ServiceError> {
    match manager.check().await {
        Err(ServiceError::NoSession { .. }) => Ok(()),
        other => other,
    }
}

/// Starts a service that is installed, and waits until it is there.
pub async fn start(
    manager: &dyn Manager,
    service: Service,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ServiceError> {
    manager.check().await?;
    let before = installed(manager, service).await?;
    if before.running {
        say(&format!("{service}: running already{}", pid(&before)));
        return Ok(());
    }
    let dir = before.directory.unwrap_or_default();
    // The daemon says itself what is wrong with it.
    let config = Config::load(&dir.join(CONFIG))
        .ok()
        .map(|(config, _)| config);
    manager.start(service).await?;
    let running = started(manager, service, &dir, config.as_ref()).await?;
    say(&format!("{service}: started, {running}"));
    Ok(())
}

/// Stops a service that is installed, until it is started or its user logs in anew.
pub async fn stop(
    manager: &dyn Manager,
    service: Service,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ServiceError> {
    let before = installed(manager, service).await?;
    // One that fails and is to be started anew counts, too.
    manager.stop(service).await?;
    let done = if before.running {
        "stopped"
    } else {
        "not running"
    };
    say(&format!("{service}: {done}"));
    Ok(())
}

async fn installed(manager: &dyn Manager, service: Service) -> Result<Status, ServiceError> {
    let status = status(manager, service).await?;
    if !status.installed {
        return Err(ServiceError::NotInstalled { service });
    }
    Ok(status)
}

/// Waits until a service that was started is there: its process, and the daemon's API. Says how it is
/// then.
async fn started(
    manager: &dyn Manager,
    service: Service,
    dir: &Path,
    config: Option<&Config>,
) -> Result<String, ServiceError> {
    let until = Instant::now() + START_TIME;
    loop {
        let status = manager.status(service).await?;
        if !status.running && !status.starting {
            let why = last_words(manager, service, &status).await;
            return Err(ServiceError::DidNotStart { service, why });
        }
        let there = status.running
            && match config.filter(|_| service == Service::Daemon) {
                Some(config) => answers(dir, config).await,
                None => true,
            };
        if there {
            return Ok(format!("running{}", pid(&status)));
        }
        // A daemon that has much to take up goes on with it.
        if Instant::now() >= until {
            return Ok(format!("starting{}", pid(&status)));
        }
        sleep(LOOK).await;
    }
}

/// Whether somebody is at each of the daemon's addresses.
async fn answers(dir: &Path, config: &Config) -> bool {
    for listener in &config.api.listeners {
        let connected = match &listener.address {
            ListenAddress::Unix(path) => {
                let connect = UnixStream::connect(dir.join(path));
                timeout(LOOK_TIME, connect).await.map(|c| c.is_ok())
            }
            ListenAddress::Tcp(address) => {
                let connect = TcpStream::connect(job::reachable(*address));
                timeout(LOOK_TIME, connect).await.map(|c| c.is_ok())
            }
        };
        if connected != Ok(true) {
            return false;
        }
    }
    true
}

/// Why a service ended, as far as its log tells.
async fn last_words(manager: &dyn Manager, service: Service, status: &Status) -> String {
    let how = status.last_exit.as_deref().unwrap_or("it ended at once");
    if !how.starts_with("exit") {
        return how.to_owned();
    }
    let Ok(call) = manager.logs(service, 20, false) else {
        return how.to_owned();
    };
    let Ok(done) = manager.runner().run(&call).await else {
        return how.to_owned();
    };
    let mut lines = done.stdout.lines().rev();
    match lines.find_map(|line| line.split_once("Error: ")) {
        Some((_, text)) => text.to_owned(),
        None => how.to_owned(),
    }
}

fn pid(status: &Status) -> String {
    status
        .pid
        .map(|pid| format!(" (pid {pid})"))
        .unwrap_or_default()
}

/// Writes a definition in one step. What is secret is its user's alone.
fn write(file: &Path, text: &[u8], secret: bool) -> Result<(), ServiceError> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(ServiceError::io("create", dir))?;
    let failed = || ServiceError::io("write", file);
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(failed())?;
    temp.write_all(text).map_err(failed())?;
    let mode = if secret { 0o600 } else { 0o644 };
    let permissions = Permissions::from_mode(mode);
    temp.as_file()
        .set_permissions(permissions)
        .map_err(failed())?;
    temp.as_file().sync_all().map_err(failed())?;
    temp.persist(file).map_err(|e| failed()(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests;
