//! Cuts a byte stream into lines of bounded length.

use bytes::{Buf, Bytes, BytesMut};

/// A line, or the rest of one, longer than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineTooLong;

/// Collects chunks and gives back complete, non-empty lines without their line ends.
#[derive(Debug)]
pub(crate) struct LineDecoder {
    buffer: BytesMut,
    /// How far `buffer` has been searched for a line end.
    searched: usize,
    limit: usize,
}

impl LineDecoder {
    /// A decoder of lines of up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            limit,
        }
    }

    /// Takes what arrived.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next complete line, if there is one.
    pub(crate) fn next_line(&mut self) -> Result<Option<Bytes>, LineTooLong> {
        loop {
            let Some(at) = self.buffer[self.searched..]
                .iter()
                .position(|b| *b == b'\n')
            else {
                self.searched = self.buffer.len();
                return if self.searched > self.limit {
                    Err(LineTooLong)
                } else {
                    Ok(None)
                };
            };
            let line = self.buffer.split_to(self.searched + at).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            if line.len() > self.limit {
                return Err(LineTooLong);
            }
            if let Some(line) = content(line) {
                return Ok(Some(line));
            }
        }
    }

    /// What is left at the end of the stream: a last line without a line end.
    pub(crate) fn finish(&mut self) -> Option<Bytes> {
        self.searched = 0;
        content(self.buffer.split().freeze())
    }
}

fn content(mut line: Bytes) -> Option<Bytes> {
    if line.last() == Some(&b'\r') {
        line.truncate(line.len() - 1);
    }
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_lines_are_refused_before_they_end() {
        let mut d = LineDecoder::new(4);
        d.push(b"1234\n12345");
        assert_eq!(d.next_line(), Ok(Some(Bytes::from_static(b"1234"))));
        assert_eq!(d.next_line(), Err(LineTooLong));
        let mut d = LineDecoder::new(4);
        d.push(b"12345\n");
        assert_eq!(d.next_line(), Err(LineTooLong));
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(
            lines in proptest::collection::vec("[a-z]{0,12}", 0..8),
            cuts in proptest::collection::vec(1usize..9, 0..40),
            last_ends in any::<bool>(),
        ) {
            let mut text = lines.join("\n");
            if last_ends { text.push('\n'); }
            let mut d = LineDecoder::new(12);
            let mut got = Vec::new();
            let mut rest = text.as_bytes();
            let mut cuts = cuts.into_iter();
            while !rest.is_empty() {
                let n = cuts.next().unwrap_or(5).min(rest.len());
                d.push(&rest[..n]);
                rest = &rest[n..];
                while let Some(line) = d.next_line().unwrap() { got.push(line); }
            }
            got.extend(d.finish());
            let want: Vec<_> = lines.iter().filter(|l| !l.is_empty()).map(|l| Bytes::from(l.clone())).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut d = LineDecoder::new(8);
            d.push(&bytes);
            while let Ok(Some(line)) = d.next_line() { prop_assert!(line.len() <= 8); }
        }
    }
}
