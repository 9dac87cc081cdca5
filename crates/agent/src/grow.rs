//! Growing the root file system to the size of its disk, online.

use crate::error::{AgentError, io_error};
use crate::sys;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The fields of an ext4 superblock that say how big the file system is. The layout is that of
/// "Super Block" in the kernel's Documentation/filesystems/ext4/super.rst.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    /// Bytes in a block.
    block_size: u64,
    /// Blocks in the file system.
    blocks: u64,
}

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_SIZE: usize = 1024;
const MAGIC: u16 = 0xEF53;
const INCOMPAT_64BIT: u32 = 0x80;

impl Extent {
    /// Reads a superblock; `None` when it isn't ext4's.
    fn parse(superblock: &[u8; SUPERBLOCK_SIZE]) -> Option<Self> {
        let u32_at = |at: usize| {
            let bytes = superblock.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let magic = u16::from_le_bytes([superblock[0x38], superblock[0x39]]);
        let log_block_size = u32_at(0x18)?;
        if magic != MAGIC || log_block_size > 6 {
            return None;
        }
        let mut blocks = u64::from(u32_at(0x4)?);
        if u32_at(0x60)? & INCOMPAT_64BIT != 0 {
            blocks |= u64::from(u32_at(0x150)?) << 32;
        }
        Some(Self {
            block_size: 1024 << log_block_size,
            blocks,
        })
    }
}

/// Grows the ext4 file system of `device`, mounted at `mount_point`, to the `device_bytes` its
/// device has. Returns whether there was anything to do.
pub(crate) fn grow(
    device: &Path,
    device_bytes: u64,
    mount_point: &Path,
) -> Result<bool, AgentError> {
    let mut superblock = [0; SUPERBLOCK_SIZE];
    File::open(device)
        .and_then(|f| f.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET))
        .map_err(io_error::<io::Error>("read the superblock of", device))?;
    let extent =
        Extent::parse(&superblock).ok_or_else(|| AgentError::NotExt4(device.to_owned()))?;
    let wanted = device_bytes / extent.block_size;
    if wanted <= extent.blocks {
        return Ok(false);
    }
    let root = File::open(mount_point).map_err(io_error::<io::Error>("open", mount_point))?;
    sys::resize_ext4(root.as_fd(), wanted).map_err(io_error("grow", device))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u64, log_block_size: u32, incompat: u32) -> [u8; SUPERBLOCK_SIZE] {
        let mut s = [0; SUPERBLOCK_SIZE];
        s[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        s[0x18..0x1c].copy_from_slice(&log_block_size.to_le_bytes());
        let blocks = blocks.to_le_bytes();
        s[0x4..0x8].copy_from_slice(&blocks[..4]);
        s[0x150..0x154].copy_from_slice(&blocks[4..]);
        s[0x60..0x64].copy_from_slice(&incompat.to_le_bytes());
        s
    }

    #[test]
    fn the_size_is_read() {
        let big = (3 << 32) + 7;
        for (incompat, blocks) in [(INCOMPAT_64BIT, big), (0, 7)] {
            assert_eq!(
                Extent::parse(&superblock(big, 2, incompat)),
                Some(Extent {
                    block_size: 4096,
                    blocks
                })
            );
        }
    }

    #[test]
    fn what_is_not_ext4_is_seen() {
        assert_eq!(Extent::parse(&[0; SUPERBLOCK_SIZE]), None);
        assert_eq!(Extent::parse(&superblock(1, 60, 0)), None);
    }
}
