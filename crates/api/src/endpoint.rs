//! How a client tells a socket path from a URL.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP listener speaking plain HTTP.
    Http {
        /// `host:port`, ready for a `Host` header and a dial.
        authority: String,
    },
}

/// Why an endpoint was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Empty text.
    #[error("the daemon's URL is empty: give a socket path or http://HOST:PORT")]
    Empty,
    /// A URL whose scheme isn't served.
    #[error("unsupported URL {0:?}: give a socket path or http://HOST:PORT")]
    Scheme(String),
    /// A URL with no host, or a port that isn't one.
    #[error("malformed URL {0:?}: expected http://HOST:PORT")]
    Malformed(String),
    /// `~/` with no home directory to put in its place.
    #[error("{0:?} starts with ~/ but there is no home directory: set HOME or give a full path")]
    NoHome(String),
}

impl Endpoint {
    /// Reads the text of `--url` or `SLICER_URL`: spaces and a leading `unix://` are dropped; what
    /// starts with `/`, `./`, `../` or `~/`, or ends in `.sock`, is a socket path; all else is a
    /// URL, whose path is ignored. `home` takes the place of `~`.
    pub fn parse(text: &str, home: Option<&Path>) -> Result<Self, EndpointError> {
        let trimmed = text.trim();
        let bare = trimmed.strip_prefix("unix://").unwrap_or(trimmed);
        if bare.is_empty() {
            return Err(EndpointError::Empty);
        }
        if let Some(rest) = bare.strip_prefix("~/") {
            let home = home.ok_or_else(|| EndpointError::NoHome(text.to_owned()))?;
            return Ok(Self::Unix(home.join(rest)));
        }
        let is_path = ["/", "./", "../"].iter().any(|p| bare.starts_with(p))
            || Path::new(bare).extension().is_some_and(|e| e == "sock");
        if is_path || trimmed.len() != bare.len() {
            return Ok(Self::Unix(PathBuf::from(bare)));
        }
        let Some(rest) = bare.strip_prefix("http://") else {
            return Err(EndpointError::Scheme(text.to_owned()));
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let malformed = || EndpointError::Malformed(text.to_owned());
        // "[::1]:8080" has its last colon after the bracket, "[::1]" has none there.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        if host.is_empty() || authority.contains('@') {
            return Err(malformed());
        }
        let port: u16 = match port {
            Some(port) => port.parse().map_err(|_| malformed())?,
            None => 80,
        };
        Ok(Self::Http {
            authority: format!("{host}:{port}"),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Http { authority } => write!(f, "http://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &str) -> Endpoint {
        Endpoint::Unix(PathBuf::from(path))
    }

    #[test]
    fn sockets_and_urls_are_told_apart() {
        let home = Some(Path::new("/home/me"));
        let http = |a: &str| Endpoint::Http {
            authority: a.to_owned(),
        };
        for (text, want) in [
            ("/run/slicer.sock", unix("/run/slicer.sock")),
            (" ./slicer.sock ", unix("./slicer.sock")),
            ("../x", unix("../x")),
            (
                "~/slicer-mac/slicer.sock",
                unix("/home/me/slicer-mac/slicer.sock"),
            ),
            ("unix://~/x.sock", unix("/home/me/x.sock")),
            ("unix:///run/x", unix("/run/x")),
            ("slicer.sock", unix("slicer.sock")),
            ("http://127.0.0.1:8080", http("127.0.0.1:8080")),
            ("http://host:8081/nodes", http("host:8081")),
            ("http://host", http("host:80")),
            ("http://[::1]:9", http("[::1]:9")),
            ("http://[::1]", http("[::1]:80")),
        ] {
            assert_eq!(Endpoint::parse(text, home), Ok(want), "{text}");
        }
    }

    #[test]
    fn bad_urls_are_refused() {
        for text in [
            "",
            " ",
            "unix://",
            "ftp://x",
            "host:80",
            "http://",
            "http://:80",
            "http://h:x",
        ] {
            assert!(Endpoint::parse(text, None).is_err(), "{text}");
        }
        assert!(matches!(
            Endpoint::parse("~/x.sock", None),
            Err(EndpointError::NoHome(_))
        ));
    }
}
