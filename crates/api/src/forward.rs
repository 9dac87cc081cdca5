//! Port forwarding: what is dialled in the guest, and the `-L` grammar of mappings.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Header of `GET /vm/{h}/forward` that says what to dial in the guest, see [`ForwardTarget`].
pub const UPSTREAM_HEADER: &str = "x-inlets-upstream";
/// Header by which the agent tells the daemon the number of a connection it made, under which
/// `DELETE /forward/{number}` ends it. Clients never see it.
pub const FORWARD_NUMBER_HEADER: &str = "x-slicer-forward-number";
/// Where a mapping without an address listens: nobody else's machine gets in by accident.
const LOOPBACK: &str = "127.0.0.1";
/// Before the path of a socket in a target.
const UNIX: &str = "unix:";

/// Why a mapping or a target was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// Nothing but white space.
    #[error("empty forward: expected a form like 8080:127.0.0.1:80 or 127.0.0.1:8080")]
    Empty,
    /// Not one of the forms.
    #[error(
        "invalid forward {0:?}: expected HOST:PORT, LPORT:HOST:PORT, LADDR:LPORT:HOST:PORT, \
         [LADDR:]LPORT:/SOCKET or LSOCKET:/SOCKET"
    )]
    Malformed(String),
    /// A part that should be a port.
    #[error("invalid port {port:?} in forward {spec:?}: expected a number from 0 to 65535")]
    Port {
        /// The whole text.
        spec: String,
        /// The part.
        port: String,
    },
    /// A target that can't be dialled.
    #[error("invalid target {0:?}: expected HOST:PORT with a port from 1, or unix:/PATH")]
    Target(String),
}

/// What is dialled in the guest: `host:port` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardTarget {
    /// A TCP port, by an address or a name as the guest understands it.
    Tcp {
        /// Address or name.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// A stream socket by its absolute path.
    Unix(String),
}

impl FromStr for ForwardTarget {
    type Err = ForwardError;

    /// Reads `host:port`, split at the last colon, or `unix:/path`.
    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let malformed = || ForwardError::Target(quoted(text));
        if text.chars().any(char::is_control) {
            return Err(malformed());
        }
        if let Some(path) = text.strip_prefix(UNIX) {
            if !path.starts_with('/') {
                return Err(malformed());
            }
            return Ok(Self::Unix(path.to_owned()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        match port_number(port) {
            Some(port) if port != 0 && is_host(host) => Ok(Self::Tcp {
                host: host.to_owned(),
                port,
            }),
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for ForwardTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{UNIX}{path}"),
        }
    }
}

/// Where a mapping listens on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardListen {
    /// A TCP port.
    Tcp {
        /// Address or name.
        host: String,
        /// 0 is any free port.
        port: u16,
    },
    /// A unix socket; a relative path is relative to the caller's working directory.
    Unix(PathBuf),
}

impl fmt::Display for ForwardListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// One mapping of `-L`: where to listen on the host, what to dial in the guest.
///
/// | form | listens on | dials |
/// |---|---|---|
/// | `HOST:PORT` | HOST:PORT | HOST:PORT |
/// | `LPORT:HOST:PORT` | 127.0.0.1:LPORT | HOST:PORT |
/// | `LADDR:LPORT:HOST:PORT` | LADDR:LPORT | HOST:PORT |
/// | `LPORT:/SOCKET` | 127.0.0.1:LPORT | the socket |
/// | `LADDR:LPORT:/SOCKET` | LADDR:LPORT | the socket |
/// | `LSOCKET:/SOCKET` | the socket LSOCKET, which has a `/` | the socket |
/// | `LSOCKET:HOST:PORT` | the socket LSOCKET, which has a `/` | HOST:PORT |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// On the host.
    pub listen: ForwardListen,
    /// In the guest.
    pub target: ForwardTarget,
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let spec = text.trim();
        if spec.is_empty() {
            return Err(ForwardError::Empty);
        }
        let malformed = || ForwardError::Malformed(quoted(spec));
        if spec.chars().any(char::is_control) {
            return Err(malformed());
        }
        if let Some((left, right)) = spec.rsplit_once(':')
            && left.contains('/')
            && right.contains('/')
        {
            return Ok(Self {
                listen: ForwardListen::Unix(left.into()),
                target: unix_target(right).ok_or_else(malformed)?,
            });
        }
        if let Some(at) = spec.find(":/") {
            let (host, port) = spec[..at]
                .rsplit_once(':')
                .unwrap_or((LOOPBACK, &spec[..at]));
            return Ok(Self {
                listen: tcp_listen(spec, host, port)?,
                target: unix_target(&spec[at + 1..]).ok_or_else(malformed)?,
            });
        }
        let parts: Vec<&str> = spec.split(':').collect();
        let (listen, host, port) = match parts[..] {
            [host, port] => (tcp_listen(spec, host, port)?, host, port),
            [path, host, port] if path.contains('/') => {
                (ForwardListen::Unix(path.into()), host, port)
            }
            [lport, host, port] => (tcp_listen(spec, LOOPBACK, lport)?, host, port),
            [laddr, lport, host, port] => (tcp_listen(spec, laddr, lport)?, host, port),
            _ => return Err(malformed()),
        };
        Ok(Self {
            listen,
            target: tcp_target(spec, host, port)?,
        })
    }
}

fn unix_target(path: &str) -> Option<ForwardTarget> {
    let path = path.starts_with('/').then(|| path.to_owned());
    path.map(ForwardTarget::Unix)
}

fn tcp_listen(spec: &str, host: &str, port: &str) -> Result<ForwardListen, ForwardError> {
    let port = spec_port(spec, port)?;
    if !is_host(host) {
        return Err(ForwardError::Malformed(quoted(spec)));
    }
    let host = host.to_owned();
    Ok(ForwardListen::Tcp { host, port })
}

fn tcp_target(spec: &str, host: &str, port: &str) -> Result<ForwardTarget, ForwardError> {
    let port = spec_port(spec, port)?;
    // A host of this name would be read as a socket in the guest.
    if port == 0 || !is_host(host) || UNIX.strip_suffix(':') == Some(host) {
        return Err(ForwardError::Target(quoted(&format!("{host}:{port}"))));
    }
    let host = host.to_owned();
    Ok(ForwardTarget::Tcp { host, port })
}

fn spec_port(spec: &str, port: &str) -> Result<u16, ForwardError> {
    port_number(port).ok_or_else(|| ForwardError::Port {
        spec: quoted(spec),
        port: quoted(port),
    })
}

fn port_number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A name or an IPv4 address, by its letters; whether it exists is seen when it is used.
fn is_host(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    !text.is_empty() && text.len() <= 253 && text.bytes().all(letter)
}

/// What a user sent is quoted back, but never at full length.
fn quoted(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: &str) -> (String, String) {
        let f: Forward = spec.parse().unwrap();
        (f.listen.to_string(), f.target.to_string())
    }

    #[test]
    fn a_host_cannot_be_taken_for_a_socket() {
        for spec in ["unix:8", "9:unix:8", "127.0.0.1:9:unix:8", "/x.sock:unix:8"] {
            assert!(spec.parse::<Forward>().is_err(), "{spec}");
        }
    }

    #[test]
    fn all_forms_are_read() {
        for (spec, listen, target) in [
            ("127.0.0.1:9000", "127.0.0.1:9000", "127.0.0.1:9000"),
            ("9001:127.0.0.1:9000", "127.0.0.1:9001", "127.0.0.1:9000"),
            ("0:127.0.0.1:9000", "127.0.0.1:0", "127.0.0.1:9000"),
            ("80:db.local:5432", "127.0.0.1:80", "db.local:5432"),
            (
                " 0.0.0.0:9000:127.0.0.1:9000 ",
                "0.0.0.0:9000",
                "127.0.0.1:9000",
            ),
            (
                "127.0.0.1:9000:/var/run/docker.sock",
                "127.0.0.1:9000",
                "unix:/var/run/docker.sock",
            ),
            (
                "9000:/var/run/docker.sock",
                "127.0.0.1:9000",
                "unix:/var/run/docker.sock",
            ),
            (
                "/tmp/d.sock:/var/run/docker.sock",
                "/tmp/d.sock",
                "unix:/var/run/docker.sock",
            ),
            ("./d.sock:/run/x.sock", "./d.sock", "unix:/run/x.sock"),
            ("/tmp/x.sock:127.0.0.1:80", "/tmp/x.sock", "127.0.0.1:80"),
        ] {
            assert_eq!(read(spec), (listen.into(), target.into()), "{spec}");
        }
    }

    #[test]
    fn nonsense_says_what_is_wrong() {
        for (spec, part) in [
            ("", "empty forward"),
            (" \t", "empty forward"),
            ("8080", "expected HOST:PORT"),
            ("a:b:c:d:e", "expected HOST:PORT"),
            ("127.0.0.1:http", "invalid port \"http\""),
            ("65536:127.0.0.1:80", "invalid port \"65536\""),
            ("-1:127.0.0.1:80", "invalid port \"-1\""),
            ("+1:127.0.0.1:80", "invalid port \"+1\""),
            ("x:/run/a.sock", "invalid port \"x\""),
            ("80:127.0.0.1:0", "invalid target"),
            ("80::80", "invalid target"),
            (":80", "expected HOST:PORT"),
            ("./a:./b", "expected HOST:PORT"),
            ("[::1]:80", "invalid"),
        ] {
            let e = spec.parse::<Forward>().unwrap_err().to_string();
            assert!(e.contains(part), "{spec}: {e}");
        }
    }

    #[test]
    fn targets_are_read() {
        for text in ["127.0.0.1:80", "db:5432", "unix:/run/a b.sock"] {
            let target: ForwardTarget = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        for text in [
            "",
            "80",
            "h:0",
            "h:x",
            ":80",
            "unix:a",
            "unix:",
            "unix:/a\n",
        ] {
            assert!(text.parse::<ForwardTarget>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered(text in "[a-z0-9:/. ]{0,40}|\\PC{0,40}") {
            if let Ok(forward) = text.parse::<Forward>() {
                let target = forward.target.to_string();
                proptest::prop_assert_eq!(target.parse(), Ok(forward.target));
            }
            let _ = text.parse::<ForwardTarget>();
        }
    }
}
