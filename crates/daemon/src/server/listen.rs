//! Sockets the API is served on.

use super::Server;
use crate::DaemonError;
use crate::config::{ListenAddress, Listener};
use crate::workdir::WorkDir;
use axum::body::Body;
use hyper::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tracing::{debug, warn};

/// How long a client may take to send a request's head.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long a client that is still sending is listened to after the last answer.
const LINGER_TIME: Duration = Duration::from_secs(1);

enum Socket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// Bound sockets, not served yet.
pub(crate) struct Listeners(Vec<(Arc<Socket>, bool)>);

impl Drop for Listeners {
    fn drop(&mut self) {
        for (socket, _) in &self.0 {
            if let Socket::Unix(_, path) = &**socket {
                // Gone already is fine, too.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Binds every socket of the configuration, or none.
pub(crate) async fn bind(wanted: &[Listener], work: &WorkDir) -> Result<Listeners, DaemonError> {
    let mut bound = Listeners(Vec::new());
    for Listener { address, auth } in wanted {
        let failed = |source| DaemonError::Listen {
            address: address.to_string(),
            source,
        };
        let socket = match address {
            ListenAddress::Unix(path) => {
                let path = work.root().join(path);
                Socket::Unix(bind_unix(&path, work).map_err(failed)?, path)
            }
            ListenAddress::Tcp(address) => {
                Socket::Tcp(TcpListener::bind(address).await.map_err(failed)?)
            }
        };
        bound.0.push((Arc::new(socket), *auth));
    }
    Ok(bound)
}

/// Binds inside a directory only this user can enter, restricts the socket to this user, and only
/// then moves it to its name: at no time can anybody else connect. A socket file that a daemon
/// which died left is replaced; anything else is not.
fn bind_unix(path: &Path, work: &WorkDir) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(m) if !m.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file of this name that is not a socket: move it away",
            ));
        }
        // The lock on the directory says that no daemon of this directory serves it; one of
        // another directory might.
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        _ => {}
    }
    // Relative to the working directory, for a shorter name.
    let private = work.state().join("api.sock");
    let name = std::env::current_dir()
        .ok()
        .and_then(|cwd| private.strip_prefix(cwd).ok().map(Path::to_owned))
        .unwrap_or_else(|| private.clone());
    let _ = fs::remove_file(&name);
    let listener = UnixListener::bind(&name)?;
    fs::set_permissions(&name, fs::Permissions::from_mode(0o600))?;
    fs::rename(&name, path)?;
    Ok(listener)
}

impl Listeners {
    /// Serves until `stop` says so, then lets requests that are being answered finish, briefly.
    pub(crate) async fn serve(self, server: Server, mut stop: watch::Receiver<bool>) {
        let mut accepting = JoinSet::new();
        for (socket, auth) in &self.0 {
            accepting.spawn(accept(socket.clone(), *auth, server.clone(), stop.clone()));
        }
        stopped(&mut stop).await;
        let finish = async { while accepting.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(3), finish).await;
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone says so, too.
    let _ = stop.wait_for(|stop| *stop).await.is_ok();
}

async fn accept(socket: Arc<Socket>, auth: bool, server: Server, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(stream) => {
                connections.spawn(connection(stream, server.clone(), auth, stop.clone()));
            }
            Err(e) => {
                // Out of descriptors, most likely: let some connections end first.
                warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// A client's socket.
pub(super) trait Stream: AsyncRead + AsyncWrite + AsFd + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + AsFd + Send + Unpin> Stream for T {}

/// A client's socket that is closed only when the client has closed its side, or after a moment:
/// one that still sends a body when it is refused reads the answer, where otherwise its next
/// write could fail first (RFC 9112, 9.6).
pub(super) struct Lingering {
    stream: Box<dyn Stream>,
    /// When it has been waited long enough, once the writing side is shut down.
    until: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            until: None,
        }
    }

    /// The socket itself.
    pub(super) fn into_inner(self) -> Box<dyn Stream> {
        self.stream
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, until } = self.get_mut();
        let until = match until {
            Some(until) => until,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                until.insert(Box::pin(tokio::time::sleep(LINGER_TIME)))
            }
        };
        let mut thrown_away = [MaybeUninit::uninit(); 16 << 10];
        while until.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::uninit(&mut thrown_away);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                // It has closed its side, one way or the other.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Socket {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                // Frames of an exec are small and wanted at once.
                stream.set_nodelay(true)?;
                slicer_forward::keep_alive(&stream)?;
                Ok(Box::new(stream))
            }
        }
    }
}

async fn connection(
    stream: Box<dyn Stream>,
    server: Server,
    auth: bool,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request.map(Body::new), auth).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        // A client that leaves shall take its command along, and hyper sees that it left by the
        // end of what it sends. Nobody who speaks HTTP half-closes.
        .half_close(false)
        .serve_connection(TokioIo::new(Lingering::new(stream)), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(e) = outcome {
        debug!("a connection ended: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as StdStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::Instant;

    #[tokio::test]
    async fn a_client_that_still_sends_reads_its_answer() {
        let (mut client, daemon) = UnixStream::pair().unwrap();
        let mut daemon = Lingering::new(Box::new(daemon));
        daemon.write_all(b"refused").await.unwrap();
        let closing = tokio::spawn(async move { daemon.shutdown().await });
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "refused");
        // More than the socket holds: somebody reads it.
        client.write_all(&vec![0; 1 << 20]).await.unwrap();
        drop(client);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_goes_is_left() {
        let (client, daemon) = StdStream::pair().unwrap();
        daemon.set_nonblocking(true).unwrap();
        let mut daemon = Lingering::new(Box::new(UnixStream::from_std(daemon).unwrap()));
        let began = Instant::now();
        daemon.shutdown().await.unwrap();
        assert!(began.elapsed() >= LINGER_TIME);
        drop(client);
    }
}
