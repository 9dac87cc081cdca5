//! The system calls no safe wrapper exists for. Nothing else in this crate is unsafe.
#![expect(
    unsafe_code,
    reason = "thin wrappers around fork, pre_exec, mallopt and ioctls without safe wrappers"
)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a [`fork`] this is.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the new one's id.
    Parent(rustix::process::Pid),
}

/// Splits the process in two.
///
/// # Errors
/// When the kernel has no room for another process, or when more than one thread runs: a child of
/// such a fork could meet locks that nobody will ever release.
pub(crate) fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads run")));
    }
    // SAFETY: the process has a single thread, so the child inherits no lock held by another one
    // and may go on like any program.
    let pid = unsafe { libc::fork() };
    match rustix::process::Pid::from_raw(pid) {
        None => Ok(Fork::Child),
        Some(_) if pid < 0 => Err(io::Error::last_os_error()),
        Some(pid) => Ok(Fork::Parent(pid)),
    }
}

/// Keeps a few MiB that were freed for the next who needs memory. By default they go back to the
/// system at once, and while something is copied they come from there again and again, which costs
/// a page fault for each page.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_freed_memory() {
    const KEPT: libc::c_int = 4 << 20;
    const OWN_MAPPING: libc::c_int = 512 << 10;
    // SAFETY: the call sets numbers of the allocator, and takes any value.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
    }
}

/// Other allocators have their own ways.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_freed_memory() {}

/// Gives this thread precedence over what runs in the guest, though not at once when it has something
/// to do: in a copy it does more at a time then, whichever side is the faster one. Otherwise each
/// piece changes processes twice, which costs more than the piece. What it starts has the usual
/// niceness, but waits as it does unless [`without_precedence`] or [`before_exec`] is used.
///
/// # Errors
/// `EPERM` without the right to.
pub(crate) fn take_precedence() -> io::Result<()> {
    set_policy(libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK)?;
    Ok(rustix::process::setpriority_process(None, PRECEDENCE)?)
}

/// The agent's niceness.
const PRECEDENCE: i32 = -10;

fn set_policy(policy: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure outlives the call, which only reads it.
    check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) })
}

/// Has a program run as if the agent had taken no precedence.
pub(crate) fn without_precedence(command: &mut Command) {
    // SAFETY: one system call on data of its own; turning the errno into an `io::Error` does not
    // allocate.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, || set_policy(libc::SCHED_OTHER));
    }
}

/// Has `hook` run in the child between fork and exec, which then hands on no descriptors but
/// standard input, output and error. The hook's error fails the spawn with the same number.
///
/// The hook must keep to plain system calls on memory that was made ready before: no allocation,
/// no lock, no environment.
pub(crate) fn before_exec(
    command: &mut Command,
    hook: impl FnMut() -> rustix::io::Result<()> + Send + Sync + 'static,
) {
    let mut hook = hook;
    let hook = move || {
        // Whatever started the agent may have left descriptors open. Marking in place of closing
        // keeps the one by which an error gets back. A kernel older than 5.11 has no such call;
        // all that is our own is marked anyway.
        // SAFETY: plain arguments, no memory involved.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        set_policy(libc::SCHED_OTHER)?;
        hook().map_err(Into::into)
    };
    // SAFETY: the one caller, `exec::spawn`, passes a hook of raw system calls on data it owns;
    // turning the errno into an `io::Error` does not allocate.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, hook);
    }
}

/// Registers a descriptor with the runtime, which is that of the caller.
///
/// # Errors
/// When it is of a kind that can't be polled, such as a plain file.
pub(crate) fn watch(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is owned, so it is open, and the `AsyncFd` shares its ownership, so it
    // stays open and the same for as long as it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Sends the real-time signal `SIGRTMIN + offset` to PID 1.
///
/// # Errors
/// `EPERM` without the right to.
pub(crate) fn signal_init(offset: i32) -> io::Result<()> {
    // SAFETY: plain arguments, no memory involved.
    check(unsafe { libc::kill(1, libc::SIGRTMIN() + offset) })
}

/// Grows a mounted ext4 file system to `blocks` of its own block size. `fs` is any open file or
/// directory of it.
///
/// # Errors
/// As the kernel reports; `EBUSY` while another resize runs.
pub(crate) fn resize_ext4(fs: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // _IOW('f', 16, __u64) of fs/ext4/ext4.h, in the encoding all our architectures share.
    const EXT4_IOC_RESIZE_FS: u64 = (1 << 30) | (8 << 16) | (0x66 << 8) | 16;
    // SAFETY: the request reads one u64, which outlives the call.
    check(unsafe { libc::ioctl(fs.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) })
}

/// Has the file system that a directory is of discard all blocks it doesn't use; gives their bytes.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY` where it can't, else as the kernel reports.
pub(crate) fn trim(directory: &std::fs::File) -> io::Result<u64> {
    // _IOWR('X', 121, struct fstrim_range) of linux/fs.h, in the encoding all our architectures
    // share.
    const FITRIM: u64 = (3 << 30) | (24 << 16) | (0x58 << 8) | 0x79;
    // Start, length and least length; the kernel puts into the length what it has trimmed.
    let mut range = [0, u64::MAX, 0];
    // SAFETY: the request reads and writes three u64, which outlive the call.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FITRIM as _, &raw mut range) })?;
    Ok(range[1])
}

/// Sets an interface's address and prefix length. Setting what is set already changes nothing.
///
/// # Errors
/// `ENODEV` for an unknown interface, else as the kernel reports.
pub(crate) fn set_address(
    socket: BorrowedFd<'_>,
    interface: &str,
    address: Ipv4Addr,
    prefix: u8,
) -> io::Result<()> {
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    interface_ioctl(socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = socket_address(netmask(prefix));
    interface_ioctl(socket, libc::SIOCSIFNETMASK, &mut request)
}

/// Brings an interface up.
///
/// # Errors
/// `ENODEV` for an unknown interface, else as the kernel reports.
pub(crate) fn set_up(socket: BorrowedFd<'_>, interface: &str) -> io::Result<()> {
    let mut request = interface_request(interface)?;
    interface_ioctl(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    #[expect(clippy::cast_possible_truncation, reason = "IFF_UP is 1")]
    let up = libc::IFF_UP as libc::c_short;
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    interface_ioctl(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// An interface's hardware address.
///
/// # Errors
/// `ENODEV` for an unknown interface.
pub(crate) fn hardware_address(socket: BorrowedFd<'_>, interface: &str) -> io::Result<[u8; 6]> {
    let mut request = interface_request(interface)?;
    interface_ioctl(socket, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: SIOCGIFHWADDR has just filled it in.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(std::array::from_fn(|i| data[i].to_ne_bytes()[0]))
}

/// Changes an interface's hardware address, from what it is now.
///
/// # Errors
/// `ENODEV` for an unknown interface, `EBUSY` where its driver can't while it is up.
pub(crate) fn set_hardware_address(
    socket: BorrowedFd<'_>,
    interface: &str,
    address: [u8; 6],
) -> io::Result<()> {
    let mut request = interface_request(interface)?;
    interface_ioctl(socket, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: SIOCGIFHWADDR has just filled it in, with the kind of the interface.
    let mut hardware = unsafe { request.ifr_ifru.ifru_hwaddr };
    for (to, from) in hardware.sa_data.iter_mut().zip(address) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = hardware;
    interface_ioctl(socket, libc::SIOCSIFHWADDR, &mut request)
}

/// Bytes of a seed that the kernel takes at once.
pub(crate) const SEED: usize = 64;

/// Gives the kernel's random pool a seed that counts in full, and has all that draws from the pool
/// follow from it at once (random(4)).
///
/// # Errors
/// As the kernel reports; it needs a capability.
pub(crate) fn reseed(pool: BorrowedFd<'_>, seed: [u8; SEED]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    /// `struct rand_pool_info` of linux/random.h.
    #[repr(C)]
    struct Info {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; SEED],
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "a seed has 64 bytes"
    )]
    const BYTES: libc::c_int = SEED as libc::c_int;
    let info = Info {
        entropy_count: 8 * BYTES,
        buf_size: BYTES,
        buf: seed,
    };
    // SAFETY: the request reads the info, whose buffer is as long as it says, and which outlives the
    // call.
    check(unsafe { libc::ioctl(pool.as_raw_fd(), RNDADDENTROPY as _, &raw const info) })?;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(pool.as_raw_fd(), RNDRESEEDCRNG as _, 0) })
}

/// Adds a default route.
///
/// # Errors
/// `EEXIST` when there is one of this metric, `ENETUNREACH` when the gateway isn't on a network of
/// the machine.
pub(crate) fn add_default_route(socket: BorrowedFd<'_>, gateway: Ipv4Addr) -> io::Result<()> {
    route_ioctl(socket, libc::SIOCADDRT, gateway)
}

/// Removes a default route.
///
/// # Errors
/// `ESRCH` when there is none by this gateway.
pub(crate) fn delete_default_route(socket: BorrowedFd<'_>, gateway: Ipv4Addr) -> io::Result<()> {
    route_ioctl(socket, libc::SIOCDELRT, gateway)
}

fn route_ioctl(
    socket: BorrowedFd<'_>,
    request: libc::c_ulong,
    gateway: Ipv4Addr,
) -> io::Result<()> {
    // SAFETY: rtentry is plain data (integers and pointers) for which all zeroes is valid; a null
    // rt_dev means any interface.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the request reads one rtentry, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw const route) })
}

fn interface_ioctl(
    socket: BorrowedFd<'_>,
    request: libc::c_ulong,
    interface: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: the request reads and writes one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut *interface) })
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The name must leave room for its terminating zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn netmask(prefix: u8) -> Ipv4Addr {
    let host_bits = 32 - u32::from(prefix.min(32));
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// A `sockaddr` of family `AF_INET`, laid out as `sockaddr_in` is.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    libc::sockaddr {
        #[expect(clippy::cast_possible_truncation, reason = "AF_INET is 2")]
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks() {
        for (prefix, mask) in [
            (0, Ipv4Addr::UNSPECIFIED),
            (1, Ipv4Addr::new(128, 0, 0, 0)),
            (24, Ipv4Addr::new(255, 255, 255, 0)),
            (32, Ipv4Addr::BROADCAST),
            (200, Ipv4Addr::BROADCAST),
        ] {
            assert_eq!(netmask(prefix), mask, "{prefix}");
        }
    }

    #[test]
    fn an_interface_name_too_long_is_refused() {
        assert!(interface_request("fifteen-letters").is_ok());
        assert!(interface_request("sixteen-letters!").is_err());
    }
}
