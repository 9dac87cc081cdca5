//! Which daemon to talk to, and with which token. Everything a decision depends on is handed in,
//! so it can be tested.

use slicer_api::{Endpoint, EndpointError};
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where the Linux daemon leaves its token.
pub const LOCAL_TOKEN_FILE: &str = "/var/lib/slicer/auth/token";

/// Where a daemon listens when nothing says otherwise.
pub const DEFAULT_AUTHORITY: &str = "127.0.0.1:8080";

const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// Why no daemon or token could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// `--url` or `SLICER_URL` is no endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A token file that can't be read.
    #[error("cannot read the token file {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A token file with nothing in it.
    #[error("the token file {} is empty", path.display())]
    EmptyTokenFile {
        /// The file.
        path: PathBuf,
    },
    /// A token that can't stand in an HTTP header.
    #[error("the token from {origin} is invalid: it must be one line of printable ASCII")]
    InvalidToken {
        /// The flag, variable or file it came from.
        origin: String,
    },
    /// `~/` with no home directory to put in its place.
    #[error("{0:?} starts with ~/ but there is no home directory: set HOME or give a full path")]
    NoHome(String),
}

/// A bearer token. It is never shown, not even by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token from `origin`, which an error names. Surrounding white space is dropped.
    pub fn new(text: &str, origin: &str) -> Result<Self, DiscoverError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(DiscoverError::InvalidToken {
                origin: origin.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Chooses the daemon: `explicit` (`--url`), `SLICER_URL`, `~/slicer-mac/slicer.sock` if there,
/// `./slicer.sock` if there, `http://127.0.0.1:8080`. `env` reads a variable; empty is unset.
pub fn discover(
    explicit: Option<&str>,
    env: impl Fn(&str) -> Option<String>,
    home: Option<&Path>,
    cwd: &Path,
) -> Result<Endpoint, DiscoverError> {
    if let Some(url) = explicit {
        return Ok(Endpoint::parse(url, home)?);
    }
    if let Some(url) = env("SLICER_URL").filter(|v| !v.is_empty()) {
        return Ok(Endpoint::parse(&url, home)?);
    }
    let sockets = [
        home.map(|h| h.join("slicer-mac/slicer.sock")),
        Some(cwd.join("slicer.sock")),
    ];
    Ok(sockets.into_iter().flatten().find(|s| s.exists()).map_or(
        Endpoint::Http {
            authority: DEFAULT_AUTHORITY.to_owned(),
        },
        Endpoint::Unix,
    ))
}

/// What the user said about tokens. Empty values count as unsaid.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenFlags<'a> {
    /// `--token`.
    pub token: Option<&'a str>,
    /// `--token-file`.
    pub token_file: Option<&'a str>,
}

/// Chooses the token: `--token`, `--token-file`, `SLICER_TOKEN`, `SLICER_TOKEN_FILE`, and for a
/// daemon on this host's TCP the readable `local_file` (see [`LOCAL_TOKEN_FILE`]). A socket is
/// never given a token that wasn't asked for.
pub fn find_token(
    flags: TokenFlags<'_>,
    env: impl Fn(&str) -> Option<String>,
    home: Option<&Path>,
    endpoint: &Endpoint,
    local_file: &Path,
) -> Result<Option<Token>, DiscoverError> {
    let said = |v: Option<&str>| v.filter(|v| !v.trim().is_empty()).map(str::to_owned);
    if let Some(token) = said(flags.token) {
        return Token::new(&token, "--token").map(Some);
    }
    if let Some(path) = said(flags.token_file) {
        return read_token(&expand(&path, home)?).map(Some);
    }
    if let Some(token) = said(env("SLICER_TOKEN").as_deref()) {
        return Token::new(&token, "SLICER_TOKEN").map(Some);
    }
    if let Some(path) = said(env("SLICER_TOKEN_FILE").as_deref()) {
        return read_token(&expand(&path, home)?).map(Some);
    }
    if !is_local_tcp(endpoint) {
        return Ok(None);
    }
    match read_token(local_file) {
        Ok(token) => Ok(Some(token)),
        // Not there or not ours: the daemon may run without tokens, and says so if not.
        Err(DiscoverError::TokenFile { .. } | DiscoverError::EmptyTokenFile { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_local_tcp(endpoint: &Endpoint) -> bool {
    let Endpoint::Http { authority } = endpoint else {
        return false;
    };
    let host = authority.rsplit_once(':').map_or(&**authority, |(h, _)| h);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

fn expand(path: &str, home: Option<&Path>) -> Result<PathBuf, DiscoverError> {
    match (path.strip_prefix("~/"), home) {
        (None, _) => Ok(PathBuf::from(path)),
        (Some(rest), Some(home)) => Ok(home.join(rest)),
        (Some(_), None) => Err(DiscoverError::NoHome(path.to_owned())),
    }
}

fn read_token(path: &Path) -> Result<Token, DiscoverError> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|f| f.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
        .map_err(|source| DiscoverError::TokenFile {
            path: path.to_owned(),
            source,
        })?;
    if text.trim().is_empty() {
        return Err(DiscoverError::EmptyTokenFile {
            path: path.to_owned(),
        });
    }
    Token::new(&text, &path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn env<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        }
    }

    fn http(authority: &str) -> Endpoint {
        Endpoint::Http {
            authority: authority.to_owned(),
        }
    }

    #[test]
    fn the_daemon_is_chosen_in_order() {
        let home = tempfile::tempdir().unwrap();
        let cwd = tempfile::tempdir().unwrap();
        let find = |explicit: Option<&str>, vars: &[(&str, &str)]| {
            discover(explicit, env(vars), Some(home.path()), cwd.path()).unwrap()
        };
        assert_eq!(find(None, &[]), http("127.0.0.1:8080"));
        fs::write(cwd.path().join("slicer.sock"), "").unwrap();
        assert_eq!(
            find(None, &[]),
            Endpoint::Unix(cwd.path().join("slicer.sock"))
        );
        let in_home = home.path().join("slicer-mac/slicer.sock");
        fs::create_dir(home.path().join("slicer-mac")).unwrap();
        fs::write(&in_home, "").unwrap();
        assert_eq!(find(None, &[("SLICER_URL", "")]), Endpoint::Unix(in_home));
        let set = [("SLICER_URL", "http://h:1")];
        assert_eq!(find(None, &set), http("h:1"));
        assert_eq!(
            find(Some("~/x.sock"), &set),
            Endpoint::Unix(home.path().join("x.sock"))
        );
        assert!(discover(Some("ftp://x"), env(&[]), None, cwd.path()).is_err());
    }

    #[test]
    fn the_token_is_chosen_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let local = file("local", "local\n");
        let flagged = file("flag", "  from-file \n");
        let by_env = file("env", "env-file");
        let tcp = http("localhost:8080");
        let unix = Endpoint::Unix("/x.sock".into());
        let find = |flags: TokenFlags<'_>, vars: &[(&str, &str)], endpoint: &Endpoint| {
            find_token(
                flags,
                env(vars),
                Some(dir.path()),
                endpoint,
                Path::new(&local),
            )
            .unwrap()
            .map(|t| t.as_str().to_owned())
        };
        let vars = [("SLICER_TOKEN", "env"), ("SLICER_TOKEN_FILE", &*by_env)];
        let both = TokenFlags {
            token: Some("flag"),
            token_file: Some(&flagged),
        };
        let file_only = TokenFlags {
            token: Some(""),
            ..both
        };
        let none = TokenFlags::default();
        assert_eq!(find(both, &vars, &unix).as_deref(), Some("flag"));
        assert_eq!(find(file_only, &vars, &unix).as_deref(), Some("from-file"));
        let tilde = TokenFlags {
            token_file: Some("~/flag"),
            ..none
        };
        assert_eq!(find(tilde, &vars, &unix).as_deref(), Some("from-file"));
        assert_eq!(find(none, &vars, &unix).as_deref(), Some("env"));
        assert_eq!(find(none, &vars[1..], &unix).as_deref(), Some("env-file"));
        assert_eq!(find(none, &[], &tcp).as_deref(), Some("local"));
        assert_eq!(find(none, &[], &http("[::1]:80")).as_deref(), Some("local"));
        assert_eq!(find(none, &[], &http("10.0.0.1:80")), None);
        assert_eq!(find(none, &[], &unix), None);
    }

    #[test]
    fn bad_tokens_are_refused_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        fs::write(&empty, "\n").unwrap();
        let find = |path: &str| {
            let flags = TokenFlags {
                token: None,
                token_file: Some(path),
            };
            find_token(flags, env(&[]), None, &http("h:1"), Path::new("/none"))
        };
        let text = |r: Result<_, DiscoverError>| r.map(|_: Option<Token>| ()).unwrap_err();
        assert!(matches!(
            text(find(empty.to_str().unwrap())),
            DiscoverError::EmptyTokenFile { .. }
        ));
        assert!(matches!(
            text(find("/no/such")),
            DiscoverError::TokenFile { .. }
        ));
        assert!(matches!(text(find("~/t")), DiscoverError::NoHome(_)));
        assert!(Token::new("two words", "x").is_err());
        assert_eq!(
            format!("{:?}", Token::new("s3cret", "x").unwrap()),
            "Token(…)"
        );
    }
}
