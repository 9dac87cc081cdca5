//! Follows a running command: its output out, the client's input in, until it is over or its
//! client has left.

use super::encode::{self, Encoder};
use super::spawn::Process;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::Timestamp;
use slicer_api::{ExecBuffered, ExecFrame, FrameType, Stdio};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Bytes of output in one frame.
const READ_SIZE: usize = 32 << 10;
/// How long output is waited for when the command is over and somebody else has its pipes.
const PIPE_GRACE: Duration = Duration::from_secs(2);
/// Bytes read from each pipe after that, if they are there: more than a pipe holds, so that what
/// the command itself wrote is never lost, and not without end.
const LAST_BYTES: usize = 1 << 20;
/// Bytes of output a buffered exec may have.
const BUFFER_LIMIT: usize = 256 << 20;

/// Which of its pipes a command wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

/// How a command ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// Its exit code, or 128 and the signal's number.
    pub(super) exit_code: i32,
    /// The signal's name, such as `TERM`.
    pub(super) signal: Option<String>,
    /// Why it could not be followed to its end.
    pub(super) error: Option<String>,
}

/// Why a sink takes no more.
#[derive(Debug)]
pub(super) enum Refused {
    /// The client has left.
    Left,
    /// There is too much; the text says how much would have been right.
    Full(String),
}

/// Where output goes. Taking it in may wait, which is what holds back a command whose client
/// reads slowly.
pub(super) trait Sink {
    /// Takes what the command wrote.
    async fn take(&mut self, source: Source, bytes: Bytes) -> Result<(), Refused>;

    /// Returns when the client has left.
    async fn left(&self);
}

/// Follows a command to its end. `None` when its client left first; then it has been killed.
pub(super) async fn follow(
    mut process: Process,
    stdin: Option<Incoming>,
    sink: &mut impl Sink,
) -> Option<End> {
    let mut stdout = Pipe::new(process.stdout.take());
    let mut stderr = Pipe::new(process.stderr.take());
    let upload_broke = Arc::new(Notify::new());
    let pump = stdin.zip(process.stdin.take()).map(|(body, to)| {
        let task = tokio::spawn(pump(body, to, Arc::clone(&upload_broke)));
        AbortOnDrop(task.abort_handle())
    });
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut error = None;
    while ended.is_none() || stdout.is_open() || stderr.is_open() {
        let deadline = ended.map(|(_, at)| at + PIPE_GRACE);
        let (source, bytes) = tokio::select! {
            () = sink.left() => {
                drop((stdout, stderr));
                process.abandon().await;
                return None;
            }
            () = upload_broke.notified() => {
                drop((stdout, stderr));
                process.abandon().await;
                return None;
            }
            bytes = stdout.read(), if stdout.is_open() => (Source::Stdout, bytes),
            bytes = stderr.read(), if stderr.is_open() => (Source::Stderr, bytes),
            status = process.child.wait(), if ended.is_none() => {
                match status {
                    Ok(status) => ended = Some((status, Instant::now())),
                    Err(e) => {
                        error = Some(format!("wait for process {}: {e}", process.pid()));
                        break;
                    }
                }
                continue;
            }
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)),
                if deadline.is_some() =>
            {
                for (source, pipe) in [(Source::Stdout, stdout.rest()), (Source::Stderr, stderr.rest())] {
                    for bytes in pipe {
                        if sink.take(source, bytes).await.is_err() {
                            break;
                        }
                    }
                }
                break;
            }
        };
        match sink.take(source, bytes).await {
            Ok(()) => {}
            Err(Refused::Left) => {
                drop((stdout, stderr));
                process.abandon().await;
                return None;
            }
            Err(Refused::Full(why)) => {
                error = Some(why);
                process.kill();
                stdout.close();
                stderr.close();
            }
        }
    }
    drop(pump);
    let mut end = ended
        .map(|(status, _)| End::from(status))
        .unwrap_or_default();
    if error.is_some() {
        end.exit_code = if end.exit_code == 0 { 1 } else { end.exit_code };
        end.error = error;
    }
    Some(end)
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(exit_code), _) => Self {
                exit_code,
                ..Self::default()
            },
            (None, signal) => {
                let signal = signal.unwrap_or_default();
                Self {
                    exit_code: 128 + signal,
                    signal: Some(signal_name(signal)),
                    error: None,
                }
            }
        }
    }
}

/// The short name of a signal; numbers are the same on all our architectures, see signal(7).
fn signal_name(number: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    usize::try_from(number)
        .ok()
        .and_then(|n| NAMES.get(n.checked_sub(1)?))
        .map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// The agent's end of an output pipe.
struct Pipe<R> {
    reader: Option<R>,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Pipe<R> {
    fn new(reader: Option<R>) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.reader.is_some()
    }

    fn close(&mut self) {
        self.reader = None;
    }

    /// What is there, up to a frame's worth; empty when it has just ended. Cancelling it loses
    /// nothing.
    async fn read(&mut self) -> Bytes {
        if let Some(reader) = &mut self.reader {
            // A buffer is shared by many small reads before a new one is made, or a command that
            // writes byte by byte would have each of them kept in a page of its own.
            if self.buffer.capacity() < READ_SIZE / 8 {
                self.buffer.reserve(READ_SIZE);
            }
            let read = reader
                .take(READ_SIZE as u64)
                .read_buf(&mut self.buffer)
                .await;
            if !matches!(read, Ok(1..)) {
                self.reader = None;
            }
        }
        self.buffer.split().freeze()
    }

    /// What is there without waiting, within bounds.
    fn rest(&mut self) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut total = 0;
        while self.is_open() && total < LAST_BYTES {
            match self.read().now_or_never() {
                Some(bytes) => {
                    total += bytes.len();
                    pieces.push(bytes);
                }
                None => break,
            }
        }
        pieces
    }
}

/// Ends a task with the one it works for.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Feeds the request's body to the command. When the command takes no more, the rest is read all
/// the same: its sender may want to see the output before it stops sending, and when it leaves we
/// want to know.
async fn pump(mut body: Incoming, to: ChildStdin, broke: Arc<Notify>) {
    let mut to = Some(to);
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(bytes)) => {
                if let Some(pipe) = &mut to
                    && pipe.write_all(&bytes).await.is_err()
                {
                    to = None;
                }
            }
            // Trailers mean nothing here.
            Ok(Err(_)) => {}
            Err(_) => {
                broke.notify_one();
                return;
            }
        }
    }
}

/// Sends output as NDJSON frames, as it comes.
pub(super) struct Frames {
    stdio: Stdio,
    stdout: Encoder,
    stderr: Encoder,
    pieces: mpsc::Sender<Bytes>,
}

impl Frames {
    /// Frames of this form, sent as pieces of a body.
    pub(super) fn new(stdio: Stdio, pieces: mpsc::Sender<Bytes>) -> Self {
        Self {
            stdio,
            stdout: Encoder::new(stdio),
            stderr: Encoder::new(stdio),
            pieces,
        }
    }

    /// Sends a frame.
    pub(super) async fn send(&self, frame: &ExecFrame) -> Result<(), Refused> {
        let piece = encode::line(frame);
        self.pieces.send(piece).await.map_err(|_| Refused::Left)
    }

    async fn send_text(&self, source: Source, text: String) -> Result<(), Refused> {
        if text.is_empty() {
            return Ok(());
        }
        let (kind, stdout, stderr) = match source {
            Source::Stdout => (FrameType::Stdout, Some(text), None),
            Source::Stderr => (FrameType::Stderr, None, Some(text)),
        };
        self.send(&ExecFrame {
            stdout,
            stderr,
            ..ExecFrame::new(kind, Timestamp::now())
        })
        .await
    }

    async fn send_base64(&self, source: Source, bytes: &[u8]) -> Result<(), Refused> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (kind, key) = match source {
            Source::Stdout => (FrameType::Stdout, "stdout"),
            Source::Stderr => (FrameType::Stderr, "stderr"),
        };
        let frame = ExecFrame {
            encoding: Some(Stdio::Base64),
            ..ExecFrame::new(kind, Timestamp::now())
        };
        let piece = encode::base64_line(&frame, key, bytes);
        self.pieces.send(piece).await.map_err(|_| Refused::Left)
    }

    /// Sends what was held back.
    pub(super) async fn finish(&mut self) -> Result<(), Refused> {
        let text = self.stdout.finish();
        self.send_text(Source::Stdout, text).await?;
        let text = self.stderr.finish();
        self.send_text(Source::Stderr, text).await
    }
}

impl Sink for Frames {
    async fn take(&mut self, source: Source, bytes: Bytes) -> Result<(), Refused> {
        if self.stdio == Stdio::Base64 {
            return self.send_base64(source, &bytes).await;
        }
        let text = match source {
            Source::Stdout => self.stdout.push(&bytes),
            Source::Stderr => self.stderr.push(&bytes),
        };
        self.send_text(source, text).await
    }

    async fn left(&self) {
        self.pieces.closed().await;
    }
}

/// Keeps all output, then sends it as one JSON object.
pub(super) struct Buffer {
    stdout: Vec<Bytes>,
    stderr: Vec<Bytes>,
    total: usize,
    pieces: mpsc::Sender<Bytes>,
}

impl Buffer {
    /// An empty buffer whose content will be sent as pieces of a body.
    pub(super) fn new(pieces: mpsc::Sender<Bytes>) -> Self {
        Self {
            stdout: Vec::new(),
            stderr: Vec::new(),
            total: 0,
            pieces,
        }
    }

    /// Sends the object: `rest`, with the output in its empty `stdout` and `stderr`. It is made
    /// piece by piece, since a guest may not have the memory for several copies of the output.
    pub(super) async fn send(self, stdio: Stdio, rest: &ExecBuffered) -> Result<(), Refused> {
        let mut json = Vec::with_capacity(512);
        for (key, output) in [
            ("{\"stdout\":\"", self.stdout),
            (",\"stderr\":\"", self.stderr),
        ] {
            json.extend_from_slice(key.as_bytes());
            let mut encoder = Encoder::joined(stdio);
            for bytes in output {
                push_escaped(&mut json, &encoder.push(&bytes));
                if json.len() >= READ_SIZE {
                    let piece = Bytes::from(std::mem::take(&mut json));
                    self.pieces.send(piece).await.map_err(|_| Refused::Left)?;
                }
            }
            push_escaped(&mut json, &encoder.finish());
            json.push(b'"');
        }
        // The remaining members, which follow the two empty ones.
        let rest = serde_json::to_vec(rest).unwrap_or_default();
        let members = rest.strip_prefix(br#"{"stdout":"","stderr":"""#.as_slice());
        json.extend_from_slice(members.unwrap_or(b"}"));
        self.pieces
            .send(json.into())
            .await
            .map_err(|_| Refused::Left)
    }
}

/// Appends the inside of a JSON string.
fn push_escaped(json: &mut Vec<u8>, text: &str) {
    let start = json.len();
    // Writing a string into a vector can't fail.
    if serde_json::to_writer(&mut *json, text).is_ok() {
        json.remove(start);
        json.pop();
    }
}

impl Sink for Buffer {
    async fn take(&mut self, source: Source, bytes: Bytes) -> Result<(), Refused> {
        self.total += bytes.len();
        if self.total > BUFFER_LIMIT {
            return Err(Refused::Full(format!(
                "the output is larger than {} MiB: use a streaming exec",
                BUFFER_LIMIT >> 20
            )));
        }
        if !bytes.is_empty() {
            match source {
                Source::Stdout => self.stdout.push(bytes),
                Source::Stderr => self.stderr.push(bytes),
            }
        }
        Ok(())
    }

    async fn left(&self) {
        self.pieces.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_a_shell_tells_them() {
        assert_eq!(End::from(ExitStatus::from_raw(3 << 8)).exit_code, 3);
        let killed = End::from(ExitStatus::from_raw(15));
        assert_eq!(
            (killed.exit_code, killed.signal.as_deref()),
            (143, Some("TERM"))
        );
        let killed = End::from(ExitStatus::from_raw(34));
        assert_eq!(
            (killed.exit_code, killed.signal.as_deref()),
            (162, Some("34"))
        );
    }

    #[tokio::test]
    async fn the_object_is_that_of_the_api_in_any_number_of_pieces() {
        for stdio in [Stdio::Text, Stdio::Base64] {
            let (sender, mut receiver) = mpsc::channel(64);
            let mut buffer = Buffer::new(sender);
            let text = "a\"\\\n€".repeat(10_000);
            for chunk in text.as_bytes().chunks(1001) {
                buffer
                    .take(Source::Stdout, Bytes::copy_from_slice(chunk))
                    .await
                    .unwrap();
            }
            buffer
                .take(Source::Stderr, Bytes::from_static(b"e\xff"))
                .await
                .unwrap();
            let rest = ExecBuffered {
                pid: Some(7),
                exit_code: 3,
                encoding: (stdio == Stdio::Base64).then_some(stdio),
                ..ExecBuffered::default()
            };
            buffer.send(stdio, &rest).await.unwrap();
            let mut json = Vec::new();
            while let Some(piece) = receiver.recv().await {
                json.extend_from_slice(&piece);
            }
            let parsed: ExecBuffered = serde_json::from_slice(&json).unwrap();
            let mut encoder = Encoder::joined(stdio);
            let expected = encoder.push(text.as_bytes()) + &encoder.finish();
            assert_eq!(parsed.stdout, expected);
            assert_eq!(
                parsed.stderr,
                if stdio == Stdio::Text {
                    "e\u{fffd}"
                } else {
                    "Zf8="
                }
            );
            assert_eq!((parsed.pid, parsed.exit_code), (Some(7), 3));
        }
    }
}
