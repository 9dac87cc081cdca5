//! What a VM is made of, in terms every backend understands.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// A guest's CPU architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86; `amd64` to Go and Debian.
    X86_64,
    /// 64-bit Arm; `arm64` to Go and Debian.
    Aarch64,
}

impl Arch {
    /// The architecture of this host, when it is one a guest can have.
    #[must_use]
    pub fn host() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// Go's, Debian's and OCI's name of it.
    #[must_use]
    pub fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The kernel's and Rust's name of it.
    #[must_use]
    pub fn kernel_name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// How a disk's bytes are laid out in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// As the guest sees them.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// A virtio block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The name by which the guest finds it (virtio-blk serial), at most 20 bytes: `root`.
    pub id: &'static str,
    /// The file behind it.
    pub path: PathBuf,
    /// The file's format.
    pub format: DiskFormat,
    /// Whether the guest may only read it; a read-only file may be shared between VMs.
    pub read_only: bool,
    /// Whether the guest's flushes reach the host's disk. A disposable VM needs none.
    pub flush: bool,
}

/// Kernel, initramfs and command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// An uncompressed kernel: an ELF vmlinux on x86-64, an Image on Arm.
    pub kernel: PathBuf,
    /// The initramfs, a plain cpio.
    pub initramfs: PathBuf,
    /// The command line.
    pub cmdline: String,
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// A network card, by what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// A network of the backend's own, for this VM alone.
    User(UserNetwork),
    /// A tap, of whatever network somebody else made.
    Tap(TapNetwork),
}

/// A network card behind NAT, rootless: the guest reaches out, only forwards reach in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNetwork {
    /// The card's hardware address.
    pub mac: MacAddress,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The host's address as the guest sees it, and the guest's default route.
    pub gateway: Ipv4Addr,
    /// Where the backend's resolver answers, when it has one; it asks the host's.
    pub dns: Ipv4Addr,
    /// Length of the network prefix both are in.
    pub prefix: u8,
}

/// A network card whose frames pass through a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapNetwork {
    /// The card's hardware address.
    pub mac: MacAddress,
    /// The tap.
    pub tap: Tap,
}

/// A tap's open descriptor, in the form of Linux's `tun(4)`: whole frames, each behind a virtio
/// header. It is handed to the process that runs the VM, and closed here.
#[derive(Debug, Clone)]
pub struct Tap(Arc<OwnedFd>);

impl Tap {
    /// The tap of this descriptor.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PartialEq for Tap {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tap {}

/// A host folder that the guest can mount, by virtiofs.
///
/// In the guest, user and group 1000 own what on the host is owned by the daemon's user, or, when
/// that is root, by who owns the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The name the guest mounts it by, at most 36 bytes: `home`.
    pub tag: String,
    /// The folder.
    pub path: PathBuf,
    /// Whether the host refuses the guest's changes.
    pub read_only: bool,
}

/// The tag of the virtiofs share in which a guest finds Rosetta's interpreter, `rosetta`.
pub const ROSETTA_TAG: &str = "rosetta";

/// Everything a backend needs to launch a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// The VM's hostname; names processes and log lines.
    pub name: String,
    /// The guest's architecture.
    pub arch: Arch,
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// What boots.
    pub boot: Boot,
    /// Disks, in order.
    pub disks: Vec<Disk>,
    /// The network card, when it has one.
    pub network: Option<Network>,
    /// Host folders the guest can mount. Only for a backend whose
    /// [`Capabilities::shares`](crate::Capabilities::shares) says so.
    pub shares: Vec<Share>,
    /// Whether the guest gets a share of the tag [`ROSETTA_TAG`] with Rosetta's interpreter of programs
    /// for x86-64. Only for a backend whose [`Capabilities::rosetta`](crate::Capabilities::rosetta)
    /// says so.
    pub rosetta: bool,
    /// Whether it is of the kind of which templates are made, and their clones: what of its devices
    /// would write to memory that clones share is left out. It has no shares. Only for a backend whose
    /// [`Capabilities::templates`](crate::Capabilities::templates) says so.
    pub clonable: bool,
    /// The file its serial console is appended to.
    pub console: PathBuf,
    /// A directory of this VM alone, for the backend's sockets and notes. It exists, and is short
    /// enough for a unix socket's name (checked by the backend).
    pub state_dir: PathBuf,
}
