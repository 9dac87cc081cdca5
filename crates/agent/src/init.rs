//! PID 1 of the initramfs: from the kernel's first program to the image's init.
//!
//! Every step here is on the path of every boot, mostly under emulation, so it does what must be
//! done before the hand-over and leaves the rest to the worker. A step that fails either is
//! survived with a line in the kernel's log, or ends the boot with a line on the console and the
//! machine powered off, so that the host learns why; nothing ever waits without a bound.

use crate::error::{AgentError, io_error};
use crate::modules::{self, ModuleList};
use crate::units::{self, Way};
use crate::{fresh, grow, log, modprobe, power, supervise, sys};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::{CStr, OsStr};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The agent as the guest sees it once its root is in place.
pub(crate) const AGENT: &str = "/run/slicer/slicer-agent";
/// The agent's own directory in the guest.
pub(crate) const RUN_DIR: &str = "/run/slicer";
/// Where users of the guest find the agent.
const AGENT_LINK: &str = "/usr/local/bin/slicer-agent";
/// Put on the kernel's command line by a host that only wants to see a kernel and an init run.
const PROBE: &str = "slicer.probe";
/// What such a host looks for on the console.
const PROBE_OK: &str = "slicer-probe-ok";

/// The serial of the disk the guest's root is on, and of the one with its kernel's modules.
const ROOT_SERIAL: &str = "root";
const MODULES_SERIAL: &str = "modules";
/// Disks are there as soon as their driver is; this is for a machine under great load.
const DISK_WAIT: Duration = Duration::from_secs(20);

/// Where the guest's root is mounted until it becomes the root.
const NEW_ROOT: &str = "/newroot";

/// What runs as PID 1 in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestInit {
    /// systemd, which says when it is done with early boot.
    Systemd,
    /// Another init, which doesn't.
    Other,
    /// None: the image has no init, and the agent stays PID 1.
    None,
}

impl GuestInit {
    /// The word by which the supervisor is told.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Other => "other",
            Self::None => "none",
        }
    }

    /// Reads [`Self::word`].
    pub(crate) fn from_word(word: &OsStr) -> Option<Self> {
        [Self::Systemd, Self::Other, Self::None]
            .into_iter()
            .find(|kind| word == kind.word())
    }

    /// The image's init and its kind. The root must be the guest's by now.
    fn find() -> (Self, Option<&'static Path>) {
        for path in [
            "/sbin/init",
            "/lib/systemd/systemd",
            "/usr/lib/systemd/systemd",
            "/bin/init",
        ] {
            let path = Path::new(path);
            let runs = fs::metadata(path)
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
            if runs {
                let real = fs::canonicalize(path).unwrap_or_default();
                let is_systemd = real.file_name() == Some(OsStr::new("systemd"));
                let kind = if is_systemd {
                    Self::Systemd
                } else {
                    Self::Other
                };
                return (kind, Some(path));
            }
        }
        (Self::None, None)
    }
}

/// Boots the guest. Returns only in processes that are no longer the image's init: the supervisor
/// and the worker.
pub(crate) fn run() -> ExitCode {
    match boot() {
        Ok(code) => code,
        Err(e) => die(&e),
    }
}

/// Leaves a last line on the console and powers off.
fn die(error: &AgentError) -> ExitCode {
    console_line(&format!("slicer-agent: {error}"));
    power::off_now();
    ExitCode::FAILURE
}

/// Writes a line to the console and waits until it is out, since a machine that powers off takes
/// what is still buffered with it.
fn console_line(line: &str) {
    let console = fs::OpenOptions::new().write(true).open("/dev/console");
    let text = format!("{line}\n");
    let _ = match console {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .and_then(|()| Ok(rustix::termios::tcdrain(&file)?)),
        // No devtmpfs yet: the kernel gave us the initramfs's own console, if it has one.
        Err(_) => io::stderr()
            .write_all(text.as_bytes())
            .and_then(|()| Ok(rustix::termios::tcdrain(io::stderr())?)),
    };
}

fn boot() -> Result<ExitCode, AgentError> {
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("proc", "/proc", "proc", hardened, c"")?;
    mount_at("sysfs", "/sys", "sysfs", hardened, c"")?;
    mount_at(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        c"mode=0755",
    )?;
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if command_line.split_whitespace().any(|w| w == PROBE) {
        console_line(PROBE_OK);
        power::off_now();
        return Ok(ExitCode::SUCCESS);
    }
    // systemd would mount it, too; at the first time the kernel asks user space for a module, and
    // here, where nobody can answer, that costs nothing. A kernel without it does without.
    let _ = mount_at("bpf", "/sys/fs/bpf", "bpf", hardened, c"mode=0700");
    log::to_kernel();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let initramfs = rustix::fs::open("/", flags, Mode::empty()).map_err(io_error("open", "/"))?;
    load_early(initramfs.as_fd());

    let root = Disk::wait_for(ROOT_SERIAL, DISK_WAIT)?;
    // What is deleted is given back to the host, whose file has a hole there then.
    let options = c"discard";
    mount_at(&root.device, NEW_ROOT, "ext4", MountFlags::NOATIME, options)?;
    match grow::grow(&root.device, root.bytes, Path::new(NEW_ROOT)) {
        Ok(true) => log::info("root file system grown to its disk"),
        Ok(false) => {}
        // It works at its old size, too.
        Err(e) => log::warn(&e.to_string()),
    }
    enter(NEW_ROOT)?;
    let fixups = fresh::asked(&command_line);
    fresh::apply(&fixups, Path::new("/"))?;
    for fixup in fixups {
        log::info(&format!("made anew: {fixup}"));
    }
    prepare_guest()?;
    let (kind, program) = GuestInit::find();
    let way = match kind {
        GuestInit::Systemd => Way::of(fs::read_to_string("/etc/fstab").ok().as_deref()),
        GuestInit::Other | GuestInit::None => Way::Long,
    };
    if way == Way::Long {
        survive(mount_modules());
    }
    let mut arguments = None;
    if kind == GuestInit::Systemd {
        match units::install(Path::new("/run/systemd"), way) {
            Ok(()) if way == Way::Short => {
                arguments = Some(format!("--unit={}", units::EARLY_TARGET));
            }
            Ok(()) => {}
            Err(e) => log::warn(&e.to_string()),
        }
    }
    let Some(program) = program else {
        log::notice("the image has no init, the agent stays PID 1");
        survive(prepare_without_init());
        survive(modprobe::offer(Path::new(AGENT)));
        survive(keep_initramfs(&initramfs));
        survive(link_agent(Path::new(AGENT_LINK)));
        return Ok(supervise::run(GuestInit::None));
    };
    if let Some(code) = leave_supervisor(kind, &initramfs)? {
        return Ok(code);
    }
    drop(initramfs);
    log::notice(&format!("handing over to {}", program.display()));
    let error = Command::new(program).args(arguments).exec();
    Err(io_error("execute", program)(error))
}

/// Mounts the kernel's modules, unless they are. On the short way the worker does, for systemd
/// would at once look for some that nobody needs.
pub(crate) fn mount_modules() -> Result<(), AgentError> {
    const MODULES: &str = "/lib/modules";
    let device = |path: &str| fs::metadata(path).map(|m| m.dev()).ok();
    let Some(disk) = Disk::find(MODULES_SERIAL) else {
        return Ok(());
    };
    if device(MODULES).is_some_and(|d| Some(d) != device("/")) {
        return Ok(());
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_at(&disk.device, MODULES, "ext4", flags, c"")
}

/// A step the guest can do without.
fn survive(result: Result<(), AgentError>) {
    if let Err(e) = result {
        log::warn(&e.to_string());
    }
}

fn load_early(initramfs: rustix::fd::BorrowedFd<'_>) {
    match ModuleList::read(initramfs) {
        Ok(list) => {
            for name in &list.early {
                survive(modules::load(initramfs, name));
            }
        }
        // Whether it can go on without shows when the disk is looked for.
        Err(e) => log::warn(&e.to_string()),
    }
}

/// Makes the file system mounted at `new_root` the root, and takes `/dev`, `/proc` and `/sys`
/// along.
fn enter(new_root: &str) -> Result<(), AgentError> {
    for dir in ["/dev", "/proc", "/sys"] {
        let target = format!("{new_root}{dir}");
        make_dir(&target, 0o755)?;
        mount_move(dir, &target).map_err(io_error("move mount to", &target))?;
    }
    rustix::process::chdir(new_root).map_err(io_error("enter", new_root))?;
    mount_move(".", "/").map_err(io_error("move mount to", "/"))?;
    rustix::process::chroot(".").map_err(io_error("change root to", new_root))?;
    rustix::process::chdir("/").map_err(io_error("enter", "/"))
}

/// What every guest gets before its init: `/run` with the agent in it, and a machine id.
fn prepare_guest() -> Result<(), AgentError> {
    // The options systemd itself would mount it with; it keeps what it finds.
    mount_at(
        "tmpfs",
        "/run",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755,size=20%,nr_inodes=800k",
    )?;
    make_dir(RUN_DIR, 0o755)?;
    // /proc/self/exe is the initramfs's /init, which no path leads to any more.
    fs::copy("/proc/self/exe", AGENT).map_err(io_error("copy the agent to", AGENT))?;
    fs::set_permissions(AGENT, fs::Permissions::from_mode(0o755))
        .map_err(io_error("make executable", AGENT))?;
    survive(ensure_machine_id(Path::new("/etc/machine-id")));
    Ok(())
}

/// Links the agent to where users look for programs, unless the image has something else there.
fn link_agent(link: &Path) -> Result<(), AgentError> {
    match fs::symlink_metadata(link) {
        // Ours from an earlier boot, or the image's own, which stays.
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = link.parent() {
                make_dir(dir, 0o755)?;
            }
            std::os::unix::fs::symlink(AGENT, link).map_err(io_error("link", link))
        }
        Err(e) => Err(io_error("inspect", link)(e)),
    }
}

/// Gives the guest a machine id when it has none. systemd takes a machine without one for booting
/// the first time, and does things that cost seconds and may ask questions.
pub(crate) fn ensure_machine_id(path: &Path) -> Result<(), AgentError> {
    match fs::read_to_string(path) {
        Ok(text) if !matches!(text.trim(), "" | "uninitialized") => return Ok(()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io_error("read", path)(e)),
    }
    renew_machine_id(path)
}

/// Gives the guest a new machine id. In the file that is there, if one is: a clone waits for this, and
/// making a file is what takes the time.
pub(crate) fn renew_machine_id(path: &Path) -> Result<(), AgentError> {
    let mut id = [0u8; 16];
    // A name, not a secret: what the kernel can give now is good enough, and waiting for better
    // could take seconds this early. systemd does the same.
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::INSECURE)
        .map_err(io_error("get random bytes for", path))?;
    // A version 4 UUID, as machine-id(5) asks for.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let mut text = id.iter().fold(String::new(), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
        text
    });
    text.push('\n');
    let in_place = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    if let Ok(file) = in_place
        && file
            .metadata()
            .is_ok_and(|m| m.is_file() && m.len() == text.len() as u64)
    {
        return file
            .write_all_at(text.as_bytes(), 0)
            .map_err(io_error("write", path));
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", path)(e)),
        _ => {}
    }
    fs::write(path, text).map_err(io_error("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))
        .map_err(io_error("change mode of", path))
}

/// What an init would have done.
fn prepare_without_init() -> Result<(), AgentError> {
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0620,gid=5,ptmxmode=0666",
    )?;
    let shared = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", "/dev/shm", "tmpfs", shared, c"mode=1777")?;
    mount_at("tmpfs", "/tmp", "tmpfs", shared, c"mode=1777,size=50%")?;
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", hardened, c"")?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

/// Forks the process that becomes the agent's supervisor. Returns `None` in PID 1; in the child
/// only when the agent could not be executed anew and ran from where it was.
fn leave_supervisor(kind: GuestInit, initramfs: &OwnedFd) -> Result<Option<ExitCode>, AgentError> {
    match sys::fork().map_err(io_error("fork the supervisor from", AGENT))? {
        sys::Fork::Parent(_) => Ok(None),
        sys::Fork::Child => {
            keep_initramfs(initramfs)?;
            // Here, where the image's init need not wait for the disk to be read.
            survive(link_agent(Path::new(AGENT_LINK)));
            // systemd spares processes whose name starts with '@' in its killing spree at
            // shutdown, so the agent answers until the very end:
            // https://systemd.io/ROOT_STORAGE_DAEMONS/
            let error = Command::new(AGENT)
                .arg0("@slicer-agent")
                .args(["supervise", kind.word()])
                .stdin(Stdio::inherit())
                .exec();
            log::warn(&io_error::<io::Error>("execute", AGENT)(error).to_string());
            Ok(Some(supervise::run(kind)))
        }
    }
}

/// Keeps the initramfs reachable for the worker, which loads the late modules from it: as its
/// standard input, since that is the one descriptor an exec can hand on without unsafe code.
fn keep_initramfs(initramfs: &OwnedFd) -> Result<(), AgentError> {
    rustix::stdio::dup2_stdin(initramfs).map_err(io_error("keep open", "/"))
}

/// A virtio disk.
struct Disk {
    device: PathBuf,
    bytes: u64,
}

impl Disk {
    /// The disk with this serial, if it is there.
    fn find(serial: &str) -> Option<Self> {
        fs::read_dir("/sys/block")
            .ok()?
            .flatten()
            .find_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let found = name.starts_with("vd")
                    && fs::read_to_string(entry.path().join("serial"))
                        .is_ok_and(|s| s.trim() == serial);
                if !found {
                    return None;
                }
                // The kernel counts in 512-byte sectors, whatever the disk's own are.
                let sectors = fs::read_to_string(entry.path().join("size")).ok()?;
                Some(Self {
                    device: Path::new("/dev").join(name),
                    bytes: sectors.trim().parse::<u64>().ok()?.saturating_mul(512),
                })
            })
    }

    /// The disk with this serial, once it is there.
    fn wait_for(serial: &'static str, limit: Duration) -> Result<Self, AgentError> {
        let start = Instant::now();
        loop {
            // Drivers probe their devices as they are loaded, so the first look nearly always
            // finds it, and a look costs less than setting up to be told.
            if let Some(disk) = Self::find(serial) {
                return Ok(disk);
            }
            if start.elapsed() > limit {
                return Err(AgentError::NoDisk {
                    serial,
                    seconds: limit.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn mount_at(
    source: impl AsRef<Path>,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: &CStr,
) -> Result<(), AgentError> {
    make_dir(target, 0o755)?;
    mount(source.as_ref(), target, kind, flags, data).map_err(io_error("mount", target))
}

fn make_dir(path: impl AsRef<Path>, mode: u32) -> Result<(), AgentError> {
    let path = path.as_ref();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(io_error("make directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_an_id_gets_one_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        for before in [None, Some(""), Some("uninitialized\n")] {
            let _ = fs::remove_file(&path);
            if let Some(text) = before {
                fs::write(&path, text).unwrap();
            }
            ensure_machine_id(&path).unwrap();
            let id = fs::read_to_string(&path).unwrap();
            assert_eq!(id.len(), 33, "{id:?}");
            assert!(id.trim().bytes().all(|b| b.is_ascii_hexdigit()));
            ensure_machine_id(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), id);
        }
    }

    #[test]
    fn the_link_never_replaces_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("usr/local/bin/slicer-agent");
        link_agent(&link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(AGENT));
        link_agent(&link).unwrap();
        fs::remove_file(&link).unwrap();
        fs::write(&link, "theirs").unwrap();
        link_agent(&link).unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "theirs");
    }

    #[test]
    fn kinds_survive_their_words() {
        for kind in [GuestInit::Systemd, GuestInit::Other, GuestInit::None] {
            assert_eq!(GuestInit::from_word(OsStr::new(kind.word())), Some(kind));
        }
        assert_eq!(GuestInit::from_word(OsStr::new("upstart")), None);
    }
}
