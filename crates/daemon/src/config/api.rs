//! Where the REST API listens, and who may use it.

use super::Host;
use super::reader::{Field, Table};
use super::report::{Report, WarningKind};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

const DEFAULT_SOCKET: &str = "./slicer.sock";
const DEFAULT_PORT: u16 = 8080;
/// The longest name of a unix socket: what macOS takes, which is less than Linux does.
const MAX_SOCKET_PATH: usize = 103;
const MAX_TOKEN: usize = 4096;

/// The REST API's front door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// Where it listens; empty when it is switched off.
    pub listeners: Vec<Listener>,
    /// The token of listeners that ask for one; to be generated when there is none here.
    pub token: Option<ApiToken>,
}

/// One place the API listens at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: ListenAddress,
    /// Whether requests need the bearer token.
    pub auth: bool,
}

/// A socket's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket. A relative path is relative to the daemon's working directory.
    Unix(PathBuf),
    /// A TCP socket.
    Tcp(SocketAddr),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

/// The bearer token. It shows in no log: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken(String);

impl ApiToken {
    /// This text as a token, when it can be one: it travels in a header.
    pub fn new(text: &str) -> Option<Self> {
        let fits = (1..=MAX_TOKEN).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// The token itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(…)")
    }
}

#[derive(Default)]
struct Auth<'n> {
    enabled: Option<bool>,
    token: Option<(ApiToken, Field<'n>)>,
}

/// Reads `api`. Without one, the API is at `./slicer.sock`.
pub(super) fn read(config: &mut Table<'_>, host: &Host, report: &mut Report) -> Option<ApiConfig> {
    let Some(field) = config.take("api") else {
        let address = ListenAddress::Unix(PathBuf::from(DEFAULT_SOCKET));
        return Some(ApiConfig {
            listeners: vec![Listener {
                address,
                auth: false,
            }],
            token: None,
        });
    };
    let mut table = field.table(report)?;
    let enabled = match table.take("enabled") {
        Some(field) => field.truth(report)?,
        None => true,
    };
    let addresses = read_addresses(&mut table, host, report);
    let auth = match table.take("auth") {
        Some(field) => read_auth(&field, report),
        None => Some(Auth::default()),
    };
    table.finish(report);
    let (addresses, auth) = (addresses?, auth?);
    let addresses = if enabled { addresses } else { Vec::new() };
    if !enabled {
        let text = "no client can reach the daemon: api.enabled is false";
        field.warn(report, WarningKind::Advice, text);
    }
    let listeners: Vec<Listener> = addresses
        .into_iter()
        .map(|address| Listener {
            auth: auth
                .enabled
                .unwrap_or(matches!(address, ListenAddress::Tcp(_))),
            address,
        })
        .collect();
    for listener in &listeners {
        if let ListenAddress::Tcp(address) = listener.address
            && !listener.auth
            && !address.ip().is_loopback()
        {
            let text = format!("without auth, whoever reaches {address} controls the VMs");
            field.warn(report, WarningKind::Advice, text);
        }
    }
    if let Some((_, token)) = &auth.token
        && !listeners.iter().any(|l| l.auth)
    {
        token.warn(
            report,
            WarningKind::Advice,
            "no listener asks for the token: set api.auth.enabled to true",
        );
    }
    Some(ApiConfig {
        listeners,
        token: auth.token.map(|(token, _)| token),
    })
}

fn read_addresses(
    table: &mut Table<'_>,
    host: &Host,
    report: &mut Report,
) -> Option<Vec<ListenAddress>> {
    let socket = table.take("socket");
    let bind = table.take("bind_address");
    let port_field = table.take("port");
    let port = match &port_field {
        Some(field) => u16::try_from(field.whole(1..=65_535, report)?).ok()?,
        None => DEFAULT_PORT,
    };
    let mut addresses = Vec::new();
    let home = host.home.as_deref();
    if let Some(field) = &socket {
        addresses.push(ListenAddress::Unix(socket_path(field, home, report)?));
    }
    match &bind {
        Some(field) if is_path(field.text(report)?) => {
            if socket.is_some() {
                field.error(report, "api.socket names a socket too: keep one of the two");
                return None;
            }
            if let Some(field) = port_field {
                let text = "has no effect: api.bind_address is a socket";
                field.warn(report, WarningKind::Advice, text);
            }
            addresses.push(ListenAddress::Unix(socket_path(field, home, report)?));
        }
        Some(field) => {
            let Some(ip) = parse_ip(field.text(report)?) else {
                field.expected(
                    report,
                    "an IP address, or a socket's path such as ./slicer.sock",
                );
                return None;
            };
            addresses.push(ListenAddress::Tcp(SocketAddr::new(ip, port)));
        }
        None if port_field.is_some() => {
            let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
            addresses.push(ListenAddress::Tcp(SocketAddr::new(ip, port)));
        }
        None => {}
    }
    if addresses.is_empty() {
        addresses.push(ListenAddress::Unix(PathBuf::from(DEFAULT_SOCKET)));
    }
    Some(addresses)
}

fn socket_path(field: &Field<'_>, home: Option<&Path>, report: &mut Report) -> Option<PathBuf> {
    let path = field.file(home, report)?;
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        field.error(
            report,
            format!(
                "{length} bytes are too long for a socket's name: at most {MAX_SOCKET_PATH} fit"
            ),
        );
        return None;
    }
    Some(path)
}

fn is_path(text: &str) -> bool {
    ["/", "./", "../", "~/"].iter().any(|p| text.starts_with(p))
        || Path::new(text).extension().is_some_and(|e| e == "sock")
}

/// An address as old examples write it too: `0.0.0.0:`, `[::1]`, `localhost`.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let bare = |t: &str| -> Option<IpAddr> {
        if t == "localhost" {
            return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        let unbracketed = t.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        unbracketed.unwrap_or(t).parse().ok()
    };
    bare(text).or_else(|| bare(text.strip_suffix(':')?))
}

fn read_auth<'n>(field: &Field<'n>, report: &mut Report) -> Option<Auth<'n>> {
    let mut table = field.table(report)?;
    let enabled = match table.take("enabled") {
        Some(field) => Some(field.truth(report)?),
        None => None,
    };
    let token = match table.take("token") {
        Some(field) => Some((read_token(&field, report)?, field)),
        None => None,
    };
    table.finish(report);
    Some(Auth { enabled, token })
}

fn read_token(field: &Field<'_>, report: &mut Report) -> Option<ApiToken> {
    let text = field.text(report)?;
    let token = ApiToken::new(text);
    if token.is_none() {
        // What it is must not be told, so no `expected … found`.
        field.error(
            report,
            format!("not a token: 1 to {MAX_TOKEN} ASCII letters, digits and signs, no spaces"),
        );
    }
    token
}
