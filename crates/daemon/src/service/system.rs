//! The host's own manager of services.

use super::manager::{Call, Done, Manager, Runner};
use super::{Launchd, ServiceError, Systemd};
use crate::config::HostOs;
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::timeout;

/// Calls the host's programs.
#[derive(Debug, Clone, Copy)]
pub struct System;

#[async_trait]
impl Runner for System {
    async fn run(&self, call: &Call) -> Result<Done, ServiceError> {
        let mut command = Command::new(call.program);
        command
            .args(&call.args)
            .envs(call.environment.iter().map(|(name, value)| (name, value)))
            // What is printed is read here.
            .env("LC_ALL", "C")
            .env("SYSTEMD_COLORS", "0")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let failed = |source| ServiceError::Run {
            program: call.program,
            source,
        };
        let Ok(output) = timeout(call.bound, command.output()).await else {
            return Err(ServiceError::Slow {
                command: call.line(),
                bound: call.bound,
            });
        };
        let output = output.map_err(failed)?;
        Ok(Done {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// What manages services of the user who runs this.
///
/// # Errors
/// For root, who has no services of this kind, and without a home directory.
pub fn this_host(os: HostOs, home: &Path) -> Result<Box<dyn Manager>, ServiceError> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Err(ServiceError::Root);
    }
    if !home.is_absolute() {
        return Err(ServiceError::Home);
    }
    let uid = uid.as_raw();
    Ok(match os {
        HostOs::MacOs => Box::new(Launchd::new(uid, home, System)),
        HostOs::Linux => {
            let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty());
            let config = variable("XDG_CONFIG_HOME").map(PathBuf::from);
            let config = config.filter(|dir| dir.is_absolute());
            let config = config.unwrap_or_else(|| home.join(".config"));
            let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
            let user = user.unwrap_or_else(|| uid.to_string());
            // A session that is no login, such as one of cron's, doesn't have it.
            let runtime_dir = format!("/run/user/{uid}");
            let runtime_dir = (variable("XDG_RUNTIME_DIR").is_none()
                && Path::new(&runtime_dir).exists())
            .then_some(runtime_dir);
            Box::new(Systemd::new(user, &config, runtime_dir, System))
        }
    })
}
