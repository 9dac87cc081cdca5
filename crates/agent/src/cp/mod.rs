//! `POST` and `GET /cp`: files and trees, into the guest and out of it.

mod place;
pub(crate) mod upload;

use crate::http::{self, AgentBody, Answer};
use crate::server::Agent;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt;
use hyper::body::Incoming as Body;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request};
use place::{Incoming, Recipient, failed, is_regular};
use rustix::fs::{Mode, OFlags};
use slicer_api::{
    ApiError, CopyIn, CopyMode, CopyOut, FILE_MODE_HEADER, OCTETS, SOURCE_NAME_HEADER,
    SOURCE_TYPE_HEADER, SourceType, TAR, UNPACKED_SIZE_HEADER,
};
use slicer_tree::{Buffers, Dir, Intake, Packer, Worker};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Bytes that are read or written at once. Each time costs some changes of threads.
const PIECE: usize = 1 << 20;
/// The same for those who come while [`LARGE`] others copy.
const SMALL_PIECE: usize = 32 << 10;
/// Copies with large pieces at a time, of which each holds up to three.
pub(crate) const LARGE: usize = 8;
/// Bytes from which on a file is read past the guest's cache, which is small and slow to fill.
const PAST_CACHE: u64 = 8 << 20;
/// Pieces that may wait for a slow client.
const PIECES: usize = 1;

/// Answers a copy.
pub(crate) async fn handle(agent: &Arc<Agent>, request: Request<Body>) -> Answer {
    if request.method() == Method::GET {
        return copy_out(agent, &request)
            .await
            .unwrap_or_else(|e| http::error(&e));
    }
    let (head, mut body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    match copy_in(agent, query, &head.headers, &mut body).await {
        Ok(()) => http::json(&serde_json::json!({})),
        Err(e) => {
            // So that its sender sees the answer and not a broken pipe.
            http::discard(body).await;
            http::error(&e)
        }
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// How large a copy's pieces are, while it has what comes with it.
fn piece(agent: &Agent) -> (usize, Option<OwnedSemaphorePermit>) {
    let permit = Arc::clone(&agent.large_copies).try_acquire_owned().ok();
    let size = if permit.is_some() { PIECE } else { SMALL_PIECE };
    (size, permit)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the copy failed")))
}

async fn copy_in(
    agent: &Agent,
    query: &str,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<(), ApiError> {
    agent.check_ready()?;
    let copy = CopyIn::from_query(query, header(headers, &CONTENT_TYPE))?;
    let unpacked = match headers.get(UNPACKED_SIZE_HEADER) {
        Some(value) => {
            let text = value.to_str().unwrap_or_default();
            let size = text.parse::<u64>().map_err(|_| {
                let text = format!("invalid X-Slicer-Unpacked-Size {text:.64?}: expected bytes");
                ApiError::bad_request(text)
            })?;
            Some(size)
        }
        None => None,
    };
    let to = Recipient::new(copy.uid, copy.gid, &agent.users.get())?;
    let incoming = blocking(move || Incoming::begin(&copy, &to, unpacked)).await?;
    let (piece, _permit) = piece(agent);
    let mut intake = Intake::new(incoming, piece, Incoming::feed);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            ApiError::bad_request(format!("the upload was cut off before its end: {e}"))
        })?;
        if let Ok(bytes) = frame.into_data() {
            intake.take(&bytes).await?;
        }
    }
    intake.finish(Incoming::finish).await
}

/// What is copied out.
enum Source {
    File { file: File, size: u64, mode: u32 },
    Tree(Dir),
}

async fn copy_out(agent: &Arc<Agent>, request: &Request<Body>) -> Result<Answer, ApiError> {
    agent.check_ready()?;
    let query = request.uri().query().unwrap_or_default();
    let copy = CopyOut::from_query(query, header(request.headers(), &ACCEPT))?;
    let from = Recipient::new(copy.uid, slicer_api::AUTO_ID, &agent.users.get())?;
    let contents = copy.path.ends_with(b"/.");
    let path = from.absolute(&copy.path)?;
    let mode = copy.mode;
    let opened = path.clone();
    let source = blocking(move || open(&opened, mode)).await?;
    let is_tree = matches!(source, Source::Tree(_));
    let mut answer = match source {
        Source::File {
            mut file,
            size,
            mode,
        } => {
            let mut past_cache = size >= PAST_CACHE
                && rustix::fs::fcntl_setfl(&file, OFlags::DIRECT | OFlags::NONBLOCK).is_ok();
            let read = move |buffer: &mut [u8]| match file.read(buffer) {
                // The file's end isn't that of a block, or its blocks are larger than ours.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput && past_cache => {
                    past_cache = false;
                    rustix::fs::fcntl_setfl(&file, OFlags::NONBLOCK)?;
                    file.read(buffer)
                }
                done => done,
            };
            // What the kernel makes up as it is read has no size.
            let limit = (size > 0).then_some(size);
            let mut answer = stream(agent, OCTETS, limit, read);
            let headers = answer.headers_mut();
            let mode = format!("0{:03o}", mode & 0o777);
            insert(headers, FILE_MODE_HEADER, &mode);
            if let Some(size) = limit {
                headers.insert(CONTENT_LENGTH, size.into());
            }
            answer
        }
        Source::Tree(dir) => {
            let exclude = copy.exclude;
            let filter = Box::new(move |path: &[u8], _: bool| !exclude.excludes(path));
            let mut packer = Packer::new(dir, filter);
            stream(agent, TAR, None, move |buffer| {
                packer.fill(buffer).map_err(io::Error::other)
            })
        }
    };
    if mode.is_v1() {
        let headers = answer.headers_mut();
        let kind = if is_tree {
            SourceType::Directory
        } else {
            SourceType::File
        };
        insert(headers, SOURCE_TYPE_HEADER, kind.as_str());
        if let Some(name) = path.file_name().filter(|_| !contents) {
            let name = URL_SAFE_NO_PAD.encode(name.as_bytes());
            insert(headers, SOURCE_NAME_HEADER, &name);
        }
    }
    Ok(answer)
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Digits, letters and dashes only.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn open(path: &Path, mode: CopyMode) -> Result<Source, ApiError> {
    let error = |e: io::Error| failed("open", path, &e);
    // A pipe's other end is never waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| error(e.into()))?;
    let file = File::from(fd);
    let meta = file.metadata().map_err(error)?;
    let wants_tree = mode.is_tree();
    let wants_file = matches!(mode, CopyMode::Binary | CopyMode::V1Binary);
    if meta.is_dir() {
        if wants_file {
            // The Go client of SlicerVM looks for this text.
            return Err(ApiError::bad_request("must specify a file not a directory"));
        }
        return Ok(Source::Tree(Dir::open(path).map_err(error)?));
    }
    if wants_tree {
        let text = format!("{} is not a directory", path.display());
        return Err(ApiError::bad_request(text));
    }
    if !is_regular(meta.mode()) {
        let text = format!("{} is not a regular file", path.display());
        return Err(ApiError::bad_request(text));
    }
    Ok(Source::File {
        size: meta.len(),
        mode: meta.permissions().mode(),
        file,
    })
}

/// An answer of what `read` gives, up to its end or `limit` bytes. An error breaks it off, so that
/// it isn't taken for complete.
fn stream(
    agent: &Agent,
    content_type: &'static str,
    limit: Option<u64>,
    read: impl FnMut(&mut [u8]) -> io::Result<usize> + Send + 'static,
) -> Answer {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let worker = Worker::new(read);
    let (size, permit) = piece(agent);
    agent.tasks.spawn(async move {
        let buffers = Buffers::new(size);
        let mut left = limit.unwrap_or(u64::MAX);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(size);
            let mut buffer = buffers.take();
            let step = worker.step(move |read| {
                buffer.fill(most, |room| {
                    loop {
                        match read(room) {
                            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                            done => return done,
                        }
                    }
                })?;
                Ok(buffer.freeze())
            });
            let piece = match step.await {
                Ok(Ok(piece)) if piece.is_empty() && limit.is_some() => {
                    Err(io::ErrorKind::UnexpectedEof.into())
                }
                Ok(Ok(piece)) if piece.is_empty() => break,
                Ok(piece) => piece,
                Err(e) => Err(io::Error::other(e)),
            };
            let over = piece.is_err();
            left -= piece.as_ref().map_or(0, |p| p.len() as u64);
            if pieces.send(piece).await.is_err() || over {
                break;
            }
        }
        worker.discard().await;
        drop(permit);
    });
    http::answer(content_type, AgentBody::Fallible(receiver))
}
