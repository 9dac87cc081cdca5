//! Undoing the compression of layers: gzip, zstd, or none.
//!
//! Sources: RFC 1952 for gzip, RFC 8878 for zstd. Both are streams of one or more frames.

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, Read};

/// A layer's plain bytes. Which compression it has is told by its first bytes: media types are
/// wrong too often.
pub(crate) fn decompress<'a>(blob: &'a mut dyn BufRead) -> io::Result<Box<dyn Read + 'a>> {
    let start = blob.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(MultiGzDecoder::new(blob)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(start) {
        Ok(Box::new(Zstd {
            source: blob,
            decoder: FrameDecoder::new(),
            in_frame: false,
        }))
    } else {
        Ok(Box::new(blob))
    }
}

/// A zstd frame that decoders step over (RFC 8878, 3.1.2).
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// All frames of a zstd stream, one after the other. The decoder bounds the window, and with it
/// its memory.
struct Zstd<'a> {
    source: &'a mut dyn BufRead,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl Zstd<'_> {
    /// Begins the next frame; `false` at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            let start = self.source.fill_buf()?;
            if start.is_empty() {
                return Ok(false);
            }
            if !is_skippable(start) {
                self.decoder
                    .reset(&mut self.source)
                    .map_err(io::Error::other)?;
                self.in_frame = true;
                return Ok(true);
            }
            let mut header = [0; 8];
            self.source.read_exact(&mut header)?;
            let [_, _, _, _, length @ ..] = header;
            let length = u64::from(u32::from_le_bytes(length));
            let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
            if skipped < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Read for Zstd<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            let n = self.decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            self.in_frame = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn plain(mut blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(&mut blob)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    #[test]
    fn all_frames_of_a_stream_are_read() {
        let (a, b) = (vec![7; 300_000], b"the end".to_vec());
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let both = [&a[..], &b].concat();
        assert!(
            plain(&[zstd(&a), skippable.clone(), zstd(b""), zstd(&b)].concat()).unwrap() == both
        );
        assert!(plain(&[skippable, zstd(&a), zstd(&b)].concat()).unwrap() == both);
        assert!(plain(&[gzip(&a), gzip(&b)].concat()).unwrap() == both);
        assert!(plain(&both).unwrap() == both);
        assert!(plain(b"").unwrap().is_empty());
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let data: Vec<u8> = (0..90_000u32).flat_map(u32::to_le_bytes).collect();
        for blob in [zstd(&data), gzip(&data)] {
            assert!(plain(&blob[..blob.len() / 2]).is_err());
        }
        assert!(plain(&[0x5a, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn untrusted_bytes_never_panic(
            magic in prop::sample::select(vec![&[0x28, 0xb5, 0x2f, 0xfd][..], &[0x1f, 0x8b, 8], &[]]),
            tail in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = plain(&[magic, &tail].concat());
        }
    }
}
