//! The handshake's bytes.

use crate::ChannelError;

/// Length of a trigger.
pub const TRIGGER_LEN: usize = 16;

/// Length of a hello and of a reply.
pub const HELLO_LEN: usize = TRIGGER_LEN + 4 + TRIGGER_LEN;

/// Version of the handshake and of what follows it.
pub const VERSION: u32 = 1;

/// Bytes that a guest's virtio-serial driver takes in one write. More is a second write, which costs
/// as much as the first.
pub(crate) const WRITE_LIMIT: usize = 32 * 1024;

/// Largest payload of one frame: fills, with yamux's header, one write.
pub(crate) const FRAME_PAYLOAD: usize = WRITE_LIMIT - 12;

/// The trigger a guest that has had no session waits for.
pub const HELLO: Trigger = Trigger(*b"\xf1slicer-hello-1\xf2");

/// What a guest's reply starts with.
pub const REPLY: Trigger = Trigger(*b"\xf3slicer-reply-1\xf4");

/// Sixteen bytes that start a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Trigger(pub(crate) [u8; TRIGGER_LEN]);

impl Trigger {
    /// A fresh, secret trigger.
    pub(crate) fn random() -> Result<Self, ChannelError> {
        let mut bytes = [0; TRIGGER_LEN];
        getrandom::fill(&mut bytes).map_err(|e| ChannelError::Io(std::io::Error::other(e)))?;
        Ok(Self(bytes))
    }

    /// The bytes, to be kept with a saved VM.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TRIGGER_LEN] {
        self.0
    }

    /// The trigger kept as these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; TRIGGER_LEN]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Trigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            HELLO => "Trigger(hello)",
            REPLY => "Trigger(reply)",
            _ => "Trigger(secret)",
        })
    }
}

/// Encodes a hello (`first` = the trigger) or a reply (`first` = [`REPLY`]).
pub(crate) fn encode(first: Trigger, next: Trigger) -> [u8; HELLO_LEN] {
    let mut out = [0; HELLO_LEN];
    out[..TRIGGER_LEN].copy_from_slice(&first.0);
    out[TRIGGER_LEN..TRIGGER_LEN + 4].copy_from_slice(&VERSION.to_be_bytes());
    out[TRIGGER_LEN + 4..].copy_from_slice(&next.0);
    out
}

/// Decodes what follows the first trigger: version and next trigger.
pub(crate) fn decode_rest(rest: [u8; HELLO_LEN - TRIGGER_LEN]) -> (u32, Trigger) {
    let [a, b, c, d, next @ ..] = rest;
    (u32::from_be_bytes([a, b, c, d]), Trigger(next))
}
