//! Kernels as hypervisors boot them directly: an uncompressed ELF vmlinux on x86-64, a raw Image
//! on Arm.
//!
//! Sources: the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst) for the bzImage header,
//! Documentation/arch/arm64/booting.rst for the Image header, and lib/decompress_unlz4.c for the
//! legacy LZ4 frame.

use flate2::read::GzDecoder;
use std::io::{self, Read};

/// More than any kernel unpacks to, bytes.
const MAX_KERNEL: u64 = 512 << 20;
/// What one block of a legacy LZ4 frame unpacks to at most.
const LZ4_BLOCK: usize = 8 << 20;

const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const ELF: &[u8] = b"\x7fELF";

/// Why a kernel could not be turned into what a hypervisor boots.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    /// Neither a bzImage, an ELF vmlinux nor an Arm Image.
    #[error("not a bzImage, an ELF vmlinux, an Arm Image or a gzipped one")]
    NotAKernel,
    /// The header points outside the file, or predates it (boot protocol below 2.08).
    #[error("the bzImage header is broken or older than boot protocol 2.08")]
    Header,
    /// A payload in a format that is not supported.
    #[error("unknown compression of the kernel (it starts with {0:02x?})")]
    Compression(Vec<u8>),
    /// The payload is damaged.
    #[error("damaged {format} payload: {why}")]
    Payload {
        /// Its format.
        format: &'static str,
        /// What the decoder said.
        why: String,
    },
    /// The payload unpacked to something else than an ELF file of the length it promised.
    #[error("the payload unpacks to {found} bytes that are not the promised kernel")]
    Mismatch {
        /// Bytes unpacked.
        found: usize,
    },
}

/// Turns a distribution's kernel file into what hypervisors boot: the ELF vmlinux inside an x86
/// bzImage, the Image inside a gzipped Arm kernel. What is uncompressed already comes back as is.
pub fn uncompressed_kernel(file: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    if file.starts_with(ELF) || is_arm_image(file) {
        return Ok(file.to_vec());
    }
    if file.starts_with(GZIP) {
        let image = decompress(file)?;
        return if is_arm_image(&image) || image.starts_with(ELF) {
            Ok(image)
        } else {
            Err(VmlinuxError::Mismatch { found: image.len() })
        };
    }
    let mut payload = bzimage_payload(file)?;
    // The kernel's build appends the unpacked size (scripts/Makefile.lib, size_append), except to
    // gzip, whose trailer has it already at the same place.
    let (rest, size) = payload
        .split_last_chunk::<4>()
        .ok_or(VmlinuxError::Header)?;
    let size = u32::from_le_bytes(*size);
    if !payload.starts_with(GZIP) {
        payload = rest;
    }
    let kernel = decompress(payload)?;
    if kernel.len() == size as usize && kernel.starts_with(ELF) {
        Ok(kernel)
    } else {
        Err(VmlinuxError::Mismatch {
            found: kernel.len(),
        })
    }
}

/// Whether this is an uncompressed Arm kernel: magic `ARM\x64` at offset 56.
fn is_arm_image(file: &[u8]) -> bool {
    file.get(56..60) == Some(b"ARM\x64")
}

/// The compressed kernel inside a bzImage.
fn bzimage_payload(file: &[u8]) -> Result<&[u8], VmlinuxError> {
    if file.get(0x202..0x206) != Some(b"HdrS") {
        return Err(VmlinuxError::NotAKernel);
    }
    let u32_at = |offset: usize| -> Option<usize> {
        let bytes = file.get(offset..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let version = file
        .get(0x206..)
        .and_then(|b| b.first_chunk::<2>())
        .map_or(0, |b| u16::from_le_bytes(*b));
    if version < 0x208 {
        return Err(VmlinuxError::Header);
    }
    // A zero here means four, for the sake of loaders of 1991.
    let setup_sectors = match file.get(0x1f1) {
        Some(0) | None => 4,
        Some(n) => usize::from(*n),
    };
    let payload = || {
        let start = ((setup_sectors + 1) * 512).checked_add(u32_at(0x248)?)?;
        file.get(start..start.checked_add(u32_at(0x24c)?)?)
    };
    payload().ok_or(VmlinuxError::Header)
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    if payload.starts_with(GZIP) {
        read_all("gzip", GzDecoder::new(payload))
    } else if payload.starts_with(XZ) {
        read_all("xz", lzma_rust2::XzReader::new(payload, false))
    } else if payload.starts_with(ZSTD) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(payload).map_err(|e| {
            VmlinuxError::Payload {
                format: "zstd",
                why: e.to_string(),
            }
        })?;
        read_all("zstd", decoder)
    } else if let Some(blocks) = payload.strip_prefix(LZ4_LEGACY) {
        lz4_legacy(blocks).map_err(|why| VmlinuxError::Payload { format: "lz4", why })
    } else {
        Err(VmlinuxError::Compression(
            payload.iter().take(6).copied().collect(),
        ))
    }
}

fn read_all(format: &'static str, reader: impl Read) -> Result<Vec<u8>, VmlinuxError> {
    let mut out = Vec::new();
    let result = reader
        .take(MAX_KERNEL + 1)
        .read_to_end(&mut out)
        .and_then(|_| {
            if out.len() as u64 > MAX_KERNEL {
                return Err(io::Error::other("it unpacks to more than 512 MiB"));
            }
            Ok(())
        });
    result.map_err(|e| VmlinuxError::Payload {
        format,
        why: e.to_string(),
    })?;
    Ok(out)
}

/// A legacy LZ4 frame after its magic: blocks, each after its length; the magic may come again.
fn lz4_legacy(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        if length == LZ4_LEGACY {
            rest = tail;
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let Some((packed, tail)) = tail.split_at_checked(length) else {
            return Err(format!(
                "a block of {length} bytes, but {} are left",
                tail.len()
            ));
        };
        let n = lz4_flex::block::decompress_into(packed, &mut block).map_err(|e| e.to_string())?;
        out.extend_from_slice(&block[..n]);
        if out.len() as u64 > MAX_KERNEL {
            return Err("it unpacks to more than 512 MiB".to_owned());
        }
        rest = tail;
    }
    if rest.is_empty() {
        Ok(out)
    } else {
        Err("it ends within a block's length".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// An ELF file as far as this module looks.
    fn elf() -> Vec<u8> {
        let mut v = ELF.to_vec();
        v.extend((0..100_000u32).flat_map(|i| (i / 7).to_le_bytes()));
        v
    }

    /// LZ4 blocks of literals only.
    fn lz4_stored(data: &[u8]) -> Vec<u8> {
        let mut out = LZ4_LEGACY.to_vec();
        for block in data.chunks(LZ4_BLOCK) {
            let mut packed = vec![0xf0];
            let mut more = block.len() - 15;
            while more >= 255 {
                packed.push(255);
                more -= 255;
            }
            packed.push(u8::try_from(more).unwrap());
            packed.extend(block);
            out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            out.extend(packed);
        }
        out
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut v = vec![0; 0x400 + 0x100];
        v[0x1f1] = 1;
        v[0x202..0x206].copy_from_slice(b"HdrS");
        v[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        v[0x248..0x24c].copy_from_slice(&0x100u32.to_le_bytes());
        let len = u32::try_from(payload.len()).unwrap();
        v[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
        v.extend(payload);
        v.extend(b"what follows the payload");
        v
    }

    fn with_size(mut payload: Vec<u8>, size: usize) -> Vec<u8> {
        payload.extend(u32::try_from(size).unwrap().to_le_bytes());
        payload
    }

    #[test]
    fn every_compression_unpacks() {
        let elf = elf();
        let zstd = {
            // A raw-block zstd frame, built by hand: single segment, 4-byte content size.
            let mut v = ZSTD.to_vec();
            v.push(0xa0);
            v.extend(u32::try_from(elf.len()).unwrap().to_le_bytes());
            let mut chunks = elf.chunks(100_000).peekable();
            while let Some(c) = chunks.next() {
                let last = u32::from(chunks.peek().is_none());
                let header = (u32::try_from(c.len()).unwrap() << 3) | last;
                v.extend(&header.to_le_bytes()[..3]);
                v.extend(c);
            }
            v
        };
        for payload in [
            gzip(&elf),
            with_size(lz4_stored(&elf), elf.len()),
            with_size(zstd, elf.len()),
        ] {
            assert!(uncompressed_kernel(&bzimage(&payload)).unwrap() == elf);
        }
    }

    #[test]
    fn uncompressed_kernels_pass_through() {
        let mut arm = vec![0; 64];
        arm[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(uncompressed_kernel(&arm).unwrap(), arm);
        assert_eq!(uncompressed_kernel(&gzip(&arm)).unwrap(), arm);
        assert_eq!(uncompressed_kernel(&elf()).unwrap(), elf());
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let refused = |file: &[u8]| uncompressed_kernel(file).unwrap_err();
        assert!(matches!(refused(b""), VmlinuxError::NotAKernel));
        assert!(matches!(refused(&[0; 5000]), VmlinuxError::NotAKernel));
        let mut beyond = bzimage(b"xx");
        beyond[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(refused(&beyond), VmlinuxError::Header));
        assert!(matches!(
            refused(&bzimage(b"abcdefgh")),
            VmlinuxError::Compression(_)
        ));
        let short = with_size(lz4_stored(&elf()), 5);
        assert!(matches!(
            refused(&bzimage(&short)),
            VmlinuxError::Mismatch { .. }
        ));
        let mut cut = lz4_stored(&elf());
        cut.truncate(1000);
        assert!(matches!(
            refused(&bzimage(&with_size(cut, 5))),
            VmlinuxError::Payload { .. }
        ));
    }

    proptest! {
        #[test]
        fn untrusted_payloads_never_panic(
            magic in prop::sample::select(vec![GZIP, XZ, ZSTD, LZ4_LEGACY]),
            tail in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let payload = [magic, &tail].concat();
            let _ = uncompressed_kernel(&bzimage(&payload));
            let _ = uncompressed_kernel(&payload);
        }

        #[test]
        fn untrusted_headers_never_panic(noise in prop::collection::vec(any::<u8>(), 0x1f0..0x300)) {
            let mut file = noise;
            if let Some(magic) = file.get_mut(0x202..0x206) {
                magic.copy_from_slice(b"HdrS");
            }
            let _ = uncompressed_kernel(&file);
        }
    }
}
