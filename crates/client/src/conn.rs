//! Connections to the daemon, and the few idle ones kept for the next call.

use crate::ClientError;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use slicer_api::Endpoint;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::AbortOnDropHandle;

/// What a request's body is made of; never more than what was asked to be streamed.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// The body of a request that has none.
pub(crate) fn empty_body() -> RequestBody {
    RequestBody::new(Empty::new().map_err(|never| match never {}))
}

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const MAX_IDLE: usize = 4;

/// One HTTP/1.1 connection. Dropping it closes it, which the daemon takes as "not wanted any
/// more".
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<RequestBody>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    async fn open(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let dial = async {
            match endpoint {
                Endpoint::Unix(path) => Self::handshake(UnixStream::connect(path).await?).await,
                Endpoint::Http { authority } => {
                    let stream = TcpStream::connect(authority).await?;
                    stream.set_nodelay(true)?;
                    Self::handshake(stream).await
                }
            }
        };
        let source = match tokio::time::timeout(CONNECT_LIMIT, dial).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(source)) => source,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        let endpoint = endpoint.clone();
        Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon { endpoint }
            }
            _ => ClientError::Connect { endpoint, source },
        })
    }

    async fn handshake(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> io::Result<Self> {
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            sender,
            // Its error also reaches whoever waits for the answer.
            _driver: AbortOnDropHandle::new(tokio::spawn(async {
                drop(driver.with_upgrades().await);
            })),
        })
    }
}

/// The way to one daemon.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoint: Endpoint,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            idle: Mutex::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn checkout(&self) -> Option<Connection> {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    /// Takes back a connection whose answer was read to its end.
    pub(crate) fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.sender.is_closed() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    /// Sends a request over an idle connection or a new one; `what` names it in errors. The
    /// answer's body lives only as long as the connection returned with it.
    pub(crate) async fn send(
        &self,
        what: &str,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let transport = |source| ClientError::Transport {
            request: what.to_owned(),
            source,
        };
        while let Some(mut connection) = self.checkout() {
            if connection.sender.ready().await.is_err() {
                continue;
            }
            // A daemon may close an idle connection at the moment it is used. What was not sent,
            // or may be sent twice, goes over another one.
            let (parts, body) = request.into_parts();
            let repeatable = (parts.method == Method::GET)
                .then(|| Request::from_parts(parts.clone(), empty_body()));
            let request_now = Request::from_parts(parts, body);
            match connection.sender.try_send_request(request_now).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut e) => match e.take_message().or(repeatable) {
                    Some(again) => request = again,
                    None => return Err(transport(e.into_error())),
                },
            }
        }
        let mut connection = Connection::open(&self.endpoint).await?;
        let response = connection
            .sender
            .send_request(request)
            .await
            .map_err(transport)?;
        Ok((response, connection))
    }
}
