//! Services as units of systemd's user manager, on Linux.
//!
//! Each has a unit in `~/.config/systemd/user`: see systemd.service(5), and systemd.syntax(7) for what
//! is escaped in it. The user's manager runs while the user is logged in, or, if lingering, always.

use super::manager::{Call, Done, Manager, Runner, STOP_TIME, Status};
use super::{Job, Service, ServiceError};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// When a desktop is there, what is shown on it may start.
const DESKTOP: &str = "graphical-session.target";

/// What systemctl exits with when there is no such unit.
const NOT_LOADED: i32 = 5;

/// systemd, for one user.
#[derive(Debug)]
pub struct Systemd<R> {
    user: String,
    units: PathBuf,
    /// Where the manager's socket is; by systemd's custom in the environment.
    runtime_dir: Option<String>,
    runner: R,
}

impl<R: Runner> Systemd<R> {
    /// For `user`, a name or an id, whose units are in `config`/systemd/user.
    pub fn new(user: String, config: &Path, runtime_dir: Option<String>, runner: R) -> Self {
        Self {
            user,
            units: config.join("systemd/user"),
            runtime_dir,
            runner,
        }
    }

    fn call(&self, program: &'static str, args: &[&str]) -> Call {
        let mut call = Call::new(program, args);
        let dir = self.runtime_dir.iter();
        call.environment
            .extend(dir.map(|dir| ("XDG_RUNTIME_DIR", dir.clone())));
        call
    }

    async fn run(&self, args: &[&str]) -> Result<(Call, Done), ServiceError> {
        let mut call = self.call("systemctl", &["--user"]);
        call.args.extend(args.iter().map(ToString::to_string));
        if args.first() == Some(&"stop") {
            call.bound += STOP_TIME;
        }
        let done = self.runner.run(&call).await?;
        Ok((call, done))
    }

    async fn must(&self, args: &[&str]) -> Result<(), ServiceError> {
        let (call, done) = self.run(args).await?;
        done.or_refused(&call)?;
        Ok(())
    }
}

/// systemd's name of a service.
pub fn unit_name(service: Service) -> &'static str {
    match service {
        Service::Daemon => "slicer-daemon.service",
        Service::Tray => "slicer-tray.service",
    }
}

/// The unit of a job.
pub fn unit(job: &Job) -> String {
    let name = unit_name(job.service);
    let (about, wanted) = match job.service {
        Service::Daemon => (
            "Description=Daemon of slicer\n\
             StartLimitIntervalSec=120\n\
             StartLimitBurst=5\n"
                .to_owned(),
            "default.target",
        ),
        Service::Tray => (
            format!(
                "Description=Menu of slicer\n\
                 PartOf={DESKTOP}\n\
                 After={DESKTOP}\n\
                 StartLimitIntervalSec=120\n\
                 StartLimitBurst=5\n"
            ),
            DESKTOP,
        ),
    };
    let mut exec = exec(&job.program);
    for arg in &job.args {
        exec.push(' ');
        exec.push_str(&quoted(arg));
    }
    let mut environment = String::new();
    for (variable, value) in &job.environment {
        let pair = quoted(&format!("{variable}={value}"));
        // Writing to a string can't fail.
        let _ = writeln!(environment, "Environment={pair}");
    }
    let directory = plain_path(&job.directory);
    let program = job.service.program();
    let stop = STOP_TIME.as_secs();
    // The daemon itself ends its VMs' processes, and one that the kernel kills for its memory must not
    // take the others along. The terminals that the tray has opened are their user's.
    let kill = match job.service {
        Service::Daemon => "mixed",
        Service::Tray => "process",
    };
    format!(
        "# Written by `slicer-mac install`, which overwrites it. What you change belongs into a drop-in:\n\
         # systemctl --user edit {name}\n\
         [Unit]\n\
         {about}\n\
         [Service]\n\
         Type=exec\n\
         ExecStart={exec}\n\
         WorkingDirectory={directory}\n\
         {environment}\
         SyslogIdentifier={program}\n\
         Restart=on-failure\n\
         RestartSec=5\n\
         TimeoutStopSec={stop}\n\
         KillMode={kill}\n\
         OOMPolicy=continue\n\
         \n\
         [Install]\n\
         WantedBy={wanted}\n"
    )
}

/// The words of a command line that run `program`. The colon before the first has systemd put in no
/// variables for what looks like one. Quotes and `\` it takes in arguments only.
fn exec(program: &str) -> String {
    if program.contains(['"', '\'', '\\']) {
        let script = quoted(r#"exec "$0" "$@""#);
        format!(":/bin/sh -c {script} {}", quoted(program))
    } else {
        quoted(&format!(":{program}"))
    }
}

/// A word of a setting that is split into words: quoted, `\` and `"` escaped, `%` doubled, for it begins
/// a specifier.
fn quoted(word: &str) -> String {
    let mut out = String::from("\"");
    for c in word.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A path of a setting that is taken as it is, but for `%`. A `\` at its end would go on with the next
/// line and blanks there are dropped, both of which a `/` prevents.
fn plain_path(path: &str) -> String {
    let mut out = path.replace('%', "%%");
    if out.ends_with(|c: char| c == '\\' || c.is_whitespace()) {
        out.push('/');
    }
    out
}

#[async_trait]
impl<R: Runner> Manager for Systemd<R> {
    fn runner(&self) -> &dyn Runner {
        &self.runner
    }

    async fn check(&self) -> Result<(), ServiceError> {
        let (_, done) = match self.run(&["show", "--property=Version"]).await {
            Err(ServiceError::Run { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Err(ServiceError::NoSystemd);
            }
            other => other?,
        };
        if done.success() {
            return Ok(());
        }
        let said = done.complaint();
        if said.contains("not been booted with systemd") {
            return Err(ServiceError::NoSystemd);
        }
        Err(ServiceError::NoUserManager {
            user: self.user.clone(),
            said,
        })
    }

    fn definition(&self, service: Service) -> PathBuf {
        self.units.join(unit_name(service))
    }

    fn render(&self, job: &Job) -> Result<Vec<u8>, ServiceError> {
        Ok(unit(job).into_bytes())
    }

    async fn status(&self, service: Service) -> Result<Status, ServiceError> {
        let properties = "--property=ActiveState,SubState,MainPID,ExecMainCode,ExecMainStatus,\
                          WorkingDirectory";
        let (call, done) = self.run(&["show", properties, unit_name(service)]).await?;
        let done = done.or_refused(&call)?;
        let definition = self.definition(service);
        Ok(parse_show(&done.stdout, service, definition))
    }

    async fn enable(&self, service: Service) -> Result<(), ServiceError> {
        self.must(&["daemon-reload"]).await?;
        self.must(&["--quiet", "enable", unit_name(service)]).await
    }

    async fn can_run(&self, service: Service) -> Result<bool, ServiceError> {
        if service == Service::Daemon {
            return Ok(true);
        }
        let (_, done) = self.run(&["--quiet", "is-active", DESKTOP]).await?;
        Ok(done.success())
    }

    async fn start(&self, service: Service) -> Result<(), ServiceError> {
        // It may have been given up; who starts it by hand means it.
        self.run(&["--quiet", "reset-failed", unit_name(service)])
            .await?;
        self.must(&["start", unit_name(service)]).await
    }

    async fn stop(&self, service: Service) -> Result<(), ServiceError> {
        let (call, done) = self.run(&["stop", unit_name(service)]).await?;
        // One with a definition that systemd can't read doesn't run.
        if done.code != NOT_LOADED {
            done.or_refused(&call)?;
        }
        Ok(())
    }

    async fn disable(&self, service: Service) -> Result<(), ServiceError> {
        self.must(&["--quiet", "disable", unit_name(service)]).await
    }

    async fn forget(&self, service: Service) -> Result<(), ServiceError> {
        self.must(&["daemon-reload"]).await?;
        // It is still known if it had failed.
        self.run(&["--quiet", "reset-failed", unit_name(service)])
            .await?;
        Ok(())
    }

    fn logs(&self, service: Service, lines: u32, follow: bool) -> Result<Call, ServiceError> {
        // Not `--user --unit`, which reads journals of the user's own alone, and there are none where the
        // journal is kept in memory.
        let unit = format!("--user-unit={}", unit_name(service));
        let lines = format!("--lines={lines}");
        let mut args = vec!["--no-pager", "--quiet", &unit, &lines];
        if follow {
            args.push("--follow");
        }
        Ok(self.call("journalctl", &args))
    }

    fn log_place(&self, service: Service, _: &Path) -> String {
        format!("the journal, journalctl --user-unit={}", unit_name(service))
    }

    async fn advice(&self) -> Option<String> {
        let args = ["show-user", &self.user, "--property=Linger", "--value"];
        let done = self.runner.run(&self.call("loginctl", &args)).await.ok()?;
        (done.success() && done.stdout.trim() == "no").then(|| {
            format!(
                "services end when you log out, and the VMs with them; `sudo loginctl enable-linger {}` \
                 keeps them, from boot on",
                self.user
            )
        })
    }
}

/// Reads the lines `Property=value` of `systemctl show`.
fn parse_show(text: &str, service: Service, definition: PathBuf) -> Status {
    let properties: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let value = |name: &str| *properties.get(name).unwrap_or(&"");
    let pid = value("MainPID").parse().ok().filter(|pid| *pid != 0);
    let (active, sub) = (value("ActiveState"), value("SubState"));
    let number = value("ExecMainStatus");
    // The codes of waitid(2): exited, killed, dumped.
    let last_exit = match value("ExecMainCode") {
        "1" if number != "0" => Some(format!("exit code {number}")),
        "2" | "3" => Some(format!("signal {number}")),
        _ => None,
    };
    let directory = value("WorkingDirectory");
    Status {
        service,
        installed: definition.exists(),
        running: pid.is_some() && active != "activating",
        starting: active == "activating" && sub != "auto-restart",
        state: if sub.is_empty() { "unknown" } else { sub }.to_owned(),
        pid,
        last_exit,
        directory: Some(PathBuf::from(directory)).filter(|_| !directory.is_empty()),
        definition,
    }
}

#[cfg(test)]
mod tests;
