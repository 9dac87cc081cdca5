//! Background exec: commands that go on without their client.
//!
//! Nothing a reader does holds a command back: its output goes into a ring, from which any number
//! of readers take what is still there.

mod endpoints;

pub(crate) use endpoints::handle;

use super::encode::{self, Encoder};
use super::follow::{self, End, Refused, Sink, Source};
use super::ring::{Cursor, Frame, Gap, Ring};
use super::spawn::{self, Process};
use crate::http::{self, Answer};
use crate::server::Agent;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use jiff::Timestamp;
use rustix::process::{Pid, Signal};
use slicer_api::{
    ApiError, BackgroundExec, DEFAULT_RING, ExecFrame, ExecInfo, ExecRequest, FrameType, LogFrame,
    RING_BUDGET, Stdio,
};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many there may be, running or not removed yet: each has its words besides its ring.
const MAX_EXECS: usize = 1024;
/// How many removed ids are remembered as such.
const MAX_TOMBSTONES: usize = 10_000;
/// About how much of a log is made at once.
const PIECE_SIZE: usize = 32 << 10;
/// Between two looks whether a killed group is gone.
const GROUP_POLL: Duration = Duration::from_millis(50);

const PREFIX: &str = "ex_";

/// All background execs.
#[derive(Default)]
pub(crate) struct Registry {
    table: Mutex<Table>,
    closing: CancellationToken,
}

#[derive(Default)]
struct Table {
    execs: HashMap<u64, Arc<Exec>>,
    reaped: HashSet<u64>,
    reaped_order: VecDeque<u64>,
}

impl Registry {
    /// Ends all of them, as the agent does.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, text: &str) -> Result<Arc<Exec>, ApiError> {
        let unknown = || ApiError::not_found(format!("no background exec {text:.40?}"));
        let id = parse_id(text).ok_or_else(unknown)?;
        let table = self.table();
        match table.execs.get(&id) {
            Some(exec) => Ok(Arc::clone(exec)),
            None if table.reaped.contains(&id) => {
                Err(ApiError::gone(format!("exec {text} was removed")))
            }
            None => Err(unknown()),
        }
    }

    /// Whether there is room for another one with a ring of this size.
    fn check_room(&self, ring_bytes: u64) -> Result<(), ApiError> {
        let table = self.table();
        if table.execs.len() >= MAX_EXECS {
            return Err(ApiError::unavailable(format!(
                "{MAX_EXECS} background execs are there already: remove some that have ended"
            )));
        }
        let taken: u64 = table.execs.values().map(|e| e.ring_bytes).sum();
        if ring_bytes > RING_BUDGET - taken.min(RING_BUDGET) {
            return Err(ApiError::unavailable(format!(
                "a ring of {ring_bytes} bytes does not fit: {taken} of the {RING_BUDGET} bytes for \
                 all background execs are taken; ask for less, or remove some that have ended"
            )));
        }
        Ok(())
    }

    fn list(&self) -> Vec<Arc<Exec>> {
        let mut execs: Vec<_> = self.table().execs.values().cloned().collect();
        execs.sort_by_key(|e| (e.started_at, e.id));
        execs
    }

    fn reap(&self, exec: &Exec) {
        let mut table = self.table();
        if table.execs.remove(&exec.id).is_some() && table.reaped.insert(exec.id) {
            table.reaped_order.push_back(exec.id);
            if table.reaped_order.len() > MAX_TOMBSTONES
                && let Some(oldest) = table.reaped_order.pop_front()
            {
                table.reaped.remove(&oldest);
            }
        }
        // Readers that still hold it must not hold its output.
        exec.log().ring.clear();
    }
}

fn parse_id(text: &str) -> Option<u64> {
    let digits = text.strip_prefix(PREFIX)?;
    let plain = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok())?
}

fn new_id() -> Result<u64, ApiError> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| ApiError::internal(format!("cannot make an exec id: {e}")))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// One of them.
struct Exec {
    id: u64,
    pid: Pid,
    command: String,
    args: Vec<String>,
    cwd: String,
    uid: u32,
    started_at: Timestamp,
    stdio: Stdio,
    ring_bytes: u64,
    log: Mutex<Log>,
    /// Told whenever the log has changed.
    changed: watch::Sender<()>,
    /// When its group is killed if it doesn't end before.
    kill_at: watch::Sender<Option<Instant>>,
}

struct Log {
    ring: Ring,
    /// Set together with the exit frame.
    end: Option<(Timestamp, End)>,
}

impl Exec {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        format!("{PREFIX}{:016x}", self.id)
    }

    fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn running(&self) -> bool {
        self.log().end.is_none()
    }

    fn info(&self) -> ExecInfo {
        let log = self.log();
        let end = log.end.as_ref();
        ExecInfo {
            exec_id: self.name(),
            pid: self.pid(),
            command: self.command.clone(),
            args: self.args.clone(),
            cwd: self.cwd.clone(),
            uid: self.uid,
            started_at: self.started_at,
            running: end.is_none(),
            exit_code: end.map(|(_, end)| end.exit_code),
            ended_at: end.map(|(at, _)| *at),
            signal: end.and_then(|(_, end)| end.signal.clone()),
            error: end.and_then(|(_, end)| end.error.clone()),
            bytes_written: log.ring.written(),
            bytes_dropped: log.ring.dropped(),
            next_id: log.ring.next_id(),
            ring_bytes: self.ring_bytes,
        }
    }

    fn push(&self, kind: FrameType, mut payload: &[u8]) {
        let mut log = self.log();
        let limit = log.ring.payload_limit();
        let now = Timestamp::now();
        while !payload.is_empty() {
            let mut len = payload.len().min(limit);
            if self.stdio == Stdio::Text {
                len = whole_characters(payload, len);
            }
            let (now_out, later) = payload.split_at(len);
            log.ring.push(kind, now, now_out);
            payload = later;
        }
        drop(log);
        self.changed.send_replace(());
    }

    fn finish(&self, end: End) {
        let mut log = self.log();
        let now = Timestamp::now();
        log.ring.push(FrameType::Exit, now, &[]);
        log.ring.shrink();
        log.end = Some((now, end));
        drop(log);
        self.changed.send_replace(());
    }

    /// A frame as it is told.
    fn frame(&self, frame: &Frame, end: Option<&(Timestamp, End)>) -> LogFrame {
        let mut told = ExecFrame::new(frame.kind, frame.timestamp);
        let mut data = None;
        match frame.kind {
            FrameType::Started => {
                told.pid = Some(self.pid());
                told.started_at = Some(self.started_at);
            }
            FrameType::Exit => {
                told.pid = Some(self.pid());
                if let Some((at, end)) = end {
                    told.ended_at = Some(*at);
                    told.exit_code = end.exit_code;
                    told.signal.clone_from(&end.signal);
                    told.error.clone_from(&end.error);
                }
            }
            FrameType::Stdout | FrameType::Stderr | FrameType::Gap => {
                let text = match self.stdio {
                    Stdio::Text => String::from_utf8_lossy(&frame.payload).into_owned(),
                    Stdio::Base64 => STANDARD.encode(&frame.payload),
                };
                told.encoding = (self.stdio == Stdio::Base64).then_some(Stdio::Base64);
                if frame.kind == FrameType::Stdout {
                    told.stdout = Some(text.clone());
                } else {
                    told.stderr = Some(text.clone());
                }
                data = Some(text);
            }
        }
        LogFrame {
            id: frame.id,
            frame: told,
            data,
            dropped_frames: None,
            dropped_bytes: None,
            message: None,
        }
    }

    /// The next lines of the log, as many as make a piece; and whether the exit frame was among
    /// them, or there will never be any for this reader.
    fn lines(&self, cursor: &mut Cursor) -> (Vec<u8>, bool) {
        let log = self.log();
        let mut lines = Vec::new();
        if let Some(gap) = log.ring.gap(cursor) {
            lines.extend_from_slice(&encode::line(&gap_frame(gap)));
        }
        let mut over = false;
        while lines.len() < PIECE_SIZE {
            let Some(frame) = log.ring.read(cursor) else {
                over = log.end.is_some();
                break;
            };
            over = frame.kind == FrameType::Exit;
            lines.extend_from_slice(&encode::line(&self.frame(&frame, log.end.as_ref())));
        }
        (lines, over)
    }
}

fn gap_frame(gap: Gap) -> LogFrame {
    LogFrame {
        id: gap.id,
        frame: ExecFrame::new(FrameType::Gap, Timestamp::now()),
        data: None,
        dropped_frames: Some(gap.frames),
        dropped_bytes: Some(gap.bytes),
        message: Some(format!(
            "{} older frames are gone: the ring was too small to keep them",
            gap.frames
        )),
    }
}

/// The length, `at` or a little less, that splits no character.
fn whole_characters(text: &[u8], at: usize) -> usize {
    let boundary = |i: usize| text.get(i).is_none_or(|b| b & 0xc0 != 0x80);
    (at.saturating_sub(3)..=at)
        .rev()
        .find(|i| boundary(*i))
        .filter(|i| *i > 0)
        .unwrap_or(at)
}

/// Puts output into the ring.
struct RingSink {
    exec: Arc<Exec>,
    stdout: Encoder,
    stderr: Encoder,
    closing: CancellationToken,
}

impl RingSink {
    fn put(&self, source: Source, bytes: &[u8]) {
        let kind = match source {
            Source::Stdout => FrameType::Stdout,
            Source::Stderr => FrameType::Stderr,
        };
        self.exec.push(kind, bytes);
    }

    /// Puts what was held back.
    fn finish(&mut self) {
        if self.exec.stdio == Stdio::Text {
            let text = self.stdout.finish();
            self.put(Source::Stdout, text.as_bytes());
            let text = self.stderr.finish();
            self.put(Source::Stderr, text.as_bytes());
        }
    }
}

impl Sink for RingSink {
    async fn take(&mut self, source: Source, bytes: Bytes) -> Result<(), Refused> {
        match self.exec.stdio {
            // Kept as they are, and encoded for each reader.
            Stdio::Base64 => self.put(source, &bytes),
            Stdio::Text => {
                let text = match source {
                    Source::Stdout => self.stdout.push(&bytes),
                    Source::Stderr => self.stderr.push(&bytes),
                };
                self.put(source, text.as_bytes());
            }
        }
        Ok(())
    }

    /// There is no client that could leave, only the agent.
    async fn left(&self) {
        self.closing.cancelled().await;
    }
}

/// Starts a command in the background.
pub(super) fn launch(agent: &Arc<Agent>, request: ExecRequest) -> Result<Answer, ApiError> {
    let registry = &agent.background;
    let ring_bytes = match request.ring_bytes {
        0 => DEFAULT_RING,
        bytes => bytes,
    };
    registry.check_room(ring_bytes)?;
    let id = new_id()?;
    let plan = spawn::plan(&request, &agent.users.get())
        .map_err(|failure| ApiError::bad_request(failure.error))?;
    let (cwd, uid) = (plan.cwd().to_string_lossy().into_owned(), plan.uid());
    let process = plan
        .spawn()
        .map_err(|failure| ApiError::bad_request(failure.error))?;
    let started_at = Timestamp::now();
    let mut ring = Ring::new(ring_bytes);
    ring.push(FrameType::Started, started_at, &[]);
    let exec = Arc::new(Exec {
        id,
        pid: process.group(),
        command: request.cmd,
        args: request.args,
        cwd,
        uid,
        started_at,
        stdio: request.stdio,
        ring_bytes,
        log: Mutex::new(Log { ring, end: None }),
        changed: watch::Sender::new(()),
        kill_at: watch::Sender::new(None),
    });
    registry.table().execs.insert(id, Arc::clone(&exec));
    let answer = BackgroundExec {
        exec_id: exec.name(),
        pid: exec.pid(),
        started_at,
        ring_bytes,
    };
    agent
        .tasks
        .spawn(run(exec, process, registry.closing.clone()));
    let mut answer = http::json(&answer);
    *answer.status_mut() = StatusCode::CREATED;
    Ok(answer)
}

/// Follows a command to its end, and kills what doesn't heed SIGTERM.
async fn run(exec: Arc<Exec>, process: Process, closing: CancellationToken) {
    let mut sink = RingSink {
        stdout: Encoder::new(exec.stdio),
        stderr: Encoder::new(exec.stdio),
        exec: Arc::clone(&exec),
        closing: closing.clone(),
    };
    let end = tokio::select! {
        end = follow::follow(process, None, &mut sink) => end,
        never = escalate(&exec) => match never {},
    };
    let end = end.unwrap_or_else(|| End {
        exit_code: 1,
        error: Some("the agent ended".to_owned()),
        ..End::default()
    });
    sink.finish();
    exec.finish(end);
    // Its leader is gone; others of the group may not have heeded the signal.
    let asked = *exec.kill_at.borrow();
    if let Some(at) = asked {
        while rustix::process::test_kill_process_group(exec.pid).is_ok() {
            if Instant::now() >= at || closing.is_cancelled() {
                let _ = rustix::process::kill_process_group(exec.pid, Signal::KILL);
                break;
            }
            tokio::time::sleep(GROUP_POLL).await;
        }
    }
}

/// Kills the group whenever its time has come.
async fn escalate(exec: &Exec) -> std::convert::Infallible {
    let mut kill_at = exec.kill_at.subscribe();
    loop {
        let at = *kill_at.borrow_and_update();
        tokio::select! {
            changed = kill_at.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
            () = tokio::time::sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                let _ = rustix::process::kill_process_group(exec.pid, Signal::KILL);
                exec.kill_at.send_replace(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_other_words() {
        assert_eq!(parse_id("ex_00000000000000ff"), Some(255));
        for text in [
            "",
            "ex_",
            "ex_ff",
            "00000000000000ff",
            "ex_+0000000000000ff",
            "ex_000000000000000ff",
        ] {
            assert_eq!(parse_id(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_is_cut_between_characters(text in "\\PC{1,40}", at in 4usize..40) {
            let at = at.min(text.len());
            let len = whole_characters(text.as_bytes(), at);
            proptest::prop_assert!(len > 0 && len <= at && text.is_char_boundary(len));
        }
    }
}
