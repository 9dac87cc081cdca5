//! Exec: the query of `POST /vm/{h}/exec` and the frames it answers with.

use crate::{AUTO_ID, Timestamp};
use serde::{Deserialize, Serialize};

/// How output travels in frames.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stdio {
    /// As text: invalid UTF-8 becomes U+FFFD.
    #[default]
    Text,
    /// As base64, safe for every byte.
    Base64,
}

/// A query string that doesn't say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A parameter that must be there isn't.
    #[error("missing parameter {0:?}")]
    Missing(&'static str),
    /// A parameter whose value isn't one of its kind.
    #[error("invalid {name} {value:?}: expected {expected}")]
    Invalid {
        /// The parameter.
        name: &'static str,
        /// What was sent.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// Parameters that exclude each other.
    #[error("{0} and {1} cannot be combined")]
    Conflict(&'static str, &'static str),
}

/// Everything the query of an exec says; the body is only the process's stdin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program, or script text when `shell` is set.
    pub cmd: String,
    /// Arguments, in order.
    pub args: Vec<String>,
    /// `KEY=VALUE`, on top of the user's default environment.
    pub env: Vec<String>,
    /// User; [`AUTO_ID`] is the image's default user.
    pub uid: u32,
    /// Group; [`AUTO_ID`] is the user's primary group.
    pub gid: u32,
    /// Working directory; absent is the user's home. `~` and `~/x` are expanded.
    pub cwd: Option<String>,
    /// Shell to run `cmd` with (`<shell> -lc "<cmd> <args>"`); absent or empty is a direct exec.
    pub shell: Option<String>,
    /// Whether the request's body is the process's stdin.
    pub stdin: bool,
    /// Whether stdout is captured.
    pub stdout: bool,
    /// Whether stderr is captured.
    pub stderr: bool,
    /// How output travels.
    pub stdio: Stdio,
    /// Whether one JSON object answers in place of frames.
    pub buffered: bool,
    /// Whether the process goes on by itself, see background exec.
    pub background: bool,
    /// Size of a background exec's output ring, bytes; 0 is the default.
    pub ring_bytes: u64,
}

impl Default for ExecRequest {
    fn default() -> Self {
        Self {
            cmd: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            uid: AUTO_ID,
            gid: AUTO_ID,
            cwd: None,
            shell: None,
            stdin: false,
            stdout: true,
            stderr: true,
            stdio: Stdio::Text,
            buffered: false,
            background: false,
            ring_bytes: 0,
        }
    }
}

impl ExecRequest {
    /// Reads a query string. Unknown parameters are ignored; of one that should stand once, the
    /// last counts.
    pub fn from_query(query: &str) -> Result<Self, QueryError> {
        let mut r = Self::default();
        let mut cmd = None;
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "cmd" => cmd = Some(value.into_owned()),
                "args" => r.args.push(value.into_owned()),
                "env" => r.env.push(env_pair(value.into_owned())?),
                "uid" => r.uid = id("uid", &value)?,
                "gid" => r.gid = id("gid", &value)?,
                "cwd" => r.cwd = Some(value.into_owned()).filter(|v| !v.is_empty()),
                "shell" => r.shell = Some(value.into_owned()).filter(|v| !v.is_empty()),
                "stdin" => r.stdin = flag("stdin", &value)?,
                "stdout" => r.stdout = flag("stdout", &value)?,
                "stderr" => r.stderr = flag("stderr", &value)?,
                "buffered" => r.buffered = flag("buffered", &value)?,
                "background" => r.background = flag("background", &value)?,
                "stdio" => {
                    r.stdio = match &*value {
                        "" | "text" => Stdio::Text,
                        "base64" => Stdio::Base64,
                        _ => return Err(invalid("stdio", &value, "text or base64")),
                    }
                }
                "ring_bytes" => {
                    let bytes: i64 = value
                        .parse()
                        .map_err(|_| invalid("ring_bytes", &value, "a byte count"))?;
                    // A negative one asks for the default, as 0 does.
                    r.ring_bytes = u64::try_from(bytes).unwrap_or(0);
                }
                _ => {}
            }
        }
        r.cmd = cmd
            .filter(|c| !c.is_empty())
            .ok_or(QueryError::Missing("cmd"))?;
        let texts = [&r.cmd]
            .into_iter()
            .chain(&r.args)
            .chain(&r.env)
            .chain(&r.cwd)
            .chain(&r.shell);
        for text in texts {
            if text.contains('\0') {
                return Err(invalid(
                    "cmd, args, env, cwd or shell",
                    text,
                    "text without NUL",
                ));
            }
        }
        if r.stdin && r.buffered {
            return Err(QueryError::Conflict("stdin=true", "buffered=true"));
        }
        if r.background && r.stdin {
            return Err(QueryError::Conflict("background=true", "stdin=true"));
        }
        if r.background && r.buffered {
            return Err(QueryError::Conflict("background=true", "buffered=true"));
        }
        Ok(r)
    }

    /// The query string this request is sent with; what is default is left out.
    #[must_use]
    pub fn to_query(&self) -> String {
        let d = Self::default();
        let mut q = form_urlencoded::Serializer::new(String::new());
        q.append_pair("cmd", &self.cmd);
        for a in &self.args {
            q.append_pair("args", a);
        }
        for e in &self.env {
            q.append_pair("env", e);
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id != AUTO_ID {
                q.append_pair(key, &id.to_string());
            }
        }
        for (key, value) in [("cwd", &self.cwd), ("shell", &self.shell)] {
            if let Some(v) = value {
                q.append_pair(key, v);
            }
        }
        for (key, value, default) in [
            ("stdin", self.stdin, d.stdin),
            ("stdout", self.stdout, d.stdout),
            ("stderr", self.stderr, d.stderr),
            ("buffered", self.buffered, d.buffered),
            ("background", self.background, d.background),
        ] {
            if value != default {
                q.append_pair(key, if value { "true" } else { "false" });
            }
        }
        if self.stdio == Stdio::Base64 {
            q.append_pair("stdio", "base64");
        }
        if self.ring_bytes != 0 {
            q.append_pair("ring_bytes", &self.ring_bytes.to_string());
        }
        q.finish()
    }
}

pub(crate) fn invalid(name: &'static str, value: &str, expected: &'static str) -> QueryError {
    // Whatever a client sent is quoted back, but never at full length.
    QueryError::Invalid {
        name,
        value: value.chars().take(64).collect(),
        expected,
    }
}

pub(crate) fn flag(name: &'static str, value: &str) -> Result<bool, QueryError> {
    match value {
        // The values Go's strconv.ParseBool takes.
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err(invalid(name, value, "true or false")),
    }
}

pub(crate) fn id(name: &'static str, value: &str) -> Result<u32, QueryError> {
    if value.is_empty() {
        return Ok(AUTO_ID);
    }
    value
        .parse()
        .map_err(|_| invalid(name, value, "a number from 0 to 4294967295"))
}

fn env_pair(value: String) -> Result<String, QueryError> {
    match value.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(value),
        _ => Err(invalid("env", &value, "KEY=VALUE")),
    }
}

/// The kind of an [`ExecFrame`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameType {
    /// The process runs.
    Started,
    /// Bytes it wrote to stdout.
    Stdout,
    /// Bytes it wrote to stderr.
    Stderr,
    /// It is over, or never began.
    Exit,
    /// Frames were dropped from a background exec's ring.
    Gap,
}

/// One line of an exec's NDJSON answer.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFrame {
    /// When it was made.
    pub timestamp: Timestamp,
    /// What it is. Agents of long ago sent none.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<FrameType>,
    /// Process id, on `started` and `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// On `started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// On `stdout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// On `stderr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// `base64` when `stdout` and `stderr` are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Stdio>,
    /// 0 on every frame but the last.
    #[serde(default)]
    pub exit_code: i32,
    /// On `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// On `exit`: the signal that killed it, `TERM` or `KILL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// On `exit`: why it could not be started or followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl ExecFrame {
    /// A frame of this kind with nothing in it.
    #[must_use]
    pub fn new(kind: FrameType, timestamp: Timestamp) -> Self {
        Self {
            timestamp,
            kind: Some(kind),
            pid: None,
            started_at: None,
            stdout: None,
            stderr: None,
            encoding: None,
            exit_code: 0,
            ended_at: None,
            signal: None,
            error: None,
        }
    }
}

/// The answer to a buffered exec.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecBuffered {
    /// Everything it wrote to stdout.
    pub stdout: String,
    /// Everything it wrote to stderr.
    pub stderr: String,
    /// `base64` when `stdout` and `stderr` are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Stdio>,
    /// Process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Its exit code; 127 when there is no such program.
    pub exit_code: i32,
    /// The signal that killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Why it could not be started or followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_clients_queries_are_read() {
        // The Go client sorts keys, so args may come before cmd.
        let r =
            ExecRequest::from_query("args=-c&args=exit+7&cmd=%2Fbin%2Fsh&gid=0&stdio=base64&uid=0")
                .unwrap();
        assert_eq!(r.cmd, "/bin/sh");
        assert_eq!(r.args, ["-c", "exit 7"]);
        assert_eq!((r.uid, r.gid, r.stdio), (0, 0, Stdio::Base64));
        assert_eq!(r.shell, None);
        let r = ExecRequest::from_query("cmd=x&uid=4294967295&env=A%3Db%3Dc&stdout=true").unwrap();
        assert_eq!((r.uid, r.gid), (AUTO_ID, AUTO_ID));
        assert_eq!(r.env, ["A=b=c"]);
    }

    #[test]
    fn bad_queries_say_what_is_wrong() {
        for (query, part) in [
            ("", "missing parameter \"cmd\""),
            ("cmd=", "missing parameter \"cmd\""),
            ("cmd=x&uid=me", "invalid uid \"me\""),
            ("cmd=x&stdio=hex", "invalid stdio \"hex\""),
            ("cmd=x&stdin=maybe", "invalid stdin"),
            ("cmd=x&stdin=true&buffered=true", "cannot be combined"),
            ("cmd=x&stdin=true&background=true", "cannot be combined"),
            ("cmd=x&env=NOVALUE", "expected KEY=VALUE"),
            ("cmd=x%00y", "without NUL"),
            ("cmd=x&ring_bytes=1M", "invalid ring_bytes"),
        ] {
            let e = ExecRequest::from_query(query).unwrap_err().to_string();
            assert!(e.contains(part), "{query}: {e}");
        }
    }

    #[test]
    fn frames_are_what_the_clients_decode() {
        let t: Timestamp = "2026-01-02T03:04:05.1Z".parse().unwrap();
        let f = ExecFrame {
            pid: Some(812),
            started_at: Some(t),
            ..ExecFrame::new(FrameType::Started, t)
        };
        assert_eq!(
            serde_json::to_string(&f).unwrap(),
            r#"{"timestamp":"2026-01-02T03:04:05.1Z","type":"started","pid":812,"started_at":"2026-01-02T03:04:05.1Z","exit_code":0}"#
        );
        let f = ExecFrame {
            stdout: Some("aGk=".into()),
            encoding: Some(Stdio::Base64),
            ..ExecFrame::new(FrameType::Stdout, t)
        };
        assert_eq!(
            serde_json::to_string(&f).unwrap(),
            r#"{"timestamp":"2026-01-02T03:04:05.1Z","type":"stdout","stdout":"aGk=","encoding":"base64","exit_code":0}"#
        );
    }

    proptest! {
        #[test]
        fn queries_round_trip(
            cmd in "[^\0]{1,20}",
            args in proptest::collection::vec("[^\0]{0,20}", 0..4),
            value in "[^\0]{0,20}",
            uid in any::<u32>(),
            shell in proptest::option::of("[^\0]{1,10}"),
            stdin in any::<bool>(),
            stderr in any::<bool>(),
        ) {
            let r = ExecRequest { cmd, args, env: vec![format!("K={value}")], uid, shell, stdin, stderr, ..Default::default() };
            prop_assert_eq!(ExecRequest::from_query(&r.to_query()), Ok(r));
        }

        #[test]
        fn any_query_is_answered(query in "\\PC{0,80}") {
            let _ = ExecRequest::from_query(&query);
        }
    }
}
