//! Copy: the query of `POST` and `GET /vm/{h}/cp`, the headers it is answered with, and where a
//! copy goes.
//!
//! Two generations of modes are on the wire: `binary` and `tar` write exactly where they are told,
//! `cp-v1-*` place their source as cp(1) does. Paths are bytes: names in a guest need not be UTF-8.

use crate::exec::flag;
use crate::{AUTO_ID, ApiError, Excludes};
use percent_encoding::percent_decode;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Header of a tar upload: the sum of its files' sizes, bytes.
pub const UNPACKED_SIZE_HEADER: &str = "x-slicer-unpacked-size";
/// Header of a downloaded file: its permission bits in octal.
pub const FILE_MODE_HEADER: &str = "x-slicer-file-mode";
/// Header of a `cp-v1-*` download: `file` or `directory`.
pub const SOURCE_TYPE_HEADER: &str = "x-slicer-source-type";
/// Header of a `cp-v1-*` download: the source's name, base64url without padding.
pub const SOURCE_NAME_HEADER: &str = "x-slicer-source-name-base64";
/// Content type of a tree.
pub const TAR: &str = "application/x-tar";
/// Content type of a file.
pub const OCTETS: &str = "application/octet-stream";

const SEMANTICS: &str = "cp-v1";
/// Linux's PATH_MAX without the terminating zero, bytes.
const MAX_PATH: usize = 4095;

/// How a copy travels and where it is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyMode {
    /// A file, to exactly the path.
    Binary,
    /// A tree, into exactly the path.
    Tar,
    /// A file, placed as cp(1) does.
    V1Binary,
    /// A tree, placed as cp(1) does.
    V1Tar,
    /// Whatever the source is; of downloads only.
    V1Recursive,
}

impl CopyMode {
    const ALL: [Self; 5] = [
        Self::Binary,
        Self::Tar,
        Self::V1Binary,
        Self::V1Tar,
        Self::V1Recursive,
    ];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Tar => "tar",
            Self::V1Binary => "cp-v1-binary",
            Self::V1Tar => "cp-v1-tar",
            Self::V1Recursive => "cp-v1-recursive",
        }
    }

    /// Whether it is of the generation that places its source as cp(1) does.
    #[must_use]
    pub fn is_v1(self) -> bool {
        !matches!(self, Self::Binary | Self::Tar)
    }

    /// Whether a whole tree travels, as tar.
    #[must_use]
    pub fn is_tree(self) -> bool {
        matches!(self, Self::Tar | Self::V1Tar)
    }
}

/// What a copy's source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceType {
    /// A file.
    File,
    /// A directory.
    Directory,
}

impl SourceType {
    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
        }
    }
}

/// The query of a `POST /vm/{h}/cp`: a copy into a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyIn {
    /// Where to. `~` and what is relative start from the user's home.
    pub path: Vec<u8>,
    /// How.
    pub mode: CopyMode,
    /// Who shall own it; [`AUTO_ID`] is the image's default user.
    pub uid: u32,
    /// Its group; [`AUTO_ID`] is the user's primary group.
    pub gid: u32,
    /// The mode of files; absent, an overwritten file's own, the archive's, or 0644.
    pub permissions: Option<u32>,
    /// What of a tree is left out.
    pub exclude: Excludes,
    /// The source's name, for `cp-v1-*`.
    pub source_name: Vec<u8>,
    /// Whether a directory's contents are copied and not itself, as with cp(1)'s `dir/.`.
    pub copy_contents: bool,
}

impl CopyIn {
    /// A copy to `path`, with everything else as if left out.
    #[must_use]
    pub fn new(mode: CopyMode, path: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode,
            uid: AUTO_ID,
            gid: AUTO_ID,
            permissions: None,
            exclude: Excludes::default(),
            source_name: Vec::new(),
            copy_contents: false,
        }
    }

    /// Reads a query string. Without a mode, the request's content type says whether it is a tree.
    pub fn from_query(query: &str, content_type: Option<&str>) -> Result<Self, ApiError> {
        let q = Query::parse(query)?;
        let tree = content_type.is_some_and(is_tar);
        let mode = q.mode(tree, |mode| mode != CopyMode::V1Recursive)?;
        let mut copy = Self {
            uid: id("uid", q.last("uid"))?,
            gid: id("gid", q.last("gid"))?,
            permissions: q.text("permissions").map(|t| permissions(&t)).transpose()?,
            exclude: q.exclude()?,
            ..Self::new(mode, q.path()?)
        };
        let source_type = q.text("source_type");
        if let Some(named) = &source_type
            && ![SourceType::File, SourceType::Directory]
                .iter()
                .any(|t| t.as_str() == named)
        {
            return Err(invalid("source_type", named, "file or directory"));
        }
        let contents = q.text("copy_contents").unwrap_or_default();
        let contents =
            flag("copy_contents", &contents).map_err(|e| ApiError::bad_request(e.to_string()))?;
        if mode.is_v1() {
            let kind = if mode.is_tree() {
                SourceType::Directory
            } else {
                SourceType::File
            };
            if let Some(named) = source_type
                && named != kind.as_str()
            {
                return Err(invalid("source_type", &named, kind.as_str()));
            }
            if contents && !mode.is_tree() {
                return Err(invalid("copy_contents", "true", "true with a tree only"));
            }
            copy.copy_contents = contents;
            copy.source_name = q.last("source_name").unwrap_or_default().to_vec();
            check_source_name(&copy.source_name, copy.copy_contents)?;
        }
        Ok(copy)
    }

    /// The query string this request is sent with; what is default is left out.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut q = Form::default();
        q.mode_and_path(self.mode, &self.path);
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id != AUTO_ID {
                q.append(key, id.to_string().as_bytes());
            }
        }
        if let Some(permissions) = self.permissions {
            q.append("permissions", format!("{permissions:04o}").as_bytes());
        }
        q.exclude(&self.exclude);
        if self.mode.is_v1() {
            q.append("source_name", &self.source_name);
            let kind = if self.mode.is_tree() {
                SourceType::Directory
            } else {
                SourceType::File
            };
            q.append("source_type", kind.as_str().as_bytes());
            if self.copy_contents {
                q.append("copy_contents", b"true");
            }
        }
        q.0
    }
}

/// The query of a `GET /vm/{h}/cp`: a copy out of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOut {
    /// What. `~` and what is relative start from the user's home.
    pub path: Vec<u8>,
    /// How.
    pub mode: CopyMode,
    /// Whose home `~` is; [`AUTO_ID`] is the image's default user.
    pub uid: u32,
    /// What of a tree is left out.
    pub exclude: Excludes,
}

impl CopyOut {
    /// A copy of `path`, with everything else as if left out.
    #[must_use]
    pub fn new(mode: CopyMode, path: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode,
            uid: AUTO_ID,
            exclude: Excludes::default(),
        }
    }

    /// Reads a query string. Without a mode, what the request accepts says whether a tree is meant.
    pub fn from_query(query: &str, accept: Option<&str>) -> Result<Self, ApiError> {
        let q = Query::parse(query)?;
        let tree = accept.is_some_and(|a| a.split(',').any(is_tar));
        Ok(Self {
            uid: id("uid", q.last("uid"))?,
            exclude: q.exclude()?,
            ..Self::new(q.mode(tree, |_| true)?, q.path()?)
        })
    }

    /// The query string this request is sent with; what is default is left out.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut q = Form::default();
        q.mode_and_path(self.mode, &self.path);
        if self.uid != AUTO_ID {
            q.append("uid", self.uid.to_string().as_bytes());
        }
        q.exclude(&self.exclude);
        q.0
    }
}

/// Reads permission bits in octal, up to four digits, setuid, setgid and sticky included.
pub fn permissions(text: &str) -> Result<u32, ApiError> {
    let octal = !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    octal
        .then(|| u32::from_str_radix(text, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| invalid("permissions", text, "octal permissions such as 0644"))
}

/// Whether these bytes may name something in a directory, and nothing else.
#[must_use]
pub fn is_plain_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|b| matches!(b, b'/' | b'\\' | b'\0'))
}

/// Checks the name a source is to have.
pub(crate) fn check_source_name(name: &[u8], copy_contents: bool) -> Result<(), ApiError> {
    if is_plain_name(name) || (name.is_empty() && copy_contents) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(name);
    Err(invalid(
        "source_name",
        &text,
        "the source's name without its directory",
    ))
}

/// What was found at a copy's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Missing,
    /// A directory, or a link to one.
    Directory,
    /// Anything else.
    Other,
}

/// Where a copy goes, seen from its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Exactly there.
    At,
    /// Into the directory there, under the source's name.
    Inside,
}

/// A copy that can't go where it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// A file in place of a directory.
    #[error("it is a directory")]
    IsDirectory,
    /// Into something that isn't a directory.
    #[error("it is not a directory")]
    NotDirectory,
    /// A file into a directory, said by the `/` at its end, that doesn't exist.
    #[error("destination directory does not exist")]
    NoDirectory,
}

/// Where a copy of this mode goes, given what is at its path and whether the path ends with `/`.
pub fn place(
    mode: CopyMode,
    copy_contents: bool,
    found: Found,
    slash: bool,
) -> Result<Placement, PlacementError> {
    match (mode, found) {
        (CopyMode::Binary, Found::Directory) => Err(PlacementError::IsDirectory),
        (CopyMode::Binary | CopyMode::V1Binary, Found::Missing) if slash => {
            Err(PlacementError::NoDirectory)
        }
        (CopyMode::Binary | CopyMode::V1Binary, Found::Other) if slash => {
            Err(PlacementError::NotDirectory)
        }
        (CopyMode::Tar | CopyMode::V1Tar | CopyMode::V1Recursive, Found::Other) => {
            Err(PlacementError::NotDirectory)
        }
        (CopyMode::V1Binary, Found::Directory) => Ok(Placement::Inside),
        (CopyMode::V1Tar | CopyMode::V1Recursive, Found::Directory) if !copy_contents => {
            Ok(Placement::Inside)
        }
        _ => Ok(Placement::At),
    }
}

/// A query's parameters, the values as the bytes they stand for.
struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let decode = |part: &str| -> Vec<u8> {
            let spaced: Cow<'_, str> = if part.contains('+') {
                part.replace('+', " ").into()
            } else {
                part.into()
            };
            percent_decode(spaced.as_bytes()).collect()
        };
        let pairs: Vec<(String, Vec<u8>)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let key = String::from_utf8_lossy(&decode(key)).into_owned();
                (key, decode(value))
            })
            .collect();
        if let Some((key, value)) = pairs.iter().find(|(_, value)| value.contains(&0)) {
            let text = String::from_utf8_lossy(value);
            return Err(ApiError::bad_request(format!(
                "invalid {key:.64} {text:.64?}: expected text without NUL"
            )));
        }
        Ok(Self(pairs))
    }

    /// The last non-empty value of a parameter.
    fn last(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rfind(|(k, v)| k == key && !v.is_empty());
        found.map(|(_, value)| value.as_slice())
    }

    fn text(&self, key: &str) -> Option<String> {
        self.last(key)
            .map(|v| String::from_utf8_lossy(v).into_owned())
    }

    fn path(&self) -> Result<Vec<u8>, ApiError> {
        let path = self
            .last("path")
            .ok_or_else(|| ApiError::bad_request("missing parameter \"path\""))?;
        if path.len() > MAX_PATH {
            return Err(ApiError::bad_request(format!(
                "invalid path: it has {} bytes, and a path may have {MAX_PATH}",
                path.len()
            )));
        }
        Ok(path.to_vec())
    }

    fn mode(&self, tree: bool, takes: impl Fn(CopyMode) -> bool) -> Result<CopyMode, ApiError> {
        let mode = match self.text("mode") {
            None if tree => CopyMode::Tar,
            None => CopyMode::Binary,
            Some(name) => CopyMode::ALL
                .into_iter()
                .find(|m| m.as_str() == name && takes(*m))
                // The Go client of SlicerVM looks for this text.
                .ok_or_else(|| ApiError::bad_request(format!("invalid mode: {name:.64}")))?,
        };
        match self.text("copy_semantics").as_deref() {
            None if !mode.is_v1() => Ok(mode),
            Some(SEMANTICS) if mode.is_v1() => Ok(mode),
            other => Err(ApiError::bad_request(format!(
                "invalid copy_semantics {:.64?}: expected {SEMANTICS} with a mode of {SEMANTICS}, \
                 and none with mode {}",
                other.unwrap_or_default(),
                mode.as_str()
            ))),
        }
    }

    fn exclude(&self) -> Result<Excludes, ApiError> {
        let values: Vec<String> = self
            .0
            .iter()
            .filter(|(key, _)| key == "exclude")
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect();
        Excludes::new(values.iter().map(String::as_str))
            .map_err(|e| ApiError::bad_request(format!("exclude: {e}")))
    }
}

/// A query string as it grows.
#[derive(Default)]
struct Form(String);

impl Form {
    fn append(&mut self, key: &str, value: &[u8]) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(key);
        self.0.push('=');
        self.0.extend(form_urlencoded::byte_serialize(value));
    }

    fn mode_and_path(&mut self, mode: CopyMode, path: &[u8]) {
        self.append("mode", mode.as_str().as_bytes());
        self.append("path", path);
        if mode.is_v1() {
            self.append("copy_semantics", SEMANTICS.as_bytes());
        }
    }

    fn exclude(&mut self, exclude: &Excludes) {
        for pattern in exclude.patterns() {
            self.append("exclude", pattern.as_bytes());
        }
    }
}

fn is_tar(media_type: &str) -> bool {
    let name = media_type.split(';').next().unwrap_or_default().trim();
    name.eq_ignore_ascii_case(TAR)
}

fn id(name: &'static str, value: Option<&[u8]>) -> Result<u32, ApiError> {
    let Some(value) = value else {
        return Ok(AUTO_ID);
    };
    let text = String::from_utf8_lossy(value);
    text.parse()
        .map_err(|_| invalid(name, &text, "a number up to 4294967295"))
}

fn invalid(name: &str, value: &str, expected: &str) -> ApiError {
    // Whatever a client sent is quoted back, but never at full length.
    ApiError::bad_request(format!("invalid {name} {value:.64?}: expected {expected}"))
}

#[cfg(test)]
mod tests;
