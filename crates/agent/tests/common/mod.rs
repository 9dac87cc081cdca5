//! A host for one agent: the real binary on a unix socket, and an HTTP client on its channel.
#![expect(clippy::unwrap_used, reason = "tests, though not marked as such")]

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use slicer_channel::{Mux, wire};
use std::process::ExitStatus;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Longer than anything here may take, so that a hang is a failure.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// An agent and the host's end of its channel.
pub(crate) struct Host {
    mux: Mux,
    driver: JoinHandle<()>,
    agent: Child,
    _dir: tempfile::TempDir,
}

/// The sender of a request's body.
pub(crate) type Upload = mpsc::UnboundedSender<Bytes>;

impl Host {
    /// Starts an agent that has not been told who it is.
    pub(crate) async fn start_nameless() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_slicer-agent"))
            .args(["serve", "--unix"])
            .arg(&path)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (socket, _) = within(listener.accept()).await.unwrap();
        let (mux, driver) = within(slicer_channel::connect(socket, wire::HELLO))
            .await
            .unwrap();
        let driver = tokio::spawn(async move {
            driver.run().await;
        });
        Self {
            mux,
            driver,
            agent,
            _dir: dir,
        }
    }

    /// Starts an agent that is ready.
    pub(crate) async fn start() -> Self {
        let host = Self::start_nameless().await;
        let body = r#"{"hostname":"sbox-1","clock_unix_nanos":0}"#;
        let answer = host.send("POST", "/identity", body).await;
        assert_eq!(answer.status(), 200);
        host
    }

    /// The agent's process id.
    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.id().unwrap()
    }

    /// Leaves, and waits for the agent to end.
    pub(crate) async fn leave(mut self) -> ExitStatus {
        self.driver.abort();
        within(self.agent.wait()).await.unwrap()
    }

    /// Waits for the agent to end by itself.
    pub(crate) async fn agent_end(&mut self) -> ExitStatus {
        within(self.agent.wait()).await.unwrap()
    }

    async fn request<B>(&self, request: Request<B>) -> Response<Incoming>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let stream = within(self.mux.open()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        within(sender.send_request(request)).await.unwrap()
    }

    /// Asks for another protocol; gives back the answer and, when it is 101, the connection.
    pub(crate) async fn upgrade(
        &self,
        target: &str,
        protocol: &str,
        headers: &[(&str, &str)],
    ) -> (Response<Incoming>, Option<TokioIo<Upgraded>>) {
        let stream = within(self.mux.open()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .uri(target)
            .header("host", "agent")
            .header("connection", "Upgrade")
            .header("upgrade", protocol);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let mut answer = within(sender.send_request(request)).await.unwrap();
        if answer.status() != 101 {
            return (answer, None);
        }
        assert_eq!(answer.headers()["upgrade"], protocol);
        let upgraded = within(hyper::upgrade::on(&mut answer)).await.unwrap();
        (answer, Some(TokioIo::new(upgraded)))
    }

    /// Opens a WebSocket, as SlicerVM's clients do, extensions offered.
    pub(crate) async fn websocket(
        &self,
        target: &str,
        headers: &[(&str, &str)],
    ) -> WebSocketStream<TokioIo<Upgraded>> {
        // The key and its answer of RFC 6455, 1.3.
        let mut all = vec![
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
            (
                "sec-websocket-extensions",
                "permessage-deflate; client_max_window_bits",
            ),
        ];
        all.extend(headers);
        let (answer, io) = self.upgrade(target, "websocket", &all).await;
        let Some(io) = io else {
            panic!("{}: {}", answer.status(), body_json(answer).await);
        };
        let headers = answer.headers();
        assert_eq!(
            headers["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert!(!headers.contains_key("sec-websocket-extensions"));
        assert!(!headers.contains_key("sec-websocket-protocol"));
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }

    /// Sends a request with a whole body.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "agent")
            .body(Full::new(body.into()))
            .unwrap();
        self.request(request).await
    }

    /// Sends a request with headers and a whole body.
    pub(crate) async fn send_with(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "agent");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.request(request.body(Full::new(body.into())).unwrap())
            .await
    }

    /// Sends the first part of a body that is said to be longer, and leaves.
    pub(crate) async fn leave_in_the_middle(&self, target: &str, length: usize, part: &[u8]) {
        let mut stream = within(self.mux.open()).await.unwrap();
        let head =
            format!("POST {target} HTTP/1.1\r\nhost: agent\r\ncontent-length: {length}\r\n\r\n");
        within(stream.write_all(head.as_bytes())).await.unwrap();
        within(stream.write_all(part)).await.unwrap();
        within(stream.flush()).await.unwrap();
        // What was sent is there before the stream ends.
        tokio::time::sleep(Duration::from_millis(100)).await;
        within(stream.shutdown()).await.unwrap();
    }

    /// Sends bytes and nothing more; gives back all that comes until the agent closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = within(self.mux.open()).await.unwrap();
        within(stream.write_all(bytes)).await.unwrap();
        within(stream.shutdown()).await.unwrap();
        let mut answer = Vec::new();
        within(stream.read_to_end(&mut answer)).await.unwrap();
        answer
    }

    /// Sends an exec whose stdin stays open until the sender is dropped.
    pub(crate) async fn upload(&self, query: &str) -> (Upload, Response<Incoming>) {
        let (upload, pieces) = mpsc::unbounded_channel();
        let pieces = futures_util::stream::unfold(pieces, |mut p| async {
            p.recv().await.map(|piece| (piece, p))
        });
        let body = StreamBody::new(pieces.map(|p| Ok::<_, std::io::Error>(Frame::data(p))));
        let request = Request::builder()
            .method("POST")
            .uri(format!("/exec?stdin=true&{query}"))
            .header("host", "agent")
            .body(BodyExt::boxed_unsync(body))
            .unwrap();
        (upload, self.request(request).await)
    }

    /// Runs a command as whoever runs the tests and returns its frames.
    pub(crate) async fn exec(&self, query: &str) -> Vec<Value> {
        let answer = self.send("POST", &exec_target(query), "").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
        Lines::new(answer).all().await
    }

    /// Runs a buffered command as whoever runs the tests and returns its answer.
    pub(crate) async fn exec_buffered(&self, query: &str) -> Value {
        let target = exec_target(&format!("buffered=true&{query}"));
        let answer = self.send("POST", &target, "").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/json");
        body_json(answer).await
    }
}

/// The target of an exec as whoever runs the tests, which an agent that isn't root can do, too.
pub(crate) fn exec_target(query: &str) -> String {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    format!("/exec?uid={}&gid={}&{query}", uid.as_raw(), gid.as_raw())
}

/// Fails what takes too long.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("it takes too long")
}

/// A whole JSON body.
pub(crate) async fn body_json(answer: Response<Incoming>) -> Value {
    let bytes = within(answer.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

/// The lines of an NDJSON body as they come.
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// Reads this answer's body.
    pub(crate) fn new(answer: Response<Incoming>) -> Self {
        Self {
            body: answer.into_body(),
            buffer: Vec::new(),
        }
    }

    /// The next line; `None` when the body has ended well.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let Some(frame) = within(self.body.frame()).await else {
                assert!(self.buffer.is_empty(), "half a line at the end");
                return None;
            };
            if let Ok(data) = frame.unwrap().into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// All lines to come.
    pub(crate) async fn all(mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Some(line) = self.next().await {
            lines.push(line);
        }
        lines
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !so() {
        assert!(start.elapsed() < LIMIT, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process is there and not only waited for.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}
