//! The image cache: an OCI layout of our own, where images from elsewhere are kept by their names.
//!
//! Several processes may use one cache at a time, and any of them may die at any moment. Blobs are
//! made in `partial/`, each under a lock of its own, and are complete once they are in `blobs/`;
//! an image is there once the index names it, which is last. Who adds holds the cache's lock
//! shared, who removes holds it alone.

use crate::digest::hex;
use crate::files::write_file;
use crate::layout::read_document;
use crate::{ImageError, ImageRef, Resolved};
use oci_spec::image::{Descriptor, DigestAlgorithm, ImageIndex, ImageIndexBuilder};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An image's name in an index (image-spec, annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// An annotation of our own: the state of the file that an image was read from.
const SOURCE: &str = "slicer.source";
/// Another: when the image was given its name, in seconds since 1970.
pub(crate) const NAMED_AT: &str = "slicer.named";
/// The file that says that there are blobs of images that have lost their names.
pub(crate) const GARBAGE: &str = ".garbage";
/// What the file `oci-layout` holds (image-spec, image-layout.md).
const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";
/// More than any index has, bytes.
const MAX_INDEX: u64 = 16 << 20;

/// A cache. Cheap to open, and to have several of.
#[derive(Debug, Clone)]
pub struct ImageCache {
    pub(crate) dir: PathBuf,
}

/// Leave to add to a cache, for as long as it lives: nothing is removed meanwhile.
#[derive(Debug)]
pub struct Adding {
    cache: ImageCache,
    _lock: File,
}

/// A blob that is being made, by its maker alone.
#[derive(Debug)]
pub struct PartialBlob {
    file: File,
    path: PathBuf,
    dest: PathBuf,
    expected: String,
    size: u64,
    hash: Sha256,
    length: u64,
}

impl ImageCache {
    /// The cache in this directory, which is made if it isn't there.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        for part in ["blobs/sha256", "partial"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(ImageError::io("create", &path))?;
        }
        let this = Self {
            dir: dir.to_owned(),
        };
        let layout = this.dir.join("oci-layout");
        if !layout.exists() {
            write_file(&layout, LAYOUT.as_bytes())?;
        }
        Ok(this)
    }

    /// The image of this name for `linux` and `arch`, if all of it is here.
    pub fn find(&self, name: &str, arch: &str) -> Result<Option<Resolved>, ImageError> {
        self.find_made_of(name, arch, None)
    }

    /// Likewise, if it was made of this state of its source.
    pub(crate) fn find_made_of(
        &self,
        name: &str,
        arch: &str,
        source: Option<&str>,
    ) -> Result<Option<Resolved>, ImageError> {
        let index = self.index()?;
        let mut entries = index.manifests().iter();
        let of_arch = |d: &Descriptor| {
            let platform = d.platform().as_ref();
            platform.is_none_or(|p| p.architecture().to_string() == arch)
        };
        let made = |d: &Descriptor| named(d, name) && annotation(d, SOURCE) == source;
        if !entries.any(|d| made(d) && of_arch(d)) {
            return Ok(None);
        }
        Ok(self.find_named(name, arch))
    }

    /// Likewise, whatever it was made of.
    pub(crate) fn find_named(&self, name: &str, arch: &str) -> Option<Resolved> {
        let reference = ImageRef::OciLayout {
            path: self.dir.clone(),
            tag: Some(name.to_owned()),
        };
        // What is named and damaged is as good as missing: it can be had again.
        let image = Resolved::find(&reference, arch).ok()?;
        let complete = image.layers().iter().all(|layer| self.has(layer));
        complete.then_some(image)
    }

    /// Whether this blob is here, going by its size.
    pub fn has(&self, blob: &Descriptor) -> bool {
        let path = self.blobs().join(blob.digest().digest());
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == blob.size())
    }

    /// A blob that is a document, checked.
    pub fn read(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        read_document(&self.dir, blob).map(|(_, text)| text)
    }

    /// Forgets a blob that turned out to be damaged.
    pub fn forget(&self, digest: &str) -> Result<(), ImageError> {
        let name = digest.strip_prefix("sha256:").unwrap_or(digest);
        if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        let path = self.blobs().join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &path)(e))
            }
            _ => Ok(()),
        }
    }

    /// Leave to add, once nobody removes. Blocks.
    pub fn add(&self) -> Result<Adding, ImageError> {
        let lock = self.lock("lock", FlockOperation::LockShared)?;
        Ok(Adding {
            cache: self.clone(),
            _lock: lock,
        })
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    pub(crate) fn index(&self) -> Result<ImageIndex, ImageError> {
        let path = self.dir.join("index.json");
        let mut text = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(MAX_INDEX)
                    .read_to_end(&mut text)
                    .map_err(ImageError::io("read", &path))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return empty_index(&path),
            Err(e) => return Err(ImageError::io("open", &path)(e)),
        }
        serde_json::from_slice(&text).map_err(|e| ImageError::Layout {
            path,
            why: e.to_string(),
        })
    }

    /// Replaces the entries of the index. Under its lock.
    pub(crate) fn write_index(
        &self,
        mut index: ImageIndex,
        entries: Vec<Descriptor>,
    ) -> Result<(), ImageError> {
        index.set_manifests(entries);
        let path = self.dir.join("index.json");
        let text = serde_json::to_vec(&index).map_err(|e| ImageError::Layout {
            path: path.clone(),
            why: e.to_string(),
        })?;
        write_file(&path, &text)
    }

    /// Takes the lock `name` as `operation` says. Blocks.
    pub(crate) fn lock(&self, name: &str, operation: FlockOperation) -> Result<File, ImageError> {
        let path = self.dir.join(format!(".{name}"));
        let open = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let file = open.map_err(ImageError::io("open", &path))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(ImageError::io("lock", &path)(e.into())),
            }
        }
    }
}

impl Adding {
    /// The cache.
    pub fn cache(&self) -> &ImageCache {
        &self.cache
    }

    /// Begins a blob, or goes on with what is left of an earlier attempt; `None` when it is here.
    /// While somebody else makes it, an error of the kind [`io::ErrorKind::WouldBlock`].
    pub fn begin(&self, blob: &Descriptor) -> Result<Option<PartialBlob>, ImageError> {
        let digest = blob.digest();
        if *digest.algorithm() != DigestAlgorithm::Sha256 {
            return Err(ImageError::Layout {
                path: self.cache.dir.clone(),
                why: format!("the digest {digest} is not a sha256"),
            });
        }
        let path = self.cache.dir.join("partial").join(digest.digest());
        let file = open_partial(&path)?;
        if self.cache.has(blob) {
            // Finished by whoever had the lock before.
            let _ = fs::remove_file(&path);
            return Ok(None);
        }
        let mut partial = PartialBlob {
            file,
            path,
            dest: self.cache.blobs().join(digest.digest()),
            expected: digest.digest().to_owned(),
            size: blob.size(),
            hash: Sha256::new(),
            length: 0,
        };
        partial.resume()?;
        Ok(Some(partial))
    }

    /// Adds a small blob whose content is at hand, such as a manifest.
    pub fn put(&self, blob: &Descriptor, content: &[u8]) -> Result<(), ImageError> {
        if self.cache.has(blob) {
            return Ok(());
        }
        let path = self.cache.blobs().join(blob.digest().digest());
        if hex(&Sha256::digest(content)) != blob.digest().digest() {
            return Err(ImageError::Digest {
                path,
                found: format!("digest {}", hex(&Sha256::digest(content))),
            });
        }
        write_file(&path, content)
    }

    /// Gives an image, all of whose blobs are here, this name, in the place of what had it for the
    /// same platform.
    pub fn name(&self, name: &str, manifest: &Descriptor) -> Result<(), ImageError> {
        self.name_made_of(name, manifest, None)
    }

    /// Likewise, noting the state of the source it was made of.
    pub(crate) fn name_made_of(
        &self,
        name: &str,
        manifest: &Descriptor,
        source: Option<&str>,
    ) -> Result<(), ImageError> {
        let _lock = self.cache.lock("index", FlockOperation::LockExclusive)?;
        let index = self.cache.index()?;
        let mut entry = manifest.clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let mut annotations = HashMap::from([
            (REF_NAME.to_owned(), name.to_owned()),
            (NAMED_AT.to_owned(), now.to_string()),
        ]);
        annotations.extend(source.map(|source| (SOURCE.to_owned(), source.to_owned())));
        entry.set_annotations(Some(annotations));
        let (replaced, mut entries): (Vec<_>, Vec<_>) = index
            .manifests()
            .iter()
            .cloned()
            .partition(|d| named(d, name) && d.platform() == entry.platform());
        if replaced.iter().any(|d| d.digest() != entry.digest()) {
            write_file(&self.cache.dir.join(GARBAGE), b"")?;
        }
        entries.push(entry);
        self.cache.write_index(index, entries)
    }
}

impl PartialBlob {
    /// Takes what is there of an earlier attempt into account.
    fn resume(&mut self) -> Result<(), ImageError> {
        let there = self.file.metadata().map(|m| m.len());
        let there = there.map_err(ImageError::io("inspect", &self.path))?;
        if there > self.size {
            return self.restart();
        }
        let mut buffer = vec![0; 256 << 10];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.hash.update(&buffer[..n]);
                    self.length += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ImageError::io("read", &self.path)(e)),
            }
        }
    }

    /// Throws away what is there.
    pub fn restart(&mut self) -> Result<(), ImageError> {
        self.hash = Sha256::new();
        self.length = 0;
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)).map(drop))
            .map_err(ImageError::io("write", &self.path))
    }

    /// Bytes there are.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes there will be.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the next bytes. Refuses more than the blob has.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let length = self.length.saturating_add(bytes.len() as u64);
        if length > self.size {
            return Err(ImageError::Digest {
                path: self.path.clone(),
                found: format!("more than the promised {} bytes", self.size),
            });
        }
        self.file
            .write_all(bytes)
            .map_err(ImageError::io("write", &self.path))?;
        self.hash.update(bytes);
        self.length = length;
        Ok(())
    }

    /// Checks the blob and puts it in its place, durably. What is not what it should be is thrown
    /// away.
    pub fn finish(self) -> Result<(), ImageError> {
        let found = hex(&self.hash.finalize());
        if self.length != self.size || found != self.expected {
            let _ = fs::remove_file(&self.path);
            let found = if self.length == self.size {
                format!("digest {found}")
            } else {
                format!("{} of the promised {} bytes", self.length, self.size)
            };
            return Err(ImageError::Digest {
                path: self.dest,
                found,
            });
        }
        self.file
            .sync_all()
            .map_err(ImageError::io("write", &self.path))?;
        slicer_fault::point("pull.whole");
        fs::rename(&self.path, &self.dest).map_err(ImageError::io("create", &self.dest))?;
        slicer_fault::point("pull.blob");
        let dir = self.dest.parent().unwrap_or(Path::new("."));
        File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(ImageError::io("write", dir))
    }
}

/// Opens the file at `path`, made if it isn't there, and locks it. One that was put in its place or
/// thrown away before it was locked is not meant.
fn open_partial(path: &Path) -> Result<File, ImageError> {
    loop {
        let open = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path);
        let file = open.map_err(ImageError::io("open", path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| ImageError::io("lock", path)(e.into()))?;
        let opened = file.metadata().map_err(ImageError::io("inspect", path))?;
        if fs::metadata(path).is_ok_and(|now| now.ino() == opened.ino()) {
            return Ok(file);
        }
    }
}

pub(crate) fn named(entry: &Descriptor, name: &str) -> bool {
    annotation(entry, REF_NAME) == Some(name)
}

pub(crate) fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    let annotations = entry.annotations().as_ref();
    annotations.and_then(|a| a.get(key)).map(String::as_str)
}

fn empty_index(path: &Path) -> Result<ImageIndex, ImageError> {
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .manifests(Vec::new())
        .build();
    index.map_err(|e| ImageError::Layout {
        path: path.to_owned(),
        why: e.to_string(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use oci_spec::image::{Arch, DescriptorBuilder, MediaType, Os, PlatformBuilder, Sha256Digest};
    use std::str::FromStr;

    pub(crate) fn descriptor(content: &[u8], kind: MediaType) -> Descriptor {
        let digest = Sha256Digest::from_str(&hex(&Sha256::digest(content))).unwrap();
        DescriptorBuilder::default()
            .media_type(kind)
            .digest(digest)
            .size(content.len() as u64)
            .build()
            .unwrap()
    }

    /// Adds an image with one layer, which may be left out, and names it.
    pub(crate) fn add(
        cache: &ImageCache,
        name: &str,
        layer: &[u8],
        with_layer: bool,
    ) -> Descriptor {
        add_for(cache, name, &Arch::Amd64, layer, with_layer)
    }

    fn add_for(
        cache: &ImageCache,
        name: &str,
        arch: &Arch,
        layer: &[u8],
        with_layer: bool,
    ) -> Descriptor {
        let adding = cache.add().unwrap();
        let config = serde_json::json!({
            "architecture": arch.to_string(),
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let config_blob = descriptor(&config, MediaType::ImageConfig);
        let layer_blob = descriptor(layer, MediaType::ImageLayer);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest.to_string(),
            "config": config_blob,
            "layers": [layer_blob],
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut manifest_blob = descriptor(&manifest, MediaType::ImageManifest);
        let platform = PlatformBuilder::default()
            .architecture(arch.clone())
            .os(Os::Linux)
            .build()
            .unwrap();
        manifest_blob.set_platform(Some(platform));
        adding.put(&config_blob, &config).unwrap();
        adding.put(&manifest_blob, &manifest).unwrap();
        if with_layer && let Some(mut partial) = adding.begin(&layer_blob).unwrap() {
            partial.write(layer).unwrap();
            partial.finish().unwrap();
        }
        adding.name(name, &manifest_blob).unwrap();
        manifest_blob
    }

    #[test]
    fn an_image_is_there_once_all_of_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(dir.path()).unwrap();
        assert!(cache.find("a:1", "amd64").unwrap().is_none());
        let first = add(&cache, "a:1", b"one", true);
        add(&cache, "b:1", b"two", false);
        let found = cache.find("a:1", "amd64").unwrap().unwrap();
        assert_eq!(found.manifest_digest(), first.digest().to_string());
        assert!(cache.find("a:1", "arm64").unwrap().is_none());
        assert!(cache.find("b:1", "amd64").unwrap().is_none());
        // A name leads to the newest, and other names stay.
        let second = add(&cache, "a:1", b"three", true);
        let found = cache.find("a:1", "amd64").unwrap().unwrap();
        assert_eq!(found.manifest_digest(), second.digest().to_string());
        assert_eq!(cache.index().unwrap().manifests().len(), 2);
        // What is lost is found missing.
        let digest = found.layers()[0].digest().to_string();
        cache.forget(&digest).unwrap();
        cache.forget("sha256:../../../etc/passwd").unwrap();
        assert!(cache.find("a:1", "amd64").unwrap().is_none());
    }

    #[test]
    fn an_image_of_one_architecture_says_nothing_of_anothers_source() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(dir.path()).unwrap();
        let amd64 = add(&cache, "a:1", b"one", true);
        let arm64 = add_for(&cache, "a:1", &Arch::ARM64, b"one", true);
        assert_eq!(cache.index().unwrap().manifests().len(), 2);
        let adding = cache.add().unwrap();
        for image in [&amd64, &arm64] {
            adding.name_made_of("a:1", image, Some("first")).unwrap();
        }
        adding.name_made_of("a:1", &amd64, Some("second")).unwrap();
        let made = |arch, source| {
            let found = cache.find_made_of("a:1", arch, Some(source)).unwrap();
            found.map(|image| image.manifest_digest().to_owned())
        };
        assert_eq!(made("amd64", "second"), Some(amd64.digest().to_string()));
        assert_eq!(made("arm64", "first"), Some(arm64.digest().to_string()));
        assert_eq!(made("arm64", "second"), None);
        assert_eq!(made("amd64", "first"), None);
    }

    #[test]
    fn a_blob_is_made_by_one_resumed_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(dir.path()).unwrap();
        let adding = cache.add().unwrap();
        let blob = descriptor(b"0123456789", MediaType::ImageLayer);
        let mut partial = adding.begin(&blob).unwrap().unwrap();
        partial.write(b"0123").unwrap();
        match adding.begin(&blob) {
            Err(ImageError::Io { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::WouldBlock);
            }
            other => panic!("{other:?}"),
        }
        drop(partial);
        let mut partial = adding.begin(&blob).unwrap().unwrap();
        assert_eq!(partial.length(), 4);
        partial.write(b"456789").unwrap();
        assert!(partial.write(b"x").is_err());
        partial.finish().unwrap();
        assert!(cache.has(&blob) && adding.begin(&blob).unwrap().is_none());

        for wrong in [&b"0123"[..], b"0123456780"] {
            let blob = descriptor(b"0123456781", MediaType::ImageLayer);
            let mut partial = adding.begin(&blob).unwrap().unwrap();
            assert_eq!(partial.length(), 0);
            partial.write(wrong).unwrap();
            assert!(matches!(partial.finish(), Err(ImageError::Digest { .. })));
            assert!(!cache.has(&blob));
        }
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }
}
