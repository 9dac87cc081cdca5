//! Where a copy into the guest goes, and how it gets there: by descriptors of directories, under
//! another name until it is complete.

use crate::users::Database;
use rustix::fs::FileType;
use slicer_api::{AUTO_ID, ApiError, CopyIn, CopyMode, Found, Placement, is_session_name, place};
use slicer_tree::{Dir, ExtractOptions, Extractor, NewFile, Owner, TreeError};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The mode of a file that is new and isn't told one.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// That of directories that hold an upload's pieces.
const SESSION_MODE: u32 = 0o700;

/// Who a copy is for.
#[derive(Debug, Clone)]
pub(super) struct Recipient {
    /// Whose the files will be; `None` when the agent can't give them away.
    pub(super) owner: Option<Owner>,
    /// Where `~` and what is relative begins.
    home: Option<PathBuf>,
}

impl Recipient {
    /// The user and group of these ids, either of which may be [`AUTO_ID`].
    pub(super) fn new(uid: u32, gid: u32, users: &Database) -> Result<Self, ApiError> {
        let own = rustix::process::geteuid();
        let user = match uid {
            AUTO_ID if own.is_root() => users.default_user(),
            AUTO_ID => users.by_uid(own.as_raw()),
            uid => users.by_uid(uid),
        };
        // Files may belong to somebody the guest has no name for.
        let uid = user.map_or(uid, |u| u.uid);
        if uid == AUTO_ID {
            return Err(ApiError::internal("the guest has no user"));
        }
        let gid = match gid {
            AUTO_ID => user.map_or(uid, |u| u.gid),
            gid => gid,
        };
        Ok(Self {
            owner: own.is_root().then_some(Owner { uid, gid }),
            home: user.map(|u| PathBuf::from(&u.home)),
        })
    }

    /// The path that is meant.
    pub(super) fn absolute(&self, path: &[u8]) -> Result<PathBuf, ApiError> {
        let text = Path::new(OsStr::from_bytes(path));
        if text.is_absolute() {
            return Ok(text.to_owned());
        }
        let home = self.home.as_deref().ok_or_else(|| {
            ApiError::bad_request("the user has no home directory: give an absolute path")
        })?;
        Ok(match path {
            b"~" => home.to_owned(),
            [b'~', b'/', rest @ ..] => {
                let rest = rest.iter().position(|b| *b != b'/').map(|at| &rest[at..]);
                home.join(OsStr::from_bytes(rest.unwrap_or_default()))
            }
            _ => home.join(text),
        })
    }
}

/// What a path's error means for the client.
pub(super) fn failed(action: &str, path: &Path, e: &io::Error) -> ApiError {
    crate::fs::failed(action, path, e)
}

/// What an extraction's error means for the client.
pub(super) fn tree_error(e: &TreeError) -> ApiError {
    let text = e.to_string();
    match e.io() {
        Some(e) => crate::fs::refused(text, e),
        None => ApiError::bad_request(text),
    }
}

/// A copy on its way. Dropped before [`Incoming::finish`], it leaves nothing that is incomplete.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A file.
    File {
        file: NewFile,
        owner: Option<Owner>,
        mode: u32,
    },
    /// A tree.
    Tree(Box<Extractor>),
}

impl Incoming {
    /// Finds the place and makes the directories on the way. `unpacked` is how much a tree's files
    /// will need, bytes.
    pub(super) fn begin(
        copy: &CopyIn,
        to: &Recipient,
        unpacked: Option<u64>,
    ) -> Result<Self, ApiError> {
        let path = to.absolute(&copy.path)?;
        let slash = copy.path.ends_with(b"/") || copy.path.ends_with(b"/.");
        let there = match std::fs::metadata(&path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("look at", &path, &e)),
        };
        let found = match &there {
            None => Found::Missing,
            Some(meta) if meta.is_dir() => Found::Directory,
            Some(_) => Found::Other,
        };
        let placement = place(copy.mode, copy.copy_contents, found, slash).map_err(|e| {
            ApiError::bad_request(format!("cannot copy to {}: {e}", path.display()))
        })?;
        let path = match placement {
            Placement::At => path,
            Placement::Inside => path.join(OsStr::from_bytes(&copy.source_name)),
        };
        if matches!(copy.mode, CopyMode::Binary | CopyMode::V1Binary) {
            return Self::begin_file(copy, to, &path);
        }
        let root = make_path(&path, to.owner)?;
        if let Some(needed) = unpacked
            && root.free_bytes().is_ok_and(|free| free < needed)
        {
            return Err(ApiError::insufficient_storage(format!(
                "{needed} bytes don't fit into {}",
                path.display()
            )));
        }
        let options = ExtractOptions {
            owner: to.owner,
            mode: copy.permissions,
            exclude: copy.exclude.clone(),
        };
        Ok(Self::Tree(Box::new(Extractor::new(root, options))))
    }

    fn begin_file(copy: &CopyIn, to: &Recipient, path: &Path) -> Result<Self, ApiError> {
        // What a link leads to is replaced, and not the link.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let there = std::fs::symlink_metadata(&path).ok();
        if let Some(meta) = &there
            && !meta.is_file()
            && !meta.is_symlink()
        {
            let what = if meta.is_dir() {
                "it is a directory"
            } else {
                "it is not a regular file"
            };
            let text = format!("cannot copy to {}: {what}", path.display());
            return Err(ApiError::bad_request(text));
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            let text = format!("cannot copy to {}: it names no file", path.display());
            return Err(ApiError::bad_request(text));
        };
        let dir = make_path(parent, to.owner)?;
        let mode = copy.permissions.unwrap_or_else(|| {
            let kept = there.as_ref().filter(|m: &&Metadata| m.is_file());
            kept.map_or(FILE_MODE, |m| m.mode() & 0o7777)
        });
        let file = NewFile::create(dir, name.as_bytes()).map_err(|e| tree_error(&e))?;
        Ok(Self::File {
            file: file.past_cache(),
            owner: to.owner,
            mode,
        })
    }

    /// Takes more of it.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        match self {
            Self::File { file, .. } => file.write(bytes),
            Self::Tree(extractor) => extractor.feed(bytes),
        }
        .map_err(|e| tree_error(&e))
    }

    /// Puts it into its place.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self {
            Self::File { file, owner, mode } => file.place(owner, mode, None),
            Self::Tree(extractor) => extractor.finish().map(drop),
        }
        .map_err(|e| tree_error(&e))
    }
}

/// Opens a directory; what is missing on the way is made. Others may do the same at this moment.
fn make_path(path: &Path, owner: Option<Owner>) -> Result<Dir, ApiError> {
    let error = |e: io::Error| failed("make directory", path, &e);
    let mut at = Dir::open(Path::new("/")).map_err(error)?;
    let mut mode = DIRECTORY_MODE;
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name.as_bytes(),
            Component::ParentDir => b"..",
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
        };
        if is_session_name(name) {
            mode = SESSION_MODE;
        }
        at = match at.enter(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match at.make(name, mode, owner).map_err(error)? {
                    Some(made) => made,
                    None => at.enter(name).map_err(error)?,
                }
            }
            other => other.map_err(error)?,
        };
    }
    Ok(at)
}

/// Whether a file is one whose bytes can be copied.
pub(super) fn is_regular(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::RegularFile
}
