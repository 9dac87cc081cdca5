//! Background exec: commands that go on without their client, and the rings their output is in.

use crate::exec::{flag, invalid};
use crate::{ExecFrame, QueryError, Timestamp, null_default};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Size of a ring when none is asked for, bytes.
pub const DEFAULT_RING: u64 = 1 << 20;
/// What all rings of a VM may have together, bytes.
pub const RING_BUDGET: u64 = 256 << 20;
/// Between SIGTERM and SIGKILL unless a kill says otherwise.
pub const DEFAULT_KILL_GRACE: Duration = Duration::from_secs(5);
/// How long a wait for the end lasts unless it says otherwise.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// The longest one request waits for the end.
pub const MAX_WAIT: Duration = Duration::from_mins(10);

/// The answer to `POST /vm/{h}/exec?background=true`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackgroundExec {
    /// By what it is known from now on: `ex_` and something unguessable.
    pub exec_id: String,
    /// Its process, session and process group.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// The size of its ring, bytes.
    pub ring_bytes: u64,
}

/// A command in the background: running, or ended and not removed yet.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecInfo {
    /// By what it is known.
    pub exec_id: String,
    /// Its process, session and process group.
    pub pid: u32,
    /// `cmd` as it was sent.
    pub command: String,
    /// `args` as they were sent.
    #[serde(default, deserialize_with = "null_default")]
    pub args: Vec<String>,
    /// Where it was started.
    pub cwd: String,
    /// Whom it runs as.
    pub uid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// Whether its exit frame is yet to come.
    pub running: bool,
    /// Its exit code, or 128 and the number of the signal that killed it. Absent while it runs, as
    /// the next three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The signal that killed it, such as `TERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Why it could not be followed to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Bytes of output it ever wrote.
    pub bytes_written: u64,
    /// Those of them that are in the ring no more.
    pub bytes_dropped: u64,
    /// The id the next frame will get.
    pub next_id: u64,
    /// The size of its ring, bytes.
    pub ring_bytes: u64,
}

/// One line of a background exec's log. `data` says the same as `stdout` or `stderr`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFrame {
    /// Its place in the log; the first is 1. That of a gap is the last one that is missing.
    pub id: u64,
    /// What any frame has.
    #[serde(flatten)]
    pub frame: ExecFrame,
    /// Output, whichever stream it was written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Of a gap: how many frames are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_frames: Option<u64>,
    /// Of a gap: bytes of output that are missing. At most so many, when the reader began in the
    /// middle of what is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_bytes: Option<u64>,
    /// Of a gap: a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The query of `GET /vm/{h}/exec/{id}/logs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogsRequest {
    /// Go on until the exit frame; else end with what is there.
    pub follow: bool,
    /// The first frame that is wanted; 0 and 1 are the beginning.
    pub from_id: u64,
}

impl LogsRequest {
    /// Reads a query string. Unknown parameters are ignored.
    pub fn from_query(query: &str) -> Result<Self, QueryError> {
        let mut r = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "follow" => r.follow = flag("follow", &value)?,
                "from_id" => r.from_id = number("from_id", &value, "the id of a frame")?,
                _ => {}
            }
        }
        Ok(r)
    }

    /// The query string this request is sent with.
    #[must_use]
    pub fn to_query(self) -> String {
        form_urlencoded::Serializer::new(String::new())
            .append_pair("follow", if self.follow { "true" } else { "false" })
            .append_pair("from_id", &self.from_id.to_string())
            .finish()
    }
}

/// How long `GET /vm/{h}/exec/{id}/wait-exit` waits, from its query.
pub fn wait_exit_limit(query: &str) -> Result<Duration, QueryError> {
    let mut secs = 0;
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if key == "timeout" {
            secs = number("timeout", &value, "a number of seconds")?;
        }
    }
    Ok(match secs {
        0 => DEFAULT_WAIT,
        secs => Duration::from_secs(secs).min(MAX_WAIT),
    })
}

fn number(name: &'static str, value: &str, expected: &'static str) -> Result<u64, QueryError> {
    if value.is_empty() {
        return Ok(0);
    }
    value.parse().map_err(|_| invalid(name, value, expected))
}

/// The answer of `wait-exit`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitExit {
    /// By what it is known.
    pub exec_id: String,
    /// Whether it still runs, which it does only when the wait ran out.
    pub running: bool,
    /// Its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The signal that killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Whether the wait ran out.
    pub timed_out: bool,
}

/// A signal that a background exec can be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the signals of signal(7)")]
pub enum KillSignal {
    #[default]
    Term,
    Kill,
    Int,
    Hup,
    Quit,
    Usr1,
    Usr2,
}

impl KillSignal {
    const ALL: [Self; 7] = [
        Self::Term,
        Self::Kill,
        Self::Int,
        Self::Hup,
        Self::Quit,
        Self::Usr1,
        Self::Usr2,
    ];

    /// Reads a name, with or without `SIG`, in any case; nothing is `TERM`.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        Self::ALL
            .into_iter()
            .find(|s| s.name() == name)
            .ok_or_else(|| invalid("signal", text, "TERM, KILL, INT, HUP, QUIT, USR1 or USR2"))
    }

    /// Its short name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Kill => "KILL",
            Self::Int => "INT",
            Self::Hup => "HUP",
            Self::Quit => "QUIT",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
        }
    }
}

impl fmt::Display for KillSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The body of `POST /vm/{h}/exec/{id}/kill`, all of which may be left out.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillRequest {
    /// See [`KillSignal::parse`].
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub signal: String,
    /// Between SIGTERM and SIGKILL, milliseconds; 0 is the default. Of no meaning for other
    /// signals.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_zero"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub grace_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The answer to a kill.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killed {
    /// By what it is known.
    pub exec_id: String,
    /// Its process group.
    pub pid: u32,
    /// Whether it still runs right now. When it had ended before, nothing was done.
    pub running: bool,
    /// The signal.
    pub signal_sent: String,
}

/// The answer to `DELETE /vm/{h}/exec/{id}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaped {
    /// By what it was known.
    pub exec_id: String,
    /// True.
    pub reaped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrameType;

    #[test]
    fn signals_are_read_in_any_form() {
        for (text, signal) in [
            ("", KillSignal::Term),
            ("TERM", KillSignal::Term),
            ("SIGKILL", KillSignal::Kill),
            ("sigusr1", KillSignal::Usr1),
            ("hup", KillSignal::Hup),
        ] {
            assert_eq!(KillSignal::parse(text), Ok(signal), "{text}");
        }
        for text in ["SIG", "9", "STOP", "TERM ", "SIGSIGTERM"] {
            assert!(KillSignal::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn queries_are_read() {
        let request = LogsRequest {
            follow: true,
            from_id: 7,
        };
        assert_eq!(LogsRequest::from_query(&request.to_query()), Ok(request));
        assert_eq!(LogsRequest::from_query(""), Ok(LogsRequest::default()));
        assert!(LogsRequest::from_query("from_id=-1").is_err());
        assert!(LogsRequest::from_query("follow=maybe").is_err());
        for (query, secs) in [("", 30), ("timeout=0", 30), ("timeout=5", 5)] {
            assert_eq!(wait_exit_limit(query), Ok(Duration::from_secs(secs)));
        }
        assert_eq!(wait_exit_limit("timeout=99999"), Ok(MAX_WAIT));
        assert!(wait_exit_limit("timeout=5s").is_err());
    }

    #[test]
    fn a_frame_is_one_flat_object() {
        let mut frame = ExecFrame::new(FrameType::Stdout, Timestamp::UNIX_EPOCH);
        frame.stdout = Some("x".into());
        let frame = LogFrame {
            id: 2,
            frame,
            data: Some("x".into()),
            dropped_frames: None,
            dropped_bytes: None,
            message: None,
        };
        let text = serde_json::to_string(&frame).unwrap();
        assert_eq!(
            text,
            r#"{"id":2,"timestamp":"1970-01-01T00:00:00Z","type":"stdout","stdout":"x","exit_code":0,"data":"x"}"#
        );
        assert_eq!(serde_json::from_str::<LogFrame>(&text).unwrap(), frame);
    }

    #[test]
    fn a_kill_may_say_nothing() {
        for text in ["{}", r#"{"signal":null,"grace_ms":null}"#] {
            let request: KillRequest = serde_json::from_str(text).unwrap();
            assert_eq!(request, KillRequest::default());
        }
        assert_eq!(
            serde_json::to_string(&KillRequest::default()).unwrap(),
            "{}"
        );
    }
}
