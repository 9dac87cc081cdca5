//! How a command fails: what is said, which hint is given, how the process exits.

use crate::commands::docker::{DockerError, StoreError};
use crate::commands::ssh::SshError;
use crate::output;
use slicer_client::{ClientError, CopyError, DiscoverError};
use slicer_forward::ListenError;
use slicer_image::ImageError;
use slicer_registry::{BundleError, PushError};
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// Exit code of any other failure.
pub(crate) const FAILURE: u8 = 1;
/// Exit code of a command line that makes no sense, as clap's own.
pub(crate) const USAGE: u8 = 2;
/// Exit code when a wait ran out, as timeout(1)'s.
pub(crate) const TIMED_OUT: u8 = 124;
/// Exit code of an interrupt, as a shell reports SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;
/// Exit code of a request to end, as a shell reports SIGTERM.
pub(crate) const TERMINATED: u8 = 143;
/// Exit code when nobody reads the output any more, as a shell reports SIGPIPE.
const BROKEN_PIPE: u8 = 141;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Ssh(#[from] SshError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Push(#[from] PushError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Recipe(#[from] slicer_recipe::RecipeError),
    #[cfg(not(target_os = "linux"))]
    #[error("{0} needs Linux: run it in a Linux VM")]
    OnlyOnLinux(&'static str),
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another `slicer install` is at work in {}", .0.display())]
    InstallRuns(PathBuf),
    #[error("you may not replace {}: run `sudo slicer update`", .0.display())]
    NotYours(PathBuf),
    /// The daemon's own words.
    #[error("{0}")]
    Pull(String),
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("the shell's connection ended before the shell did; the VM may have stopped")]
    ShellLost,
    /// The command line makes no sense in a way clap can't see.
    #[error("{0}")]
    Usage(String),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("cannot print the answer as JSON")]
    Json(#[source] serde_json::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot start {program}")]
    Start { program: String, source: io::Error },
    #[error("the daemon has no host group: add one to its configuration and restart it")]
    NoGroup,
    #[error("the daemon has several host groups: name one of {}", .0.join(", "))]
    ManyGroups(Vec<String>),
    #[error("VM {vm:?} was not ready within {timeout:?}{}", because(last.as_deref()))]
    NotReady {
        vm: String,
        timeout: std::time::Duration,
        last: Option<String>,
    },
}

fn because(last: Option<&str>) -> String {
    last.map(|l| format!("; the last answer was: {l}"))
        .unwrap_or_default()
}

impl CliError {
    /// Prints the error and gives back the exit code.
    pub(crate) fn report(&self) -> u8 {
        if let Self::Output(e) = self
            && e.kind() == io::ErrorKind::BrokenPipe
        {
            return BROKEN_PIPE;
        }
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(e) = source {
            let cause = e.to_string();
            // Some say it themselves.
            if !text.contains(&cause) {
                text.push_str(": ");
                text.push_str(&cause);
            }
            source = e.source();
        }
        output::error(&text);
        if let Some(hint) = self.hint() {
            output::hint(hint);
        }
        match self {
            Self::Usage(_)
            | Self::NoGroup
            | Self::ManyGroups(_)
            | Self::Docker(DockerError::Store(StoreError::Name(_))) => USAGE,
            Self::NotReady { .. } => TIMED_OUT,
            Self::Client(e) if e.status() == Some(408) => TIMED_OUT,
            _ => FAILURE,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Client(ClientError::Api { status: 401, .. }) => {
                Some("give the daemon's token with --token, --token-file or SLICER_TOKEN")
            }
            Self::Client(e) if e.is_not_found() && e.to_string().contains("VM") => {
                Some("`slicer vm list` shows all VMs")
            }
            Self::Docker(e) => e.hint(),
            Self::Ssh(e) => e.hint(),
            Self::ManyGroups(_) => Some("`slicer vm group` shows what each of them gives a VM"),
            Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("put it beside this command or on the PATH")
            }
            Self::NotReady { .. } => Some("`slicer vm logs VM` shows its console"),
            _ => None,
        }
    }
}
