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
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// How long a client may take to send a request's head.
const HEAD_TIME: Duration = Duration::from_secs(30);

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
        .serve_connection(TokioIo::new(stream), service)
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
