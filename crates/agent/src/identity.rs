//! Who the guest is: applied after boot, and again after a restore or a fork. Applying the same
//! identity twice changes nothing.

use crate::error::{AgentError, io_error};
use crate::renew::Later;
use crate::users::{Database, User};
use crate::{log, net, renew};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, mkdirat, openat, statat,
};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use slicer_api::{ApiError, Identity};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A clock this close to the host's is left alone, for the request itself took about as long.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);
/// `authorized_keys` beyond this are not a file of keys.
const KEYS_LIMIT: u64 = 1 << 20;
/// The mark beside `authorized_keys` that keys were imported; who removes it gets them again.
const IMPORTED: &str = "github_keys_imported";
/// Where our resolvers are written; the image's `/etc/resolv.conf` then leads to it.
const RESOLV_CONF: &str = "/run/slicer/resolv.conf";
/// Link targets of a `/etc/resolv.conf` that has a manager of its own.
const RESOLV_MANAGERS: [&str; 2] = ["run/systemd/resolve/", "run/NetworkManager/"];

/// Refuses an identity that could not be meant.
pub(crate) fn check(identity: &Identity) -> Result<(), ApiError> {
    let name = &identity.hostname;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if name.is_empty() || name.len() > 63 || name.starts_with('-') || !name.bytes().all(plain) {
        return Err(ApiError::bad_request(format!(
            "invalid hostname {name:.80?}: use up to 63 letters, digits, - and ."
        )));
    }
    if let Some(network) = &identity.network
        && network.prefix > 32
    {
        return Err(ApiError::bad_request(format!(
            "invalid prefix {}: an IPv4 network has 0 to 32 bits",
            network.prefix
        )));
    }
    if let Some(entrypoint) = &identity.entrypoint {
        let refused = |why| ApiError::bad_request(format!("invalid entrypoint: {why}"));
        entrypoint.check().map_err(refused)?;
    }
    for share in &identity.shares {
        let refused = |why| ApiError::bad_request(format!("invalid share: {why}"));
        share.check().map_err(refused)?;
    }
    if let Some(renewal) = &identity.renewal {
        renew::check(renewal)?;
    }
    let mut keys = identity.ssh_keys.iter().chain(&identity.imported_keys);
    if let Some(key) = keys.find(|key| key.chars().any(char::is_control)) {
        return Err(ApiError::bad_request(format!(
            "invalid SSH key {key:.80?}: a key is one line"
        )));
    }
    Ok(())
}

/// Makes the guest who it is told to be. What is left for when it is ready, is answered.
pub(crate) async fn apply(
    identity: &Identity,
    users: Arc<Database>,
    modules_loaded: watch::Receiver<bool>,
) -> Result<Later, AgentError> {
    let received = Instant::now();
    let cloned = identity.renewal.is_some();
    if !cloned {
        set_clock(identity.clock_unix_nanos)?;
        set_hostname(&identity.hostname)?;
    }
    let mut later = Later::default();
    if cloned {
        let copy = identity.clone();
        let renewed = tokio::task::spawn_blocking(move || renew::apply(&copy)).await;
        later =
            renewed.unwrap_or_else(|e| Err(io_error("renew", "the guest")(io::Error::other(e))))?;
    }
    let copy = identity.clone();
    let files = tokio::task::spawn_blocking(move || write_files(&copy, &users));
    if let Some(network) = &identity.network {
        net::configure(network, modules_loaded).await?;
    }
    if let Err(e) = files.await {
        log::warn(&format!("writing the identity's files failed: {e}"));
    }
    if cloned {
        // Last, for the journal is woken by the one, and systemd looks at all its timers by the other, and
        // tells whoever listens.
        set_hostname(&identity.hostname)?;
        let since = u64::try_from(received.elapsed().as_nanos()).unwrap_or_default();
        set_clock(identity.clock_unix_nanos.saturating_add(since))?;
    }
    Ok(later)
}

/// Sets the clock to the host's.
pub(crate) fn set_clock(unix_nanos: u64) -> Result<(), AgentError> {
    // A host that doesn't say is not from 1970.
    if unix_nanos == 0 {
        return Ok(());
    }
    let wanted = Duration::from_nanos(unix_nanos);
    let now = Duration::try_from(clock_gettime(ClockId::Realtime)).unwrap_or_default();
    if wanted.abs_diff(now) <= CLOCK_TOLERANCE {
        return Ok(());
    }
    Timespec::try_from(wanted)
        .map_err(|_| Errno::INVAL)
        .and_then(|t| clock_settime(ClockId::Realtime, t))
        .map_err(io_error("set", "the clock"))
}

/// Sets the running system's hostname.
pub(crate) fn set_hostname(name: &str) -> Result<(), AgentError> {
    rustix::system::sethostname(name.as_bytes()).map_err(io_error("set hostname", name))
}

/// The parts that live in files. A guest whose root can't be written to works without them.
fn write_files(identity: &Identity, users: &Database) {
    let survive = |result: Result<(), AgentError>| {
        if let Err(e) = result {
            log::warn(&e.to_string());
        }
    };
    let name = &identity.hostname;
    let write = if identity.renewal.is_some() {
        write_in_place
    } else {
        write_if_changed
    };
    survive(write(Path::new("/etc/hostname"), &format!("{name}\n")));
    let hosts = Path::new("/etc/hosts");
    let text = fs::read_to_string(hosts).unwrap_or_default();
    survive(write(hosts, &hosts_with(&text, name)));
    if let Some(network) = &identity.network {
        survive(write_if_changed(
            Path::new(RESOLV_CONF),
            &resolv_conf(&network.dns),
        ));
        survive(link_resolv_conf(
            Path::new("/etc/resolv.conf"),
            Path::new(RESOLV_CONF),
        ));
    }
    if let Some(user) = users.default_user() {
        if !identity.ssh_keys.is_empty() {
            survive(add_keys(user, &identity.ssh_keys));
        }
        if !identity.imported_keys.is_empty() {
            survive(import_keys(user, &identity.imported_keys));
        }
    }
}

/// Writes a text over that of a file, if it is no shorter and a block holds it, else replaces the file.
/// A clone waits for this, and making a file is what takes the time; should it crash before the text is
/// on its disk, it is given its identity again when it boots.
pub(crate) fn write_in_place(path: &Path, text: &str) -> Result<(), AgentError> {
    const BLOCK: usize = 4096;
    let mut options = fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW);
    if text.len() <= BLOCK
        && let Ok(file) = options.open(path)
        && file
            .metadata()
            .is_ok_and(|m| m.is_file() && (1..=text.len() as u64).contains(&m.len()))
    {
        return file
            .write_all_at(text.as_bytes(), 0)
            .map_err(io_error("write", path));
    }
    write_if_changed(path, text)
}

/// Replaces a file whose text is another, in one step.
fn write_if_changed(path: &Path, text: &str) -> Result<(), AgentError> {
    if fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".slicer-new");
    let temporary = path.with_file_name(name);
    fs::write(&temporary, text).map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("replace", path))
}

/// `/etc/hosts` with this machine's name in it, and everything else as it was. 127.0.1.1 is the
/// address Debian gives a machine's own name.
fn hosts_with(text: &str, name: &str) -> String {
    let own = format!("127.0.1.1 {name}");
    let address = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let mut lines: Vec<&str> = Vec::new();
    let mut placed = false;
    for line in text.lines() {
        if address(line).as_deref() == Some("127.0.1.1") {
            if !placed {
                lines.push(&own);
            }
            placed = true;
        } else {
            lines.push(line);
        }
    }
    if !text
        .lines()
        .any(|l| address(l).as_deref() == Some("127.0.0.1"))
    {
        lines.insert(0, "127.0.0.1 localhost");
    }
    if !placed {
        lines.push(&own);
    }
    lines.join("\n") + "\n"
}

fn resolv_conf(dns: &[Ipv4Addr]) -> String {
    dns.iter().fold(String::new(), |text, server| {
        text + "nameserver " + &server.to_string() + "\n"
    })
}

/// Has `link` lead to our resolvers, unless it leads to those of a manager the image brings.
fn link_resolv_conf(link: &Path, ours: &Path) -> Result<(), AgentError> {
    if let Ok(target) = fs::read_link(link) {
        let text = target.to_string_lossy();
        if target == ours || RESOLV_MANAGERS.iter().any(|m| text.contains(m)) {
            return Ok(());
        }
    }
    let temporary = link.with_file_name(".resolv.conf.slicer-new");
    let _ = fs::remove_file(&temporary);
    symlink(ours, &temporary).map_err(io_error("link", &temporary))?;
    fs::rename(&temporary, link).map_err(io_error("replace", link))
}

/// The directory of a user's keys, made if it isn't there. Whatever the user put in its place, and
/// in that of the files in it, links are not followed: we are root and they are not.
fn ssh_dir(user: &User) -> Result<OwnedFd, AgentError> {
    let home = Path::new(&user.home);
    let path = home.join(".ssh");
    let failed = |action| io_error::<Errno>(action, &path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let home = rustix::fs::open(home, flags, Mode::empty()).map_err(failed("reach"))?;
    let made = match mkdirat(&home, ".ssh", Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(e) => return Err(failed("make directory")(e)),
    };
    let dir =
        openat(&home, ".ssh", flags | OFlags::NOFOLLOW, Mode::empty()).map_err(failed("reach"))?;
    if made {
        give_to(user, &dir).map_err(failed("give away"))?;
    }
    Ok(dir)
}

fn give_to(user: &User, file: impl AsFd) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    fchown(file, Some(uid), Some(gid))
}

/// Lets these keys in as this user.
fn add_keys(user: &User, keys: &[String]) -> Result<(), AgentError> {
    let path = Path::new(&user.home).join(".ssh/authorized_keys");
    let failed = |action| io_error::<Errno>(action, &path);
    let dir = ssh_dir(user)?;
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::APPEND
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file =
        openat(&dir, "authorized_keys", flags, Mode::RUSR | Mode::WUSR).map_err(failed("open"))?;
    let stat = fstat(&file).map_err(failed("inspect"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed("use")(Errno::INVAL));
    }
    if stat.st_size == 0 {
        give_to(user, &file).map_err(failed("give away"))?;
    }
    let mut file = File::from(file);
    let mut text = String::new();
    (&mut file)
        .take(KEYS_LIMIT)
        .read_to_string(&mut text)
        .map_err(io_error::<io::Error>("read", &path))?;
    let new = missing_keys(&text, keys);
    if new.is_empty() {
        return Ok(());
    }
    file.write_all(new.as_bytes())
        .map_err(io_error::<io::Error>("write", &path))
}

/// Lets these keys in once: not while there is a mark that they have been.
fn import_keys(user: &User, keys: &[String]) -> Result<(), AgentError> {
    let path = Path::new(&user.home).join(".ssh").join(IMPORTED);
    let failed = |action| io_error::<Errno>(action, &path);
    let dir = ssh_dir(user)?;
    match statat(&dir, IMPORTED, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(e) => return Err(failed("inspect")(e)),
    }
    add_keys(user, keys)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mark = openat(&dir, IMPORTED, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make"))?;
    give_to(user, &mark).map_err(failed("give away"))
}

/// The lines to append to `authorized_keys` for keys that aren't in it.
fn missing_keys(text: &str, keys: &[String]) -> String {
    let mut new = String::new();
    for key in keys.iter().map(|k| k.trim()).filter(|k| !k.is_empty()) {
        if !text
            .lines()
            .chain(new.lines())
            .any(|line| line.trim() == key)
        {
            new.push_str(key);
            new.push('\n');
        }
    }
    if !new.is_empty() && !text.is_empty() && !text.ends_with('\n') {
        new.insert(0, '\n');
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn identity(hostname: &str) -> Identity {
        Identity {
            hostname: hostname.to_owned(),
            ..Identity::default()
        }
    }

    #[test]
    fn hostnames_are_checked() {
        for good in ["sbox-1", "a", "k3s-agent-12.local"] {
            assert!(check(&identity(good)).is_ok(), "{good}");
        }
        for bad in ["", "-x", "a b", "a\n", "ä", "a/b", &"x".repeat(64)] {
            assert!(check(&identity(bad)).is_err(), "{bad:?}");
        }
        let two_lines = Identity {
            ssh_keys: vec!["ssh-ed25519 A\nssh-rsa B".into()],
            ..identity("x")
        };
        assert!(check(&two_lines).is_err());
    }

    #[test]
    fn hosts_keeps_what_it_had() {
        assert_eq!(
            hosts_with("", "sbox-1"),
            "127.0.0.1 localhost\n127.0.1.1 sbox-1\n"
        );
        let debian = "127.0.0.1\tlocalhost\n127.0.1.1\told old.lan\n# x\n10.0.0.1 nas\n";
        let ours = "127.0.0.1\tlocalhost\n127.0.1.1 sbox-2\n# x\n10.0.0.1 nas\n";
        assert_eq!(hosts_with(debian, "sbox-2"), ours);
        assert_eq!(hosts_with(ours, "sbox-2"), ours);
    }

    #[test]
    fn resolv_conf_is_ours_unless_it_has_a_manager() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("resolv.conf");
        let ours = Path::new(RESOLV_CONF);
        for before in [None, Some("nameserver 192.0.2.1\n")] {
            if let Some(text) = before {
                fs::remove_file(&link).unwrap();
                fs::write(&link, text).unwrap();
            }
            link_resolv_conf(&link, ours).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), ours);
            link_resolv_conf(&link, ours).unwrap();
        }
        for manager in [
            "../run/systemd/resolve/stub-resolv.conf",
            "/run/NetworkManager/resolv.conf",
        ] {
            fs::remove_file(&link).unwrap();
            symlink(manager, &link).unwrap();
            link_resolv_conf(&link, ours).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(manager));
        }
        assert_eq!(
            resolv_conf(&[[10, 0, 2, 3].into(), [1, 1, 1, 1].into()]),
            "nameserver 10.0.2.3\nnameserver 1.1.1.1\n"
        );
    }

    #[test]
    fn a_file_is_replaced_only_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostname");
        write_if_changed(&path, "a\n").unwrap();
        let before = fs::metadata(&path).unwrap();
        write_if_changed(&path, "a\n").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        write_if_changed(&path, "b\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_written_over_where_nothing_of_it_stays() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostname");
        let inode = || fs::metadata(&path).unwrap().ino();
        write_in_place(&path, "vm\n").unwrap();
        let first = inode();
        for (text, same) in [("sbox-1\n", true), ("sbox-2\n", true), ("vm\n", false)] {
            write_in_place(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(inode() == first, same, "{text}");
        }
        // What lies where a link leads is somebody else's.
        let other = dir.path().join("other");
        fs::write(&other, "a\n").unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        write_in_place(&path, "sbox-1\n").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "a\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "sbox-1\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn keys_are_added_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let user = User {
            name: "me".into(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            home: dir.path().to_string_lossy().into_owned(),
            shell: "/bin/sh".into(),
        };
        let keys = ["ssh-ed25519 A me".to_owned(), " ssh-ed25519 B ".to_owned()];
        for _ in 0..2 {
            add_keys(&user, &keys).unwrap();
        }
        let file = dir.path().join(".ssh/authorized_keys");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "ssh-ed25519 A me\nssh-ed25519 B\n"
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(&dir.path().join(".ssh")), 0o700);

        let imported = ["ssh-ed25519 C".to_owned()];
        import_keys(&user, &imported).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().last(), Some("ssh-ed25519 C"));
        fs::write(&file, "").unwrap();
        import_keys(&user, &imported).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "");
        fs::remove_file(dir.path().join(".ssh").join(IMPORTED)).unwrap();
        import_keys(&user, &imported).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "ssh-ed25519 C\n");

        let target = dir.path().join("shadow");
        fs::write(&target, "x").unwrap();
        fs::remove_file(&file).unwrap();
        symlink(&target, &file).unwrap();
        assert!(add_keys(&user, &keys).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "x");
    }

    #[test]
    fn a_last_line_without_an_end_stays_a_line() {
        assert_eq!(missing_keys("old", &["new".into()]), "\nnew\n");
        assert_eq!(
            missing_keys("old\n", &["new".into(), "new".into()]),
            "new\n"
        );
        assert_eq!(missing_keys("new", &["new".into()]), "");
    }
}
