//! A daemon of canned answers: a small HTTP server on a unix socket, on a thread of its own.
#![allow(dead_code, missing_docs, unreachable_pub)] // Every test binary uses another part.

use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

pub type Body = UnsyncBoxBody<Bytes, Infallible>;
pub type Reply = Response<Body>;

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method and target, such as `GET /nodes?tag=a`.
    pub line: String,
    pub headers: HeaderMap,
    /// Which connection it came over, from 0.
    pub connection: usize,
}

pub struct FakeDaemon {
    dir: TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Answers every request with what `handler` makes of it.
    pub fn start<H, F>(handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let noted = seen.clone();
        let handler = Arc::new(handler);
        Self::accept(seen, move |stream, connection| {
            let (handler, noted) = (handler.clone(), noted.clone());
            async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    noted.lock().unwrap().push(Seen {
                        line: format!("{} {}", request.method(), request.uri()),
                        headers: request.headers().clone(),
                        connection,
                    });
                    let reply = handler(request);
                    async move { Ok::<_, Infallible>(reply.await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
    }

    /// Answers the first request of every connection with these bytes and closes it.
    pub fn raw(answer: &'static [u8]) -> Self {
        Self::accept(Arc::default(), move |mut stream, _| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            let _ = stream.write_all(answer).await;
        })
    }

    fn accept<H, F>(seen: Arc<Mutex<Vec<Seen>>>, serve: H) -> Self
    where
        H: Fn(UnixStream, usize) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, mut stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = UnixListener::from_std(listener).unwrap();
                for connection in 0.. {
                    tokio::select! {
                        _ = &mut stopped => return,
                        accepted = listener.accept() => {
                            tokio::spawn(serve(accepted.unwrap().0, connection));
                        }
                    }
                }
            });
        });
        Self {
            dir,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s.sock")
    }

    /// An empty directory, removed with the daemon.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Method and target of every request so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|s| s.line).collect()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn reply(status: u16, content_type: &str, text: impl Into<Bytes>) -> Reply {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .body(Full::new(text.into()).boxed_unsync())
        .unwrap()
}

pub fn json(status: u16, text: impl Into<Bytes>) -> Reply {
    reply(status, "application/json", text)
}

pub fn not_found(what: &str) -> Reply {
    json(
        404,
        format!(r#"{{"error":"VM \"{what}\" not found","code":"not_found"}}"#),
    )
}

/// A streamed answer, and what feeds it. It ends when the sender is dropped.
pub fn streamed() -> (mpsc::UnboundedSender<String>, Reply) {
    let (sender, receiver) = mpsc::unbounded_channel::<String>();
    let chunks = stream::unfold(receiver, |mut receiver| async {
        let text = receiver.recv().await?;
        Some((Ok(Frame::data(Bytes::from(text))), receiver))
    });
    let reply = Response::builder()
        .header(CONTENT_TYPE, "application/x-ndjson")
        .body(StreamBody::new(chunks).boxed_unsync())
        .unwrap();
    (sender, reply)
}

const T: &str = "2026-01-02T03:04:05.1Z";

pub fn started() -> String {
    format!(
        "{{\"timestamp\":\"{T}\",\"type\":\"started\",\"pid\":812,\"started_at\":\"{T}\",\"exit_code\":0}}\n"
    )
}

/// A `stdout` or `stderr` frame; `payload` is base64.
pub fn data(kind: &str, payload: &str) -> String {
    format!(
        "{{\"timestamp\":\"{T}\",\"type\":\"{kind}\",\"{kind}\":\"{payload}\",\"encoding\":\"base64\",\"exit_code\":0}}\n"
    )
}

pub fn exit(code: i32) -> String {
    format!(
        "{{\"timestamp\":\"{T}\",\"type\":\"exit\",\"pid\":812,\"ended_at\":\"{T}\",\"exit_code\":{code}}}\n"
    )
}

/// An element of `GET /nodes`.
pub fn node(hostname: &str, tags: &str) -> String {
    format!(
        r#"{{"hostname":"{hostname}","hostgroup":"sbox","ip":"192.168.64.3","ram_bytes":4294967296,"cpus":2,"created_at":"2026-01-02T03:04:05.6Z","arch":"amd64","tags":{tags},"status":"Running","persistent":false}}"#
    )
}
