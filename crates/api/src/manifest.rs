//! The chunked upload: a file, or a tree as tar, sent in pieces as plain copies into a session's
//! directory, and put together by the agent's command line as its manifest says.

use crate::cp::{check_source_name, permissions};
use crate::{ApiError, CopyIn, CopyMode, SourceType, null_default};
use serde::{Deserialize, Serialize};

/// What `slicer-agent upload check` prints when it knows this form of the manifest.
pub const CHUNKED_COPY: &str = "chunked-copy-v2";
/// The most bytes a chunk may have.
pub const MAX_CHUNK: u64 = 64 << 20;
/// The most chunks an upload may have: one byte each for a small one, 64 TiB for a large one.
pub const MAX_CHUNKS: usize = 1 << 20;

const SESSION_PREFIX: &str = ".slicer-upload-";
const SESSION_ID: usize = 32;
const MANIFEST: &str = "manifest.json";
const SEMANTICS: &str = "cp-v1";

/// The directory of an upload's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadSession(String);

impl UploadSession {
    /// The session with this random id beside `destination`, which must be absolute or start
    /// with `~`.
    pub fn beside(destination: &str, id: [u8; 16]) -> Result<Self, ApiError> {
        use std::fmt::Write as _;
        if !destination.starts_with(['/', '~']) {
            return Err(wrong(format!(
                "destination {destination:.64?} is neither absolute nor in a home (~)"
            )));
        }
        let parent = match destination.trim_end_matches('/').rsplit_once('/') {
            Some((parent, _)) => parent,
            None if destination.starts_with('~') => "~",
            None => "",
        };
        let mut dir = format!("{parent}/{SESSION_PREFIX}");
        for byte in id {
            // A string takes whatever is written.
            let _ = write!(dir, "{byte:02x}");
        }
        Ok(Self(dir))
    }

    /// The session a manifest's path belongs to. Whoever holds one may have its directory removed
    /// as root, so nothing but such a path will do.
    pub fn of_manifest(path: &str) -> Result<Self, ApiError> {
        let refused = || {
            wrong(format!(
                "manifest path {path:.200?} is not …/{SESSION_PREFIX}<32 hex digits>/{MANIFEST}"
            ))
        };
        let dir = path
            .strip_suffix(MANIFEST)
            .and_then(|d| d.strip_suffix('/'));
        let dir = dir.ok_or_else(refused)?;
        let (parent, name) = dir.rsplit_once('/').ok_or_else(refused)?;
        let mut names = parent.split('/');
        // Empty before the first `/` of an absolute path.
        let rooted = matches!(names.next(), Some("" | "~"));
        let clean = names.all(|name| !matches!(name, "" | "." | "..") && !name.contains('\0'));
        if rooted && clean && is_session_name(name.as_bytes()) {
            Ok(Self(dir.to_owned()))
        } else {
            Err(refused())
        }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &str {
        &self.0
    }

    /// Where the manifest is.
    #[must_use]
    pub fn manifest(&self) -> String {
        format!("{}/{MANIFEST}", self.0)
    }

    /// Where a chunk is.
    #[must_use]
    pub fn chunk(&self, index: usize) -> String {
        format!("{}/{}", self.0, chunk_path(index))
    }
}

/// Where a chunk is within its session.
#[must_use]
pub fn chunk_path(index: usize) -> String {
    format!("chunks/{index:06}.chunk")
}

/// Whether a directory of this name belongs to an upload's session.
#[must_use]
pub fn is_session_name(name: &[u8]) -> bool {
    name.strip_prefix(SESSION_PREFIX.as_bytes())
        .is_some_and(|id| {
            id.len() == SESSION_ID && id.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
}

/// How a chunked upload's bytes are to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadMode {
    /// As a file.
    Binary,
    /// As a tree.
    Tar,
}

/// One piece of a chunked upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadChunk {
    /// From 0, in order.
    pub index: usize,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// What a chunked upload is made of and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadManifest {
    /// 2; in 1 the destination is exact, without cp(1)'s rules.
    pub version: u32,
    /// File or tree.
    pub mode: UploadMode,
    /// Where to; `~` is the home of the user the upload is finished for.
    pub destination: String,
    /// Owner; [`crate::AUTO_ID`] is the image's default user.
    #[serde(default = "auto")]
    pub uid: u32,
    /// Its group; [`crate::AUTO_ID`] is the user's primary group.
    #[serde(default = "auto")]
    pub gid: u32,
    /// The mode of files, in octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// The sum of the chunks' sizes, bytes.
    pub size: u64,
    /// The sum of a tree's files' sizes, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_size: Option<u64>,
    /// `cp-v1` in version 2.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub copy_semantics: String,
    /// The source's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_name: String,
    /// What the source is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_type: Option<SourceType>,
    /// Whether a directory's contents are meant and not itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_contents: bool,
    /// The pieces; none for an empty file.
    #[serde(default, deserialize_with = "null_default")]
    pub chunks: Vec<UploadChunk>,
}

fn auto() -> u32 {
    crate::AUTO_ID
}

impl UploadManifest {
    /// The manifest of a copy of `size` bytes in these chunks.
    #[must_use]
    pub fn new(copy: &CopyIn, destination: &str, size: u64, chunks: Vec<UploadChunk>) -> Self {
        let tree = copy.mode.is_tree();
        Self {
            version: 2,
            mode: if tree {
                UploadMode::Tar
            } else {
                UploadMode::Binary
            },
            destination: destination.to_owned(),
            uid: copy.uid,
            gid: copy.gid,
            permissions: copy.permissions.map(|p| format!("{p:04o}")),
            size,
            unpacked_size: None,
            copy_semantics: SEMANTICS.to_owned(),
            source_name: String::from_utf8_lossy(&copy.source_name).into_owned(),
            source_type: Some(if tree {
                SourceType::Directory
            } else {
                SourceType::File
            }),
            copy_contents: copy.copy_contents,
            chunks,
        }
    }

    /// Checks all that can be checked without the chunks, and gives back the copy it asks for.
    pub fn check(&self) -> Result<CopyIn, ApiError> {
        let tree = self.mode == UploadMode::Tar;
        let mode = match (self.version, tree) {
            (1, false) => CopyMode::Binary,
            (1, true) => CopyMode::Tar,
            (2, false) => CopyMode::V1Binary,
            (2, true) => CopyMode::V1Tar,
            (other, _) => return Err(wrong(format!("version {other} is not known"))),
        };
        if mode.is_v1() {
            if self.copy_semantics != SEMANTICS {
                let text = format!("copy_semantics is {:.64?}", self.copy_semantics);
                return Err(wrong(text));
            }
            let kind = if tree {
                SourceType::Directory
            } else {
                SourceType::File
            };
            if self.source_type != Some(kind) {
                return Err(wrong(format!("source_type is not {}", kind.as_str())));
            }
            if self.copy_contents && !tree {
                return Err(wrong("a file has no contents to copy without it"));
            }
            check_source_name(self.source_name.as_bytes(), self.copy_contents)?;
        }
        if self.destination.is_empty() || self.destination.contains('\0') {
            return Err(wrong("the destination is empty or has a NUL"));
        }
        self.check_chunks()?;
        let bits = self.permissions.as_deref().filter(|p| !p.is_empty());
        Ok(CopyIn {
            uid: self.uid,
            gid: self.gid,
            permissions: bits.map(permissions).transpose()?,
            // Of no meaning otherwise, and not checked.
            source_name: if mode.is_v1() {
                self.source_name.clone().into_bytes()
            } else {
                Vec::new()
            },
            copy_contents: mode.is_v1() && self.copy_contents,
            ..CopyIn::new(mode, self.destination.as_bytes())
        })
    }

    fn check_chunks(&self) -> Result<(), ApiError> {
        if self.chunks.len() > MAX_CHUNKS {
            return Err(wrong(format!("it has more than {MAX_CHUNKS} chunks")));
        }
        let mut sum = 0u64;
        for (at, chunk) in self.chunks.iter().enumerate() {
            if chunk.index != at {
                return Err(wrong(format!("chunk {} is in place {at}", chunk.index)));
            }
            if chunk.size == 0 || chunk.size > MAX_CHUNK {
                return Err(wrong(format!("chunk {at} has {} bytes", chunk.size)));
            }
            if chunk.sha256.len() != 64 || !chunk.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong(format!("chunk {at} has no SHA-256 in hex")));
            }
            // Neither number is near the end of the range, as bounded above.
            sum += chunk.size;
        }
        if sum != self.size {
            return Err(wrong(format!(
                "its chunks have {sum} bytes, and not {}",
                self.size
            )));
        }
        Ok(())
    }
}

fn wrong(text: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("invalid upload: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sessions_are_beside_their_destination() {
        let id = [0xab; 16];
        let name = format!(".slicer-upload-{}", "ab".repeat(16));
        for (destination, parent) in [
            ("/data/disk.img", "/data/"),
            ("/data/dir/", "/data/"),
            ("/file", "/"),
            ("~", "~/"),
            ("~/", "~/"),
            ("~/a/b", "~/a/"),
        ] {
            let session = UploadSession::beside(destination, id).unwrap();
            assert_eq!(session.dir(), format!("{parent}{name}"), "{destination}");
            let manifest = session.manifest();
            assert_eq!(UploadSession::of_manifest(&manifest), Ok(session));
        }
        assert!(UploadSession::beside("relative", id).is_err());
        let session = UploadSession::beside("/x", id).unwrap();
        assert_eq!(
            session.chunk(7),
            format!("{}/chunks/000007.chunk", session.dir())
        );
        assert!(is_session_name(name.as_bytes()));
    }

    #[test]
    fn no_other_directory_is_a_session() {
        let id = "0123456789abcdef0123456789abcdef";
        for path in [
            String::new(),
            "/manifest.json".to_owned(),
            "/etc/manifest.json".to_owned(),
            format!("/.slicer-upload-{id}"),
            format!("/.slicer-upload-{id}/other.json"),
            format!("/.slicer-upload-{id}//manifest.json"),
            format!("/.slicer-upload-{id}/x/manifest.json"),
            format!("/.slicer-upload-{id}/../manifest.json"),
            format!("/a/../.slicer-upload-{id}/manifest.json"),
            format!("/a//.slicer-upload-{id}/manifest.json"),
            format!(".slicer-upload-{id}/manifest.json"),
            format!("x/.slicer-upload-{id}/manifest.json"),
            format!("~root/.slicer-upload-{id}/manifest.json"),
            format!("/.slicer-upload-{}/manifest.json", &id[1..]),
            format!("/.slicer-upload-{}/manifest.json", id.to_uppercase()),
            format!("/.slicer-upload-{id}/manifest.json/"),
        ] {
            assert!(UploadSession::of_manifest(&path).is_err(), "{path}");
        }
    }

    fn manifest(json: &str) -> Result<CopyIn, ApiError> {
        let manifest: UploadManifest = serde_json::from_str(json).map_err(wrong)?;
        manifest.check()
    }

    const GOOD: &str = r#"{"version":2,"mode":"binary","destination":"/x","uid":0,"gid":4294967295,
        "permissions":"0600","size":3,"copy_semantics":"cp-v1","source_name":"f",
        "source_type":"file","chunks":[{"index":0,"size":3,"sha256":"HASH"}]}"#;

    fn good() -> String {
        GOOD.replace("HASH", &"0a".repeat(32))
    }

    #[test]
    fn a_manifest_is_a_copy() {
        let copy = manifest(&good()).unwrap();
        assert_eq!(
            copy,
            CopyIn {
                uid: 0,
                permissions: Some(0o600),
                source_name: b"f".to_vec(),
                ..CopyIn::new(CopyMode::V1Binary, "/x")
            }
        );
        let empty = r#"{"version":1,"mode":"tar","destination":"~/d","size":0,"chunks":null}"#;
        let copy = manifest(empty).unwrap();
        assert_eq!(copy, CopyIn::new(CopyMode::Tar, "~/d"));
        // Of no meaning in version 1, and so nobody's.
        let named = r#"{"version":1,"mode":"tar","destination":"~/d","size":0,"source_name":"../x",
            "copy_contents":true}"#;
        assert_eq!(manifest(named), Ok(CopyIn::new(CopyMode::Tar, "~/d")));
    }

    #[test]
    fn every_part_of_a_manifest_is_checked() {
        for (from, to) in [
            ("\"version\":2", "\"version\":3"),
            ("\"version\":2", "\"version\":\"2\""),
            ("binary", "zip"),
            ("\"/x\"", "\"\""),
            ("\"/x\"", "\"/\\u0000\""),
            ("\"uid\":0", "\"uid\":-1"),
            ("0600", "rw"),
            ("\"size\":3,\"copy", "\"size\":4,\"copy"),
            ("cp-v1", "cp-v2"),
            ("\"f\"", "\"a/b\""),
            ("\"f\"", "\"\""),
            ("\"source_type\":\"file\"", "\"source_type\":\"directory\""),
            ("\"source_type\":\"file\"", "\"copy_contents\":true"),
            ("\"index\":0", "\"index\":1"),
            ("\"size\":3,\"sha", "\"size\":0,\"sha"),
            ("\"size\":3,\"sha", "\"size\":67108865,\"sha"),
            ("0a0a", "0a0"),
            ("0a0a", "xa0a"),
        ] {
            let json = good();
            assert!(json.contains(from), "{from}");
            assert!(
                manifest(&json.replacen(from, to, 1)).is_err(),
                "{from} as {to}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_for_a_session_is_one(path in "[~/a.]{0,6}(\\.slicer-upload-[0-9a-f]{31,33})?[/a]{0,2}manifest.json") {
            if let Ok(session) = UploadSession::of_manifest(&path) {
                prop_assert_eq!(session.manifest(), path);
                let name = session.dir().rsplit('/').next().unwrap();
                prop_assert!(is_session_name(name.as_bytes()));
                prop_assert!(!session.dir().contains("..") && !session.dir().contains("//"));
            }
        }
    }
}
