//! Services as launchd's user agents, on macOS.
//!
//! Each has a property list in `~/Library/LaunchAgents`, which launchd reads at every login to the
//! desktop: see launchd.plist(5) and launchctl(1). `launchctl bootstrap` has it read one now,
//! `bootout` ends the service and forgets it until the next login.

use super::manager::{Call, Done, Manager, Runner, STOP_TIME, Status};
use super::{Job, Service, ServiceError};
use async_trait::async_trait;
use plist::{Dictionary, Value};
use std::fs;
use std::io::{Cursor, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Open files the daemon may have; macOS allows 256 by default, and a VM takes a dozen.
const FILES: u64 = 8192;
/// A log that is larger is put aside when its service is started, bytes.
const MAX_LOG: u64 = 10 << 20;
/// How often it is looked whether a service has ended.
const LOOK: Duration = Duration::from_millis(200);

/// launchd, for one user.
#[derive(Debug)]
pub struct Launchd<R> {
    uid: u32,
    home: PathBuf,
    runner: R,
}

impl<R: Runner> Launchd<R> {
    /// For the user `uid` with this home directory.
    pub fn new(uid: u32, home: &Path, runner: R) -> Self {
        Self {
            uid,
            home: home.to_owned(),
            runner,
        }
    }

    /// launchctl's name of the user's services.
    fn domain(&self) -> String {
        format!("gui/{}", self.uid)
    }

    fn target(&self, service: Service) -> String {
        format!("gui/{}/{}", self.uid, label(service))
    }

    async fn run(&self, args: &[&str]) -> Result<(Call, Done), ServiceError> {
        let call = Call::new("launchctl", args);
        let done = self.runner.run(&call).await?;
        Ok((call, done))
    }

    /// What launchd says of a service, if it knows it.
    async fn print(&self, service: Service) -> Result<Option<Printed>, ServiceError> {
        let (_, done) = self.run(&["print", &self.target(service)]).await?;
        Ok(done.success().then(|| Printed::parse(&done.stdout)))
    }

    /// What the definition says, if there is one.
    fn read(&self, service: Service) -> Result<Option<Dictionary>, ServiceError> {
        let path = self.definition(service);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ServiceError::io("read", path)(e)),
        };
        match Value::from_reader(Cursor::new(text)) {
            Ok(Value::Dictionary(dictionary)) => Ok(Some(dictionary)),
            Ok(_) => Err(ServiceError::Definition {
                path,
                why: "it is not a dictionary".to_owned(),
            }),
            Err(e) => Err(ServiceError::Definition {
                path,
                why: e.to_string(),
            }),
        }
    }
}

/// launchd's name of a service.
pub fn label(service: Service) -> &'static str {
    match service {
        Service::Daemon => "dev.slicer.daemon",
        Service::Tray => "dev.slicer.tray",
    }
}

/// Where a service that works in `directory` logs to.
fn log_file(service: Service, directory: &Path) -> PathBuf {
    directory.join("logs").join(format!("{service}.log"))
}

/// Makes the directory of a log, which launchd does not, and puts a log aside that has become large.
fn prepare_log(log: &Path) -> Result<(), ServiceError> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).map_err(ServiceError::io("create", dir))?;
    }
    if fs::metadata(log).is_ok_and(|m| m.len() > MAX_LOG) {
        let aside = log.with_extension("log.1");
        fs::rename(log, aside).map_err(ServiceError::io("rename", log))?;
    }
    Ok(())
}

/// The property list of a job, keys sorted.
pub fn definition(job: &Job) -> Dictionary {
    let text = |text: &str| Value::String(text.to_owned());
    let log = log_file(job.service, Path::new(&job.directory));
    let log = text(&log.to_string_lossy());
    let mut arguments = vec![text(&job.program)];
    arguments.extend(job.args.iter().map(|arg| text(arg)));
    let mut environment = Dictionary::new();
    for (name, value) in &job.environment {
        environment.insert(name.clone(), text(value));
    }
    let mut keep_alive = Dictionary::new();
    // Anew after a crash, and not when it was asked to end.
    keep_alive.insert("SuccessfulExit".to_owned(), false.into());
    let mut list = Dictionary::new();
    let mut put = |key: &str, value: Value| list.insert(key.to_owned(), value);
    put("EnvironmentVariables", environment.into());
    put("ExitTimeOut", STOP_TIME.as_secs().into());
    put("KeepAlive", keep_alive.into());
    put("Label", text(label(job.service)));
    put("LimitLoadToSessionType", text("Aqua"));
    // Nothing else keeps it from being throttled, and the VMs' CPUs with it.
    put("ProcessType", text("Interactive"));
    put("ProgramArguments", arguments.into());
    put("RunAtLoad", true.into());
    if job.service == Service::Daemon {
        let mut limits = Dictionary::new();
        limits.insert("NumberOfFiles".to_owned(), FILES.into());
        put("SoftResourceLimits", limits.into());
    }
    put("StandardErrorPath", log.clone());
    put("StandardOutPath", log);
    put("WorkingDirectory", text(&job.directory));
    list
}

#[async_trait]
impl<R: Runner> Manager for Launchd<R> {
    fn runner(&self) -> &dyn Runner {
        &self.runner
    }

    async fn check(&self) -> Result<(), ServiceError> {
        let (_, done) = self.run(&["print", &self.domain()]).await?;
        if done.success() {
            return Ok(());
        }
        Err(ServiceError::NoSession { uid: self.uid })
    }

    fn definition(&self, service: Service) -> PathBuf {
        let name = format!("{}.plist", label(service));
        self.home.join("Library/LaunchAgents").join(name)
    }

    fn render(&self, job: &Job) -> Result<Vec<u8>, ServiceError> {
        let mut bytes = Vec::new();
        let written = Value::Dictionary(definition(job)).to_writer_xml(&mut bytes);
        written.map_err(|e| ServiceError::Definition {
            path: self.definition(job.service),
            why: e.to_string(),
        })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    async fn status(&self, service: Service) -> Result<Status, ServiceError> {
        // One that can't be read is there all the same, for others to write anew or remove.
        let list = self.read(service).unwrap_or(None);
        let directory = list.as_ref().and_then(|l| l.get("WorkingDirectory"));
        let directory = directory.and_then(Value::as_string).map(PathBuf::from);
        let printed = self.print(service).await?;
        let loaded = printed.is_some();
        let printed = printed.unwrap_or_default();
        Ok(Status {
            service,
            installed: self.definition(service).exists(),
            running: printed.pid.is_some(),
            starting: loaded && printed.pid.is_none() && printed.last_exit.is_none(),
            state: printed.state.unwrap_or_else(|| "not loaded".to_owned()),
            pid: printed.pid,
            last_exit: printed.last_exit.filter(|exit| exit != "exit code 0"),
            directory,
            definition: self.definition(service),
        })
    }

    async fn enable(&self, service: Service) -> Result<(), ServiceError> {
        // Who switched it off in the settings once would else not get it by installing it.
        let (call, done) = self.run(&["enable", &self.target(service)]).await?;
        done.or_refused(&call)?;
        Ok(())
    }

    async fn can_run(&self, _: Service) -> Result<bool, ServiceError> {
        Ok(true)
    }

    async fn start(&self, service: Service) -> Result<(), ServiceError> {
        let target = self.target(service);
        let (call, done) = if self.print(service).await?.is_some() {
            self.run(&["kickstart", &target]).await?
        } else {
            let list = self.read(service)?;
            let log = list.as_ref().and_then(|l| l.get("StandardErrorPath"));
            if let Some(log) = log.and_then(Value::as_string) {
                prepare_log(Path::new(log))?;
            }
            let file = self.definition(service);
            let file = file.to_string_lossy();
            self.run(&["bootstrap", &self.domain(), &file]).await?
        };
        done.or_refused(&call)?;
        Ok(())
    }

    async fn stop(&self, service: Service) -> Result<(), ServiceError> {
        if self.print(service).await?.is_none() {
            return Ok(());
        }
        // Whether it waits for the end depends on the version; what it says then is no error.
        self.run(&["bootout", &self.target(service)]).await?;
        let bound = STOP_TIME + Duration::from_secs(15);
        let until = Instant::now() + bound;
        while self.print(service).await?.is_some() {
            if Instant::now() >= until {
                return Err(ServiceError::DidNotStop { service, bound });
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    async fn disable(&self, _: Service) -> Result<(), ServiceError> {
        // Without the file there is nothing for it to start.
        Ok(())
    }

    async fn forget(&self, _: Service) -> Result<(), ServiceError> {
        Ok(())
    }

    fn logs(&self, service: Service, lines: u32, follow: bool) -> Result<Call, ServiceError> {
        let list = self.read(service)?;
        let log = list.as_ref().and_then(|l| l.get("StandardErrorPath"));
        let log = log.and_then(Value::as_string);
        let log = log.ok_or(ServiceError::NotInstalled { service })?;
        let mut args = vec!["-n", "", log];
        let lines = lines.to_string();
        args[1] = &lines;
        if follow {
            // By name, should it be replaced.
            args.insert(0, "-F");
        }
        Ok(Call::new("tail", &args))
    }

    fn log_place(&self, service: Service, directory: &Path) -> String {
        log_file(service, directory).display().to_string()
    }
}

/// What `launchctl print` says of a service.
#[derive(Debug, Default, PartialEq, Eq)]
struct Printed {
    state: Option<String>,
    pid: Option<u32>,
    last_exit: Option<String>,
}

impl Printed {
    /// Reads the lines `key = value` of the service itself, not those of tables in it, which have the
    /// same keys.
    fn parse(text: &str) -> Self {
        let mut printed = Self::default();
        let mut depth = 0usize;
        for line in text.lines() {
            let line = line.trim();
            if line.ends_with('{') {
                depth += 1;
            } else if line == "}" {
                depth = depth.saturating_sub(1);
            } else if depth == 1
                && let Some((key, value)) = line.split_once(" = ")
            {
                match key {
                    "state" => printed.state = Some(value.to_owned()),
                    "pid" => printed.pid = value.parse().ok(),
                    "last exit code" if !value.starts_with('(') => {
                        printed.last_exit = Some(format!("exit code {value}"));
                    }
                    "last terminating signal" => {
                        printed.last_exit = Some(format!("signal {value}"));
                    }
                    _ => {}
                }
            }
        }
        printed
    }
}

#[cfg(test)]
mod tests;
