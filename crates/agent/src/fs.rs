//! The file system for clients: look at it, make directories, remove things.

use crate::http::{self, AgentBody, Answer};
use crate::server::Agent;
use crate::users::User;
use hyper::body::Incoming;
use hyper::{Method, Request};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use slicer_api::{ApiError, FsEntry, FsKind, FsQuery, MakeDirectory, Timestamp, permissions};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Entries of a directory that are told at once, so that the answer has bounds.
const MAX_ENTRIES: usize = 100_000;
const DEFAULT_MODE: u32 = 0o755;

/// Answers everything below `/fs/` but the watch.
pub(crate) async fn handle(agent: &Agent, request: Request<Incoming>) -> Answer {
    let answered = answer(agent, request).await;
    answered.unwrap_or_else(|e| http::error(&e))
}

async fn answer(agent: &Agent, request: Request<Incoming>) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let asked = || FsQuery::from_query(query).map_err(|e| ApiError::bad_request(e.to_string()));
    agent.check_ready()?;
    match (head.uri.path(), &head.method) {
        ("/fs/readdir", &Method::GET) => {
            let path = resolve(agent, &asked()?.path)?;
            blocking(move || read_directory(&path)).await
        }
        ("/fs/stat", &Method::GET) => {
            let path = resolve(agent, &asked()?.path)?;
            blocking(move || stat(&path)).await
        }
        ("/fs/mkdir", &Method::POST) => {
            let asked: MakeDirectory = http::read_json(body)
                .await?
                .filter(|m: &MakeDirectory| !m.path.is_empty())
                .ok_or_else(|| ApiError::bad_request("missing \"path\" in the body"))?;
            let path = resolve(agent, &asked.path)?;
            let mode = match &*asked.mode {
                "" => DEFAULT_MODE,
                text => permissions(text)?,
            };
            let owner = default_user(agent)?;
            blocking(move || make_directory(&path, asked.recursive, mode, &owner)).await
        }
        ("/fs/remove", &Method::DELETE) => {
            let asked = asked()?;
            let path = resolve(agent, &asked.path)?;
            blocking(move || remove(&path, asked.recursive)).await
        }
        (path @ ("/fs/readdir" | "/fs/stat"), _) => Ok(http::method_not_allowed(path, "GET")),
        (path @ "/fs/mkdir", _) => Ok(http::method_not_allowed(path, "POST")),
        (path @ "/fs/remove", _) => Ok(http::method_not_allowed(path, "DELETE")),
        (path, _) => Err(ApiError::not_found(format!(
            "the agent has no endpoint {path:.100}"
        ))),
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<Answer, ApiError> + Send + 'static,
) -> Result<Answer, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the file system call failed")))
}

fn default_user(agent: &Agent) -> Result<User, ApiError> {
    let users = agent.users.get();
    let own = rustix::process::geteuid();
    let user = if own.is_root() {
        users.default_user()
    } else {
        users.by_uid(own.as_raw())
    };
    user.cloned()
        .ok_or_else(|| ApiError::internal("the guest has no user"))
}

fn resolve(agent: &Agent, text: &str) -> Result<PathBuf, ApiError> {
    let home = PathBuf::from(default_user(agent)?.home);
    absolute(text, &home)
}

/// The path that is meant: `~` and what is relative begin at `home`.
pub(crate) fn absolute(text: &str, home: &Path) -> Result<PathBuf, ApiError> {
    if text.contains('\0') {
        return Err(ApiError::bad_request("invalid path: it has a NUL in it"));
    }
    Ok(match text.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => home.join(text),
    })
}

/// What a failed call means for the client.
pub(crate) fn failed(action: &str, path: &Path, e: &io::Error) -> ApiError {
    refused(format!("cannot {action} {}: {e}", path.display()), e)
}

/// The answer to a request that failed by this error of the system, in these words.
pub(crate) fn refused(text: String, e: &io::Error) -> ApiError {
    // These have no kind in Rust's stable library: a loop of links, and what can't be opened as it
    // is no file, such as a socket.
    if matches!(
        e.raw_os_error(),
        Some(libc::ELOOP | libc::ENXIO | libc::ENODEV)
    ) {
        return ApiError::bad_request(text);
    }
    match e.kind() {
        io::ErrorKind::NotFound => ApiError::not_found(text),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ApiError::forbidden(text)
        }
        // What is mounted or runs can't be removed or replaced.
        io::ErrorKind::AlreadyExists
        | io::ErrorKind::ResourceBusy
        | io::ErrorKind::ExecutableFileBusy => ApiError::conflict(text),
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::TooManyLinks => ApiError::insufficient_storage(text),
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Unsupported => ApiError::bad_request(text),
        _ => ApiError::internal(text),
    }
}

fn entry(name: &OsStr, meta: &Metadata) -> FsEntry {
    let kind = if meta.is_dir() {
        FsKind::Directory
    } else if meta.is_symlink() {
        FsKind::Symlink
    } else {
        FsKind::File
    };
    let nanos = i32::try_from(meta.mtime_nsec()).unwrap_or(0);
    FsEntry {
        name: name.to_string_lossy().into_owned(),
        kind,
        size: meta.len(),
        // A time beyond the year 9999 is nothing anybody can mean.
        mtime: Timestamp::new(meta.mtime(), nanos).unwrap_or(Timestamp::UNIX_EPOCH),
        mode: format!("0{:03o}", meta.mode() & 0o7777),
    }
}

fn read_directory(path: &Path) -> Result<Answer, ApiError> {
    let error = |e: io::Error| failed("read directory", path, &e);
    let mut entries = Vec::new();
    for found in fs::read_dir(path).map_err(error)? {
        let found = found.map_err(error)?;
        let name = found.file_name();
        match found.metadata() {
            Ok(meta) => entries.push(entry(&name, &meta)),
            // It has been removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("look at", &path.join(name), &e)),
        }
        if entries.len() > MAX_ENTRIES {
            return Err(ApiError::bad_request(format!(
                "{} has more than {MAX_ENTRIES} entries: list it with a command in the VM",
                path.display()
            )));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(http::json(&entries))
}

fn stat(path: &Path) -> Result<Answer, ApiError> {
    let meta = fs::symlink_metadata(path).map_err(|e| match e.kind() {
        // Below a file there is nothing.
        io::ErrorKind::NotADirectory => failed("find", path, &io::ErrorKind::NotFound.into()),
        _ => failed("look at", path, &e),
    })?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(http::json(&entry(name, &meta)))
}

fn make_directory(
    path: &Path,
    recursive: bool,
    mode: u32,
    owner: &User,
) -> Result<Answer, ApiError> {
    let mut missing = Vec::new();
    for at in path
        .ancestors()
        .take(if recursive { usize::MAX } else { 0 })
    {
        match fs::metadata(at) {
            Ok(meta) if meta.is_dir() => break,
            Ok(_) => return Err(failed("make", path, &Errno::NOTDIR.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(at),
            Err(e) => return Err(failed("make", path, &e)),
        }
    }
    if !recursive {
        missing.push(path);
    }
    // Outermost first. Only the last one has the mode that was asked for.
    while let Some(dir) = missing.pop() {
        let mode = if missing.is_empty() {
            mode
        } else {
            DEFAULT_MODE
        };
        match make_one(dir, mode, owner) {
            Ok(()) => {}
            // Somebody else was faster.
            Err(e) if recursive && e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(e) => return Err(failed("make", dir, &e)),
        }
    }
    Ok(empty())
}

fn make_one(dir: &Path, mode: u32, owner: &User) -> io::Result<()> {
    fs::create_dir(dir)?;
    // Through a handle: what is at this path may be something else by now, which must neither be
    // given away nor opened up.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(dir, flags, Mode::empty())?;
    let own = rustix::process::geteuid();
    if rustix::fs::fstat(&handle)?.st_uid != own.as_raw() {
        return Err(io::Error::other("somebody replaced it"));
    }
    if own.is_root() {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::fs::fchown(&handle, Some(uid), Some(gid))?;
    }
    Ok(rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode))?)
}

fn remove(path: &Path, recursive: bool) -> Result<Answer, ApiError> {
    let error = |e: io::Error| failed("remove", path, &e);
    // A link with a slash behind it is still the link.
    let path: PathBuf = path.components().collect();
    if !matches!(path.components().next_back(), Some(Component::Normal(_))) {
        return Err(ApiError::bad_request(format!(
            "refusing to remove {}: name it by its own name",
            path.display()
        )));
    }
    let meta = fs::symlink_metadata(&path).map_err(error)?;
    let root = fs::metadata("/").map_err(error)?;
    if (meta.dev(), meta.ino()) == (root.dev(), root.ino()) {
        return Err(ApiError::bad_request("refusing to remove /"));
    }
    let removed = match (meta.is_dir(), recursive) {
        (false, _) => fs::remove_file(&path),
        (true, false) => fs::remove_dir(&path),
        // Follows no links, not even such as are put in its way meanwhile.
        (true, true) => fs::remove_dir_all(&path),
    };
    removed.map_err(error)?;
    Ok(empty())
}

fn empty() -> Answer {
    http::answer("application/json", AgentBody::Full(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_at_home() {
        for (text, path) in [
            ("/a", "/a"),
            ("~", "/home/me"),
            ("~/a", "/home/me/a"),
            ("~//a", "/home/me/a"),
            ("a/b", "/home/me/a/b"),
            ("~you", "/home/me/~you"),
        ] {
            let found = absolute(text, Path::new("/home/me")).unwrap();
            assert_eq!(found, Path::new(path), "{text}");
        }
        assert!(absolute("a\0b", Path::new("/")).is_err());
    }
}
