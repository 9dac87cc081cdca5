//! The configuration: `slicer-mac.yaml`, parsed, checked and typed.
//!
//! Every finding carries its place, `FILE:LINE:COLUMN: KEY: what is wrong`, and all errors of a
//! file are told at once. Keys nobody knows and keys that aren't served yet are warnings, so that a
//! configuration written for another version still starts.

mod api;
mod arch;
mod groups;
mod network;
mod reader;
mod report;
mod shares;
mod sleep;
mod template;
#[cfg(test)]
mod tests;
mod tree;
mod unserved;

pub use api::{ApiConfig, ApiToken, ListenAddress, Listener};
pub(crate) use arch::parse as parse_arch;
pub(crate) use groups::is_public_key;
pub use groups::{HostGroupConfig, Userdata};
pub(crate) use network::MAX_DESTINATIONS;
pub use network::{NetworkConfig, NetworkMode};
pub use report::{ConfigError, Diagnostic, Place, Warning, WarningKind};
pub use shares::ShareConfig;
pub use sleep::SleepAction;
pub use template::template;

use reader::Table;
use report::Report;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// More than any configuration written by hand.
const MAX_BYTES: u64 = 1 << 20;

/// What `slicer-mac.yaml` says, checked and with defaults filled in. Relative paths in it are
/// relative to the daemon's working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The groups, at least one, in the file's order, each with a name of its own.
    pub host_groups: Vec<HostGroupConfig>,
    /// What runs the VMs on this host.
    pub hypervisor: Hypervisor,
    /// The image with the kernel and its modules, when it isn't the one that came with slicer.
    pub kernel_image: Option<String>,
    /// Whether registries are spoken to by plain HTTP.
    pub insecure_registry: bool,
    /// Where the REST API listens.
    pub api: ApiConfig,
    /// Whether guests are asked to power off before they are switched off.
    pub graceful_shutdown: bool,
}

/// A program or framework that runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hypervisor {
    /// Apple's Virtualization framework, on macOS.
    Apple,
    /// QEMU, on Linux.
    Qemu,
}

impl Hypervisor {
    /// The name a configuration selects it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apple => "apple",
            Self::Qemu => "qemu",
        }
    }
}

/// The kinds of host that VMs run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostOs {
    /// Linux.
    Linux,
    /// macOS.
    MacOs,
}

impl HostOs {
    /// What runs VMs there.
    pub fn hypervisor(self) -> Hypervisor {
        match self {
            Self::Linux => Hypervisor::Qemu,
            Self::MacOs => Hypervisor::Apple,
        }
    }
}

/// What a configuration's meaning depends on besides its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The host's operating system.
    pub os: HostOs,
    /// The user's home directory, which takes the place of `~` in `~/`.
    pub home: Option<PathBuf>,
}

impl Host {
    /// This host and this process's user.
    pub fn current() -> Self {
        Self {
            os: if cfg!(target_os = "macos") {
                HostOs::MacOs
            } else {
                HostOs::Linux
            },
            home: std::env::home_dir().filter(|h| !h.as_os_str().is_empty()),
        }
    }
}

impl Config {
    /// Reads the configuration in the file at `path` for this host.
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigError> {
        let text = read_file(path)?;
        Self::parse(&text, &path.display().to_string(), &Host::current())
    }

    /// Reads a configuration's text. `file_name` begins every finding.
    pub fn parse(
        text: &str,
        file_name: &str,
        host: &Host,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut report = Report::new(file_name);
        let config = tree::parse(text, &mut report).and_then(|root| {
            let mut file = Table::open("", &root, &mut report)?;
            let config = file.take("config");
            file.finish(&mut report);
            let Some(config) = config else {
                let text = "config: expected everything in a table of this name, found nothing";
                report.error(root.place, text);
                return None;
            };
            // Paths in findings begin below `config`, which every key is in.
            let mut table = config.as_root(&mut report)?;
            let config = read(&mut table, host, &mut report);
            table.finish(&mut report);
            config
        });
        report.finish(config)
    }

    /// The group called `name`.
    pub fn group(&self, name: &str) -> Option<&HostGroupConfig> {
        self.host_groups.iter().find(|g| g.name == name)
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let failed = |source: io::Error| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ConfigError::Missing { path },
            _ => ConfigError::Read { path, source },
        }
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            limit: MAX_BYTES,
        });
    }
    Ok(text)
}

fn read(table: &mut Table<'_>, host: &Host, report: &mut Report) -> Option<Config> {
    let image = match table.take("image") {
        Some(field) => Some(field.text(report)?),
        None => None,
    };
    let ssh_keys = groups::read_ssh_keys(table, report);
    let github_user = groups::read_github_user(table, report);
    let shared = groups::Shared {
        image,
        github_user: github_user.as_deref().unwrap_or_default(),
        ssh_keys: ssh_keys.as_deref().unwrap_or_default(),
        home: host.home.as_deref(),
    };
    let host_groups = groups::read_all(table, &shared, report);
    let hypervisor = read_hypervisor(table, host.os, report);
    let kernel_image = match table.take("kernel_image") {
        Some(field) => field.text(report).map(str::to_owned),
        None => None,
    };
    let insecure_registry = match table.take("insecure_registry") {
        Some(field) => field.truth(report),
        None => Some(false),
    };
    let api = api::read(table, host, report);
    let graceful_shutdown = match table.take("graceful_shutdown") {
        Some(field) => field.truth(report),
        None => Some(true),
    };
    unserved::check("", table, report);
    unserved::check_all("ssh", "ssh", table, report);
    ssh_keys?;
    github_user?;
    Some(Config {
        host_groups,
        hypervisor: hypervisor?,
        kernel_image: kernel_image.filter(|k| !k.is_empty()),
        insecure_registry: insecure_registry?,
        api: api?,
        graceful_shutdown: graceful_shutdown?,
    })
}

/// One file serves a Mac and a Linux host, so a hypervisor that this host hasn't got is not an
/// error: the host's own is used instead.
fn read_hypervisor(table: &mut Table<'_>, os: HostOs, report: &mut Report) -> Option<Hypervisor> {
    const NAMES: [&str; 4] = ["apple", "qemu", "firecracker", "cloud-hypervisor"];
    let here = os.hypervisor();
    let Some(field) = table.take("hypervisor") else {
        return Some(here);
    };
    let name = field.text(report)?;
    if !NAMES.contains(&name) {
        field.expected(report, &format!("one of {}", NAMES.join(", ")));
        return None;
    }
    if name != here.name() {
        let text = format!("{name} is not available here: using {}", here.name());
        field.warn(report, WarningKind::Advice, text);
    }
    Some(here)
}
