//! Many streams over the one byte pipe between host and guest agent.
//!
//! A QEMU guest reaches its host over a single virtio-serial port: a pipe without connections,
//! without an end of file one can trust, and, after a restore or a fork, with bytes of a former
//! life in it. This crate makes of it what a vsock would have been: any number of independent,
//! flow-controlled streams, opened by the host (yamux, <https://github.com/hashicorp/yamux>),
//! behind a handshake that finds its place in whatever stream of bytes it meets.
//!
//! # Handshake
//!
//! The host sends a hello: 16 bytes of *trigger*, 4 bytes of version, 16 random bytes that will be
//! the next trigger. The guest answers with 16 bytes of [`wire::REPLY`], its version, and the same
//! 16 bytes. Both then speak yamux, the host as client.
//!
//! A guest that has just started waits for the well-known trigger [`wire::HELLO`]; one that had a
//! session before goes on looking, below yamux, for the trigger that session agreed on. It is
//! secret and random, so no payload can contain it by accident or by malice, and it is found at
//! any offset, so it does not matter which bytes were lost before it. When it turns up, all
//! streams of before are dropped and a new session starts.
#![forbid(unsafe_code)]

mod find;
mod guest;
mod host;
mod scan;
mod stream;
pub mod wire;

pub use guest::serve;
pub use host::{Driver, Mux, connect};
pub use stream::ChannelStream;
pub use wire::Trigger;

use std::io;

/// Why a channel failed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The pipe below failed.
    #[error("the channel's pipe failed: {0}")]
    Io(#[from] io::Error),
    /// The pipe below ended.
    #[error("the channel's pipe was closed")]
    Closed,
    /// The other side spoke something else.
    #[error("the channel's peer broke the protocol: {0}")]
    Protocol(String),
    /// The other side speaks another version of the handshake.
    #[error("the channel's peer speaks version {theirs}, this side {ours}")]
    Version {
        /// This side's version.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// Too many streams are open at once.
    #[error("more than {0} streams are open to this guest")]
    TooManyStreams(usize),
}

/// Streams one channel carries at most.
pub const MAX_STREAMS: usize = 512;

/// Bytes by which the windows of busy streams may grow, all of them together.
const GROWTH: usize = 4 << 20;

/// The yamux settings both sides use. Each stream may have 256 KiB under way, and busy ones more.
fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    let window = MAX_STREAMS * yamux::DEFAULT_CREDIT as usize + GROWTH;
    config.set_max_connection_receive_window(Some(window));
    config.set_split_send_size(wire::FRAME_PAYLOAD);
    config
}
