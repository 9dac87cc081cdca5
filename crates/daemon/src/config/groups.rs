//! Host groups.

use super::arch;
use super::network::{NetworkConfig, read_network};
use super::reader::{Field, Table};
use super::report::{Place, Report};
use super::shares::{self, ShareConfig};
use super::sleep::{self, SleepAction};
use super::unserved;
use crate::github::check_user;
use slicer_api::{Forward, ForwardListen};
use slicer_image::parse_size;
use slicer_machine::Arch;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The script VMs run at their first boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Userdata {
    /// There is none.
    #[default]
    None,
    /// This one.
    Script(String),
    /// The one in this file, relative to the working directory, as it is when a VM is made.
    File(PathBuf),
}

impl Userdata {
    fn of(script: &str) -> Self {
        if script.is_empty() {
            Self::None
        } else {
            Self::Script(script.to_owned())
        }
    }
}

/// The longest group name: with a dash and five digits behind it, it is still a DNS label.
const MAX_NAME: usize = 57;
const MAX_COUNT: u64 = 10_000;
const MAX_CPUS: u64 = 255;
const DEFAULT_CPUS: u32 = 2;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Less than this doesn't boot a Linux with an init.
const MIN_RAM: u64 = 128 * MIB;
const MAX_RAM: u64 = 16 << 40;
const DEFAULT_RAM: u64 = 4 * GIB;
const DEFAULT_STORAGE: u64 = 15 * GIB;
const MIN_STORAGE: u64 = 64 * MIB;
/// The largest ext4 with 4 KiB blocks and 32-bit block numbers.
const MAX_STORAGE: u64 = 16 << 40;
const DEFAULT_DNS: [Ipv4Addr; 2] = [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1)];

/// A pool of VMs of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostGroupConfig {
    /// Its name, a DNS label; its VMs are called `NAME-1`, `NAME-2`, …
    pub name: String,
    /// How many VMs the daemon itself keeps. The API may launch more.
    pub count: u32,
    /// The architecture of its VMs; the host's if there is none.
    pub arch: Option<Arch>,
    /// CPUs of a VM: the default, and the most one may ask for.
    pub vcpu: u32,
    /// Memory of a VM, bytes: the default, and the most one may ask for.
    pub ram_bytes: u64,
    /// Size of a VM's root disk, bytes.
    pub storage_size: u64,
    /// Whether root file systems are kept; those of image files are in any case.
    pub persistent: bool,
    /// The image its VMs boot.
    pub image: String,
    /// The network its VMs are in.
    pub network: NetworkConfig,
    /// Resolvers of the VMs, in order; never empty.
    pub dns_servers: Vec<Ipv4Addr>,
    /// What VMs run at their first boot.
    pub userdata: Userdata,
    /// Whether VMs run what their image's `ENTRYPOINT` and `CMD` say.
    pub entrypoint: bool,
    /// What of its VMs the daemon makes reachable on the host.
    pub forwards: Vec<Forward>,
    /// Public keys for the VMs' default user: those of the whole configuration, then the group's.
    pub ssh_keys: Vec<String>,
    /// The GitHub user whose public keys are let in as well; empty is nobody.
    pub github_user: String,
    /// What of the host the VMs see.
    pub shares: Vec<ShareConfig>,
    /// Whether launches begin as a template of the group, that was booted once. Unless it says so, those
    /// of groups do of which no VM is declared, where that costs no memory.
    pub warm: Option<bool>,
    /// How many VMs are kept booted ahead, for launches to take.
    pub warm_pool: u32,
    /// Whether its VMs run programs for x86-64 by Rosetta, on Macs.
    pub rosetta: bool,
    /// What becomes of its VMs when the host goes to sleep.
    pub sleep_action: SleepAction,
}

/// More spare VMs than this serve nobody.
const MAX_WARM_POOL: u64 = 64;

/// What the whole configuration gives to every group.
pub(super) struct Shared<'c> {
    pub(super) image: Option<&'c str>,
    pub(super) ssh_keys: &'c [String],
    pub(super) github_user: &'c str,
    pub(super) home: Option<&'c Path>,
}

/// Reads `host_groups`. Groups that are wrong are reported and left out.
pub(super) fn read_all(
    config: &mut Table<'_>,
    shared: &Shared<'_>,
    report: &mut Report,
) -> Vec<HostGroupConfig> {
    let Some(field) = config.take("host_groups") else {
        report.error(
            config.place(),
            "host_groups: expected a list of groups, found nothing",
        );
        return Vec::new();
    };
    let Some(items) = field.list(report) else {
        return Vec::new();
    };
    if items.is_empty() {
        field.error(report, "expected at least one group, found an empty list");
    }
    let mut groups = Vec::new();
    let mut first_use: HashMap<String, Place> = HashMap::new();
    for item in items {
        let Some(mut table) = item.table(report) else {
            continue;
        };
        let name = read_name(&mut table, report);
        if let Some((name, field)) = &name {
            if let Some(first) = first_use.get(name) {
                let text = format!("{name:?} is the group on line {} already", first.line);
                field.error(report, text);
            }
            first_use
                .entry(name.clone())
                .or_insert_with(|| field.place());
        }
        let rest = read_group(&mut table, shared, report);
        let (place, path) = (table.place(), table.path_of("network"));
        table.finish(report);
        if let (Some((name, _)), Some(group)) = (name, rest) {
            let clash = |g: &&HostGroupConfig| g.network.clashes(&group.network);
            if let Some(other) = groups.iter().find(clash) {
                let text = format!(
                    "its bridge's network overlaps with that of group {:?}: give both one gateway \
                     and one bridge, or networks apart",
                    other.name
                );
                report.error(place, format!("{path}: {text}"));
            }
            groups.push(HostGroupConfig { name, ..group });
        }
    }
    groups
}

fn read_name<'n>(table: &mut Table<'n>, report: &mut Report) -> Option<(String, Field<'n>)> {
    let Some(field) = table.take("name") else {
        let path = table.path_of("name");
        report.error(
            table.place(),
            format!("{path}: a group needs a name, found nothing"),
        );
        return None;
    };
    let name = field.text(report)?;
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let valid = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !valid {
        field.expected(
            report,
            &format!(
                "a name of at most {MAX_NAME} lowercase letters, digits and inner dashes, \
                 since it begins hostnames"
            ),
        );
        return None;
    }
    Some((name.to_owned(), field))
}

/// All of a group but its name, which the caller has.
fn read_group(
    table: &mut Table<'_>,
    shared: &Shared<'_>,
    report: &mut Report,
) -> Option<HostGroupConfig> {
    let count = number(table, "count", 0..=MAX_COUNT, 1, report);
    let arch = arch::read(table, report);
    let vcpu = number(table, "vcpu", 1..=MAX_CPUS, DEFAULT_CPUS, report);
    let ram_bytes = read_ram(table, report);
    let storage_size = read_storage(table, report);
    let persistent = match table.take("persistent") {
        Some(field) => field.truth(report),
        None => Some(false),
    };
    let entrypoint = match table.take("entrypoint") {
        Some(field) => field.truth(report),
        None => Some(false),
    };
    let warm = match table.take("warm") {
        Some(field) => field.truth(report).map(Some),
        None => Some(None),
    };
    let warm_pool = number(table, "warm_pool", 0..=MAX_WARM_POOL, 0, report);
    let rosetta = match table.take("rosetta") {
        Some(field) => field.truth(report),
        None => Some(false),
    };
    let image = read_image(table, shared, report);
    let userdata = read_userdata(table, shared, report);
    let forwards = read_forwards(table, shared, report);
    let shares = shares::read(table, shared.home, report);
    let sleep_action = sleep::read(table, report);
    let ssh_keys = read_ssh_keys(table, report).map(|own| [shared.ssh_keys, &own].concat());
    let github_user = read_github_user(table, report).map(|own| {
        if own.is_empty() {
            shared.github_user.to_owned()
        } else {
            own
        }
    });
    let own_dns = table.take("dns_servers");
    let network_field = table.take("network");
    let mut network_table = network_field.as_ref().and_then(|f| f.table(report));
    let network_dns = network_table.as_mut().and_then(|t| t.take("dns_servers"));
    let dns_servers = read_dns(own_dns, network_dns, report);
    let network = match (&network_field, network_table) {
        (None, _) => Some(NetworkConfig::default()),
        (Some(_), None) => None,
        (Some(_), Some(mut inner)) => {
            let network = read_network(&mut inner, report);
            inner.finish(report);
            network
        }
    };
    unserved::check("host_groups[]", table, report);
    unserved::check_all("host_groups[].ca", "ca", table, report);

    let (count, network) = (count?, network?);
    let room = network.room();
    if usize::try_from(count).unwrap_or(usize::MAX) > room {
        let (place, path) = match &network_field {
            Some(field) => (field.place(), field.path().to_owned()),
            None => (table.place(), table.path_of("network")),
        };
        report.error(
            place,
            format!("{path}: room for {room} VMs, but count is {count}"),
        );
    }
    Some(HostGroupConfig {
        name: String::new(),
        count,
        arch: arch?,
        vcpu: vcpu?,
        ram_bytes: ram_bytes?,
        storage_size: storage_size?,
        persistent: persistent?,
        image: image?,
        userdata: userdata?,
        entrypoint: entrypoint?,
        forwards: forwards?,
        network,
        dns_servers: dns_servers?,
        ssh_keys: ssh_keys?,
        github_user: github_user?,
        shares: shares?,
        warm: warm?,
        warm_pool: warm_pool?,
        rosetta: rosetta?,
        sleep_action: sleep_action?,
    })
}

fn number(
    table: &mut Table<'_>,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
    default: u32,
    report: &mut Report,
) -> Option<u32> {
    match table.take(key) {
        Some(field) => u32::try_from(field.whole(range, report)?).ok(),
        None => Some(default),
    }
}

fn read_ram(table: &mut Table<'_>, report: &mut Report) -> Option<u64> {
    let units = [("ram_gb", GIB), ("ram_mb", MIB), ("ram_bytes", 1)];
    let given: Vec<_> = units
        .into_iter()
        .filter_map(|(key, unit)| table.take(key).map(|field| (key, unit, field)))
        .collect();
    match given.as_slice() {
        [] => Some(DEFAULT_RAM),
        [(_, unit, field)] => field
            .whole(MIN_RAM.div_ceil(*unit)..=MAX_RAM / unit, report)
            .map(|n| n * unit),
        [(first, ..), (_, _, second), ..] => {
            second.error(report, format!("{first} is given too: keep one of the two"));
            None
        }
    }
}

fn read_storage(table: &mut Table<'_>, report: &mut Report) -> Option<u64> {
    let Some(field) = table.take("storage_size") else {
        return Some(DEFAULT_STORAGE);
    };
    let text = field.text(report)?;
    let size = parse_size(text)
        .ok()
        .filter(|s| (MIN_STORAGE..=MAX_STORAGE).contains(s));
    if size.is_none() {
        field.expected(report, "a size with a unit, such as 15G, from 64M to 16T");
    }
    size
}

fn read_userdata(
    table: &mut Table<'_>,
    shared: &Shared<'_>,
    report: &mut Report,
) -> Option<Userdata> {
    let script = match table.take("userdata") {
        Some(field) => field.text(report)?,
        None => "",
    };
    let Some(field) = table.take("userdata_file") else {
        return Some(Userdata::of(script));
    };
    if field.text(report)?.is_empty() {
        return Some(Userdata::of(script));
    }
    if !script.is_empty() {
        field.error(report, "userdata is given, too: leave one of them out");
        return None;
    }
    field.file(shared.home, report).map(Userdata::File)
}

/// Mappings in the form of the command's `-L`; a socket's path may begin with `~/`.
fn read_forwards(
    table: &mut Table<'_>,
    shared: &Shared<'_>,
    report: &mut Report,
) -> Option<Vec<Forward>> {
    let Some(field) = table.take("forwards") else {
        return Some(Vec::new());
    };
    let mut forwards: Vec<Forward> = Vec::new();
    for item in field.list(report)? {
        let mut forward: Forward = match item.text(report)?.parse() {
            Ok(forward) => forward,
            Err(e) => {
                let text = format!("{e}");
                item.error(report, text);
                return None;
            }
        };
        if let ForwardListen::Unix(path) = &mut forward.listen
            && let Ok(rest) = path.strip_prefix("~")
        {
            let Some(home) = shared.home else {
                let text = "~/ can't be replaced without a home directory: give a full path";
                item.error(report, text);
                return None;
            };
            *path = home.join(rest);
        }
        if forwards.iter().any(|f| f.listen == forward.listen) {
            let text = format!("{} is listened on already", forward.listen);
            item.error(report, text);
            return None;
        }
        forwards.push(forward);
    }
    Some(forwards)
}

fn read_image(table: &mut Table<'_>, shared: &Shared<'_>, report: &mut Report) -> Option<String> {
    let own = match table.take("image") {
        Some(field) => field.text(report)?,
        None => "",
    };
    let image = if own.is_empty() {
        shared.image.unwrap_or_default()
    } else {
        own
    };
    if image.is_empty() {
        let path = table.path_of("image");
        report.error(
            table.place(),
            format!("{path}: no image: give `image` here or for all groups under `config`"),
        );
        return None;
    }
    Some(image.to_owned())
}

/// Public keys: a list of texts, each of which may hold several lines.
pub(super) fn read_ssh_keys(table: &mut Table<'_>, report: &mut Report) -> Option<Vec<String>> {
    let Some(field) = table.take("ssh_keys") else {
        return Some(Vec::new());
    };
    let mut keys = Vec::new();
    for item in field.list(report)? {
        let text = item.text(report)?;
        if text.contains("PRIVATE KEY") {
            item.error(report, "this is a private key: give the public one (.pub)");
            return None;
        }
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if !is_public_key(line) {
                item.error(report, "not a public key: expected `ssh-ed25519 AAAA…`");
                return None;
            }
            keys.push(line.to_owned());
        }
    }
    Some(keys)
}

/// The GitHub user whose keys are imported.
pub(super) fn read_github_user(table: &mut Table<'_>, report: &mut Report) -> Option<String> {
    let Some(field) = table.take("github_user") else {
        return Some(String::new());
    };
    let user = field.text(report)?;
    if !user.is_empty()
        && let Err(e) = check_user(user)
    {
        field.error(report, e.message);
        return None;
    }
    Some(user.to_owned())
}

/// Whether a line of `authorized_keys` (sshd(8)) has a key type followed by its blob; options may
/// stand before it.
pub(crate) fn is_public_key(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let types = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    !line.chars().any(char::is_control)
        && words
            .windows(2)
            .any(|w| types.iter().any(|t| w[0].starts_with(t)) && w[1].starts_with("AAAA"))
}

fn read_dns(
    own: Option<Field<'_>>,
    of_network: Option<Field<'_>>,
    report: &mut Report,
) -> Option<Vec<Ipv4Addr>> {
    if let (Some(own), Some(other)) = (&own, &of_network) {
        let text = format!("{} is given too: keep one of the two", own.path());
        other.error(report, text);
        return None;
    }
    let Some(field) = own.or(of_network) else {
        return Some(DEFAULT_DNS.to_vec());
    };
    let items = field.list(report)?;
    if items.is_empty() {
        return Some(DEFAULT_DNS.to_vec());
    }
    let servers = items.iter().map(|item| {
        let server = item.text(report)?.parse().ok();
        if server.is_none() {
            item.expected(report, "an IPv4 address");
        }
        server
    });
    // All are looked at before any is found wrong, so that all that are wrong are told.
    let servers: Vec<Option<Ipv4Addr>> = servers.collect();
    servers.into_iter().collect()
}
