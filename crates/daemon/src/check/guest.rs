//! What the steps ask of the guest.

use super::steps::Failure;
use crate::guest::{self, GuestError};
use axum::body::Body;
use hyper::{Method, Request, header};
use slicer_api::{ExecBuffered, ExecRequest, Identity};
use slicer_machine::Machine;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long a guest may take to boot, and to be ready.
const BOOT_TIME: Duration = Duration::from_mins(3);
/// How long a command may take.
const COMMAND_TIME: Duration = Duration::from_mins(1);

/// Waits for the agent, tells it who it is, and waits until the guest is ready.
pub(super) async fn greet(machine: &dyn Machine, identity: &Identity) -> Result<(), Failure> {
    let greeted = async {
        // Opening a stream waits for the agent.
        drop(machine.connect().await?);
        if !guest::identify(machine, identity).await? {
            guest::wait_ready(machine).await?;
        }
        Ok::<(), GuestError>(())
    };
    match tokio::time::timeout(BOOT_TIME, greeted).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(format!("the guest is not ready within {BOOT_TIME:?}").into()),
    }
}

fn exec_path(script: &str, buffered: bool) -> String {
    let request = ExecRequest {
        cmd: script.to_owned(),
        uid: 0,
        gid: 0,
        shell: Some("/bin/sh".to_owned()),
        buffered,
        ..ExecRequest::default()
    };
    format!("/exec?{}", request.to_query())
}

/// What a script prints, run as root. One that fails is a failure.
pub(super) async fn run(machine: &dyn Machine, script: &str) -> Result<String, Failure> {
    let path = exec_path(script, true);
    let asked = guest::ask(machine, Method::POST, &path, Vec::new());
    let bytes = guest::within(COMMAND_TIME, asked).await?;
    let answer: ExecBuffered = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    if answer.exit_code != 0 {
        return Err(format!(
            "`{script}` ended with {}: {}",
            answer.exit_code,
            answer.stderr.trim()
        )
        .into());
    }
    Ok(answer.stdout.trim().to_owned())
}

/// Begins a command that writes for ever, of which nothing is read: what it sends fills the stream.
pub(super) async fn flood(machine: &dyn Machine) -> Result<guest::GuestBody, Failure> {
    let path = exec_path("cat /dev/zero", false);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, "agent")
        .body(Body::empty())
        .map_err(|e| e.to_string())?;
    let response = guest::within(COMMAND_TIME, guest::send(machine, request)).await?;
    if !response.status().is_success() {
        return Err(format!("the agent answered {}", response.status()).into());
    }
    Ok(response.into_body())
}

/// Whether a stream is answered at all within this time, by anything.
pub(super) async fn answers(machine: &dyn Machine, within: Duration) -> bool {
    let asked = async {
        let mut stream = machine.connect().await.ok()?;
        let request = b"GET /health HTTP/1.1\r\nhost: agent\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()
    };
    matches!(tokio::time::timeout(within, asked).await, Ok(Some(_)))
}
