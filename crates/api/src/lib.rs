//! The REST contract of slicer: request and response types, exec frames, error codes, and the
//! small grammars (durations, sizes, socket-or-URL) that clients and daemon must agree on.
//!
//! This crate does no I/O. The shapes follow SlicerVM's REST API; Go's strict JSON decoder fixes
//! most of the details: timestamps are RFC 3339 strings, integers are JSON integers, uptimes are
//! integer nanoseconds.

mod background;
mod commit;
mod cp;
mod disk;
mod duration;
mod endpoint;
mod error;
mod exec;
mod forward;
mod fs;
mod glob;
mod guest;
mod image;
mod live;
mod manifest;
mod node;
mod secrets;
mod shell;
mod stats;
mod tags;
mod template;

pub use background::{
    BackgroundExec, DEFAULT_KILL_GRACE, DEFAULT_RING, DEFAULT_WAIT, ExecInfo, KillRequest,
    KillSignal, Killed, LogFrame, LogsRequest, MAX_WAIT, RING_BUDGET, Reaped, WaitExit,
    wait_exit_limit,
};
pub use commit::{
    Commit, CommitRequest, Committed, DeletedCommit, Fixup, ForkRequest, ForkWait, Forked, TagMode,
    is_commit_id,
};
pub use cp::{
    CopyIn, CopyMode, CopyOut, FILE_MODE_HEADER, Found, OCTETS, Placement, PlacementError,
    SOURCE_NAME_HEADER, SOURCE_TYPE_HEADER, SourceType, TAR, UNPACKED_SIZE_HEADER, is_plain_name,
    permissions, place,
};
pub use disk::{Disk, DiskFormat, DiskOwner, Disks, SparsifiedDisk, Trimmed};
pub use duration::{DurationError, format_duration, parse_duration};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{ApiError, ErrorBody};
pub use exec::{ExecBuffered, ExecFrame, ExecRequest, FrameType, QueryError, Stdio};
pub use forward::{
    FORWARD_NUMBER_HEADER, Forward, ForwardError, ForwardListen, ForwardTarget, UPSTREAM_HEADER,
};
pub use fs::{
    DEFAULT_DEBOUNCE, FsEntry, FsKind, FsQuery, MakeDirectory, WatchEvent, WatchKind, WatchRequest,
};
pub use glob::{Excludes, Glob, GlobError};
pub use guest::{
    Entrypoint, EntrypointState, GuestRequest, Health, Identified, Identity, NetworkIdentity,
    Renewal, ShareMount, ShutdownAction, ShutdownRequest, check_mount,
};
pub use image::{Image, Images, ImportedImage, KeptImage, PullFrame, PullImage, RemovedImages};
pub use live::{LiveForkRequest, LiveForked, MAX_FORKS};
pub use manifest::{
    CHUNKED_COPY, MAX_CHUNK, MAX_CHUNKS, UploadChunk, UploadManifest, UploadMode, UploadSession,
    chunk_path, is_session_name,
};
pub use node::{
    CreateNode, CreatedNode, DeletedNode, HostGroup, Info, Logs, NetworkPolicy, Node, NodeDetail,
    NodeForward, NodeNetwork, NodeStatus, RESTORED, Wait,
};
pub use secrets::{
    CreateSecret, GuestSecret, GuestSecrets, Secret, UpdateSecret, is_secret_name,
    parse_permissions,
};
pub use shell::{
    DEFAULT_WINDOW, MAX_SHELL_DATA, MAX_SHELL_MESSAGE, ShellFrame, ShellRequest, whole_characters,
};
pub use stats::{HostMemory, NodeStats, StatsSnapshot};
pub use tags::{Tags, TagsChange};
pub use template::{RemovedTemplate, Template};

/// A point in time on the wire: RFC 3339, UTC, up to nanoseconds.
pub type Timestamp = jiff::Timestamp;

/// The value of `uid` and `gid` that means "the image's default user", like leaving it out.
pub const AUTO_ID: u32 = u32::MAX;

/// The Go name of a CPU architecture (`amd64`, `arm64`), which is what the API speaks.
#[must_use]
pub fn go_arch(rust_arch: &str) -> &str {
    match rust_arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The Go name of an operating system (`darwin`, `linux`), which is what the API speaks.
#[must_use]
pub fn go_os(rust_os: &str) -> &str {
    match rust_os {
        "macos" => "darwin",
        other => other,
    }
}

/// Deserializes `null` as the type's default: Go clients may send `null` for an empty list.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}

/// Deserializes an object or nothing. Without it a list would do as well, taken for the fields in
/// their order.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    struct Object<T>(std::marker::PhantomData<T>);

    impl<'de, T: serde::Deserialize<'de>> serde::de::Visitor<'de> for Object<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some)
        }
    }

    deserializer.deserialize_any(Object(std::marker::PhantomData))
}
