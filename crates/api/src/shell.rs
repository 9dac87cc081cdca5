//! The interactive shell: the query of `GET /vm/{h}/shell` and the frames of its WebSocket.
//!
//! Every binary message holds one frame: a type byte, the payload's length as a big-endian `u32`,
//! the payload.

use crate::AUTO_ID;
use crate::exec::{QueryError, id, invalid};

/// The longest message a shell's client takes, header included.
pub const MAX_SHELL_MESSAGE: usize = 32768;
/// The most a Data frame carries.
pub const MAX_SHELL_DATA: usize = MAX_SHELL_MESSAGE - HEADER;
/// Columns and rows of a terminal that doesn't say.
pub const DEFAULT_WINDOW: (u16, u16) = (80, 24);

const HEADER: usize = 5;

const DATA: u8 = 1;
const WINDOW_SIZE: u8 = 2;
const SHUTDOWN: u8 = 3;
const HEARTBEAT: u8 = 4;
const SESSION_CLOSE: u8 = 5;

/// One frame of a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellFrame<'a> {
    /// Keystrokes to the shell, the terminal's output from it.
    Data(&'a [u8]),
    /// The client's terminal has this size.
    WindowSize {
        /// Characters in a line.
        columns: u32,
        /// Lines.
        rows: u32,
    },
    /// The client ends the session.
    Shutdown,
    /// The client is there.
    Heartbeat,
    /// The shell has ended, with this exit code if it is known.
    SessionClose(Option<u32>),
}

impl<'a> ShellFrame<'a> {
    /// Reads a message. `None` for what a receiver ignores: frames of unknown types and those
    /// shorter than they say or than their type must be.
    #[must_use]
    pub fn decode(message: &'a [u8]) -> Option<Self> {
        let (kind, rest) = message.split_first()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let payload = rest.get(..length)?;
        let number = |from: usize| {
            let bytes = payload.get(from..from + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        match *kind {
            DATA => Some(Self::Data(payload)),
            WINDOW_SIZE => Some(Self::WindowSize {
                columns: number(0)?,
                rows: number(4)?,
            }),
            SHUTDOWN => Some(Self::Shutdown),
            HEARTBEAT => Some(Self::Heartbeat),
            SESSION_CLOSE => Some(Self::SessionClose(number(0))),
            _ => None,
        }
    }

    /// The message of this frame. Data must be at most [`MAX_SHELL_DATA`] bytes; what is longer is
    /// cut off.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
        let (kind, payload): (u8, Vec<u8>) = match self {
            Self::Data(bytes) => (DATA, bytes[..bytes.len().min(MAX_SHELL_DATA)].to_vec()),
            Self::WindowSize { columns, rows } => (WINDOW_SIZE, numbers(&[*columns, *rows])),
            Self::Shutdown => (SHUTDOWN, Vec::new()),
            Self::Heartbeat => (HEARTBEAT, Vec::new()),
            Self::SessionClose(None) => (SESSION_CLOSE, Vec::new()),
            Self::SessionClose(Some(code)) => (SESSION_CLOSE, numbers(&[*code])),
        };
        // Bounded above.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.push(kind);
        message.extend(length.to_be_bytes());
        message.extend(payload);
        message
    }
}

/// How many of these bytes can be sent without cutting a UTF-8 character that may be completed by
/// what follows. Browsers decode each Data frame by itself.
#[must_use]
pub fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most 4 bytes, so an incomplete one is among the last 3.
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let wanted = match bytes[at] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            // The middle of a character: its first byte is before.
            0x80..=0xBF => continue,
            _ => 1,
        };
        return if wanted > back { at } else { bytes.len() };
    }
    bytes.len()
}

/// Everything the query of a shell says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellRequest {
    /// User; [`AUTO_ID`] is the image's default user.
    pub uid: u32,
    /// Group; [`AUTO_ID`] is the user's primary group.
    pub gid: u32,
    /// Program to run as login shell; absent is the user's own.
    pub shell: Option<String>,
    /// Working directory; absent is the user's home. `~` and `~/x` are expanded.
    pub cwd: Option<String>,
}

impl Default for ShellRequest {
    fn default() -> Self {
        Self {
            uid: AUTO_ID,
            gid: AUTO_ID,
            shell: None,
            cwd: None,
        }
    }
}

impl ShellRequest {
    /// Reads a query string. Unknown parameters are ignored; the last of a kind counts.
    pub fn from_query(query: &str) -> Result<Self, QueryError> {
        let mut r = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "uid" => r.uid = id("uid", &value)?,
                "gid" => r.gid = id("gid", &value)?,
                "shell" => r.shell = Some(value.into_owned()).filter(|v| !v.is_empty()),
                "cwd" => r.cwd = Some(value.into_owned()).filter(|v| !v.is_empty()),
                _ => {}
            }
        }
        for text in r.shell.iter().chain(&r.cwd) {
            if text.contains('\0') {
                return Err(invalid("shell or cwd", text, "text without NUL"));
            }
        }
        Ok(r)
    }

    /// The query string this request is sent with; what is default is left out.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut q = form_urlencoded::Serializer::new(String::new());
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id != AUTO_ID {
                q.append_pair(key, &id.to_string());
            }
        }
        for (key, value) in [("shell", &self.shell), ("cwd", &self.cwd)] {
            if let Some(value) = value {
                q.append_pair(key, value);
            }
        }
        q.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_what_other_clients_send() {
        let resize = ShellFrame::WindowSize {
            columns: 120,
            rows: 40,
        };
        for (frame, message) in [
            (resize, &b"\x02\0\0\0\x08\0\0\0\x78\0\0\0\x28"[..]),
            (ShellFrame::Data(b"ls\r"), b"\x01\0\0\0\x03ls\r"),
            (ShellFrame::Shutdown, b"\x03\0\0\0\0"),
            (ShellFrame::Heartbeat, b"\x04\0\0\0\0"),
            (ShellFrame::SessionClose(None), b"\x05\0\0\0\0"),
            (
                ShellFrame::SessionClose(Some(3)),
                b"\x05\0\0\0\x04\0\0\0\x03",
            ),
        ] {
            assert_eq!(frame.encode(), message);
            assert_eq!(ShellFrame::decode(message), Some(frame));
        }
    }

    #[test]
    fn what_is_no_frame_is_ignored() {
        for message in [
            &b""[..],
            b"\x01",
            b"\x01\0\0\0",
            b"\x01\0\0\0\x02a",
            b"\x01\xff\xff\xff\xffa",
            b"\x02\0\0\0\x04\0\0\0\x01",
            b"\x09\0\0\0\0",
        ] {
            assert_eq!(ShellFrame::decode(message), None, "{message:?}");
        }
    }

    #[test]
    fn messages_stay_below_the_limit() {
        let long = vec![b'x'; MAX_SHELL_DATA + 1];
        assert_eq!(ShellFrame::Data(&long).encode().len(), MAX_SHELL_MESSAGE);
    }

    #[test]
    fn characters_are_kept_whole() {
        for (bytes, whole) in [
            (&b""[..], 0),
            (b"abc", 3),
            ("aé".as_bytes(), 3),
            (b"a\xc3", 1),
            (b"a\xe2\x82", 1),
            (b"a\xf0\x9f\x98", 1),
            ("😀".as_bytes(), 4),
            // No character begins like this, so nothing is worth waiting for.
            (b"a\xff", 2),
            (b"\x80\x80\x80", 3),
        ] {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_answered(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(ShellFrame::Data(data)) = ShellFrame::decode(&message) {
                prop_assert!(data.len() + HEADER <= message.len());
            }
        }

        #[test]
        fn data_round_trips(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let message = ShellFrame::Data(&data).encode();
            prop_assert_eq!(ShellFrame::decode(&message), Some(ShellFrame::Data(&data)));
        }

        #[test]
        fn text_cut_anywhere_stays_text(text in "\\PC{0,20}", cut in 0usize..80) {
            let bytes = &text.as_bytes()[..cut.min(text.len())];
            let whole = whole_characters(bytes);
            prop_assert!(std::str::from_utf8(&bytes[..whole]).is_ok());
            prop_assert!(bytes.len() - whole < 4);
        }

        #[test]
        fn queries_round_trip(
            uid in any::<u32>(),
            gid in any::<u32>(),
            shell in proptest::option::of("[^\0]{1,10}"),
            cwd in proptest::option::of("[^\0]{1,10}"),
        ) {
            let r = ShellRequest { uid, gid, shell, cwd };
            prop_assert_eq!(ShellRequest::from_query(&r.to_query()), Ok(r));
        }
    }
}
