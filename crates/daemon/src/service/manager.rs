//! The seam to what runs services: launchd and systemd.

use super::{Job, Service, ServiceError};
use async_trait::async_trait;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a service may take to end: longer than a guest may take to power off.
pub(crate) const STOP_TIME: Duration = Duration::from_mins(2);
const _: () = assert!(crate::vm::SHUTDOWN_TIME.as_secs() + 15 <= STOP_TIME.as_secs());

/// What starts programs in the background, at login, and anew after a crash.
#[async_trait]
pub trait Manager: Send + Sync {
    /// What calls its programs.
    fn runner(&self) -> &dyn Runner;

    /// Finds out whether it manages services of this user now.
    async fn check(&self) -> Result<(), ServiceError>;

    /// Where the definition of a service is.
    fn definition(&self, service: Service) -> PathBuf;

    /// The definition of a job's service.
    fn render(&self, job: &Job) -> Result<Vec<u8>, ServiceError>;

    /// How a service is.
    async fn status(&self, service: Service) -> Result<Status, ServiceError>;

    /// Takes in a definition that was written, so that its service is started at logins.
    async fn enable(&self, service: Service) -> Result<(), ServiceError>;

    /// Whether the service can run now, and not only once the user has logged in to a desktop.
    async fn can_run(&self, service: Service) -> Result<bool, ServiceError>;

    /// Starts a service whose definition is there.
    async fn start(&self, service: Service) -> Result<(), ServiceError>;

    /// Ends a service and waits until it has ended. One that doesn't run is success.
    async fn stop(&self, service: Service) -> Result<(), ServiceError>;

    /// Starts it at logins no longer. Its definition is removed next.
    async fn disable(&self, service: Service) -> Result<(), ServiceError>;

    /// Takes in that the definition was removed.
    async fn forget(&self, service: Service) -> Result<(), ServiceError>;

    /// What shows the last lines a service logged, and with `follow` all that come.
    fn logs(&self, service: Service, lines: u32, follow: bool) -> Result<Call, ServiceError>;

    /// Where a service that works in this directory logs to, for people.
    fn log_place(&self, service: Service, directory: &Path) -> String;

    /// What its user should know of a service that was installed.
    async fn advice(&self) -> Option<String> {
        None
    }
}

/// How a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Which.
    pub service: Service,
    /// Whether there is a definition of it.
    pub installed: bool,
    /// Whether its program runs.
    pub running: bool,
    /// The manager's own word for it.
    pub state: String,
    /// Its process.
    pub pid: Option<u32>,
    /// How its program ended last, if not well.
    pub last_exit: Option<String>,
    /// The directory it works in.
    pub directory: Option<PathBuf>,
    /// Its definition.
    pub definition: PathBuf,
    /// Whether it is on its way to run.
    #[serde(skip)]
    pub starting: bool,
}

/// A call of one of the system's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The program.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// What its environment has besides ours.
    pub environment: Vec<(&'static str, String)>,
    /// How long it may take.
    pub bound: Duration,
}

impl Call {
    /// A call that is done in a moment, even on a machine that has much else to do.
    pub(crate) fn new(program: &'static str, args: &[&str]) -> Self {
        Self {
            program,
            args: args.iter().map(ToString::to_string).collect(),
            environment: Vec::new(),
            bound: Duration::from_mins(2),
        }
    }

    /// As one would type it.
    pub(crate) fn line(&self) -> String {
        let mut line = self.program.to_owned();
        for arg in &self.args {
            line.push(' ');
            line.push_str(arg);
        }
        line
    }
}

/// What a program that ended left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Done {
    pub(crate) fn success(&self) -> bool {
        self.code == 0
    }

    /// Why it failed, in its own words.
    pub(crate) fn complaint(&self) -> String {
        let said = if self.stderr.trim().is_empty() {
            self.stdout.trim()
        } else {
            self.stderr.trim()
        };
        if said.is_empty() {
            return format!("exit code {}", self.code);
        }
        said.to_owned()
    }

    /// An error when it failed.
    pub(crate) fn or_refused(self, call: &Call) -> Result<Self, ServiceError> {
        if self.success() {
            return Ok(self);
        }
        Err(ServiceError::Refused {
            command: call.line(),
            said: self.complaint(),
        })
    }
}

/// What calls the system's programs.
#[async_trait]
pub trait Runner: Send + Sync {
    /// Calls a program and waits for its end.
    async fn run(&self, call: &Call) -> Result<Done, ServiceError>;
}
