//! Connections that change from HTTP to something else.

use crate::http::{AgentBody, Answer};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use slicer_api::ApiError;
use std::future::Future;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// A client's end of a WebSocket.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The largest message that is taken, bytes. Clients send much smaller ones.
const MAX_MESSAGE: usize = 4 << 20;

/// Whether a request wants to change to this protocol (RFC 9110, 7.8).
pub(crate) fn wants<B>(request: &Request<B>, protocol: &str) -> bool {
    let has = |name, word: &str| {
        request.headers().get_all(name).iter().any(|value| {
            let text = value.to_str().unwrap_or_default();
            text.split(',').any(|w| w.trim().eq_ignore_ascii_case(word))
        })
    };
    has(CONNECTION, "upgrade") && has(UPGRADE, protocol)
}

/// Agrees to a WebSocket (RFC 6455), without subprotocol and extensions, whatever is offered.
///
/// # Errors
/// 400 for a handshake that is none.
pub(crate) fn websocket<B>(
    request: &mut Request<B>,
) -> Result<(Answer, impl Future<Output = hyper::Result<Socket>> + use<B>), ApiError> {
    let headers = request.headers();
    if headers
        .get("sec-websocket-version")
        .is_none_or(|v| v != "13")
    {
        let text = "the WebSocket's version must be 13";
        return Err(ApiError::bad_request(text));
    }
    let key = headers.get("sec-websocket-key").ok_or_else(|| {
        let text = "the WebSocket's handshake has no key";
        ApiError::bad_request(text)
    })?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|e| ApiError::internal(e.to_string()))?;
    let (mut answer, upgrade) = raw(request, "websocket");
    answer.headers_mut().insert("sec-websocket-accept", accept);
    let socket = async move {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let io = TokioIo::new(upgrade.await?);
        Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
    };
    Ok((answer, socket))
}

/// Agrees to change to a protocol that needs nothing else.
pub(crate) fn raw<B>(request: &mut Request<B>, protocol: &'static str) -> (Answer, OnUpgrade) {
    let upgrade = hyper::upgrade::on(request);
    let mut answer = Response::new(AgentBody::Full(None));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    (answer, upgrade)
}

/// How a WebSocket ends that has served its purpose.
pub(crate) fn normal_close() -> CloseFrame {
    CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }
}
