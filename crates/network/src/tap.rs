//! Taps: network devices whose other end is a file descriptor.

use crate::NetworkError;
use rustix::fs::{Mode, OFlags, open};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Where taps are made, `tun(4)`.
const TUN: &str = "/dev/net/tun";
/// Longest name of a network device, with the zero behind it.
const NAME: usize = libc::IFNAMSIZ;

/// Makes a tap in the network namespace of this thread, which is there as long as its descriptor.
/// `name` may have `%d` in it, for a number that the kernel chooses. Returns the name, too.
pub(crate) fn create(name: &str) -> Result<(OwnedFd, String), NetworkError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap =
        open(TUN, flags, Mode::empty()).map_err(|e| NetworkError::io("open", TUN)(e.into()))?;
    let name = attach(&tap, name).map_err(|source| NetworkError::Device {
        action: "make",
        device: name.to_owned(),
        source,
    })?;
    Ok((tap, name))
}

#[expect(unsafe_code, reason = "no crate that we use makes taps")]
fn attach(tap: &OwnedFd, name: &str) -> io::Result<String> {
    if name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is a valid ifreq: it is made of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).map_err(io::Error::other)?;
    }
    // Whole frames, with the header by which the guest's card leaves checksums and cutting up to us.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|c| **c != 0);
    let bytes: Result<Vec<u8>, _> = name.map(|c| u8::try_from(*c)).collect();
    String::from_utf8(bytes.map_err(io::Error::other)?).map_err(io::Error::other)
}
