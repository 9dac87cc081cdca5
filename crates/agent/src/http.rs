//! Bodies and answers in the forms the API has.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use slicer_api::ApiError;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes a body that isn't a stream may have.
const BODY_LIMIT: usize = 1 << 20;
/// How much of a refused upload is read, so that its sender sees the answer and not a broken pipe.
const DISCARD_LIMIT: usize = 16 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// The body of an answer.
pub(crate) enum AgentBody {
    /// All of it, given out once.
    Full(Option<Bytes>),
    /// Piece by piece, as a task of the agent makes them. The task sees the receiver close when
    /// the client has left.
    Stream(mpsc::Receiver<Bytes>),
    /// Likewise; an error breaks the answer off.
    Fallible(mpsc::Receiver<io::Result<Bytes>>),
}

impl Body for AgentBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Stream(pieces) => pieces.poll_recv(cx).map(|p| p.map(|b| Ok(Frame::data(b)))),
            Self::Fallible(pieces) => pieces.poll_recv(cx).map(|p| p.map(|b| b.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(_) | Self::Fallible(_) => SizeHint::default(),
        }
    }
}

/// An answer of the agent.
pub(crate) type Answer = Response<AgentBody>;

/// A 200 answer with this body.
pub(crate) fn answer(content_type: &'static str, body: AgentBody) -> Answer {
    let mut answer = Response::new(body);
    let value = HeaderValue::from_static(content_type);
    answer.headers_mut().insert(CONTENT_TYPE, value);
    answer
}

/// A 200 answer with a JSON body.
pub(crate) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => answer("application/json", AgentBody::Full(Some(bytes.into()))),
        Err(e) => error(&ApiError::internal(format!(
            "cannot encode the answer: {e}"
        ))),
    }
}

/// The answer to a request that failed.
pub(crate) fn error(e: &ApiError) -> Answer {
    // A body of two strings always encodes.
    let body = serde_json::to_vec(&e.body()).unwrap_or_default();
    let mut answer = answer("application/json", AgentBody::Full(Some(body.into())));
    *answer.status_mut() =
        StatusCode::from_u16(e.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}

/// The answer to a method a path doesn't have.
pub(crate) fn method_not_allowed(path: &str, allowed: &'static str) -> Answer {
    let mut answer = error(&ApiError::method_not_allowed(format!(
        "{path} takes {allowed} only"
    )));
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// Reads a JSON body; an empty one is `None`.
pub(crate) async fn read_json<T: DeserializeOwned>(
    body: hyper::body::Incoming,
) -> Result<Option<T>, ApiError> {
    read_json_up_to(body, BODY_LIMIT).await
}

/// Reads a JSON body of at most `limit` bytes; an empty one is `None`.
pub(crate) async fn read_json_up_to<T: DeserializeOwned>(
    body: hyper::body::Incoming,
    limit: usize,
) -> Result<Option<T>, ApiError> {
    let bytes = Limited::new(body, limit)
        .collect()
        .await
        .map_err(|e| ApiError::bad_request(format!("cannot read the body: {e}")))?
        .to_bytes();
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    match first {
        None => return Ok(None),
        Some(b'{') => {}
        // A list would be taken for the fields in their order.
        Some(_) => {
            let text = "the body is not what is expected: a JSON object";
            return Err(ApiError::bad_request(text));
        }
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| ApiError::bad_request(format!("the body is not what is expected: {e}")))
}

/// Reads and throws away what is left of a refused request's body, within bounds.
pub(crate) async fn discard(body: hyper::body::Incoming) {
    let mut body = Limited::new(body, DISCARD_LIMIT);
    let drain = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(DISCARD_TIME, drain).await;
}
