//! Interactive shells.

use crate::client::{Call, vm_path};
use crate::{Client, ClientError};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use slicer_api::{ShellFrame, ShellRequest};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The largest message taken, bytes; a guest's are at most 32 KiB.
const MAX_MESSAGE: usize = 1 << 20;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a shell is told.
#[derive(Debug)]
pub struct ShellSender {
    request: String,
    sink: SplitSink<Socket, Message>,
}

/// What a shell says.
#[derive(Debug)]
pub struct ShellReceiver {
    request: String,
    stream: SplitStream<Socket>,
}

impl Client {
    /// `GET /vm/{h}/shell`: starts a shell on a terminal in the guest. It is hung up on when both
    /// ends are dropped.
    pub async fn shell(
        &self,
        hostname: &str,
        request: &ShellRequest,
    ) -> Result<(ShellSender, ShellReceiver), ClientError> {
        let path = vm_path(hostname, "/shell");
        let call = Call::get(&path).query(request.to_query());
        let what = call.what();
        let key = generate_key();
        // Base64 always stands in a header.
        let value = HeaderValue::from_str(&key).map_err(|e| ClientError::Request {
            request: what.clone(),
            source: e.into(),
        })?;
        let headers = [
            (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
            (SEC_WEBSOCKET_KEY, value),
        ];
        let (headers, io) = self.upgrade(call, "websocket", headers).await?;
        let accept = derive_accept_key(key.as_bytes());
        if headers
            .get(SEC_WEBSOCKET_ACCEPT)
            .is_none_or(|v| *v != *accept)
        {
            return Err(ClientError::NotUpgraded { request: what });
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket = WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await;
        let (sink, stream) = socket.split();
        let request = what.clone();
        Ok((
            ShellSender { request, sink },
            ShellReceiver {
                request: what,
                stream,
            },
        ))
    }
}

impl ShellSender {
    /// Sends a frame; waits while the shell takes none.
    pub async fn send(&mut self, frame: &ShellFrame<'_>) -> Result<(), ClientError> {
        let message = Message::Binary(frame.encode().into());
        let sent = self.sink.send(message).await;
        sent.map_err(|source| broken(&self.request, source))
    }
}

impl ShellReceiver {
    /// The next message, for [`ShellFrame::decode`]; `None` at the session's end.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, ClientError> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                None
                | Some(
                    Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed),
                ) => {
                    return Ok(None);
                }
                Some(Ok(_)) => {}
                Some(Err(source)) => return Err(broken(&self.request, source)),
            }
        }
    }
}

fn broken(request: &str, source: Error) -> ClientError {
    ClientError::WebSocket {
        request: request.to_owned(),
        source: Box::new(source),
    }
}
