//! The bytes of a connection, passed both ways.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::sync::oneshot;

/// What is read ahead of a connection, in each direction, bytes.
const AHEAD: usize = 64 << 10;
/// Time between two looks at whether a client is still there that sends nothing more.
const LOOK: Duration = Duration::from_secs(2);
/// After so long without a word a TCP client is asked whether it is there, and how often, and how
/// many times it may not answer.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Passes bytes between a client's socket and what it is connected to, until both directions have
/// ended or one breaks. The end of one is passed on while the other goes on.
///
/// Whoever has ended what it sends may still read, and may as well be gone: a copy doesn't notice
/// before the other end has something to say, which may be never. So it is looked after here.
///
/// # Errors
/// As reading and writing, and [`io::ErrorKind::BrokenPipe`] when the client has gone.
pub async fn splice<L, R>(local: &mut L, remote: &mut R) -> io::Result<()>
where
    L: AsyncRead + AsyncWrite + AsFd + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (ended, socket) = oneshot::channel();
    let (told, remote_is_told) = oneshot::channel();
    let mut local = Local {
        stream: local,
        ended: Some(ended),
    };
    let mut remote = Remote {
        stream: remote,
        told: Some(told),
    };
    let gone = async {
        let (Ok(socket), Ok(())) = (socket.await, remote_is_told.await) else {
            return pending().await;
        };
        while !is_closed(&socket) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut local, &mut remote, AHEAD, AHEAD) => {
            copied.map(drop)
        }
        () = gone => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Has the system find out about a TCP client that went without a word, or whose machine did.
///
/// # Errors
/// As setsockopt(2).
pub fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    let (idle, interval, count) = KEEP_ALIVE;
    sockopt::set_tcp_keepidle(&socket, idle)?;
    sockopt::set_tcp_keepintvl(&socket, interval)?;
    sockopt::set_tcp_keepcnt(&socket, count)?;
    Ok(sockopt::set_socket_keepalive(&socket, true)?)
}

/// Whether a socket's other end is closed in both directions, or it has failed.
fn is_closed(socket: &OwnedFd) -> bool {
    // Asked about writing alone: where reading is over, macOS says so by the same flag.
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// A client's socket. Tells when the client has ended what it sends.
struct Local<'a, L> {
    stream: &'a mut L,
    /// Gets the socket, to be looked at.
    ended: Option<oneshot::Sender<OwnedFd>>,
}

impl<L: AsyncRead + AsFd + Unpin> AsyncRead for Local<'_, L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() == before
            && buffer.remaining() > 0
            && let Some(ended) = self.ended.take()
            // Without descriptors left it goes unwatched.
            && let Ok(socket) = self.stream.as_fd().try_clone_to_owned()
        {
            // Nobody waits for it when all is over already.
            let _ = ended.send(socket);
        }
        Poll::Ready(Ok(()))
    }
}

impl<L: AsyncWrite + Unpin> AsyncWrite for Local<'_, L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

/// What a client is connected to. Tells when it has got all the client sent.
struct Remote<'a, R> {
    stream: &'a mut R,
    told: Option<oneshot::Sender<()>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Remote<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, buffer)
    }
}

impl<R: AsyncWrite + Unpin> AsyncWrite for Remote<'_, R> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut *self.stream).poll_shutdown(cx))?;
        if let Some(told) = self.told.take() {
            let _ = told.send(());
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    /// A target that has nothing to say.
    const SILENT: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_gone_takes_its_connection_along() {
        let (mut client, mut local) = UnixStream::pair().unwrap();
        let (mut remote, mut target) = duplex(SILENT);
        let spliced = tokio::spawn(async move { splice(&mut local, &mut remote).await });
        client.write_all(b"last words").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        target.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "last words");
        // As long as it might read, it is waited for.
        tokio::time::sleep(100 * LOOK).await;
        assert!(!spliced.is_finished());
        drop(client);
        let outcome = tokio::time::timeout(2 * LOOK, spliced).await.unwrap();
        let e = outcome.unwrap().unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(target.write(b"x").await.unwrap_err().kind(), e.kind());
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_sent_before_is_passed_on_first() {
        let (mut client, mut local) = UnixStream::pair().unwrap();
        let (mut remote, mut target) = duplex(1);
        let spliced = tokio::spawn(async move { splice(&mut local, &mut remote).await });
        client.write_all(&[7; 10_000]).await.unwrap();
        drop(client);
        let mut heard = vec![0; 200];
        for piece in heard.chunks_mut(100) {
            // Slower than anybody looks after it.
            tokio::time::sleep(2 * LOOK).await;
            target.read_exact(piece).await.unwrap();
        }
        target.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, [7; 10_000]);
        let outcome = tokio::time::timeout(2 * LOOK, spliced).await.unwrap();
        assert!(outcome.unwrap().is_err());
    }

    #[tokio::test]
    async fn tcp_clients_are_asked_whether_they_are_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (local, _) = accepted.unwrap();
        keep_alive(&local).unwrap();
        assert!(sockopt::socket_keepalive(&local).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&local).unwrap(), KEEP_ALIVE.0);
        let socket = local.as_fd().try_clone_to_owned().unwrap();
        let mut client = client.unwrap();
        client.shutdown().await.unwrap();
        assert!(!is_closed(&socket));
        // What the system does in the end of one that doesn't answer.
        client.set_zero_linger().unwrap();
        drop(client);
        tokio::time::timeout(LOOK, async {
            while !is_closed(&socket) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
