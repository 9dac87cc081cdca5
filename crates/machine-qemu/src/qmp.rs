//! QMP, QEMU's machine protocol: one JSON object a line
//! (<https://www.qemu.org/docs/master/interop/qmp-spec.html>).

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Longest line QEMU may send.
const MAX_LINE: u64 = 4 << 20;

/// What QEMU tells unasked.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "event")]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) data: Value,
}

/// Why a command failed.
#[derive(Debug, Clone)]
pub(crate) enum QmpError {
    /// QEMU said no, in these words.
    Refused(String),
    /// The connection is gone.
    Gone,
}

type Reply = oneshot::Sender<Result<Value, QmpError>>;
type Pending = Arc<Mutex<HashMap<u64, Reply>>>;

/// A connected monitor.
pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<(OwnedWriteHalf, u64)>,
    pending: Pending,
}

/// Reads the monitor until it ends. Whoever connected owns this task.
pub(crate) struct Reader {
    lines: BufReader<OwnedReadHalf>,
    pending: Pending,
    events: mpsc::Sender<Event>,
}

impl Qmp {
    /// Reads the greeting and leaves negotiation mode.
    pub(crate) async fn connect(
        stream: UnixStream,
        events: mpsc::Sender<Event>,
    ) -> io::Result<(Self, Reader)> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read);
        let greeting = read_line(&mut lines).await?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other("QEMU's monitor sent no greeting"));
        }
        write
            .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
            .await?;
        let pending = Pending::default();
        let writer = tokio::sync::Mutex::new((write, 0));
        Ok((
            Self {
                writer,
                pending: pending.clone(),
            },
            Reader {
                lines,
                pending,
                events,
            },
        ))
    }

    /// Runs a command and waits for its outcome, which the caller bounds. A descriptor is handed over
    /// with it, where one is given: `getfd` wants one.
    pub(crate) async fn execute(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let (tx, rx) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            writer.1 += 1;
            let id = writer.1;
            lock(&self.pending).insert(id, tx);
            let mut line = json!({ "execute": command, "id": id });
            if !arguments.is_null() {
                line["arguments"] = arguments;
            }
            let line = format!("{line}\n");
            let sent = match fd {
                Some(fd) => send_with(writer.0.as_ref(), line.as_bytes(), fd).await,
                None => Ok(0),
            };
            let sent = match sent {
                Ok(n) => writer.0.write_all(&line.as_bytes()[n..]).await,
                Err(e) => Err(e),
            };
            if sent.is_err() {
                lock(&self.pending).remove(&id);
                return Err(QmpError::Gone);
            }
        }
        rx.await.unwrap_or(Err(QmpError::Gone))
    }
}

impl Reader {
    /// Hands out replies and events until the monitor ends; then fails what still waits.
    pub(crate) async fn run(mut self) {
        while let Ok(message) = read_line(&mut self.lines).await {
            if message.get("event").is_some() {
                if let Ok(event) = serde_json::from_value(message) {
                    // The receiver's task may have ended before this one.
                    drop(self.events.send(event).await);
                }
                continue;
            }
            let Some(id) = message.get("id").and_then(Value::as_u64) else {
                continue;
            };
            let Some(reply) = lock(&self.pending).remove(&id) else {
                continue;
            };
            let outcome = match message.get("error") {
                Some(error) => {
                    let text = error.get("desc").and_then(Value::as_str);
                    Err(QmpError::Refused(
                        text.unwrap_or("unknown error").to_owned(),
                    ))
                }
                None => Ok(message.get("return").cloned().unwrap_or_default()),
            };
            drop(reply.send(outcome));
        }
        lock(&self.pending).clear();
    }
}

/// Sends the begin of `line` and a descriptor with it; returns how much of the line went.
async fn send_with(stream: &UnixStream, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let sent = sendmsg(
            stream,
            &[IoSlice::new(line)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        Ok(sent?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}

fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, HashMap<u64, Reply>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_line(lines: &mut BufReader<OwnedReadHalf>) -> io::Result<Value> {
    let mut line = Vec::new();
    let n = lines.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_find_their_commands_and_events_pass() {
        let (near, far) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            let (r, mut w) = far.into_split();
            let mut lines = BufReader::new(r);
            w.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            read_line(&mut lines).await.unwrap();
            let a = read_line(&mut lines).await.unwrap();
            let b = read_line(&mut lines).await.unwrap();
            assert_eq!(a["execute"], "stop");
            let text = format!(
                "{{\"return\":{{}}}}\n{{\"event\":\"STOP\"}}\n\
                 {{\"id\":{},\"error\":{{\"desc\":\"no such\"}}}}\n{{\"id\":{},\"return\":7}}\n",
                b["id"], a["id"]
            );
            w.write_all(text.as_bytes()).await.unwrap();
            // The third command is never answered: the monitor ends.
            read_line(&mut lines).await.unwrap();
        });
        let (tx, mut events) = mpsc::channel(4);
        let (qmp, reader) = Qmp::connect(near, tx).await.unwrap();
        let reader = tokio::spawn(reader.run());
        let (a, b) = tokio::join!(
            qmp.execute("stop", Value::Null, None),
            qmp.execute("bogus", json!({ "x": 1 }), None),
        );
        assert_eq!(a.unwrap(), 7);
        assert!(matches!(b, Err(QmpError::Refused(t)) if t == "no such"));
        assert_eq!(events.recv().await.unwrap().name, "STOP");
        assert!(matches!(
            qmp.execute("cont", Value::Null, None).await,
            Err(QmpError::Gone)
        ));
        server.await.unwrap();
        reader.await.unwrap();
    }
}
