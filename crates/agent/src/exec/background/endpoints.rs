//! What is asked of background execs once they run.

use super::{Exec, Registry};
use crate::exec::ring::Cursor;
use crate::http::{self, AgentBody, Answer};
use crate::server::Agent;
use hyper::body::Incoming;
use hyper::{Method, Request};
use rustix::process::Signal;
use slicer_api::{
    ApiError, DEFAULT_KILL_GRACE, ExecInfo, KillRequest, KillSignal, Killed, LogsRequest,
    QueryError, Reaped, WaitExit, wait_exit_limit,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The longest time between SIGTERM and SIGKILL.
const MAX_GRACE: Duration = Duration::from_hours(24);
/// Pieces of a log that may wait for a slow reader.
const PIECES: usize = 2;

/// Answers `GET /exec` and everything below `/exec/`.
pub(crate) async fn handle(agent: &Arc<Agent>, request: Request<Incoming>) -> Answer {
    let answered = answer(agent, request).await;
    answered.unwrap_or_else(|e| http::error(&e))
}

async fn answer(agent: &Arc<Agent>, request: Request<Incoming>) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let query = head.uri.query().unwrap_or_default();
    let registry = &agent.background;
    agent.check_ready()?;
    let rest = path.strip_prefix("/exec").unwrap_or_default();
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let (id, action) = rest.split_once('/').unwrap_or((rest, ""));
    let (get, post) = (head.method == Method::GET, head.method == Method::POST);
    match (id, action) {
        ("", "") if get => {
            let list: Vec<ExecInfo> = registry.list().iter().map(|e| e.info()).collect();
            Ok(http::json(&list))
        }
        (id, "") if get => Ok(http::json(&registry.find(id)?.info())),
        (id, "") if head.method == Method::DELETE => reap(registry, &*registry.find(id)?),
        (id, "logs") if get => {
            let exec = registry.find(id)?;
            let request = LogsRequest::from_query(query).map_err(|e| bad(&e))?;
            Ok(logs(agent, exec, request))
        }
        (id, "wait-exit") if get => {
            let exec = registry.find(id)?;
            let limit = wait_exit_limit(query).map_err(|e| bad(&e))?;
            Ok(wait_exit(&exec, limit).await)
        }
        (id, "kill") if post => {
            let exec = registry.find(id)?;
            let request: Option<KillRequest> = http::read_json(body).await?;
            kill(&exec, &request.unwrap_or_default())
        }
        (_, "kill") => Ok(http::method_not_allowed(path, "POST")),
        (_, "logs" | "wait-exit") => Ok(http::method_not_allowed(path, "GET")),
        ("", _) => Ok(http::method_not_allowed(path, "GET, POST")),
        (_, "") => Ok(http::method_not_allowed(path, "GET, DELETE")),
        _ => Err(ApiError::not_found(format!(
            "the agent has no endpoint {path:.100}"
        ))),
    }
}

fn bad(e: &QueryError) -> ApiError {
    ApiError::bad_request(e.to_string())
}

fn reap(registry: &Registry, exec: &Exec) -> Result<Answer, ApiError> {
    if exec.running() {
        return Err(ApiError::conflict(format!(
            "exec {} is still running: kill it first",
            exec.name()
        )));
    }
    registry.reap(exec);
    Ok(http::json(&Reaped {
        exec_id: exec.name(),
        reaped: true,
    }))
}

fn logs(agent: &Agent, exec: Arc<Exec>, request: LogsRequest) -> Answer {
    let (pieces, receiver) = mpsc::channel(PIECES);
    agent.tasks.spawn(async move {
        let mut changed = exec.changed.subscribe();
        let mut cursor = Cursor::at(request.from_id);
        loop {
            changed.mark_unchanged();
            let (lines, over) = exec.lines(&mut cursor);
            let empty = lines.is_empty();
            if !empty && pieces.send(lines.into()).await.is_err() {
                return;
            }
            if over || (empty && !request.follow) {
                return;
            }
            if empty {
                tokio::select! {
                    _ = changed.changed() => {}
                    () = pieces.closed() => return,
                }
            }
        }
    });
    http::answer("application/x-ndjson", AgentBody::Stream(receiver))
}

async fn wait_exit(exec: &Exec, limit: Duration) -> Answer {
    let mut changed = exec.changed.subscribe();
    let ended = async { while exec.running() && changed.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(limit, ended).await;
    let info = exec.info();
    http::json(&WaitExit {
        exec_id: info.exec_id,
        running: info.running,
        exit_code: info.exit_code,
        ended_at: info.ended_at,
        signal: info.signal,
        timed_out: info.running,
    })
}

fn kill(exec: &Exec, request: &KillRequest) -> Result<Answer, ApiError> {
    let signal = KillSignal::parse(&request.signal).map_err(|e| bad(&e))?;
    if exec.running() {
        // A group that is just ending is no error.
        let _ = rustix::process::kill_process_group(exec.pid, raw(signal));
        if signal == KillSignal::Term {
            let grace = match request.grace_ms {
                0 => DEFAULT_KILL_GRACE,
                millis => Duration::from_millis(millis).min(MAX_GRACE),
            };
            let at = Instant::now() + grace;
            exec.kill_at
                .send_modify(|old| *old = Some(old.map_or(at, |old| old.min(at))));
        }
    }
    Ok(http::json(&Killed {
        exec_id: exec.name(),
        pid: exec.pid(),
        running: exec.running(),
        signal_sent: signal.name().to_owned(),
    }))
}

fn raw(signal: KillSignal) -> Signal {
    match signal {
        KillSignal::Term => Signal::TERM,
        KillSignal::Kill => Signal::KILL,
        KillSignal::Int => Signal::INT,
        KillSignal::Hup => Signal::HUP,
        KillSignal::Quit => Signal::QUIT,
        KillSignal::Usr1 => Signal::USR1,
        KillSignal::Usr2 => Signal::USR2,
    }
}
