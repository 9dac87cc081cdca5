//! Port forwarding's end on the host: listeners, and connections that lead into a guest by whatever
//! way the caller has. The command and the daemon share it.
#![forbid(unsafe_code)]

mod splice;

pub use splice::{keep_alive, splice};

use slicer_api::{Forward, ForwardListen, ForwardTarget};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Connections of one mapping at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// What an accept waits that failed, as it does without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long whoever comes for nothing has to notice, and what is read of them meanwhile.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 1 << 20;

/// Both directions of a forwarded connection.
pub trait ForwardStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ForwardStream for T {}

/// A client's socket.
trait Local: ForwardStream + AsFd {}
impl<T: ForwardStream + AsFd> Local for T {}

/// A listener that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}")]
pub struct ListenError {
    /// Where.
    pub listen: ForwardListen,
    /// What the system said.
    pub source: io::Error,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removes the socket's file")] SocketFile,
    ),
}

/// A socket's file, removed in the end if it is still the same.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path);
        if now.is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            // A file that can't be removed is found stale by the next listener.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The host's side of some mappings. Dropping it closes all listeners.
#[derive(Debug)]
pub struct Forwarder {
    forwards: Vec<Forward>,
    listeners: Vec<Listener>,
}

impl Forwarder {
    /// Listens for all mappings, or for none. A port 0 is given a number, see
    /// [`forwards`](Self::forwards).
    pub async fn bind(forwards: &[Forward]) -> Result<Self, ListenError> {
        let mut forwards = forwards.to_vec();
        let mut listeners = Vec::with_capacity(forwards.len());
        for forward in &mut forwards {
            match listen(&mut forward.listen).await {
                Ok(listener) => listeners.push(listener),
                Err(source) => {
                    let listen = forward.listen.clone();
                    return Err(ListenError { listen, source });
                }
            }
        }
        Ok(Self {
            forwards,
            listeners,
        })
    }

    /// The mappings, each with the port it really listens on.
    pub fn forwards(&self) -> &[Forward] {
        &self.forwards
    }

    /// Connects everybody who comes to what `dial` gives for the mapping's target, until the
    /// future is dropped, which ends all connections. `failed` is told of targets that could not
    /// be reached; then the caller's connection is closed.
    pub async fn serve<S, E, F>(
        self,
        dial: impl Fn(ForwardTarget) -> F + Send + Sync + 'static,
        failed: impl Fn(&ForwardTarget, E) + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<S, E>> + Send + 'static,
        S: ForwardStream + 'static,
        E: Send + 'static,
    {
        let (dial, failed) = (Arc::new(dial), Arc::new(failed));
        let mut tasks = JoinSet::new();
        for (forward, listener) in self.forwards.into_iter().zip(self.listeners) {
            let (dial, failed) = (Arc::clone(&dial), Arc::clone(&failed));
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    while connections.len() >= MAX_CONNECTIONS
                        || connections.try_join_next().is_some()
                    {
                        if connections.len() >= MAX_CONNECTIONS {
                            connections.join_next().await;
                        }
                    }
                    let Ok(mut local) = listener.accept().await else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    let target = forward.target.clone();
                    let (dial, failed) = (Arc::clone(&dial), Arc::clone(&failed));
                    connections.spawn(async move {
                        match dial(target.clone()).await {
                            Ok(mut remote) => {
                                // How it ended is known to both ends.
                                let _ = splice(&mut local, &mut remote).await;
                            }
                            Err(e) => {
                                failed(&target, e);
                                close(local).await;
                            }
                        }
                    });
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Local>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let stream: TcpStream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                Box::new(stream)
            }
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Ends a connection that leads nowhere. What was sent on it is read, or the system would tell its
/// sender of a broken connection in place of a closed one.
async fn close(mut local: Box<dyn Local>) {
    let farewell = async {
        local.shutdown().await?;
        let mut unread = (&mut local).take(FAREWELL_BYTES);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(FAREWELL_TIME, farewell).await;
}

async fn listen(at: &mut ForwardListen) -> io::Result<Listener> {
    match at {
        ForwardListen::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port)).await?;
            *port = listener.local_addr()?.port();
            Ok(Listener::Tcp(listener))
        }
        ForwardListen::Unix(path) => {
            // The working directory may change until it is removed.
            *path = std::path::absolute(&*path)?;
            listen_unix(path).await
        }
    }
}

async fn listen_unix(path: &Path) -> io::Result<Listener> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    // What nobody listens on was left by somebody who could not remove it. Nothing but a socket
    // is ever removed.
    let socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if socket {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let listener = UnixListener::bind(path)?;
    let meta = std::fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (meta.dev(), meta.ino()),
    };
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(Listener::Unix(listener, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwards(specs: &[String]) -> Vec<Forward> {
        specs.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn connections_reach_what_is_dialled_and_keep_their_half_close() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/a.sock");
        let specs = [
            "0:127.0.0.1:7".to_owned(),
            format!("{}:/echo", path.display()),
        ];
        let forwarder = Forwarder::bind(&forwards(&specs)).await.unwrap();
        let ForwardListen::Tcp { port, .. } = forwarder.forwards()[0].listen else {
            panic!("a TCP mapping");
        };
        assert_ne!(port, 0);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let dial = |target: ForwardTarget| async move {
            let (ours, mut theirs) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let mut text = String::new();
                theirs.read_to_string(&mut text).await.unwrap();
                let answer = format!("{target} got {text}");
                theirs.write_all(answer.as_bytes()).await.unwrap();
            });
            Ok::<_, io::Error>(ours)
        };
        let serving = tokio::spawn(forwarder.serve(dial, |_, e| panic!("{e}")));
        let mut text = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"b").await.unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "127.0.0.1:7 got aunix:/echo got b");
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn who_comes_for_nothing_is_told_by_a_clean_end() {
        let specs = ["0:127.0.0.1:7".to_owned()];
        let forwarder = Forwarder::bind(&forwards(&specs)).await.unwrap();
        let ForwardListen::Tcp { port, .. } = forwarder.forwards()[0].listen else {
            panic!("a TCP mapping");
        };
        let refuse = |_| async { Err::<tokio::io::DuplexStream, _>("nobody is there") };
        let serving = tokio::spawn(forwarder.serve(refuse, |_, _| {}));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&[7; 4096]).await.unwrap();
        let mut nothing = Vec::new();
        stream.read_to_end(&mut nothing).await.unwrap();
        assert_eq!(nothing, b"");
        serving.abort();
    }

    #[tokio::test]
    async fn all_listen_or_none_and_only_stale_sockets_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (stale, file) = (dir.path().join("stale"), dir.path().join("file"));
        drop(UnixListener::bind(&stale).unwrap());
        std::fs::write(&file, "precious").unwrap();
        let spec = |p: &Path| format!("{}:/x", p.display());
        let both = forwards(&[spec(&stale), spec(&file)]);
        let e = Forwarder::bind(&both).await.unwrap_err();
        assert_eq!(e.listen.to_string(), file.display().to_string());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        assert!(!stale.exists());
        let _held = Forwarder::bind(&both[..1]).await.unwrap();
        let e = Forwarder::bind(&both[..1]).await.unwrap_err();
        assert_eq!(e.source.kind(), io::ErrorKind::AddrInUse);
        assert!(stale.exists());
    }
}
