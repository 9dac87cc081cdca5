//! Images to bootable disks.
#![forbid(unsafe_code)]
mod error;
mod vmlinux;
pub use error::ImageError;
pub use vmlinux::{VmlinuxError, uncompressed_kernel};
