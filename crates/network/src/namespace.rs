//! Network namespaces, `network_namespaces(7)`.

use crate::NetworkError;
use rustix::fs::{Mode, OFlags, open};
use rustix::thread::UnshareFlags;
use std::os::fd::OwnedFd;
use std::thread;

/// This thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// The network namespace of this thread.
pub(crate) fn own() -> Result<OwnedFd, NetworkError> {
    let fd = open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    fd.map_err(|e| NetworkError::io("open", OWN)(e.into()))
}

/// Runs `work` in a new network namespace, which is there as long as something of it is: a socket,
/// a tap.
pub(crate) fn within_new<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let run = || {
        unshare().map_err(NetworkError::io("make a network namespace like", OWN))?;
        work()
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or(Err(NetworkError::Gone))
}

#[expect(unsafe_code, reason = "rustix can't know which flags are harmless")]
fn unshare() -> std::io::Result<()> {
    // SAFETY: this leaves descriptors and memory as they are; only sockets that this thread makes
    // from now on are elsewhere.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}
