//! What a service runs, where and with what around it: the same for every manager of services.

use super::{Service, ServiceError};
use crate::config::{Config, HostOs, ListenAddress, Listener};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The configuration's name in the daemon's directory.
pub(crate) const CONFIG: &str = "slicer-mac.yaml";
/// Where the daemon works by custom, below the user's home.
const CUSTOM: &str = "slicer-mac";
/// Tells which version a definition is of, so that installing a new one replaces it.
const VERSION: &str = "SLICER_SERVICE";
/// What of the installing user's environment the daemon goes by.
const KEPT: [&str; 13] = [
    "SLICER_GUEST_DIR",
    "SLICER_LOG",
    "SLICER_EGRESS_ADAPTER",
    "SLICER_VIRTIOFSD",
    "DOCKER_CONFIG",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];
/// Programs the daemon calls, by how their names begin.
const CALLED: [&str; 4] = [
    "qemu-system-",
    "qemu-img",
    "virtiofsd",
    "docker-credential-",
];

/// What a service runs. All text is printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Which service it is.
    pub service: Service,
    /// The program's absolute path.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The absolute path of the directory it works in.
    pub directory: String,
    /// Its environment, beyond what the manager gives everybody.
    pub environment: BTreeMap<String, String>,
}

/// Where programs are, most wanted first: for who starts with nothing of a login shell.
fn directories(os: HostOs) -> &'static [&'static str] {
    match os {
        HostOs::MacOs => &[
            "/opt/homebrew/bin",
            "/opt/homebrew/sbin",
            "/usr/local/bin",
            "/usr/local/sbin",
            "/usr/bin",
            "/bin",
            "/usr/sbin",
            "/sbin",
        ],
        HostOs::Linux => &[
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ],
    }
}

/// The directory the daemon is to work in: the given one, else the current one or `~/slicer-mac`,
/// whichever has a configuration.
pub fn find_directory(given: Option<&Path>, current: &Path, home: &Path) -> PathBuf {
    let custom = home.join(CUSTOM);
    match given {
        Some(dir) => current.join(dir),
        None if current.join(CONFIG).exists() || !custom.join(CONFIG).exists() => {
            current.to_owned()
        }
        None => custom,
    }
}

/// The daemon, by this program, in this directory.
///
/// # Errors
/// When a path can't be part of a definition.
pub fn daemon(
    program: &Path,
    directory: &Path,
    os: HostOs,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Job, ServiceError> {
    let mut environment = BTreeMap::new();
    for name in KEPT {
        let Some(value) = variable(name).filter(|v| !v.is_empty()) else {
            continue;
        };
        let value = match name {
            "SLICER_GUEST_DIR" | "SLICER_VIRTIOFSD" | "DOCKER_CONFIG" => {
                text(&std::path::absolute(&value).unwrap_or_else(|_| value.into()))?
            }
            _ => text(Path::new(&value))?,
        };
        environment.insert(name.to_owned(), value);
    }
    environment.insert(
        "PATH".to_owned(),
        search_path(os, variable("PATH").as_deref()),
    );
    environment.insert(VERSION.to_owned(), version());
    Ok(Job {
        service: Service::Daemon,
        program: text(program)?,
        args: vec!["up".to_owned()],
        directory: text(directory)?,
        environment,
    })
}

/// The menu-bar app, by the program beside the daemon's, for the daemon of this configuration.
///
/// # Errors
/// When a path can't be part of a definition.
pub fn tray(
    program: &Path,
    directory: &Path,
    config: &Config,
    os: HostOs,
) -> Result<Job, ServiceError> {
    let mut environment = BTreeMap::new();
    environment.insert("PATH".to_owned(), search_path(os, None));
    environment.insert(VERSION.to_owned(), version());
    let mut args = Vec::new();
    let listeners = &config.api.listeners;
    let socket = |l: &&Listener| matches!(l.address, ListenAddress::Unix(_));
    let listener = listeners.iter().find(socket).or(listeners.first());
    if let Some(listener) = listener {
        let url = match &listener.address {
            ListenAddress::Unix(path) => {
                text(&directory.join(path.strip_prefix(".").unwrap_or(path)))?
            }
            ListenAddress::Tcp(address) => format!("http://{}", reachable(*address)),
        };
        args = vec!["--url".to_owned(), url];
        if listener.auth && config.api.token.is_none() {
            let token = text(&directory.join(".slicer/auth/token"))?;
            environment.insert("SLICER_TOKEN_FILE".to_owned(), token);
        }
    }
    Ok(Job {
        service: Service::Tray,
        program: text(program)?,
        args,
        directory: text(directory)?,
        environment,
    })
}

/// The address by which who is on this host gets to a listener.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn version() -> String {
    format!(
        "{} ({})",
        env!("CARGO_PKG_VERSION"),
        env!("SLICER_GIT_COMMIT")
    )
}

/// The usual directories, after those of the user's own `PATH` in which there is something the daemon
/// calls. The rest of it is left out, so that installing from another shell makes no other service.
fn search_path(os: HostOs, users: Option<&OsStr>) -> String {
    let mut dirs: Vec<String> = Vec::new();
    let users = users.map(|p| std::env::split_paths(p).collect::<Vec<_>>());
    for dir in users.unwrap_or_default() {
        if let Ok(name) = text(&dir)
            && dir.is_absolute()
            && !directories(os).contains(&name.as_str())
            && !dirs.contains(&name)
            && has_called(&dir)
        {
            dirs.push(name);
        }
    }
    dirs.extend(directories(os).iter().map(ToString::to_string));
    dirs.join(":")
}

fn has_called(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        CALLED.iter().any(|called| name.starts_with(called))
    })
}

/// A path as text that any definition can hold.
fn text(path: &Path) -> Result<String, ServiceError> {
    let refuse = |why| ServiceError::Path {
        path: path.to_owned(),
        why,
    };
    let text = path.to_str();
    let text = text.ok_or_else(|| refuse("it is not UTF-8: rename it"))?;
    if text.chars().any(char::is_control) {
        return Err(refuse("there are control characters in it: rename it"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Host;
    use std::os::unix::ffi::OsStrExt;

    /// A job whose every text has what must be escaped somewhere.
    pub(crate) fn nasty(service: Service) -> Job {
        let dir = r#"/home/a b/50% & <c> "d" $HOME \n 'é'"#;
        let args: &[&str] = match service {
            Service::Daemon => &["up"],
            Service::Tray => &["--url", "$x/%h/slicer.sock"],
        };
        Job {
            service,
            program: format!("{dir}/{}", service.program()),
            args: args.iter().map(ToString::to_string).collect(),
            directory: dir.to_owned(),
            environment: BTreeMap::from([
                ("PATH".to_owned(), format!("{dir}:/usr/bin")),
                ("SLICER_SERVICE".to_owned(), "0.1.0 (abc)".to_owned()),
            ]),
        }
    }

    /// What a plain installation makes.
    pub(crate) fn plain(service: Service, os: HostOs) -> Job {
        let dir = Path::new(match os {
            HostOs::MacOs => "/Users/alex/slicer-mac",
            HostOs::Linux => "/home/alex/slicer-mac",
        });
        let program = dir.join(service.program());
        let mut job = match service {
            Service::Daemon => daemon(&program, dir, os, |_| None),
            Service::Tray => tray(&program, dir, &config("socket: ./slicer.sock"), os),
        }
        .unwrap();
        let version = job.environment.get_mut(VERSION).unwrap();
        assert!(version.starts_with(env!("CARGO_PKG_VERSION")));
        "VERSION".clone_into(version);
        job
    }

    fn config(api: &str) -> Config {
        let text = format!(
            "config:\n  image: x:1\n  hypervisor: qemu\n  host_groups:\n    - name: a\n      count: 0\n  \
             api:\n    {api}\n"
        );
        let host = Host {
            os: HostOs::Linux,
            ..Host::current()
        };
        Config::parse(&text, "x.yaml", &host).unwrap().0
    }

    #[test]
    fn the_directory_is_where_the_configuration_is() {
        let home = tempfile::tempdir().unwrap();
        let (home, here) = (home.path(), home.path().join("here"));
        let custom = home.join("slicer-mac");
        fs::create_dir(&custom).unwrap();
        fs::create_dir(&here).unwrap();
        assert_eq!(find_directory(None, &here, home), here);
        fs::write(custom.join(CONFIG), "").unwrap();
        assert_eq!(find_directory(None, &here, home), custom);
        fs::write(here.join(CONFIG), "").unwrap();
        assert_eq!(find_directory(None, &here, home), here);
        let given = find_directory(Some(Path::new("x")), &here, home);
        assert_eq!(given, here.join("x"));
    }

    #[test]
    fn path_has_what_the_daemon_calls_and_the_usual() {
        let temp = tempfile::tempdir().unwrap();
        let dir = |name: &str, file: &str| {
            let dir = temp.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(file), "").unwrap();
            dir
        };
        let with = dir("with", "qemu-system-x86_64");
        let without = dir("without", "python3");
        let users = [
            without.as_path(),
            Path::new("relative"),
            &with,
            Path::new("/usr/bin"),
            &with,
        ];
        let users = std::env::join_paths(users).unwrap();
        assert_eq!(
            search_path(HostOs::Linux, Some(&users)),
            format!(
                "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                with.display()
            )
        );
        assert!(search_path(HostOs::MacOs, None).starts_with("/opt/homebrew/bin:"));
    }

    #[test]
    fn of_the_environment_the_daemon_keeps_what_it_goes_by() {
        let job = daemon(
            Path::new("/p"),
            Path::new("/d"),
            HostOs::Linux,
            |name| match name {
                "SLICER_GUEST_DIR" => Some("guest".into()),
                "HTTPS_PROXY" => Some("http://proxy:3128".into()),
                "NO_PROXY" => Some("".into()),
                "SLICER_FAULT" => Some("record-write".into()),
                _ => None,
            },
        );
        let environment = job.unwrap().environment;
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            environment["SLICER_GUEST_DIR"],
            here.join("guest").to_str().unwrap()
        );
        assert_eq!(environment["HTTPS_PROXY"], "http://proxy:3128");
        let names: Vec<&str> = environment.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["HTTPS_PROXY", "PATH", "SLICER_GUEST_DIR", "SLICER_SERVICE"]
        );
    }

    #[test]
    fn paths_no_definition_can_hold_are_refused() {
        for (dir, why) in [
            (OsStr::from_bytes(b"/home/\xff"), "not UTF-8"),
            (OsStr::new("/home/a\nb"), "control characters"),
        ] {
            let refused = daemon(Path::new("/p"), Path::new(dir), HostOs::MacOs, |_| None);
            let e = refused.unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
    }

    #[test]
    fn the_tray_is_told_where_the_daemon_is() {
        let (program, dir) = (Path::new("/p/slicer-tray"), Path::new("/d"));
        let job = tray(program, dir, &config("socket: /run/s.sock"), HostOs::MacOs).unwrap();
        assert_eq!(job.args, ["--url", "/run/s.sock"]);
        assert!(!job.environment.contains_key("SLICER_TOKEN_FILE"));
        let tcp = config("bind_address: 127.0.0.1\n    port: 8080");
        let job = tray(program, dir, &tcp, HostOs::MacOs).unwrap();
        assert_eq!(job.args, ["--url", "http://127.0.0.1:8080"]);
        assert_eq!(
            job.environment["SLICER_TOKEN_FILE"],
            "/d/.slicer/auth/token"
        );
    }
}
