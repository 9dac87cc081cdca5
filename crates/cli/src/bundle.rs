//! Files of a bundle put in their places, each complete or not at all.

use crate::error::CliError;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use slicer_image::{ImageCache, LayoutDir};
use slicer_registry::{Bundle, BundleFile};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Where files are before they are complete: in the directory itself, so that a rename is enough.
const STAGING: &str = ".slicer-install";
const LOCK: &str = ".slicer-install.lock";
/// The file that is its user's once it is there, and what a new one is called beside it.
pub(crate) const CONFIG: &str = "slicer-mac.yaml";
const NEW_CONFIG: &str = "slicer-mac.yaml.new";

/// What became of a bundle's files.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    /// Written, by their paths.
    pub(crate) written: Vec<PathBuf>,
    /// There already, as they should be.
    pub(crate) unchanged: usize,
    /// The user's configuration was kept, and differs: the new one is here.
    pub(crate) beside: Option<PathBuf>,
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CliError + 'a {
    move |source| CliError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Puts all files of a bundle into `dir`. What is there and right is not fetched; an attempt that
/// broke off is gone on with.
pub(crate) async fn install(bundle: &Bundle, dir: &Path) -> Result<Placed, CliError> {
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    let _lock = lock(dir)?;
    let mut placed = Placed::default();
    let mut wanted = Vec::new();
    for file in bundle.files() {
        let dest = destination(dir, file);
        if same(&dest, file)? {
            set_mode(&dest, file)?;
            placed.unchanged += 1;
        } else if is_config(file) && same(&dir.join(CONFIG), file)? {
            placed.unchanged += 1;
        } else {
            wanted.push(file);
        }
    }
    let staging = dir.join(STAGING);
    let cache = ImageCache::open(&staging)?;
    let blobs = wanted.iter().map(|file| file.blob().clone()).collect();
    bundle.fetch(blobs, &cache).await?;
    let blobs = LayoutDir::new(&staging);
    for (i, file) in wanted.iter().enumerate() {
        let dest = destination(dir, file);
        let parent = dest.parent().unwrap_or(dir);
        fs::create_dir_all(parent).map_err(io("create", parent))?;
        let mut from = blobs.blob(file.blob())?;
        // Two files of one content are one blob.
        if wanted[i + 1..]
            .iter()
            .any(|f| f.blob().digest() == file.blob().digest())
        {
            let copy = staging.join("copy");
            fs::copy(&from, &copy).map_err(io("write", &copy))?;
            from = copy;
        }
        put(&from, &dest, mode(file))?;
        if dest.file_name().is_some_and(|n| n == NEW_CONFIG) {
            placed.beside = Some(dest);
        } else {
            placed.written.push(file.path().to_owned());
        }
    }
    fs::remove_dir_all(&staging).map_err(io("remove", &staging))?;
    remove_old_blobs(bundle, dir)?;
    Ok(placed)
}

/// Puts the one file `path` of a bundle in the place of `dest`, whose mode it gets.
pub(crate) async fn replace(
    bundle: &Bundle,
    file: &BundleFile,
    dest: &Path,
) -> Result<(), CliError> {
    let dir = dest.parent().unwrap_or(Path::new("/"));
    let mode = fs::metadata(dest)
        .map_err(io("inspect", dest))?
        .permissions();
    // Private, and removed whatever happens.
    let staging = tempfile::Builder::new()
        .prefix(".slicer-update-")
        .tempdir_in(dir)
        .map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                CliError::NotYours(dest.to_owned())
            }
            _ => io("write to", dir)(e),
        })?;
    let cache = ImageCache::open(staging.path())?;
    bundle.fetch(vec![file.blob().clone()], &cache).await?;
    let blob = LayoutDir::new(staging.path()).blob(file.blob())?;
    put(&blob, dest, mode.mode() & 0o7777)
}

/// Only one at a time works on a directory. The lock is given back with the file.
fn lock(dir: &Path) -> Result<File, CliError> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CliError::InstallRuns(dir.to_owned())),
        Err(e) => Err(io("lock", &path)(e.into())),
    }
}

fn is_config(file: &BundleFile) -> bool {
    file.path() == Path::new(CONFIG)
}

fn mode(file: &BundleFile) -> u32 {
    if file.executable() { 0o755 } else { 0o644 }
}

/// Where a file goes: the user's configuration is left alone.
fn destination(dir: &Path, file: &BundleFile) -> PathBuf {
    if is_config(file) && fs::symlink_metadata(dir.join(CONFIG)).is_ok() {
        dir.join(NEW_CONFIG)
    } else {
        dir.join(file.path())
    }
}

/// Whether a file is there with this content.
fn same(path: &Path, file: &BundleFile) -> Result<bool, CliError> {
    let mut there = match File::open(path) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(io("open", path)(e)),
    };
    let meta = there.metadata().map_err(io("inspect", path))?;
    if !meta.is_file() || meta.len() != file.blob().size() {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        match there.read(&mut piece).map_err(io("read", path))? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    let found = hash
        .finalize()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
    Ok(found == file.blob().digest().digest())
}

fn set_mode(path: &Path, file: &BundleFile) -> Result<(), CliError> {
    if is_config(file) {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode(file))).map_err(io("change", path))
}

/// Renames a complete file over another, durably. Who runs the other keeps it.
fn put(from: &Path, dest: &Path, mode: u32) -> Result<(), CliError> {
    let file = File::open(from).map_err(io("open", from))?;
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.sync_all())
        .map_err(io("write", from))?;
    fs::rename(from, dest).map_err(io("replace", dest))?;
    let dir = dest.parent().unwrap_or(Path::new("/"));
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io("write", dir))
}

/// Removes the blobs that an earlier bundle's layouts had and this one's haven't.
fn remove_old_blobs(bundle: &Bundle, dir: &Path) -> Result<(), CliError> {
    let kept: HashSet<&Path> = bundle.files().iter().map(BundleFile::path).collect();
    for layout in bundle
        .files()
        .iter()
        .filter(|f| f.path().ends_with("index.json"))
    {
        let Some(blobs) = layout.path().parent().map(|l| l.join("blobs/sha256")) else {
            continue;
        };
        if !kept.iter().any(|path| path.starts_with(&blobs)) {
            continue;
        }
        let all = dir.join(&blobs);
        for entry in fs::read_dir(&all).map_err(io("read", &all))? {
            let entry = entry.map_err(io("read", &all))?;
            if !kept.contains(blobs.join(entry.file_name()).as_path()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(io("remove", &path))?;
            }
        }
    }
    Ok(())
}
