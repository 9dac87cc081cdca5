//! What actions do, each as a task of its own.

use crate::dialog::{Question, on_path};
use crate::look::chain;
use crate::terminal::{Argv, System};
use slicer_api::{NodeStatus, ShutdownAction};
use slicer_client::{Client, ClientError};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long a VM may take to be off.
const OFF: Duration = Duration::from_mins(3);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a suspended VM may take to be there again.
const RESTORE: Duration = Duration::from_mins(5);
/// How long a question stays on the screen.
const ANSWER: Duration = Duration::from_mins(10);
/// A program that fails later than this has done what it was started for.
const START: Duration = Duration::from_secs(3);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("it is not off after {} s", OFF.as_secs())]
    NotOff,
    #[error("{program} can't be started")]
    Start {
        program: String,
        source: std::io::Error,
    },
    #[error("{program} ended with {status}")]
    Ended {
        program: String,
        status: std::process::ExitStatus,
    },
    #[error("zenity, kdialog or xmessage is needed to ask whether you are sure")]
    NoDialog,
    #[error("the command slicer is neither beside slicer-tray nor on the path")]
    NoSlicer,
    #[error("cannot listen on {listen}")]
    Forward {
        listen: String,
        source: std::io::Error,
    },
    #[error("HOME is not set")]
    NoHome,
}

impl JobError {
    /// In one line, with its causes.
    pub(crate) fn line(&self) -> String {
        chain(self)
    }
}

/// Asks a VM to power off and waits until it has. One that is off already is fine.
pub(crate) async fn shut_down(client: &Client, vm: &str) -> Result<(), JobError> {
    match client.shutdown(vm, ShutdownAction::Shutdown).await {
        Err(e) if e.status() == Some(409) => {}
        // What is not kept is gone when it is off.
        Err(e) if e.is_not_found() => return Ok(()),
        done => done?,
    }
    let end = Instant::now() + OFF;
    while Instant::now() < end {
        match client.node(vm).await {
            Ok(detail) if detail.node.status == NodeStatus::Stopped => return Ok(()),
            Err(e) if e.is_not_found() => return Ok(()),
            seen => drop(seen?),
        }
        sleep(PAUSE).await;
    }
    Err(JobError::NotOff)
}

/// Shuts a VM down and starts it again.
pub(crate) async fn restart(client: &Client, vm: &str) -> Result<(), JobError> {
    shut_down(client, vm).await?;
    client.relaunch(vm).await?;
    Ok(())
}

/// Has a suspended VM run on.
pub(crate) async fn restore(client: &Client, vm: &str) -> Result<(), JobError> {
    client.restore(vm, RESTORE).await?;
    Ok(())
}

/// Gives a VM a fresh disk and starts it.
pub(crate) async fn reset(client: &Client, vm: &str) -> Result<(), JobError> {
    shut_down(client, vm).await?;
    client.reset_disk(vm).await?;
    client.relaunch(vm).await?;
    Ok(())
}

/// Asks a question; whether the answer was yes. No answer for long is none.
pub(crate) async fn ask(question: Question) -> Result<bool, JobError> {
    let argv = question.ask(System::HERE, on_path);
    let argv = argv.ok_or(JobError::NoDialog)?;
    let mut child = start(&argv, true)?;
    Ok(match timeout(ANSWER, child.wait()).await {
        Ok(Ok(status)) => status.success(),
        Ok(Err(_)) | Err(_) => false,
    })
}

/// Starts a program that goes its own ways. That it fails at once is told.
pub(crate) async fn open(argv: &Argv) -> Result<(), JobError> {
    let mut child = start(argv, false)?;
    let program = &argv.program;
    match timeout(START, child.wait()).await {
        Ok(Ok(status)) if !status.success() => Err(JobError::Ended {
            program: program.clone(),
            status,
        }),
        _ => Ok(()),
    }
}

fn start(argv: &Argv, ends_with_us: bool) -> Result<Child, JobError> {
    let Argv { program, args } = argv;
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // What ends the tray by its terminal is not for what it has opened.
        .process_group(0)
        .kill_on_drop(ends_with_us);
    command.spawn().map_err(|source| JobError::Start {
        program: program.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_at_once_is_told_of() {
        let open = async |program: &str, args: &[&str]| {
            let argv = Argv::new(program, args.iter().copied());
            open(&argv).await.map_err(|e| e.line())
        };
        assert_eq!(open("true", &[]).await, Ok(()));
        let failed = open("sh", &["-c", "exit 3"]).await.unwrap_err();
        assert_eq!(failed, "sh ended with exit status: 3");
        let missing = open("no-such-terminal", &[]).await.unwrap_err();
        assert!(
            missing.starts_with("no-such-terminal can't be started: No such file"),
            "{missing}"
        );
    }
}
