//! The stream of frames an exec answers with.

use crate::ClientError;
use crate::conn::Connection;
use crate::lines::{LineDecoder, LineTooLong};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::Stream;
use http_body::Body as _;
use hyper::body::Incoming;
use slicer_api::{ExecFrame, FrameType, Stdio};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncRead;

/// The longest line of an exec's answer that is taken, bytes.
pub const MAX_LINE: usize = 1 << 20;

/// What a command reads as its stdin.
pub type Stdin = Box<dyn AsyncRead + Send + Unpin>;

/// The frames of a running command. The last item is its exit frame, or an error: a stream never
/// just ends. Dropping it cancels the command.
#[derive(Debug)]
pub struct ExecStream {
    what: String,
    lines: LineDecoder,
    body: Incoming,
    over: bool,
    _connection: Connection,
}

impl ExecStream {
    pub(crate) fn new(what: String, body: Incoming, connection: Connection) -> Self {
        Self {
            what,
            lines: LineDecoder::new(MAX_LINE),
            body,
            over: false,
            _connection: connection,
        }
    }

    /// The next frame; none after the exit frame or an error.
    pub async fn next_frame(&mut self) -> Option<Result<ExecFrame, ClientError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn decode(&mut self, line: &Bytes) -> Result<ExecFrame, ClientError> {
        let frame = serde_json::from_slice(line).map_err(|source| ClientError::Decode {
            request: self.what.clone(),
            source,
        })?;
        self.over = is_last(&frame);
        Ok(frame)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<ExecFrame, ClientError>> {
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => return Poll::Ready(self.decode(&line)),
                Ok(None) => {}
                Err(LineTooLong) => {
                    return Poll::Ready(Err(ClientError::TooLarge {
                        request: self.what.clone(),
                        limit: MAX_LINE,
                    }));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.lines.push(data);
                    }
                }
                Some(Err(source)) => {
                    return Poll::Ready(Err(ClientError::BrokenOff {
                        request: self.what.clone(),
                        source,
                    }));
                }
                None => {
                    return Poll::Ready(match self.lines.finish() {
                        Some(line) => self.decode(&line),
                        None => Err(ClientError::Truncated {
                            request: self.what.clone(),
                        }),
                    });
                }
            }
        }
    }
}

impl Stream for ExecStream {
    type Item = Result<ExecFrame, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_frame(cx));
        self.over |= frame.is_err();
        Poll::Ready(Some(frame))
    }
}

fn is_last(frame: &ExecFrame) -> bool {
    match frame.kind {
        Some(kind) => kind == FrameType::Exit,
        // Agents of long ago sent no type, but the end did have what only an end has.
        None => frame.ended_at.is_some() || frame.error.is_some() || frame.exit_code != 0,
    }
}

/// The bytes of a frame's or a buffered answer's `stdout` or `stderr`.
pub fn output_bytes(text: String, encoding: Option<Stdio>) -> Result<Vec<u8>, ClientError> {
    match encoding {
        Some(Stdio::Base64) => STANDARD.decode(text).map_err(|source| ClientError::Base64 {
            request: "exec".to_owned(),
            source,
        }),
        Some(Stdio::Text) | None => Ok(text.into_bytes()),
    }
}
