//! Output as it travels in JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use slicer_api::{ExecFrame, Stdio};

/// One line of NDJSON.
pub(super) fn line(value: &impl Serialize) -> Bytes {
    // What is encoded here are plain structs of strings and numbers, which can't fail.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// One line of NDJSON: a frame, which has a member or more, with these bytes in base64 as a further
/// one. Looking for characters to escape, of which base64 has none, costs an emulated guest more than
/// all the rest.
pub(super) fn base64_line(frame: &ExecFrame, key: &str, bytes: &[u8]) -> Bytes {
    let encoded = base64::encoded_len(bytes.len(), true).unwrap_or_default();
    let mut line = Vec::with_capacity(256 + encoded);
    // As with every line, this can't fail.
    let _ = serde_json::to_writer(&mut line, frame);
    line.pop();
    for part in [",\"", key, "\":\""] {
        line.extend_from_slice(part.as_bytes());
    }
    let start = line.len();
    line.resize(start + encoded, 0);
    // The room is that of the encoded bytes.
    let _ = STANDARD.encode_slice(bytes, &mut line[start..]);
    line.extend_from_slice(b"\"}\n");
    line.into()
}

/// Turns bytes into strings that can be encoded one by one. What doesn't end where a string may
/// end is held back until the next bytes, or [`Encoder::finish`].
#[derive(Debug)]
pub(super) struct Encoder {
    form: Form,
    tail: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// UTF-8; a character is never split, what is none becomes U+FFFD.
    Text,
    /// Base64, each string by itself.
    Base64,
    /// Base64 whose strings can be joined into one.
    JoinedBase64,
}

impl Encoder {
    /// An encoder whose strings stand by themselves.
    pub(super) fn new(stdio: Stdio) -> Self {
        let form = match stdio {
            Stdio::Text => Form::Text,
            Stdio::Base64 => Form::Base64,
        };
        Self {
            form,
            tail: Vec::new(),
        }
    }

    /// An encoder whose strings are parts of a whole.
    pub(super) fn joined(stdio: Stdio) -> Self {
        let form = match stdio {
            Stdio::Text => Form::Text,
            Stdio::Base64 => Form::JoinedBase64,
        };
        Self {
            form,
            tail: Vec::new(),
        }
    }

    /// The string for these bytes; empty when there are too few for any.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let joined;
        let bytes = if self.tail.is_empty() {
            bytes
        } else {
            self.tail.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.tail);
            &joined
        };
        let whole = match self.form {
            Form::Text => bytes.len() - incomplete_tail(bytes),
            Form::Base64 => bytes.len(),
            Form::JoinedBase64 => bytes.len() - bytes.len() % 3,
        };
        let (now, later) = bytes.split_at(whole);
        self.tail.extend_from_slice(later);
        self.encode(now)
    }

    /// The string for what was held back; empty when nothing was.
    pub(super) fn finish(&mut self) -> String {
        let tail = std::mem::take(&mut self.tail);
        self.encode(&tail)
    }

    fn encode(&self, bytes: &[u8]) -> String {
        match self.form {
            Form::Text => String::from_utf8_lossy(bytes).into_owned(),
            Form::Base64 | Form::JoinedBase64 => STANDARD.encode(bytes),
        }
    }
}

/// How many bytes at the end are the start of a character whose rest is yet to come.
fn incomplete_tail(bytes: &[u8]) -> usize {
    // A character has at most 4 bytes, so only the last 3 can begin an incomplete one.
    for back in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - back..];
        match tail[0] {
            // A continuation byte: its start is further back.
            0x80..0xC0 => {}
            // `error_len` is `None` when more bytes could make it valid.
            _ => {
                return match std::str::from_utf8(tail) {
                    Err(e) if e.error_len().is_none() && e.valid_up_to() == 0 => back,
                    _ => 0,
                };
            }
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(mut encoder: Encoder, parts: &[&[u8]]) -> Vec<String> {
        let mut strings: Vec<String> = parts.iter().map(|p| encoder.push(p)).collect();
        strings.push(encoder.finish());
        strings
    }

    #[test]
    fn characters_are_never_split() {
        let euro = "€".as_bytes();
        let parts = [&euro[..1], &euro[1..2], &euro[2..], b"x"];
        assert_eq!(
            encode(Encoder::new(Stdio::Text), &parts),
            ["", "", "€", "x", ""]
        );
    }

    #[test]
    fn what_is_no_text_is_replaced_at_once_or_at_the_end() {
        let parts: [&[u8]; 3] = [b"a\xff", b"b\xf0\x9f", b""];
        assert_eq!(
            encode(Encoder::new(Stdio::Text), &parts),
            ["a\u{fffd}", "b", "", "\u{fffd}"]
        );
    }

    #[test]
    fn a_line_has_its_bytes_as_a_member() {
        use slicer_api::FrameType;
        let long = vec![7; 32 << 10];
        for bytes in [&b""[..], b"h", b"\xff\0\"", &long] {
            let frame = ExecFrame {
                encoding: Some(Stdio::Base64),
                ..ExecFrame::new(FrameType::Stderr, jiff::Timestamp::now())
            };
            let line = base64_line(&frame, "stderr", bytes);
            assert_eq!(line.iter().position(|b| *b == b'\n'), Some(line.len() - 1));
            let parsed: ExecFrame = serde_json::from_slice(&line).unwrap();
            let expected = ExecFrame {
                stderr: Some(STANDARD.encode(bytes)),
                ..frame
            };
            assert_eq!(parsed, expected);
        }
    }

    #[test]
    fn base64_strings_stand_alone_or_join() {
        let parts: [&[u8]; 2] = [b"hell", b"o"];
        assert_eq!(
            encode(Encoder::new(Stdio::Base64), &parts),
            ["aGVsbA==", "bw==", ""]
        );
        assert_eq!(
            encode(Encoder::joined(Stdio::Base64), &parts).concat(),
            "aGVsbG8="
        );
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..64), cuts in proptest::collection::vec(0usize..64, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let text = encode(Encoder::new(Stdio::Text), &parts).concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
            let joined = encode(Encoder::joined(Stdio::Base64), &parts).concat();
            prop_assert_eq!(joined, STANDARD.encode(&bytes));
        }
    }
}
