//! Host folders, mounted where the host says. Doing it twice changes nothing, and a mount whose
//! device went away, as it does when a VM is saved, gives way to a new one.

use crate::error::{AgentError, io_error};
use crate::users::{Database, User};
use crate::{log, modules};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fstatvfs, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use slicer_api::ShareMount;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What the kernel calls it.
const TYPE: &str = "virtiofs";
/// How long a device may take to be found, which after a restore is plugged in only then.
const DEVICE_WAIT: Duration = Duration::from_secs(10);
const DEVICE_PAUSE: Duration = Duration::from_millis(20);
/// How long a mount that works may take to answer. One whose host's side hangs never does.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Mounts all that isn't mounted yet. What can't be is told on the console, and the guest goes on
/// without.
pub(crate) fn mount_all(shares: &[ShareMount], users: &Database) {
    load_modules();
    for share in shares {
        if let Err(e) = mount_one(share, users.default_user()) {
            log::warn(&e.to_string());
        }
    }
}

/// Unmounts them all, also from under who uses them: before their devices go, so that nothing waits
/// for an answer that never comes.
pub(crate) fn unmount_all(shares: &[ShareMount]) {
    for share in shares {
        for path in mounts_of(&share.tag) {
            write_out(&path);
            if let Err(e) = unmount(&path, UnmountFlags::DETACH) {
                log::warn(&io_error("unmount", &path)(e).to_string());
            }
        }
    }
}

/// The modules are in the initramfs, unless they are loaded already or part of the kernel. Later
/// they would be loaded anyway.
pub(crate) fn load_modules() {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|l| l.trim_end().ends_with(TYPE)) {
        return;
    }
    let stdin = io::stdin();
    for name in ["fuse", TYPE] {
        if let Err(e) = modules::load(stdin.as_fd(), name) {
            log::warn(&e.to_string());
        }
    }
}

fn mount_one(share: &ShareMount, user: Option<&User>) -> Result<(), AgentError> {
    let (base, below) = match share.mount.strip_prefix("~/") {
        Some(below) => (user.map_or("/root", |u| u.home.as_str()), below),
        None => ("/", share.mount.trim_start_matches('/')),
    };
    // In a home its user could lead us elsewhere, in the rest of the system only root could.
    let own = share.mount.starts_with('~').then_some(user).flatten();
    let path = Path::new(base).join(below);
    let Place { parent, dir } =
        place(Path::new(base), below, own).map_err(io_error("make the mount point", &path))?;
    let dir = match settled(&dir, &share.tag)? {
        Some(Mounted::Works) => return Ok(()),
        Some(Mounted::Dead(at)) => {
            unmount(&at, UnmountFlags::DETACH).map_err(io_error("unmount", &at))?;
            // What was opened before is what was mounted.
            place(Path::new(base), below, own)
                .map_err(io_error("make the mount point", &path))?
                .dir
        }
        None => dir,
    };
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if share.read_only {
        flags |= MountFlags::RDONLY;
    }
    let target = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let until = Instant::now() + DEVICE_WAIT;
    loop {
        match mount(share.tag.as_str(), target.as_str(), TYPE, flags, c"") {
            Ok(()) => break,
            // There is no device of this tag, or not yet.
            Err(Errno::INVAL) if Instant::now() < until => thread::sleep(DEVICE_PAUSE),
            Err(e) => return Err(io_error("mount a host folder at", &path)(e)),
        }
    }
    log::info(&format!("mounted {} at {}", share.tag, path.display()));
    if let (Some(link), Some(name)) = (&share.link, path.file_name()) {
        make_link(&parent, link, Path::new(name), own).map_err(io_error("link to", &path))?;
    }
    Ok(())
}

/// A mount point, and the directory it is in.
struct Place {
    parent: OwnedFd,
    dir: OwnedFd,
}

/// Opens a directory, and makes it and those above it where they are missing. Those in a home become
/// its user's, and links are not followed there.
fn place(base: &Path, below: &str, owner: Option<&User>) -> rustix::io::Result<Place> {
    let mut flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(base, flags, Mode::empty())?;
    let mut parent = None;
    if owner.is_some() {
        flags |= OFlags::NOFOLLOW;
    }
    for name in below.split('/').filter(|n| !n.is_empty()) {
        let made = match mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e),
        };
        let next = openat(&dir, name, flags, Mode::empty())?;
        if made && let Some(owner) = owner {
            give_to(owner, &dir, name)?;
        }
        parent = Some(std::mem::replace(&mut dir, next));
    }
    Ok(Place {
        parent: parent.ok_or(Errno::INVAL)?,
        dir,
    })
}

fn give_to(user: &User, dir: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    rustix::fs::chownat(
        dir,
        name,
        Some(Uid::from_raw(user.uid)),
        Some(Gid::from_raw(user.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// Leaves what is there, whatever it is.
fn make_link(
    parent: &OwnedFd,
    link: &str,
    target: &Path,
    owner: Option<&User>,
) -> rustix::io::Result<()> {
    match symlinkat(target, parent, link) {
        Ok(()) => owner.map_or(Ok(()), |owner| give_to(owner, parent, link)),
        Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// What is mounted somewhere already.
enum Mounted {
    Works,
    /// What served it is gone.
    Dead(PathBuf),
}

/// Whether the share of this tag is mounted at this directory.
fn settled(dir: &OwnedFd, tag: &str) -> Result<Option<Mounted>, AgentError> {
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let at = fs::read_link(&link).map_err(io_error::<io::Error>("read link", &link))?;
    if !mounts_of(tag).contains(&at) {
        return Ok(None);
    }
    Ok(Some(match open_dir(&at) {
        Ok(dir) if answers(&dir) => Mounted::Works,
        _ => Mounted::Dead(at),
    }))
}

/// Whether a mount answers.
fn answers(dir: &OwnedFd) -> bool {
    let ask = |dir: OwnedFd| fstatvfs(&dir).is_ok();
    dir.try_clone()
        .is_ok_and(|dir| bounded(move || ask(dir)) == Some(true))
}

/// Writes out what was written to a mount by way of shared memory, which nothing else does.
fn write_out(path: &Path) {
    let path = path.to_owned();
    bounded(move || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).and_then(rustix::fs::syncfs)
    });
}

/// Does what may hang on a thread of its own, which then keeps it.
fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        // Nobody may be listening any more.
        let _ = tell.send(work());
    });
    told.recv_timeout(ANSWER_WAIT).ok()
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Where the share of this tag is mounted as a whole.
fn mounts_of(tag: &str) -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    find_mounts(&String::from_utf8_lossy(&text), tag)
}

/// Reads mountinfo, see proc_pid_mountinfo(5).
fn find_mounts(mountinfo: &str, tag: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, at) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, source) = (right.next()?, right.next()?);
        let ours = root == "/" && kind == TYPE && unescape(source) == tag.as_bytes();
        ours.then(|| PathBuf::from(OsString::from_vec(unescape(at))))
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Blanks and backslashes are written as a backslash and three octal digits.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, more)) = rest.split_first() {
        let digits = more.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                out.push(escaped);
                rest = more.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(byte);
                rest = more;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,noatime shared:1 - ext4 /dev/vda rw
40 22 0:35 / /home/ubuntu/home rw,nosuid shared:9 - virtiofs home rw
41 22 0:36 / /srv/a\\040b ro,nosuid - virtiofs share1 rw
42 22 0:35 /sub /mnt rw - virtiofs home rw
43 22 0:37 / /tmp rw - tmpfs home rw
";

    #[test]
    fn mounts_are_found_by_tag() {
        assert_eq!(
            find_mounts(MOUNTINFO, "home"),
            [Path::new("/home/ubuntu/home")]
        );
        assert_eq!(find_mounts(MOUNTINFO, "share1"), [Path::new("/srv/a b")]);
        assert!(find_mounts(MOUNTINFO, "share2").is_empty());
    }

    fn me(home: &Path) -> User {
        User {
            name: "me".into(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            home: home.to_string_lossy().into_owned(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn mount_points_are_made_and_links_in_a_home_are_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let user = me(home.path());
        for _ in 0..2 {
            place(home.path(), "a/b", Some(&user)).unwrap();
        }
        assert_eq!(
            fs::metadata(home.path().join("a/b")).unwrap().uid(),
            user.uid
        );
        symlink("/etc", home.path().join("etc")).unwrap();
        assert!(place(home.path(), "etc", Some(&user)).is_err());
        assert!(place(home.path(), "etc/x", Some(&user)).is_err());
        assert!(place(home.path(), "etc", None).is_ok());
    }

    #[test]
    fn a_link_leaves_what_is_there() {
        let home = tempfile::tempdir().unwrap();
        let user = me(home.path());
        let Place { parent, .. } = place(home.path(), "home", Some(&user)).unwrap();
        let link = || make_link(&parent, "host", Path::new("home"), Some(&user));
        link().unwrap();
        link().unwrap();
        let path = home.path().join("host");
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("home"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        link().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn what_hangs_is_left() {
        assert_eq!(bounded(|| 7), Some(7));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[ -~\n]{0,200}", tag in "[a-z]{0,4}") {
            find_mounts(&text, &tag);
        }
    }
}
