//! Why a service could not be managed.

use super::Service;
use crate::config::ConfigError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of installing and managing services.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Run as root.
    #[error(
        "run this as yourself, without sudo: the services belong to the user whose VMs they run"
    )]
    Root,
    /// There is no home directory.
    #[error("HOME is not set to an absolute path: services are set up below it")]
    Home,
    /// The configuration is missing, or the daemon would refuse it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A path that can't be written into a service's definition.
    #[error("{} can't be used for a service: {why}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What about it.
        why: &'static str,
    },
    /// The program was replaced while it ran, so that it can't say where it is.
    #[error("cannot tell where slicer-mac is ({} is not a file): run it anew", path.display())]
    Program {
        /// Where it was.
        path: PathBuf,
    },
    /// A daemon that is no service works in the directory.
    #[error(
        "a slicer-mac{} runs in {} already: end it first, for one daemon at a time works there",
        pid.map(|p| format!(" (pid {p})")).unwrap_or_default(), dir.display()
    )]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// The daemon.
        pid: Option<i32>,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, such as `write`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is not a definition of ours.
    #[error("cannot read {}: {why}: `slicer-mac install` writes it anew", path.display())]
    Definition {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program of the system's can't be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program of the system's refused.
    #[error("`{command}` failed: {said}")]
    Refused {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
    /// A program of the system's did not end.
    #[error("`{command}` is not done after {} s", bound.as_secs())]
    Slow {
        /// What was run.
        command: String,
        /// How long it was waited for.
        bound: Duration,
    },
    /// The host is run by something else.
    #[error(
        "there is no systemd here, which would run the service: have whatever starts programs on \
         this host run `slicer-mac up`"
    )]
    NoSystemd,
    /// systemd does not look after this user.
    #[error(
        "systemd runs no services for {user} now ({said}): `sudo loginctl enable-linger {user}` has \
         it do so from now and from boot on"
    )]
    NoUserManager {
        /// The user.
        user: String,
        /// What systemctl said.
        said: String,
    },
    /// Nobody is logged in at the Mac's screen.
    #[error(
        "user {uid} is not logged in at this Mac's screen, where services of users run: log in there \
         first"
    )]
    NoSession {
        /// The user.
        uid: u32,
    },
    /// There is no such service yet.
    #[error("the {service} is not installed: run `slicer-mac install`")]
    NotInstalled {
        /// Which.
        service: Service,
    },
    /// A service ended as soon as it was started.
    #[error("the {service} does not start: {why}\nSee `slicer-mac service logs {service}`")]
    DidNotStart {
        /// Which.
        service: Service,
        /// What it said last.
        why: String,
    },
    /// A service goes on although it was told to stop.
    #[error("the {service} still runs {} s after it was told to stop", bound.as_secs())]
    DidNotStop {
        /// Which.
        service: Service,
        /// How long it was waited for.
        bound: Duration,
    },
}

impl ServiceError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
