//! `GET /fs/watch`: changes of files as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! All queues are bounded: the kernel's, that of changes held back, and the answer's. When one is
//! full the client is told by an `overflow` event, after which it has to look for itself.

mod pending;
mod tree;

use crate::fs::{absolute, failed};
use crate::http::{self, AgentBody, Answer};
use crate::server::Agent;
use crate::sys;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use pending::Pending;
use slicer_api::{AUTO_ID, ApiError, Timestamp, WatchEvent, WatchKind, WatchRequest};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tree::{Change, Tree};

/// After this long without an event a comment is sent, so that both ends know of each other.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The longest times that are taken as they are.
const MAX_DEBOUNCE: Duration = Duration::from_mins(10);
const MAX_TIMEOUT: Duration = Duration::from_hours(24 * 365);
/// Events that are sent as one piece.
const EVENTS: usize = 64;

/// Answers a watch. The head is sent when everything is watched.
pub(crate) async fn handle(agent: &Agent, request: Request<Incoming>) -> Answer {
    let answered = answer(agent, &request).await;
    answered.unwrap_or_else(|e| http::error(&e))
}

async fn answer(agent: &Agent, request: &Request<Incoming>) -> Result<Answer, ApiError> {
    agent.check_ready()?;
    let asked = WatchRequest::from_query(request.uri().query().unwrap_or_default())
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    if let Some(id) = request.headers().get("last-event-id") {
        // Nothing is replayed, but what can't be an id is a mistake.
        let number = id.to_str().ok().and_then(|id| id.parse::<u64>().ok());
        number.ok_or_else(|| ApiError::bad_request("invalid Last-Event-ID: expected a number"))?;
    }
    let home = home(agent, asked.uid)?;
    let roots = asked.paths.iter().map(|path| {
        // Without a slash at the end, so that names can be put behind it.
        absolute(path, &home).map(|path| path.components().collect())
    });
    let roots: Vec<PathBuf> = roots.collect::<Result<_, _>>()?;
    let recursive = asked.recursive;
    let armed = spawn_blocking(move || Tree::new(roots, recursive)).await;
    let tree = armed
        .map_err(|_| ApiError::internal("watching failed"))?
        .map_err(|(path, e)| cannot_watch(&path, &e))?;
    let (pieces, receiver) = mpsc::channel(1);
    let stream = Stream {
        pending: Pending::new(asked.debounce.min(MAX_DEBOUNCE)),
        left: if asked.one_shot {
            1
        } else {
            asked.max_events.unwrap_or(u64::MAX)
        },
        asked,
        tree: Some(tree),
        lost: None,
        next_id: 1,
        pieces,
    };
    agent.tasks.spawn(async move {
        // The client sees the end of the stream, whatever its cause.
        let _ = stream.run().await;
    });
    let mut answer = http::answer("text/event-stream", AgentBody::Stream(receiver));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(answer)
}

fn cannot_watch(path: &std::path::Path, e: &io::Error) -> ApiError {
    match e.raw_os_error() {
        // Of instances and of watches, see inotify(7).
        Some(libc::EMFILE | libc::ENFILE | libc::ENOSPC) => ApiError::unavailable(format!(
            "cannot watch {}: too much is watched already; watch less, or raise \
             fs.inotify.max_user_watches and fs.inotify.max_user_instances in the VM",
            path.display()
        )),
        _ => failed("watch", path, e),
    }
}

fn home(agent: &Agent, uid: u32) -> Result<PathBuf, ApiError> {
    let users = agent.users.get();
    let own = rustix::process::geteuid();
    let user = match uid {
        AUTO_ID if own.is_root() => users.default_user(),
        AUTO_ID => users.by_uid(own.as_raw()),
        uid => users.by_uid(uid),
    };
    user.map(|u| PathBuf::from(&u.home))
        .ok_or_else(|| ApiError::bad_request(format!("invalid uid {uid}: no such user")))
}

struct Stream {
    asked: WatchRequest,
    /// Away while it does file work on another thread.
    tree: Option<Tree>,
    pending: Pending,
    /// Why events were lost, until that is told.
    lost: Option<String>,
    next_id: u64,
    /// How many more events there may be.
    left: u64,
    pieces: mpsc::Sender<bytes::Bytes>,
}

impl Stream {
    /// Sends events until the client has left or has all it wanted, or nothing is left to watch.
    async fn run(mut self) -> io::Result<()> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        let events = sys::watch(tree.events(), Interest::READABLE)?;
        let end = self.asked.timeout.unwrap_or(MAX_TIMEOUT).min(MAX_TIMEOUT);
        let end = Instant::now() + end;
        let mut heartbeat = Instant::now() + HEARTBEAT;
        while self.left > 0 {
            let due = self.pending.due();
            let watching = self.tree.as_ref().is_some_and(|t| !t.is_empty());
            if due.is_none() && !watching {
                break;
            }
            tokio::select! {
                () = self.pieces.closed() => break,
                () = sleep_until(end) => break,
                guard = events.readable() => {
                    let mut guard = guard?;
                    if self.read().await? {
                        guard.clear_ready();
                    }
                }
                () = sleep_until(due.unwrap_or(end)), if due.is_some() => {
                    if self.send_due().await? {
                        heartbeat = Instant::now() + HEARTBEAT;
                    }
                }
                () = sleep_until(heartbeat) => {
                    self.send(b":\n\n".to_vec()).await?;
                    heartbeat = Instant::now() + HEARTBEAT;
                }
            }
        }
        Ok(())
    }

    async fn send(&self, piece: Vec<u8>) -> io::Result<()> {
        let sent = self.pieces.send(piece.into()).await;
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Reads what happened; whether that was all.
    async fn read(&mut self) -> io::Result<bool> {
        let Some(mut tree) = self.tree.take() else {
            return Ok(true);
        };
        let read = spawn_blocking(move || (tree.read(), tree)).await;
        let (batch, tree) = read.map_err(io::Error::other)?;
        let batch = batch?;
        let now = Instant::now();
        let mut lost = batch.lost;
        for change in batch.changes {
            // Held back only if wanted, so that others can't take its place.
            let wanted = self
                .asked
                .wants(change.kind, change.path.as_os_str().as_bytes());
            if wanted && !self.pending.push(now, change) {
                lost = Some("too much happened at once: look at everything again".to_owned());
                break;
            }
        }
        if lost.is_some() {
            self.lost = lost;
            self.pending.lose(now, tree.root());
        }
        self.tree = Some(tree);
        Ok(batch.drained)
    }

    /// Sends what has waited long enough; whether there was any.
    async fn send_due(&mut self) -> io::Result<bool> {
        let limit = usize::try_from(self.left).unwrap_or(EVENTS).min(EVENTS);
        let changes = self.pending.take(Instant::now(), limit);
        let looked = spawn_blocking(move || changes.into_iter().filter_map(look).collect()).await;
        let looked: Vec<(Change, u64)> = looked.map_err(io::Error::other)?;
        let mut piece = String::new();
        for (change, size) in looked {
            let event = WatchEvent {
                id: self.next_id,
                kind: change.kind,
                path: change.path.to_string_lossy().into_owned(),
                timestamp: Timestamp::now(),
                size,
                is_dir: change.is_dir,
                message: (change.kind == WatchKind::Overflow)
                    .then(|| self.lost.take())
                    .flatten(),
            };
            let data = serde_json::to_string(&event)?;
            // Writing to a string can't fail.
            let _ = write!(piece, "id: {}\nevent: watch\ndata: {data}\n\n", event.id);
            self.next_id += 1;
            self.left -= 1;
        }
        let any = !piece.is_empty();
        if any {
            self.send(piece.into_bytes()).await?;
        }
        Ok(any)
    }
}

/// The size of what changed now. A removal changes the attributes of what is removed first, of
/// which nobody wants to know.
fn look(change: Change) -> Option<(Change, u64)> {
    match change.kind {
        WatchKind::Remove | WatchKind::Rename | WatchKind::Overflow => Some((change, 0)),
        kind => match fs::symlink_metadata(&change.path) {
            Ok(meta) => Some((change, meta.len())),
            Err(_) if kind == WatchKind::Chmod => None,
            Err(_) => Some((change, 0)),
        },
    }
}
