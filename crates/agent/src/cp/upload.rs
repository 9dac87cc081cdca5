//! `slicer-agent upload`: what a chunked copy asks for by exec, once its pieces are in the guest.

use super::place::{Incoming, Recipient};
use crate::users::Users;
use sha2::{Digest, Sha256};
use slicer_api::{
    ApiError, CHUNKED_COPY, MAX_CHUNK, UploadChunk, UploadManifest, UploadSession, chunk_path,
};
use slicer_tree::Dir;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A manifest of the most chunks there may be, and some room, bytes.
const MAX_MANIFEST: u64 = 256 << 20;
const PIECE: usize = 128 << 10;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Finalise,
    Abort,
}

/// Runs `upload` with these arguments: what to print, or why it failed.
pub(crate) fn run(args: &[&OsStr]) -> Result<String, String> {
    let words: Option<Vec<&str>> = args.iter().map(|a| a.to_str()).collect();
    let usage = "usage: slicer-agent upload check | \
                 upload finalise|abort --manifest PATH --uid UID --gid GID";
    let words = words.ok_or(usage)?;
    let (action, flags) = match words.as_slice() {
        ["check"] => return Ok(format!("{CHUNKED_COPY}\n")),
        ["finalise", flags @ ..] => (Action::Finalise, flags),
        ["abort", flags @ ..] => (Action::Abort, flags),
        _ => return Err(usage.to_owned()),
    };
    let (mut manifest, mut uid, mut gid) = (None, slicer_api::AUTO_ID, slicer_api::AUTO_ID);
    for pair in flags.chunks(2) {
        let [flag, value] = pair else {
            return Err(usage.to_owned());
        };
        let id = || value.parse().map_err(|_| format!("invalid id {value:?}"));
        match *flag {
            "--manifest" => manifest = Some(*value),
            "--uid" => uid = id()?,
            "--gid" => gid = id()?,
            _ => return Err(usage.to_owned()),
        }
    }
    let manifest = manifest.ok_or(usage)?;
    let session = UploadSession::of_manifest(manifest).map_err(|e| e.to_string())?;
    let users = Users::new(Path::new("/etc")).get();
    let to = Recipient::new(uid, gid, &users).map_err(|e| e.to_string())?;
    let dir = to
        .absolute(session.dir().as_bytes())
        .map_err(|e| e.to_string())?;
    match action {
        Action::Abort => remove(&dir)?,
        Action::Finalise => {
            finalise(&dir, &to).map_err(|e| e.to_string())?;
            remove(&dir)?;
        }
    }
    Ok(String::new())
}

/// Removes a session's directory, which may be gone already.
fn remove(session: &Path) -> Result<(), String> {
    let (Some(parent), Some(name)) = (session.parent(), session.file_name()) else {
        return Err(format!("{} is no session", session.display()));
    };
    let error = |e| format!("cannot remove {}: {e}", session.display());
    match Dir::open(parent) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        dir => dir
            .and_then(|d| d.remove_all(name.as_encoded_bytes()))
            .map_err(error),
    }
}

fn finalise(session: &Path, to: &Recipient) -> Result<(), ApiError> {
    let error = |path: &Path, e: &std::io::Error| super::failed("read", path, e);
    // The directory is the user's, who may have put anything there.
    let (Some(parent), Some(name)) = (session.parent(), session.file_name()) else {
        return Err(ApiError::bad_request("the manifest is in no session"));
    };
    let dir = Dir::open(parent)
        .and_then(|d| d.child(name.as_encoded_bytes()))
        .map_err(|e| error(session, &e))?;
    let path = session.join("manifest.json");
    let opened = dir
        .open_file(b"manifest.json")
        .map_err(|e| error(&path, &e))?;
    let (file, _) = opened.ok_or_else(|| ApiError::bad_request("the manifest is no file"))?;
    let mut text = Vec::new();
    file.take(MAX_MANIFEST)
        .read_to_end(&mut text)
        .map_err(|e| error(&path, &e))?;
    let manifest: UploadManifest = serde_json::from_slice(&text)
        .map_err(|e| ApiError::bad_request(format!("invalid manifest: {e}")))?;
    let copy = manifest.check()?;
    let chunks = dir
        .child(b"chunks")
        .or_else(|e| {
            // There are none for an empty file.
            if manifest.chunks.is_empty() {
                dir.child(b".")
            } else {
                Err(e)
            }
        })
        .map_err(|e| error(&session.join("chunks"), &e))?;
    let all = Chunks {
        dir: &chunks,
        session: session.to_owned(),
    };
    // A tree's files appear one by one, so all is checked before the first does.
    if copy.mode.is_tree() {
        for chunk in &manifest.chunks {
            all.read(chunk, &mut |_| Ok(()))?;
        }
    }
    let mut incoming = Incoming::begin(&copy, to, manifest.unpacked_size)?;
    for chunk in &manifest.chunks {
        all.read(chunk, &mut |bytes| incoming.feed(bytes))?;
    }
    incoming.finish()
}

struct Chunks<'d> {
    dir: &'d Dir,
    session: PathBuf,
}

impl Chunks<'_> {
    /// Gives out a chunk's bytes and checks them.
    fn read(
        &self,
        chunk: &UploadChunk,
        take: &mut dyn FnMut(&[u8]) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let path = self.session.join(chunk_path(chunk.index));
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let error = |e: std::io::Error| super::failed("read", &path, &e);
        let wrong = |what: &str| {
            ApiError::bad_request(format!("chunk {} {what}: send it again", chunk.index))
        };
        let opened = self.dir.open_file(name).map_err(error)?;
        let (file, _) = opened.ok_or_else(|| wrong("is no file"))?;
        let mut file = file.take(MAX_CHUNK + 1);
        let (mut sum, mut size) = (Sha256::new(), 0);
        let mut buffer = vec![0; PIECE];
        loop {
            let n = file.read(&mut buffer).map_err(error)?;
            if n == 0 {
                break;
            }
            size += n as u64;
            sum.update(&buffer[..n]);
            take(&buffer[..n])?;
        }
        if size != chunk.size {
            return Err(wrong(&format!("has {size} bytes, and not {}", chunk.size)));
        }
        let sum = sum.finalize();
        // The manifest was checked to have 64 digits.
        let told = chunk.sha256.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).unwrap_or_default();
            u8::from_str_radix(pair, 16).ok()
        });
        if !told.eq(sum.iter().map(|b| Some(*b))) {
            return Err(wrong("has the wrong SHA-256"));
        }
        Ok(())
    }
}
