//! What the host uses, for [`crate::usage`].

use crate::usage::Pages;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// Load averages of 1, 5 and 15 minutes.
#[must_use]
pub fn load() -> Option<[f64; 3]> {
    let mut load = [0.0; 3];
    // SAFETY: there is room for as many as are asked for.
    let known = unsafe { libc::getloadavg(load.as_mut_ptr(), 3) };
    (known == 3).then_some(load)
}

/// Open files of the whole system.
#[must_use]
pub fn open_files() -> Option<u64> {
    number(c"kern.num_files")
}

/// The host's memory.
#[must_use]
pub fn pages() -> Option<Pages> {
    let counted = counted()?;
    Some(Pages {
        total: number(c"hw.memsize")?,
        size: number(c"hw.pagesize")?,
        internal: counted.internal_page_count.into(),
        purgeable: counted.purgeable_count.into(),
        wired: counted.wire_count.into(),
        compressed: counted.compressor_page_count.into(),
    })
}

fn counted() -> Option<libc::vm_statistics64> {
    /// Each call gives a right of its own: one is enough.
    static HOST: OnceLock<libc::mach_port_t> = OnceLock::new();
    #[expect(
        deprecated,
        reason = "libc's advice is a crate of its own for this one function"
    )]
    // SAFETY: it takes nothing.
    let host = *HOST.get_or_init(|| unsafe { libc::mach_host_self() });
    let mut counted = MaybeUninit::<libc::vm_statistics64>::zeroed();
    let mut count = libc::HOST_VM_INFO64_COUNT;
    // SAFETY: `count` is how many numbers there is room for. A system that knows fewer writes fewer.
    let done = unsafe {
        libc::host_statistics64(
            host,
            libc::HOST_VM_INFO64,
            counted.as_mut_ptr().cast(),
            &raw mut count,
        )
    };
    // SAFETY: it is made of numbers, each of which may be 0.
    (done == libc::KERN_SUCCESS).then(|| unsafe { counted.assume_init() })
}

/// A number that the kernel knows by name, of 4 or 8 bytes.
fn number(name: &CStr) -> Option<u64> {
    let mut bytes = [0_u8; 8];
    let mut length = bytes.len();
    // SAFETY: `length` is how much room there is, and nothing is set.
    let done = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            bytes.as_mut_ptr().cast(),
            &raw mut length,
            null_mut(),
            0,
        )
    };
    // Those of Macs have the low byte first, so that the shorter one is in its place.
    (done == 0 && (length == 4 || length == 8)).then(|| u64::from_le_bytes(bytes))
}
