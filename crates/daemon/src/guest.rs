//! Talking HTTP to a guest's agent: one stream per request, nothing shared.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use slicer_api::{
    ApiError, GuestRequest, GuestSecrets, Health, Identified, Identity, ShutdownAction,
    ShutdownRequest, StatsSnapshot, Trimmed,
};
use slicer_machine::{Machine, MachineError};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// Longest answer that is read whole.
const MAX_ANSWER: usize = 1 << 20;
/// A running guest's agent takes a stream at once.
pub(crate) const CONNECT_TIME: Duration = Duration::from_secs(1);
/// Whoever watches many VMs shall not wait for a busy one.
const STATS_TIME: Duration = Duration::from_secs(2);
/// How long a guest may take to tell which blocks it doesn't use: each free one is gone through.
const TRIM_TIME: Duration = Duration::from_mins(5);
pub(crate) const ASK_TIME: Duration = Duration::from_secs(10);
/// A guest that doesn't come to rest says so before that.
const SETTLE_TIME: Duration = Duration::from_mins(5);
/// An identity waits for the driver of the network card.
const IDENTIFY_TIME: Duration = Duration::from_secs(90);

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// The stream could not be opened.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The agent spoke no HTTP, or went away.
    #[error("the guest's agent broke off: {0}")]
    Http(#[from] hyper::Error),
    /// The agent refused, in these words.
    #[error("the guest's agent answered {0}: {1}")]
    Refused(StatusCode, String),
    /// The agent took too long.
    #[error("the guest's agent did not answer within {0:?}")]
    Timeout(Duration),
}

/// The answer's body, which keeps the connection it comes from alive, and ends it when dropped.
pub(crate) struct GuestBody {
    body: hyper::body::Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl http_body::Body for GuestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Sends a request on a stream of its own. The answer's head may arrive while the request's body is
/// still being sent, and both bodies flow at the pace of whoever reads them.
pub(crate) async fn send(
    machine: &dyn Machine,
    request: Request<Body>,
) -> Result<Response<GuestBody>, GuestError> {
    let stream = tokio::time::timeout(CONNECT_TIME, machine.connect())
        .await
        .map_err(|_| GuestError::Timeout(CONNECT_TIME))??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move {
        // What goes wrong shows where the request is awaited, or its body read.
        let _ = connection.with_upgrades().await;
    });
    let connection = AbortOnDropHandle::new(connection);
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| GuestBody {
        body,
        _connection: connection,
    }))
}

/// What the agent says who refuses.
pub(crate) async fn refused(status: StatusCode, body: GuestBody) -> GuestError {
    let read = Limited::new(body, MAX_ANSWER).collect().await;
    let bytes = read
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let text = serde_json::from_slice::<slicer_api::ErrorBody>(&bytes).map_or_else(
        |_| String::from_utf8_lossy(&bytes).into_owned(),
        |e| e.error,
    );
    GuestError::Refused(status, text)
}

/// Asks for something small.
pub(crate) async fn ask(
    machine: &dyn Machine,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Bytes, GuestError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "agent")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::new(Full::from(body).map_err(axum::Error::new)));
    // Static parts only: this can't fail.
    let request = request.unwrap_or_default();
    let response = send(machine, request).await?;
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        return Err(refused(head.status, body).await);
    }
    let read = Limited::new(body, MAX_ANSWER).collect().await;
    Ok(read
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default())
}

pub(crate) async fn within<T>(
    time: Duration,
    work: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    tokio::time::timeout(time, work)
        .await
        .map_err(|_| GuestError::Timeout(time))?
}

/// Tells the agent who it is; answers whether the guest is ready already.
pub(crate) async fn identify(
    machine: &dyn Machine,
    identity: &Identity,
) -> Result<bool, GuestError> {
    let body = serde_json::to_vec(identity).unwrap_or_default();
    let said = within(IDENTIFY_TIME, ask(machine, Method::POST, "/identity", body)).await?;
    Ok(serde_json::from_slice::<Identified>(&said).is_ok_and(|said| said.ready))
}

/// Gives the agent all secrets its guest may see.
pub(crate) async fn give_secrets(
    machine: &dyn Machine,
    secrets: &GuestSecrets,
) -> Result<(), GuestError> {
    let body = serde_json::to_vec(secrets).unwrap_or_default();
    within(ASK_TIME, ask(machine, Method::PUT, "/secrets", body))
        .await
        .map(drop)
}

/// What the guest asks for, for as long as its agent lives.
pub(crate) struct Requests {
    body: GuestBody,
    unread: Vec<u8>,
}

/// Longest request of a guest.
const MAX_REQUEST: usize = 4 << 10;

impl Requests {
    /// The next request; `None` when the agent has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<GuestRequest>, GuestError> {
        loop {
            if let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                // A later agent may ask for more than we know.
                if let Ok(request) = serde_json::from_slice(&line) {
                    return Ok(Some(request));
                }
                continue;
            }
            if self.unread.len() > MAX_REQUEST {
                let text = format!("a request is longer than {MAX_REQUEST} bytes");
                return Err(GuestError::Refused(StatusCode::OK, text));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.unread.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

/// Listens to what the guest asks for.
pub(crate) async fn requests(machine: &dyn Machine) -> Result<Requests, GuestError> {
    let request = Request::builder()
        .uri("/requests")
        .header(header::HOST, "agent")
        .body(Body::empty());
    // Static parts only: this can't fail.
    let response = send(machine, request.unwrap_or_default()).await?;
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        return Err(refused(head.status, body).await);
    }
    Ok(Requests {
        body,
        unread: Vec::new(),
    })
}

/// Waits until the guest is ready; the caller bounds it.
pub(crate) async fn wait_ready(machine: &dyn Machine) -> Result<(), GuestError> {
    ask(machine, Method::GET, "/health?wait=ready", Vec::new())
        .await
        .map(drop)
}

/// Waits until the guest's userdata has run, or there is none; the caller bounds it.
pub(crate) async fn wait_userdata(machine: &dyn Machine) -> Result<(), GuestError> {
    ask(machine, Method::GET, "/health?wait=userdata", Vec::new())
        .await
        .map(drop)
}

/// The agent's health, without hostname and address.
pub(crate) async fn health(machine: &dyn Machine) -> Result<Health, GuestError> {
    let bytes = within(
        CONNECT_TIME,
        ask(machine, Method::GET, "/health", Vec::new()),
    )
    .await?;
    serde_json::from_slice(&bytes).map_err(|e| GuestError::Refused(StatusCode::OK, e.to_string()))
}

/// What the guest uses, in its own words.
pub(crate) async fn stats(machine: &dyn Machine) -> Result<StatsSnapshot, GuestError> {
    let bytes = within(STATS_TIME, ask(machine, Method::GET, "/stats", Vec::new())).await?;
    serde_json::from_slice(&bytes).map_err(|e| GuestError::Refused(StatusCode::OK, e.to_string()))
}

/// Has the guest tell its disks which blocks it doesn't use.
pub(crate) async fn trim(machine: &dyn Machine) -> Result<Trimmed, GuestError> {
    let bytes = within(TRIM_TIME, ask(machine, Method::POST, "/trim", Vec::new())).await?;
    serde_json::from_slice(&bytes).map_err(|e| GuestError::Refused(StatusCode::OK, e.to_string()))
}

/// Has the guest write out what it holds for its disks, before its machine is suspended.
pub(crate) async fn quiesce(machine: &dyn Machine) -> Result<(), GuestError> {
    within(ASK_TIME, ask(machine, Method::POST, "/quiesce", Vec::new()))
        .await
        .map(drop)
}

/// Has the agent of a guest that nobody has yet apply an identity that nobody will have.
pub(crate) async fn rehearse(machine: &dyn Machine, identity: &Identity) -> Result<(), GuestError> {
    let body = serde_json::to_vec(identity).unwrap_or_default();
    within(IDENTIFY_TIME, ask(machine, Method::POST, "/rehearse", body))
        .await
        .map(drop)
}

/// Has a guest that is to be a template come to rest.
pub(crate) async fn settle(machine: &dyn Machine) -> Result<(), GuestError> {
    within(
        SETTLE_TIME,
        ask(machine, Method::POST, "/settle", Vec::new()),
    )
    .await
    .map(drop)
}

/// Has the guest write out what it holds for its disks, and go on.
pub(crate) async fn sync(machine: &dyn Machine) -> Result<(), GuestError> {
    within(ASK_TIME, ask(machine, Method::POST, "/sync", Vec::new()))
        .await
        .map(drop)
}

/// Asks the guest to power off.
pub(crate) async fn shutdown(
    machine: &dyn Machine,
    action: ShutdownAction,
) -> Result<(), GuestError> {
    let body = serde_json::to_vec(&ShutdownRequest {
        action: Some(action),
    })
    .unwrap_or_default();
    within(ASK_TIME, ask(machine, Method::POST, "/shutdown", body))
        .await
        .map(drop)
}

impl GuestError {
    /// What a client is told who asked for something on this VM.
    pub(crate) fn to_api(&self, vm: &str) -> ApiError {
        match self {
            Self::Machine(MachineError::Gone { .. }) => {
                ApiError::conflict(format!("VM {vm} is not running"))
            }
            e => ApiError::unavailable(format!("the agent of VM {vm} is not reachable: {e}")),
        }
    }
}
