//! Images to bootable disks: resolve an OCI image, unpack it into an ext4 base image, clone and
//! grow that for a virtual machine, and prepare kernel, modules and initramfs.
//!
//! Everything is synchronous, needs no privileges, mounts nothing, and trusts no image: digests are
//! checked, paths stay inside, sizes are bounded. Results appear complete or not at all.
#![forbid(unsafe_code)]

mod archive;
mod base;
mod cache;
mod chain;
mod clone;
mod compression;
mod cpio;
mod digest;
mod error;
mod export;
mod ext4;
mod files;
mod freeze;
mod guest;
mod import;
mod inventory;
mod kernel;
mod layout;
mod layoutdir;
mod merge;
mod qcow2;
mod reference;
mod size;
mod sparse;
mod tree;
mod vmlinux;

pub use base::{Limits, Progress, adopt_base, base_is_current, base_name, build_base};
pub use cache::{Adding, ImageCache, PartialBlob};
pub use clone::{CloneKind, CloneOptions, clone_disk};
pub use digest::sha256;
pub use error::ImageError;
pub use export::Export;
pub use files::remove_unfinished;
pub use freeze::{disk_size, overlay_disk, reflink_file, set_backing_file};
pub use guest::{GUEST_DIR_VARIABLE, GuestLayouts, find_guest, find_kernel};
pub use import::archive_name;
pub use inventory::{CachedImage, Garbage};
pub use kernel::{KernelFiles, prepare_kernel};
pub use layout::Resolved;
pub use layoutdir::LayoutDir;
pub use qcow2::{FileFormat, backing_file};
pub use reference::ImageRef;
pub use size::parse_size;
pub use vmlinux::{VmlinuxError, uncompressed_kernel};
