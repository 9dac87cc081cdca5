//! What can go wrong between a client and its daemon.

use slicer_api::Endpoint;
use std::io;
use std::time::Duration;

/// Why a call failed. `request` is the method and path, without the query.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens at the endpoint.
    #[error("no daemon answers at {endpoint}: start one with `slicer-mac up`, or give --url")]
    NoDaemon {
        /// Where it was looked for.
        endpoint: Endpoint,
    },
    /// The endpoint exists and can't be reached.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Where the daemon should be.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
    /// The user agent can't stand in an HTTP header.
    #[error("invalid user agent {0:?}: use printable ASCII")]
    UserAgent(String),
    /// The call took longer than it may.
    #[error("{request} got no answer within {} s: is the daemon busy or stuck?", limit.as_secs())]
    Timeout {
        /// The call.
        request: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The daemon refused.
    #[error("{message} ({status}{})", reason(*status))]
    Api {
        /// HTTP status.
        status: u16,
        /// The daemon's own words.
        message: String,
        /// The daemon's word for programs, such as `not_found`.
        code: Option<String>,
    },
    /// A friendly name that several VMs carry.
    #[error("the name {name:?} belongs to several VMs ({}): use a hostname", hostnames.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Who carries it.
        hostnames: Vec<String>,
    },
    /// What is given as a commit's id can't be one.
    #[error("invalid commit id {0:?}: an id such as cmt-0123456789ab has no slashes and no ..")]
    CommitId(String),
    /// The call could not be put into an HTTP request.
    #[error("{request} is not a valid HTTP request")]
    Request {
        /// The call.
        request: String,
        /// What is wrong with it.
        source: http::Error,
    },
    /// The connection broke, or what came over it was not HTTP.
    #[error("{request}: the connection to the daemon broke")]
    Transport {
        /// The call.
        request: String,
        /// What HTTP said.
        source: hyper::Error,
    },
    /// An answer had begun and did not come to its end.
    #[error("{request}: the answer broke off: the VM or its agent ended, or the daemon did")]
    BrokenOff {
        /// The call.
        request: String,
        /// What HTTP said.
        source: hyper::Error,
    },
    /// The daemon answered, and the connection did not change protocols.
    #[error("{request}: the daemon did not change protocols; do client and daemon versions match?")]
    NotUpgraded {
        /// The call.
        request: String,
    },
    /// A WebSocket broke.
    #[error("{request}: the connection to the VM broke")]
    WebSocket {
        /// The call.
        request: String,
        /// What is wrong with it.
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The answer is no JSON of the expected form.
    #[error("{request}: the daemon's answer makes no sense; do client and daemon versions match?")]
    Decode {
        /// The call.
        request: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Output that says it is base64 and isn't.
    #[error("{request}: the output is not valid base64")]
    Base64 {
        /// The call.
        request: String,
        /// What is wrong with it.
        source: base64::DecodeError,
    },
    /// The answer, or a line of it, is longer than a client takes.
    #[error("{request}: the daemon's answer exceeds {limit} bytes")]
    TooLarge {
        /// The call.
        request: String,
        /// The most that is taken.
        limit: usize,
    },
    /// A stream of frames ended before its last one.
    #[error("{request}: the stream ended before the command did; the VM may have stopped")]
    Truncated {
        /// The call.
        request: String,
    },
}

impl ClientError {
    /// The HTTP status, when the daemon answered with an error.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the daemon says there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }
}

fn reason(status: u16) -> String {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .map(|r| format!(" {r}"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_error_shows_words_and_status() {
        let e = ClientError::Api {
            status: 410,
            message: "exec ex_1 was reaped".into(),
            code: None,
        };
        assert_eq!(e.to_string(), "exec ex_1 was reaped (410 Gone)");
        assert!(!e.is_not_found());
    }
}
