//! The streaming proxy to a VM's agent: requests, answers and upgraded connections pass as they
//! are.

use super::answer::Failure;
use super::vm::reachable;
use crate::guest;
use crate::supervisor::Supervisor;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use slicer_api::ApiError;
use std::sync::Arc;
use tracing::debug;

/// Headers that belong to one connection (RFC 9110, 7.6.1), and the client's token, which is none
/// of the guest's business.
const NOT_PASSED: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// What is read ahead of an upgraded connection, in each direction, bytes.
const AHEAD: usize = 64 << 10;

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
    let agent = hyper::upgrade::on(&mut response);
    strip(response.headers_mut(), Some(&agreed));
    let (head, body) = response.into_parts();
    supervisor.spawn(async move {
        splice(&name, client, agent).await;
        // It is what keeps the agent's connection, empty though it is.
        drop(body);
    });
    Response::from_parts(head, Body::empty())
}

/// Passes the bytes of an upgraded connection both ways until both have ended, or one breaks. The
/// end of one direction is passed on, while the other goes on.
async fn splice(vm: &str, client: OnUpgrade, agent: OnUpgrade) {
    let (client, agent) = match tokio::try_join!(client, agent) {
        Ok(both) => both,
        Err(e) => {
            debug!("{vm}: an upgrade failed: {e}");
            return;
        }
    };
    let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut agent, AHEAD, AHEAD).await;
    if let Err(e) = copied {
        debug!("{vm}: an upgraded connection broke: {e}");
    }
}
