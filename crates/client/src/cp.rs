//! Copies between this host and a VM. What comes from a VM is believed nothing: names are plain
//! names, archives are extracted within their root and nowhere else.

use crate::chunked;
use crate::client::{Call, vm_path};
use crate::conn::RequestBody;
use crate::{Client, ClientError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use slicer_api::{
    CopyIn, CopyMode, CopyOut, FILE_MODE_HEADER, Found, OCTETS, Placement, PlacementError,
    SOURCE_NAME_HEADER, SOURCE_TYPE_HEADER, TAR, UNPACKED_SIZE_HEADER, is_plain_name, place,
};
use slicer_tree::{
    Abandoned, Buffer, Buffers, Dir, ExtractOptions, Extractor, Filter, Intake, Measured, NewFile,
    Packer, TreeError,
};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes read or written at once.
const PIECE: usize = 512 << 10;
/// Pieces that are read ahead of the network.
const PIECES: usize = 1;
/// The mode of a file whose own isn't told.
const FILE_MODE: u32 = 0o644;

/// Says of a path from a tree's root, and of whether it is a directory, whether it is copied.
pub type LocalFilter = Arc<dyn Fn(&[u8], bool) -> bool + Send + Sync>;

/// Is told how many bytes have been copied so far, and how many there will be, if that is known.
pub type Progress = Arc<dyn Fn(u64, Option<u64>) + Send + Sync>;

/// How a file gets into a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// In one stream.
    Streamed,
    /// Large files in pieces that travel side by side, each checked by its SHA-256 before the file
    /// appears. They are written and read once more, and all that arrives is hashed in the VM.
    Checked,
}

/// What a copy came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Where it is now, when that is on this host.
    pub to: Option<PathBuf>,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Links, devices and the like, which are never copied.
    pub skipped: u64,
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The daemon or the VM.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The tree, on its way to or from an archive.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file of this host.
    #[error("cannot {action} {}", path.display())]
    Local {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no place for the copy.
    #[error("cannot copy to {}", path.display())]
    Placement {
        /// Where it was to go.
        path: PathBuf,
        /// Why not.
        source: PlacementError,
    },
    /// The VM said something about a source that makes no sense.
    #[error("the VM's answer about {what} makes no sense")]
    Answer {
        /// What it is about.
        what: &'static str,
    },
    /// The VM's agent could not put the pieces of a file together.
    #[error("the VM refused the copy: {0}")]
    Vm(String),
    /// The runtime ends.
    #[error(transparent)]
    Abandoned(#[from] Abandoned),
}

pub(crate) fn local(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    move |source| CopyError::Local {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CopyError> + Send + 'static,
) -> Result<T, CopyError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(CopyError::Abandoned(Abandoned)))
}

/// A local source that was opened.
enum Source {
    File { file: File, size: u64 },
    Tree { dir: Dir, size: Measured },
}

impl Client {
    /// `POST /vm/{h}/cp`: copies a file or a tree into a VM, placed as cp(1) does. Of `copy`, the
    /// mode and what is known of the source follow from `from`; without permissions a file keeps
    /// its own. Unbounded in time.
    pub async fn copy_in(
        &self,
        hostname: &str,
        from: &Path,
        copy: &CopyIn,
        sending: Sending,
        filter: LocalFilter,
        progress: Progress,
    ) -> Result<Copied, CopyError> {
        let mut copy = copy.clone();
        let (path, chosen) = (from.to_owned(), filter.clone());
        let (source, mode) = blocking(move || open(&path, &chosen)).await?;
        let tree = matches!(source, Source::Tree { .. });
        copy.mode = match (copy.mode, tree) {
            (CopyMode::Binary | CopyMode::Tar, true) => CopyMode::Tar,
            (CopyMode::Binary | CopyMode::Tar, false) => CopyMode::Binary,
            (_, true) => CopyMode::V1Tar,
            (_, false) => CopyMode::V1Binary,
        };
        copy.copy_contents = tree && from.as_os_str().as_bytes().ends_with(b"/.");
        copy.source_name = source_name(from)?;
        if !tree && copy.permissions.is_none() {
            copy.permissions = Some(mode & 0o777);
        }
        if let Source::File { size, .. } = source
            && sending == Sending::Checked
            && chunked::is_worth_it(&copy, size)
            && let Some(()) = self
                .copy_in_pieces(hostname, from, size, &copy, &progress)
                .await?
        {
            return Ok(Copied {
                to: None,
                files: 1,
                bytes: size,
                skipped: 0,
            });
        }
        let path = vm_path(hostname, "/cp");
        let mut call = Call::post(&path).query(copy.to_query());
        let kind = if tree { TAR } else { OCTETS };
        call.headers
            .push((CONTENT_TYPE, HeaderValue::from_static(kind)));
        let (pieces, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let (files, total) = match &source {
            Source::File { size, .. } => {
                call.headers.push((CONTENT_LENGTH, (*size).into()));
                (1, *size)
            }
            Source::Tree { size, .. } => {
                let name = HeaderName::from_static(UNPACKED_SIZE_HEADER);
                call.headers.push((name, size.bytes.into()));
                (size.files, size.bytes)
            }
        };
        let feeding = feed(source, filter, pieces, progress);
        let body = futures_util::stream::unfold(receiver, |mut receiver| async {
            let piece = receiver.recv().await?;
            Some((piece.map(Frame::data), receiver))
        });
        let body = RequestBody::new(StreamBody::new(body));
        let sending = async {
            let (response, connection) = self.send(&call, body).await?;
            // The answer says nothing, and comes when all is in place.
            let _ = response.into_body().collect().await;
            drop(connection);
            Ok::<_, ClientError>(())
        };
        tokio::pin!(feeding, sending);
        // Whichever fails first is the reason; a refusal by the VM makes sending what is left
        // pointless.
        let skipped = tokio::select! {
            fed = &mut feeding => {
                let skipped = fed?;
                sending.await?;
                skipped
            }
            sent = &mut sending => {
                sent?;
                feeding.await?
            }
        };
        Ok(Copied {
            to: None,
            files,
            bytes: total,
            skipped,
        })
    }

    /// `GET /vm/{h}/cp`: copies a file or a tree out of a VM to `to`, placed as cp(1) does.
    /// `permissions` is the mode of files; without it, the source's. Unbounded in time.
    pub async fn copy_out(
        &self,
        hostname: &str,
        copy: &CopyOut,
        to: &Path,
        permissions: Option<u32>,
        progress: Progress,
    ) -> Result<Copied, CopyError> {
        let path = vm_path(hostname, "/cp");
        let call = Call::get(&path).query(copy.to_query());
        let (response, connection) = self.send(&call, crate::conn::empty_body()).await?;
        let headers = response.headers();
        let tree = match header(headers, SOURCE_TYPE_HEADER) {
            Some("file") => false,
            Some("directory") => true,
            Some(_) => return Err(CopyError::Answer { what: "the source" }),
            None => copy.mode.is_tree(),
        };
        let name = match header(headers, SOURCE_NAME_HEADER) {
            Some(text) => {
                let name = URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
                if !is_plain_name(&name) {
                    return Err(CopyError::Answer {
                        what: "the source's name",
                    });
                }
                name
            }
            None => Vec::new(),
        };
        let size = header(headers, CONTENT_LENGTH.as_str()).and_then(|s| s.parse().ok());
        let mode = permissions.or_else(|| {
            let told = header(headers, FILE_MODE_HEADER)?;
            u32::from_str_radix(told, 8).ok().map(|m| m & 0o777)
        });
        let v1 = copy.mode.is_v1();
        let place = Place {
            mode: match (v1, tree) {
                (true, true) => CopyMode::V1Tar,
                (true, false) => CopyMode::V1Binary,
                (false, true) => CopyMode::Tar,
                (false, false) => CopyMode::Binary,
            },
            contents: name.is_empty(),
            name,
            to: to.to_owned(),
        };
        let options = ExtractOptions {
            owner: None,
            mode: permissions,
            exclude: copy.exclude.clone(),
        };
        let file_mode = mode.unwrap_or(FILE_MODE);
        let (to, target) = blocking(move || place.begin(options, file_mode)).await?;
        let mut intake = Intake::new(target, PIECE, Target::feed);
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| ClientError::BrokenOff {
                request: call.what(),
                source,
            })?;
            if let Ok(piece) = frame.into_data() {
                bytes += piece.len() as u64;
                progress(bytes, size);
                intake.take(&piece).await?;
            }
        }
        drop(connection);
        let (files, skipped) = intake.finish(Target::finish).await?;
        Ok(Copied {
            to: Some(to),
            files,
            bytes,
            skipped,
        })
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The name a source has, which for `.` and `..` only the system knows.
fn source_name(from: &Path) -> Result<Vec<u8>, CopyError> {
    let whole = from.canonicalize().map_err(local("open", from))?;
    let name = match from.file_name() {
        // A link keeps its own name.
        Some(name) if !from.as_os_str().as_bytes().ends_with(b"/.") => name,
        _ => whole.file_name().unwrap_or_default(),
    };
    Ok(name.as_bytes().to_vec())
}

fn open(path: &Path, filter: &LocalFilter) -> Result<(Source, u32), CopyError> {
    let meta = std::fs::metadata(path).map_err(local("open", path))?;
    let mode = meta.permissions().mode();
    if meta.is_dir() {
        let open = || Dir::open(path).map_err(local("open", path));
        let size = slicer_tree::measure(open()?, boxed(filter))?;
        return Ok((Source::Tree { dir: open()?, size }, mode));
    }
    if !meta.is_file() {
        let e = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(local("copy", path)(e));
    }
    let file = File::open(path).map_err(local("open", path))?;
    let size = meta.len();
    Ok((Source::File { file, size }, mode))
}

fn boxed(filter: &LocalFilter) -> Filter {
    let filter = filter.clone();
    Box::new(move |path, is_dir| filter(path, is_dir))
}

/// Gives out a source's bytes; gives back how many links and the like it left out.
async fn feed(
    source: Source,
    filter: LocalFilter,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    progress: Progress,
) -> Result<u64, CopyError> {
    let (mut reader, total, left) = match source {
        Source::File { file, size } => (Reader::File(file), size, size),
        Source::Tree { dir, size } => {
            let packer = Packer::new(dir, boxed(&filter));
            (Reader::Tree(Box::new(packer)), size.bytes, u64::MAX)
        }
    };
    let buffers = Buffers::new(PIECE);
    let mut left = left;
    let mut sent = 0u64;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE);
        let mut buffer = buffers.take();
        let (back, piece) = blocking(move || {
            let filled = reader.fill(&mut buffer, most);
            Ok((reader, filled.map(|()| buffer.freeze())))
        })
        .await?;
        reader = back;
        match piece {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => {
                left -= piece.len() as u64;
                sent += piece.len() as u64;
                progress(sent.min(total), Some(total));
                if pieces.send(Ok(piece)).await.is_err() {
                    // Whoever takes no more says why.
                    return Ok(0);
                }
            }
            Err(e) => {
                // The VM must not take what was sent for all.
                let _ = pieces.send(Err(io::Error::other("broken off"))).await;
                return Err(e.into());
            }
        }
    }
    Ok(match &reader {
        Reader::File(_) => 0,
        Reader::Tree(packer) => packer.packed().skipped,
    })
}

enum Reader {
    File(File),
    Tree(Box<Packer>),
}

impl Reader {
    fn fill(&mut self, buffer: &mut Buffer, most: usize) -> Result<(), TreeError> {
        let file = match self {
            Self::Tree(packer) => return buffer.fill(most, |room| packer.fill(room)),
            Self::File(file) => file,
        };
        let path = || "the file".to_owned();
        let read = buffer.fill(most, |room| {
            loop {
                match file.read(room) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    done => return done,
                }
            }
        });
        read.map_err(|source| TreeError::Io {
            action: "read",
            path: path(),
            source,
        })?;
        if buffer.as_ref().is_empty() {
            return Err(TreeError::Shrank { path: path() });
        }
        Ok(())
    }
}

/// Where a copy goes on this host.
struct Place {
    mode: CopyMode,
    contents: bool,
    name: Vec<u8>,
    to: PathBuf,
}

impl Place {
    fn begin(self, options: ExtractOptions, mode: u32) -> Result<(PathBuf, Target), CopyError> {
        let found = match std::fs::metadata(&self.to) {
            Ok(meta) if meta.is_dir() => Found::Directory,
            Ok(_) => Found::Other,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Found::Missing,
            Err(e) => return Err(local("look at", &self.to)(e)),
        };
        let slash = self.to.as_os_str().as_bytes().ends_with(b"/");
        let tree = self.mode.is_tree();
        let placement = place(self.mode, self.contents, found, slash).map_err(|source| {
            CopyError::Placement {
                path: self.to.clone(),
                source,
            }
        })?;
        let to = match placement {
            Placement::At => self.to,
            Placement::Inside => self.to.join(OsStr::from_bytes(&self.name)),
        };
        // A directory may be there under no name of its own, such as `.`.
        if tree && to.is_dir() {
            let root = Dir::open(&to).map_err(local("open", &to))?;
            let target = Target::Tree(Box::new(Extractor::new(root, options)));
            return Ok((to, target));
        }
        let nameless = || {
            let e = io::Error::new(io::ErrorKind::InvalidInput, "it has no name");
            local("create", &to)(e)
        };
        let name = to.file_name().ok_or_else(nameless)?.as_bytes();
        let parent = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let dir = Dir::open(parent).map_err(local("open", parent))?;
        let target = if tree {
            let made = dir.make(name, 0o755, None).map_err(local("create", &to))?;
            let root = match made {
                Some(root) => root,
                None => dir.child(name).map_err(local("open", &to))?,
            };
            Target::Tree(Box::new(Extractor::new(root, options)))
        } else {
            Target::File(NewFile::create(dir, name)?, mode)
        };
        Ok((to, target))
    }
}

/// A copy on its way to this host. Dropped, it leaves nothing that is incomplete.
enum Target {
    File(NewFile, u32),
    Tree(Box<Extractor>),
}

impl Target {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        match self {
            Self::File(file, _) => file.write(bytes),
            Self::Tree(extractor) => extractor.feed(bytes),
        }
        .map_err(CopyError::from)
    }

    /// Files, and what was left out.
    fn finish(self) -> Result<(u64, u64), CopyError> {
        match self {
            Self::File(file, mode) => file.place(None, mode, None).map(|()| (1, 0)),
            Self::Tree(extractor) => extractor.finish().map(|done| (done.files, done.skipped)),
        }
        .map_err(CopyError::from)
    }
}
