//! The streaming proxy to a VM's agent: requests, answers and upgraded connections pass as they
//! are.

use super::answer::Failure;
use super::listen::Lingering;
use super::vm::reachable;
use crate::forwarded::Forwarded;
use crate::guest;
use crate::supervisor::Supervisor;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use slicer_api::{ApiError, FORWARD_NUMBER_HEADER};
use std::io;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tracing::debug;

/// Headers that belong to one connection (RFC 9110, 7.6.1), the client's token, which is none of
/// the guest's business, and what the agent tells the daemon alone.
const NOT_PASSED: [HeaderName; 8] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static(FORWARD_NUMBER_HEADER),
];

/// Removes what is not passed on; `upgrade` is the protocol both ends change to, if they do.
fn strip(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    for name in NOT_PASSED {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
}

/// The path after `/vm/{vm}`, with its query.
fn agent_uri(uri: &Uri) -> Result<Uri, ApiError> {
    let path = uri.path().splitn(4, '/').nth(3).unwrap_or_default();
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    format!("/{path}{query}")
        .parse()
        .map_err(|e: hyper::http::uri::InvalidUri| ApiError::bad_request(e.to_string()))
}

/// The protocol a request wants to change to (RFC 9110, 7.8).
fn wanted_upgrade(request: &Request) -> Option<HeaderValue> {
    let asks = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.split(',')
            .any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
    };
    let headers = request.headers();
    if request.version() != Version::HTTP_11
        || !headers.get_all(header::CONNECTION).iter().any(asks)
    {
        return None;
    }
    headers.get(header::UPGRADE).cloned()
}

/// Passes a request to the VM's agent and its answer back, both as they flow, undecoded.
pub(super) async fn proxy(
    State(supervisor): State<Arc<Supervisor>>,
    // The other parts of the path are the agent's business.
    Path(parts): Path<Vec<(String, String)>>,
    mut request: Request,
) -> Response {
    let name = parts
        .into_iter()
        .next()
        .map(|(_, vm)| vm)
        .unwrap_or_default();
    let found = supervisor.get(&name).and_then(|vm| reachable(&vm));
    let found = found.and_then(|machine| Ok((machine, agent_uri(request.uri())?)));
    let (machine, uri) = match found {
        Ok(found) => found,
        Err(e) => return Failure(e).into_response_with(request.into_body()).await,
    };
    let upgrade = wanted_upgrade(&request);
    let client = request.extensions_mut().remove::<OnUpgrade>();
    let (mut head, body) = request.into_parts();
    head.uri = uri;
    strip(&mut head.headers, upgrade.as_ref());
    head.headers
        .insert(header::HOST, HeaderValue::from_static("agent"));
    head.extensions.clear();
    let mut response = match guest::send(&*machine, Request::from_parts(head, body)).await {
        Ok(response) => response,
        Err(e) => return Failure(e.to_api(&name)).into_response(),
    };
    let agreed = response.headers().get(header::UPGRADE).cloned();
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if !switches {
        strip(response.headers_mut(), None);
        return response.map(Body::new);
    }
    let (Some(_), Some(agreed), Some(client)) = (upgrade, agreed, client) else {
        let text = format!("the agent of VM {name} changed protocols unasked");
        return Failure(ApiError::internal(text)).into_response();
    };
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = response.headers().clone();
    strip(answer.headers_mut(), Some(&agreed));
    let agent = match Forwarded::new(response, machine, supervisor.tasks()).await {
        Ok(agent) => agent,
        Err(e) => return Failure(e.to_api(&name)).into_response(),
    };
    supervisor.spawn(async move {
        if let Err(e) = pass(client, agent).await {
            debug!("{name}: an upgraded connection broke: {e}");
        }
    });
    answer
}

/// Passes the bytes of an upgraded connection both ways.
async fn pass(client: OnUpgrade, mut agent: Forwarded) -> io::Result<()> {
    let client = client.await.map_err(io::Error::other)?;
    // The very socket, which tells when the client has gone.
    let client = client.downcast::<TokioIo<Lingering>>();
    let client = client.map_err(|_| io::Error::other("it is none of the API's sockets"))?;
    // What the client has sent behind its request already.
    agent.write_all(&client.read_buf).await?;
    slicer_forward::splice(&mut client.io.into_inner().into_inner(), &mut agent).await
}
