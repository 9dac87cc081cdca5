//! `POST /exec`: runs a command and answers with its output.

pub(crate) mod background;
mod encode;
mod follow;
mod pty;
mod ring;
pub(crate) mod shell;
pub(crate) mod spawn;

use crate::http::{self, AgentBody, Answer};
use crate::server::Agent;
use follow::{Buffer, Frames};
use hyper::Request;
use hyper::body::Incoming;
use jiff::Timestamp;
use slicer_api::{ApiError, ExecBuffered, ExecFrame, ExecRequest, FrameType, Stdio};
use spawn::{Failure, Process};
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces of an answer that may wait for a slow client. Each is at most one read's worth.
const PIECES: usize = 2;
/// How long a command may take that nobody waits for.
const REHEARSAL_TIME: Duration = Duration::from_secs(20);

/// Answers an exec. Whatever is wrong with the request itself is an HTTP error; a command that
/// can't be started is a command that failed.
pub(crate) fn handle(agent: &Arc<Agent>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let exec = match check(agent, head.uri.query().unwrap_or_default()) {
        Ok(exec) => exec,
        Err(e) => {
            agent.tasks.spawn(http::discard(body));
            return http::error(&e);
        }
    };
    if exec.background {
        agent.tasks.spawn(http::discard(body));
        return background::launch(agent, exec).unwrap_or_else(|e| http::error(&e));
    }
    let database = agent.users.get();
    let process = match spawn::plan(&exec, &database).and_then(spawn::Plan::spawn) {
        Ok(process) => process,
        Err(failure) => {
            agent.tasks.spawn(http::discard(body));
            return not_started(&exec, failure);
        }
    };
    let (pieces, receiver) = mpsc::channel(PIECES);
    let stdin = exec.stdin.then_some(body);
    let started = Timestamp::now();
    let content_type = if exec.buffered {
        agent
            .tasks
            .spawn(run_buffered(process, started, exec.stdio, pieces));
        "application/json"
    } else {
        let frames = Frames::new(exec.stdio, pieces);
        agent
            .tasks
            .spawn(run_streaming(process, started, stdin, frames));
        "application/x-ndjson"
    };
    http::answer(content_type, AgentBody::Stream(receiver))
}

/// Runs a command that does nothing, all the way an exec goes: the first one of a guest that is emulated
/// takes ten times as long as later ones. Bounded, and without effect where there is no such program.
pub(crate) async fn rehearse(agent: &Agent) {
    let database = agent.users.get();
    let process = ExecRequest::from_query("cmd=/bin/true&buffered=true")
        .ok()
        .and_then(|exec| spawn::plan(&exec, &database).ok()?.spawn().ok());
    let Some(process) = process else {
        return;
    };
    let (pieces, mut receiver) = mpsc::channel(PIECES);
    let drain = async { while receiver.recv().await.is_some() {} };
    let run = run_buffered(process, Timestamp::now(), Stdio::Text, pieces);
    let _ = tokio::time::timeout(REHEARSAL_TIME, async { tokio::join!(run, drain) }).await;
}

fn check(agent: &Agent, query: &str) -> Result<ExecRequest, ApiError> {
    agent.check_ready()?;
    let exec = ExecRequest::from_query(query).map_err(|e| ApiError::bad_request(e.to_string()))?;
    check_cwd(exec.cwd.as_deref())?;
    Ok(exec)
}

fn check_cwd(cwd: Option<&str>) -> Result<(), ApiError> {
    match cwd {
        Some(cwd)
            if Path::new(cwd)
                .components()
                .any(|c| c == Component::ParentDir) =>
        {
            Err(ApiError::bad_request(format!(
                "invalid cwd {cwd:.64?}: it must not contain .."
            )))
        }
        _ => Ok(()),
    }
}

/// The answer for a command that could not be started.
fn not_started(exec: &ExecRequest, failure: Failure) -> Answer {
    let now = Timestamp::now();
    if exec.buffered {
        return http::json(&ExecBuffered {
            encoding: (exec.stdio == Stdio::Base64).then_some(Stdio::Base64),
            ended_at: Some(now),
            exit_code: failure.exit_code,
            error: Some(failure.error),
            ..ExecBuffered::default()
        });
    }
    let frame = ExecFrame {
        ended_at: Some(now),
        exit_code: failure.exit_code,
        error: Some(failure.error),
        ..ExecFrame::new(FrameType::Exit, now)
    };
    let line = encode::line(&frame);
    http::answer("application/x-ndjson", AgentBody::Full(Some(line)))
}

async fn run_streaming(
    process: Process,
    started: Timestamp,
    stdin: Option<Incoming>,
    mut frames: Frames,
) {
    let pid = process.pid();
    let frame = ExecFrame {
        pid: Some(pid),
        started_at: Some(started),
        ..ExecFrame::new(FrameType::Started, started)
    };
    if frames.send(&frame).await.is_err() {
        process.abandon().await;
        return;
    }
    let Some(end) = follow::follow(process, stdin, &mut frames).await else {
        return;
    };
    // Nobody may be there to read the rest, which is no concern of ours any more.
    let _ = frames.finish().await;
    let now = Timestamp::now();
    let frame = ExecFrame {
        pid: Some(pid),
        ended_at: Some(now),
        exit_code: end.exit_code,
        signal: end.signal,
        error: end.error,
        ..ExecFrame::new(FrameType::Exit, now)
    };
    let _ = frames.send(&frame).await;
}

async fn run_buffered(
    process: Process,
    started: Timestamp,
    stdio: Stdio,
    pieces: mpsc::Sender<bytes::Bytes>,
) {
    let pid = process.pid();
    let mut buffer = Buffer::new(pieces);
    let Some(end) = follow::follow(process, None, &mut buffer).await else {
        return;
    };
    let rest = ExecBuffered {
        encoding: (stdio == Stdio::Base64).then_some(Stdio::Base64),
        pid: Some(pid),
        started_at: Some(started),
        ended_at: Some(Timestamp::now()),
        exit_code: end.exit_code,
        signal: end.signal,
        error: end.error,
        ..ExecBuffered::default()
    };
    let _ = buffer.send(stdio, &rest).await;
}
