//! What fuzz targets share.
#![expect(clippy::missing_panics_doc, reason = "a panic is what they are for")]

use sha2::{Digest, Sha256};
use slicer_api::Endpoint;
use slicer_client::Client;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

/// The sizes of the pieces in which bytes arrive, made of one byte.
pub fn pieces(bytes: &[u8], cut: u8) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(match cut {
        0 => bytes.len().max(1),
        cut => usize::from(cut),
    })
}

/// The bytes as an archive whose headers have the right checksums, wherever its own sizes put them:
/// no fuzzer finds one by itself.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut tar = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let size = std::str::from_utf8(&header[124..135]).unwrap_or_default();
        let size = usize::from_str_radix(size, 8).unwrap_or(0);
        at += BLOCK + size.div_ceil(BLOCK).min(tar.len()) * BLOCK;
    }
    tar
}

/// A directory into which something hostile writes, beside others into which it must not. Some
/// links lead to those from within.
pub struct Cage {
    root: tempfile::TempDir,
}

impl Cage {
    pub fn new() -> Self {
        let cage = Self {
            root: tempfile::tempdir_in(memory()).unwrap(),
        };
        fs::create_dir(cage.root.path().join("outside")).unwrap();
        fs::write(cage.root.path().join("outside/file"), "precious").unwrap();
        cage
    }

    /// Where it may write. Empty, but for the links.
    pub fn inside(&self) -> PathBuf {
        let inside = self.root.path().join("inside");
        if let Ok(dir) = slicer_tree::Dir::open(self.root.path()) {
            dir.remove_all(b"inside").unwrap();
        }
        fs::create_dir(&inside).unwrap();
        symlink("../outside", inside.join("a")).unwrap();
        symlink("../outside/file", inside.join("b")).unwrap();
        symlink("../outside/new", inside.join("c")).unwrap();
        inside
    }

    /// Checks that nothing outside has changed, and that all inside are files, directories and the
    /// links from before.
    pub fn check(&self) {
        let root = self.root.path();
        assert_eq!(names(root), ["inside", "outside"]);
        assert_eq!(names(&root.join("outside")), ["file"]);
        let file = root.join("outside/file");
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        let meta = fs::symlink_metadata(file).unwrap();
        assert!(meta.is_file() && meta.nlink() == 1);
        let mut left = vec![root.join("inside")];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                let path = entry.path();
                if kind.is_symlink() {
                    assert!(dir == root.join("inside"), "{}", path.display());
                } else if kind.is_dir() {
                    left.push(path);
                } else {
                    let odd = kind.is_block_device() || kind.is_char_device() || kind.is_fifo();
                    assert!(kind.is_file() && !odd, "{}", path.display());
                    let meta = entry.metadata().unwrap();
                    assert_eq!(meta.nlink(), 1, "{}", path.display());
                }
            }
        }
    }
}

impl Default for Cage {
    fn default() -> Self {
        Self::new()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Where files are in memory, if there is such a place.
pub fn memory() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() {
        shm
    } else {
        std::env::temp_dir()
    }
}

/// What is read of JSON.
pub fn json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// A runtime for one thread.
pub fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(10);

/// A daemon of canned answers.
struct Answering {
    runtime: Runtime,
    listener: UnixListener,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

thread_local! {
    static ANSWERING: Answering = Answering::new();
}

impl Answering {
    fn new() -> Self {
        let runtime = runtime();
        let dir = tempfile::tempdir_in(memory()).unwrap();
        let socket = dir.path().join("s");
        let listener = runtime.block_on(async { UnixListener::bind(&socket).unwrap() });
        Self {
            runtime,
            listener,
            socket,
            _dir: dir,
        }
    }

    async fn answer(&self, pieces: &[&[u8]]) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        for piece in pieces {
            let _ = stream.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        let _ = stream.shutdown().await;
        // Until the client has left.
        while matches!(stream.read(&mut request).await, Ok(n) if n > 0) {}
    }
}

/// Has a client ask something that is answered with these bytes, a piece at a time. What asks must
/// come to an end.
pub fn with_answer(pieces: &[&[u8]], ask: impl AsyncFnOnce(&Client)) {
    ANSWERING.with(|this| {
        this.runtime.block_on(async {
            let client = Client::new(Endpoint::Unix(this.socket.clone()), None, "fuzz").unwrap();
            let asked = async {
                tokio::time::timeout(LIMIT, ask(&client)).await.unwrap();
                drop(client);
            };
            // Whoever asks more than once finds nobody.
            tokio::select! {
                () = asked => {}
                () = async { this.answer(pieces).await; std::future::pending().await } => {}
            }
        });
    });
}

/// An OCI layout of documents whose digests are right: in each text, `@0`, `@1` and so on stand
/// for the digest of the blob of that number, among those before it.
pub fn write_layout(dir: &Path, blobs: &[Vec<u8>], index: &[u8]) {
    let at = dir.join("blobs/sha256");
    fs::create_dir_all(&at).unwrap();
    let mut digests = BTreeMap::new();
    for (number, blob) in blobs.iter().enumerate() {
        let blob = filled(blob, &digests);
        let digest: String = Sha256::digest(&blob)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        fs::write(at.join(&digest), &blob).unwrap();
        digests.insert(number, (digest, blob.len()));
    }
    fs::write(dir.join("index.json"), filled(index, &digests)).unwrap();
}

fn filled(text: &[u8], digests: &BTreeMap<usize, (String, usize)>) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(text) else {
        return text.to_vec();
    };
    let mut text = text.to_owned();
    for (number, (digest, size)) in digests {
        text = text.replace(&format!("@{number}"), &format!("sha256:{digest}"));
        text = text.replace(&format!("#{number}"), &size.to_string());
    }
    text.into_bytes()
}
