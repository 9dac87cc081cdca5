//! Async client of slicer's REST API: HTTP/1.1 over a unix socket or TCP, typed calls, streamed
//! exec, and the rules by which a daemon and a token are found.
#![forbid(unsafe_code)]

mod background;
mod chunked;
mod client;
mod commits;
mod conn;
mod cp;
mod discover;
mod disks;
mod error;
mod exec;
mod forward;
mod fs;
mod images;
mod lines;
mod secrets;
mod shell;
mod stats;
mod tags;
mod templates;
mod upgrade;
mod watch;

pub use background::LogStream;
pub use client::{Client, NodeFilter};
pub use commits::CommitFilter;
pub use cp::{Copied, CopyError, LocalFilter, Progress, Sending};
pub use discover::{
    DEFAULT_AUTHORITY, DiscoverError, LOCAL_TOKEN_FILE, Token, TokenFlags, discover, find_token,
};
pub use disks::DiskStream;
pub use error::ClientError;
pub use exec::{ExecStream, MAX_LINE, Stdin, output_bytes};
pub use images::PullStream;
pub use shell::{ShellReceiver, ShellSender};
pub use watch::WatchStream;
