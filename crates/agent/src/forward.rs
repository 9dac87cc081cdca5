//! `GET /forward`: a connection to something that listens in the guest, or can be reached from it.
//!
//! SlicerVM's clients ask for a WebSocket, which can't close one direction alone. Ours changes to
//! the protocol `tcp`: plain bytes, each direction ending by itself.
//!
//! A client that has ended its direction and then gone is not seen from here: the stream it came by
//! looks as before, and takes what is written to it until there is no more room. So the daemon,
//! which does see it, says so by `DELETE /forward/{number}`.

use crate::http::{self, Answer};
use crate::server::Agent;
use crate::upgrade::{self, Socket};
use futures_util::{SinkExt, StreamExt};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use slicer_api::{ApiError, FORWARD_NUMBER_HEADER, ForwardTarget, UPSTREAM_HEADER};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::Message;

/// Clients wait 10 s for an answer.
const DIAL_TIME: Duration = Duration::from_secs(8);
/// What is read ahead in each direction, bytes: each time, the program at the other end is woken.
const AHEAD: usize = 256 << 10;
/// The largest message sent, bytes.
const MESSAGE: usize = 64 << 10;
/// How long the other end has to finish when a WebSocket is closed.
const DRAIN_TIME: Duration = Duration::from_secs(3);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects, then agrees to change protocols: a target that can't be reached is an HTTP error.
pub(crate) async fn handle(agent: &Arc<Agent>, request: Request<Incoming>) -> Answer {
    start(agent, request)
        .await
        .unwrap_or_else(|e| http::error(&e))
}

async fn start(agent: &Arc<Agent>, mut request: Request<Incoming>) -> Result<Answer, ApiError> {
    agent.check_ready()?;
    let target = request.headers().get(UPSTREAM_HEADER).ok_or_else(|| {
        let text = "the header X-Inlets-Upstream must say where to: HOST:PORT or unix:/PATH";
        ApiError::bad_request(text)
    })?;
    let target: ForwardTarget = target
        .to_str()
        .map_err(|_| ApiError::bad_request("X-Inlets-Upstream is not text"))?
        .parse()
        .map_err(|e| ApiError::bad_request(format!("X-Inlets-Upstream: {e}")))?;
    let plain = upgrade::wants(&request, "tcp");
    if !plain && !upgrade::wants(&request, "websocket") {
        let text = "a forward needs a WebSocket, or an upgrade to tcp";
        return Err(ApiError::bad_request(text));
    }
    let dialled = tokio::time::timeout(DIAL_TIME, dial(&target)).await;
    let stream = dialled
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|e| {
            ApiError::bad_gateway(format!("cannot connect to {target} in the guest: {e}"))
        })?;
    if plain {
        let (mut answer, upgraded) = upgrade::raw(&mut request, "tcp");
        let (number, mut live) = Live::begin(&agent.forwards);
        answer
            .headers_mut()
            .insert(FORWARD_NUMBER_HEADER, number.into());
        agent.tasks.spawn(async move {
            let spliced = async {
                if let Ok(client) = upgraded.await {
                    splice(TokioIo::new(client), stream).await;
                }
            };
            tokio::select! {
                () = spliced => {}
                () = live.ended() => {}
            }
        });
        return Ok(answer);
    }
    let (answer, socket) = upgrade::websocket(&mut request)?;
    agent.tasks.spawn(async move {
        if let Ok(socket) = socket.await {
            relay(socket, stream).await;
        }
    });
    Ok(answer)
}

/// The connections there are, by their numbers.
#[derive(Default)]
pub(crate) struct Forwards(Mutex<Numbered>);

#[derive(Default)]
struct Numbered {
    last: u64,
    ends: HashMap<u64, oneshot::Sender<()>>,
}

impl Forwards {
    fn lock(&self) -> MutexGuard<'_, Numbered> {
        // Nothing in it can be half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection as long as it is there.
struct Live {
    number: u64,
    end: oneshot::Receiver<()>,
    all: Arc<Forwards>,
}

impl Live {
    fn begin(all: &Arc<Forwards>) -> (u64, Self) {
        let (sender, end) = oneshot::channel();
        let mut numbered = all.lock();
        numbered.last += 1;
        let number = numbered.last;
        numbered.ends.insert(number, sender);
        drop(numbered);
        let all = Arc::clone(all);
        (number, Self { number, end, all })
    }

    /// Completes when it shall end.
    async fn ended(&mut self) {
        let _ = (&mut self.end).await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.all.lock().ends.remove(&self.number);
    }
}

/// `DELETE /forward/{number}`: ends a connection whose client has gone. One that has ended by
/// itself is fine, too.
pub(crate) fn end(agent: &Agent, path: &str) -> Answer {
    let number = path.strip_prefix("/forward/").map(str::parse::<u64>);
    let Some(Ok(number)) = number else {
        let text = format!("{path:.100} names no connection");
        return http::error(&ApiError::not_found(text));
    };
    if let Some(live) = agent.forwards.lock().ends.remove(&number) {
        // It may be ending at this moment.
        let _ = live.send(());
    }
    http::json(&serde_json::json!({}))
}

async fn dial(target: &ForwardTarget) -> io::Result<Box<dyn Stream>> {
    Ok(match target {
        ForwardTarget::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        ForwardTarget::Unix(path) => Box::new(UnixStream::connect(path).await?),
    })
}

/// Passes bytes both ways until both directions have ended, or one breaks.
async fn splice(mut client: impl AsyncRead + AsyncWrite + Unpin, mut target: Box<dyn Stream>) {
    // How it ended is known to both ends.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut target, AHEAD, AHEAD).await;
}

/// Passes a WebSocket's messages to the target, and what it answers back.
async fn relay(socket: Socket, target: Box<dyn Stream>) {
    let (mut sink, mut stream) = socket.split();
    let (mut from_target, mut to_target) = tokio::io::split(target);
    let inbound = async {
        let mut closed = false;
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) => match to_target.write_all(&bytes).await {
                    Ok(()) => {}
                    Err(_) => break,
                },
                Message::Close(_) => {
                    closed = true;
                    break;
                }
                _ => {}
            }
        }
        let _ = to_target.shutdown().await;
        if closed {
            // The client waits for an answer to that, however long the target goes on. The socket
            // has it ready, and sends it when it is asked for more.
            let _ = tokio::time::timeout(DRAIN_TIME, stream.next()).await;
        }
    };
    let outbound = async {
        let mut buffer = vec![0; MESSAGE];
        loop {
            match from_target.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    let piece = bytes::Bytes::copy_from_slice(&buffer[..n]);
                    // The client may have closed; what is left is read all the same, so that the
                    // target can end as it wants to.
                    let _ = sink.send(Message::Binary(piece)).await;
                }
            }
        }
        let close = Message::Close(Some(upgrade::normal_close()));
        let _ = sink.send(close).await;
    };
    tokio::pin!(inbound, outbound);
    tokio::select! {
        () = &mut inbound => drop(tokio::time::timeout(DRAIN_TIME, outbound).await),
        () = &mut outbound => drop(tokio::time::timeout(DRAIN_TIME, inbound).await),
    }
}
