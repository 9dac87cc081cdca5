//! Connections that were made in a guest, and how they end.
//!
//! A stream of the channel is reset by dropping it, unless what we send on it has ended already:
//! then nobody tells the guest, which goes on writing until it has no more credit, and then keeps
//! the stream, its connection and whoever serves that for good. So the agent is told by a request.

use crate::guest::{self, ASK_TIME, CONNECT_TIME, GuestBody, GuestError};
use axum::body::Body;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use slicer_api::{FORWARD_NUMBER_HEADER, ForwardTarget, UPSTREAM_HEADER};
use slicer_machine::Machine;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::TaskTracker;

/// An upgraded connection to an agent. Dropped at whatever moment, the guest's end of it goes, too.
pub(crate) struct Forwarded {
    io: TokioIo<Upgraded>,
    end: End,
    /// It is what keeps the stream to the agent.
    _body: GuestBody,
}

/// What a guest has to be told, and by whom.
struct End {
    machine: Arc<dyn Machine>,
    tasks: TaskTracker,
    /// The connection's number. Some agents' connections need none.
    number: Option<HeaderValue>,
    sent_all: bool,
    got_all: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if let (Some(number), true, false) = (self.number.take(), self.sent_all, self.got_all) {
            let machine = Arc::clone(&self.machine);
            self.tasks.spawn(async move {
                // A guest that can't be told has other worries.
                let path = format!("/forward/{}", number.to_str().unwrap_or_default());
                let told = guest::ask(&*machine, Method::DELETE, &path, Vec::new());
                let _ = guest::within(CONNECT_TIME, told).await;
            });
        }
    }
}

impl Forwarded {
    /// What the agent has changed protocols with. `tasks` are the daemon's.
    pub(crate) async fn new(
        mut response: Response<GuestBody>,
        machine: Arc<dyn Machine>,
        tasks: TaskTracker,
    ) -> Result<Self, GuestError> {
        let io = TokioIo::new(hyper::upgrade::on(&mut response).await?);
        let end = End {
            machine,
            tasks,
            number: response.headers().get(FORWARD_NUMBER_HEADER).cloned(),
            sent_all: false,
            got_all: false,
        };
        Ok(Self {
            io,
            end,
            _body: response.into_body(),
        })
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.end.got_all |= buffer.filled().len() == before && buffer.remaining() > 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end.sent_all = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Has the agent connect to something in its guest.
pub(crate) async fn forward(
    machine: Arc<dyn Machine>,
    target: &ForwardTarget,
    tasks: TaskTracker,
) -> Result<Forwarded, GuestError> {
    let request = Request::builder()
        .uri("/forward")
        .header(header::HOST, "agent")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "tcp")
        .header(UPSTREAM_HEADER, target.to_string())
        .body(Body::empty())
        .map_err(|e| GuestError::Refused(StatusCode::BAD_REQUEST, e.to_string()))?;
    let dialled = async {
        let response = guest::send(&*machine, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (head, body) = response.into_parts();
            return Err(guest::refused(head.status, body).await);
        }
        Forwarded::new(response, machine.clone(), tasks).await
    };
    guest::within(ASK_TIME, dialled).await
}
