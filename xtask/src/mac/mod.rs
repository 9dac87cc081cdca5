//! Programs for Macs: their signatures, made and checked on any host.
//!
//! Apple silicon runs no program without one. The linker signs what it links, but only with
//! entitlements may a program use the Virtualization framework. Both are ad hoc: by nobody's key.
//!
//! Sources: `mach-o/loader.h` and `kern/cs_blobs.h` of Apple's XNU; the bytes are those that
//! rcodesign 0.29 makes of the same program.

mod check;
mod entitlements;
mod sign;

pub(crate) use check::check;
pub(crate) use entitlements::Entitlements;
pub(crate) use sign::sign;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

const MAGIC_64: u32 = 0xfeed_facf;
const CPU_ARM64: u32 = 0x0100_000c;
const EXECUTABLE: u32 = 2;
const HEADER: usize = 32;

const SEGMENT_64: u32 = 0x19;
const CODE_SIGNATURE: u32 = 0x1d;

/// What is hashed at a time, as a power of two: the signature's pages, not the processor's.
const PAGE_BITS: u8 = 12;
const PAGE: usize = 1 << PAGE_BITS;
const HASH: usize = 32;

// What a signature consists of.
const SIGNATURE: u32 = 0xfade_0cc0;
const CODE_DIRECTORY: u32 = 0xfade_0c02;
const REQUIREMENTS: u32 = 0xfade_0c01;
const ENTITLEMENTS: u32 = 0xfade_7171;
const DER_ENTITLEMENTS: u32 = 0xfade_7172;
const WRAPPER: u32 = 0xfade_0b01;

// And where in it: the code directory has the hash of what is in the slots from 1 to 7.
const CODE_DIRECTORY_SLOT: u32 = 0;
const REQUIREMENTS_SLOT: u32 = 2;
const ENTITLEMENTS_SLOT: u32 = 5;
const DER_ENTITLEMENTS_SLOT: u32 = 7;
const WRAPPER_SLOT: u32 = 0x10000;

const VERSION: u32 = 0x2_0400;
/// Of version 0x20400, without what follows it.
const CODE_DIRECTORY_SIZE: usize = 88;
const AD_HOC: u32 = 2;
const SHA_256: u8 = 2;
const MAIN_BINARY: u64 = 1;

/// A part of a file that begins at an offset in it.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Of the load command that tells of it.
    command: usize,
    offset: usize,
    size: usize,
}

/// What a signature has to do with in a program for Apple silicon.
#[derive(Debug)]
struct Program {
    text: Part,
    link_edit: Part,
    signature: Part,
}

impl Program {
    fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(
            u32_at(bytes, 0)? == MAGIC_64 && u32_at(bytes, 4)? == CPU_ARM64,
            "no program for Apple silicon"
        );
        ensure!(
            u32_at(bytes, 12)? == EXECUTABLE,
            "a library or an object, not a program"
        );
        let (mut text, mut link_edit, mut signature) = (None, None, None);
        for command in commands(bytes)? {
            let (kind, at) = command?;
            let part = match kind {
                SEGMENT_64 => Part {
                    command: at,
                    offset: usize::try_from(u64_at(bytes, at + 40)?)?,
                    size: usize::try_from(u64_at(bytes, at + 48)?)?,
                },
                CODE_SIGNATURE => Part {
                    command: at,
                    offset: u32_at(bytes, at + 8)? as usize,
                    size: u32_at(bytes, at + 12)? as usize,
                },
                _ => continue,
            };
            let end = part.offset.checked_add(part.size);
            ensure!(
                end.is_some_and(|end| end <= bytes.len()),
                "a part of it is beyond its end"
            );
            match kind {
                CODE_SIGNATURE => signature = Some(part),
                _ if slice(bytes, at + 8, 16)?.starts_with(b"__TEXT\0") => text = Some(part),
                _ if slice(bytes, at + 8, 16)?.starts_with(b"__LINKEDIT\0") => {
                    link_edit = Some(part);
                }
                _ => {}
            }
        }
        let program = Self {
            text: text.context("no segment __TEXT")?,
            link_edit: link_edit.context("no segment __LINKEDIT")?,
            signature: signature.context("the linker left no room for a signature")?,
        };
        for part in [program.link_edit, program.signature] {
            ensure!(
                part.offset + part.size == bytes.len(),
                "the signature is not at the end"
            );
        }
        Ok(program)
    }
}

/// The load commands of a program, by their kinds and offsets.
fn commands(bytes: &[u8]) -> Result<impl Iterator<Item = Result<(u32, usize)>>> {
    let count = u32_at(bytes, 16)?;
    let mut at = HEADER;
    Ok((0..count).map(move |_| {
        let here = at;
        let size = u32_at(bytes, here + 4)? as usize;
        slice(bytes, here, size)?;
        at += size;
        Ok((u32_at(bytes, here)?, here))
    }))
}

fn slice(bytes: &[u8], at: usize, size: usize) -> Result<&[u8]> {
    at.checked_add(size)
        .and_then(|end| bytes.get(at..end))
        .with_context(|| format!("it ends before {size} bytes at {at}"))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    Ok(slice(bytes, at, N)?.try_into()?)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn hash(bytes: &[u8]) -> [u8; HASH] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests;
