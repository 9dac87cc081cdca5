//! What a cache holds, and taking it out again.
//!
//! A name goes first, durably; what it led to is removed after that, under the cache's lock, unless
//! an image that is still named has it. A note says in between that there is something to remove.

use crate::cache::{GARBAGE, NAMED_AT, REF_NAME, annotation};
use crate::files::{remove_unfinished, write_file};
use crate::layout::{parse, read_document};
use crate::{ImageCache, ImageError};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use rustix::fs::FlockOperation;
use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long what a pull left unfinished is kept for the next attempt.
const UNFINISHED_LIFE: Duration = Duration::from_hours(7 * 24);
/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// An image that has a name in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// Its name.
    pub name: String,
    /// Its manifest's digest, `sha256:…`.
    pub digest: String,
    /// OCI's name of its architecture.
    pub arch: String,
    /// The digits of its blobs' digests, and how large each is in bytes. Of an image whose manifest
    /// is damaged, the manifest alone.
    pub blobs: Vec<(String, u64)>,
    /// When it was made, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// When it was given its name.
    pub named: SystemTime,
}

/// What of a cache is removed that no image with a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Garbage {
    /// All of it, unfinished blobs included.
    All,
    /// These blobs.
    Blobs(HashSet<String>),
    /// What images left that lost their names, and what is unfinished for longer than a week.
    Old,
}

impl ImageCache {
    /// The images that have names, by these.
    pub fn list(&self) -> Result<Vec<CachedImage>, ImageError> {
        let index = self.index()?;
        let mut all = Vec::new();
        for entry in index.manifests() {
            if let Some(name) = annotation(entry, REF_NAME) {
                all.push(self.describe(name, entry)?);
            }
        }
        all.sort_by(|a, b| (&a.name, &a.arch).cmp(&(&b.name, &b.arch)));
        Ok(all)
    }

    fn describe(&self, name: &str, entry: &Descriptor) -> Result<CachedImage, ImageError> {
        let hex = entry.digest().digest().to_owned();
        let platform = entry.platform().as_ref();
        let seconds = annotation(entry, NAMED_AT).and_then(|text| text.parse().ok());
        let named = match seconds {
            Some(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
            None => fs::metadata(self.blobs().join(&hex))
                .and_then(|m| m.modified())
                .ok(),
        };
        let mut image = CachedImage {
            name: name.to_owned(),
            digest: entry.digest().to_string(),
            arch: platform.map_or_else(String::new, |p| p.architecture().to_string()),
            blobs: vec![(hex, entry.size())],
            created: None,
            named: named.unwrap_or(UNIX_EPOCH),
        };
        let Some(manifest) = self.document::<ImageManifest>(entry)? else {
            return Ok(image);
        };
        let blobs = [manifest.config()].into_iter().chain(manifest.layers());
        let blobs = blobs.map(|blob| (blob.digest().digest().to_owned(), blob.size()));
        image.blobs.extend(blobs);
        // A layer may be there twice.
        image.blobs.sort();
        image.blobs.dedup();
        let config = self.document::<ImageConfiguration>(manifest.config())?;
        image.created = config.and_then(|c| c.created().clone());
        Ok(image)
    }

    /// A document of the cache; none if it is missing or makes no sense.
    fn document<T: serde::de::DeserializeOwned>(
        &self,
        blob: &Descriptor,
    ) -> Result<Option<T>, ImageError> {
        match read_document(&self.dir, blob).and_then(|(path, text)| parse(&path, &text)) {
            Ok(read) => Ok(Some(read)),
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(e @ ImageError::Io { .. }) => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// Bytes on the disk of a blob of this name, 0 if it isn't there.
    pub fn disk_bytes(&self, blob: &str) -> u64 {
        fs::metadata(self.blobs().join(blob)).map_or(0, |m| m.blocks() * BLOCK)
    }

    /// Bytes on the disk of what no image has.
    pub fn unnamed_bytes(&self) -> Result<u64, ImageError> {
        let needed = self.needed()?;
        let mut bytes = 0;
        for (path, metadata) in self.files()? {
            if !is_needed(&path, &needed) {
                bytes += metadata.blocks() * BLOCK;
            }
        }
        Ok(bytes)
    }

    /// Takes these images' names away. What they led to stays until [`ImageCache::collect`].
    pub fn unname(&self, images: &[CachedImage]) -> Result<(), ImageError> {
        let _lock = self.lock("index", FlockOperation::LockExclusive)?;
        let index = self.index()?;
        let goes = |d: &Descriptor| {
            let arch = d.platform().as_ref().map(|p| p.architecture().to_string());
            images.iter().any(|image| {
                annotation(d, REF_NAME) == Some(&image.name)
                    && d.digest().to_string() == image.digest
                    && arch.as_deref().unwrap_or_default() == image.arch
            })
        };
        let entries = index.manifests().iter().filter(|d| !goes(d));
        let entries: Vec<_> = entries.cloned().collect();
        write_file(&self.dir.join(GARBAGE), b"")?;
        self.write_index(index, entries)
    }

    /// Removes what no image with a name has, and says how many bytes on the disk that were; none,
    /// and nothing removed, while somebody adds to the cache.
    pub fn collect(&self, what: &Garbage) -> Result<Option<u64>, ImageError> {
        let _lock = match self.lock("lock", FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => lock,
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let note = self.dir.join(GARBAGE);
        let noted = note.exists();
        let needed = self.needed()?;
        let partial = self.dir.join("partial");
        let mut freed = 0;
        for (path, metadata) in self.files()? {
            if is_needed(&path, &needed) {
                continue;
            }
            let unfinished = path.starts_with(&partial);
            let goes = match what {
                Garbage::All => true,
                Garbage::Blobs(blobs) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    !unfinished && blobs.contains(&*name)
                }
                Garbage::Old => noted && !unfinished || is_old(&metadata),
            };
            if goes {
                remove(&path)?;
                freed += metadata.blocks() * BLOCK;
            }
        }
        for dir in [&self.dir, &self.blobs()] {
            remove_unfinished(dir)?;
        }
        remove(&note)?;
        Ok(Some(freed))
    }

    /// The blobs of the images that have names.
    fn needed(&self) -> Result<HashSet<String>, ImageError> {
        let blobs = self.list()?.into_iter().flat_map(|image| image.blobs);
        Ok(blobs.map(|(blob, _)| blob).collect())
    }

    /// All blobs, finished or not.
    fn files(&self) -> Result<Vec<(PathBuf, Metadata)>, ImageError> {
        let mut all = Vec::new();
        for dir in [self.blobs(), self.dir.join("partial")] {
            let failed = |e| ImageError::io("read", &dir)(e);
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                match entry.metadata() {
                    Ok(metadata) if metadata.is_file() => all.push((entry.path(), metadata)),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        Ok(all)
    }
}

/// Whether this is a finished blob that is needed. What is unfinished has its name as well.
fn is_needed(path: &Path, needed: &HashSet<String>) -> bool {
    let dir = path.parent().and_then(Path::file_name);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    dir.is_some_and(|dir| dir == "sha256") && needed.contains(&*name)
}

fn is_old(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|m| m.elapsed().ok());
    age.is_some_and(|age| age > UNFINISHED_LIFE)
}

fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::{add, descriptor};
    use oci_spec::image::MediaType;

    fn there(cache: &ImageCache) -> usize {
        fs::read_dir(cache.blobs()).unwrap().count()
    }

    fn names(cache: &ImageCache) -> Vec<String> {
        cache.list().unwrap().into_iter().map(|i| i.name).collect()
    }

    #[test]
    fn what_others_have_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(dir.path()).unwrap();
        add(&cache, "a:1", b"one", true);
        add(&cache, "b:1", b"one", true);
        add(&cache, "c:1", b"two", true);
        let all = cache.list().unwrap();
        assert_eq!(names(&cache), ["a:1", "b:1", "c:1"]);
        assert_eq!((all[0].blobs.len(), all[0].arch.as_str()), (3, "amd64"));
        assert!(all[0].named.elapsed().unwrap() < Duration::from_mins(1));
        assert_eq!(there(&cache), 5);
        let blobs = |i: usize| {
            let blobs = all[i].blobs.iter().map(|(blob, _)| blob.clone());
            Garbage::Blobs(blobs.collect())
        };
        cache.unname(&all[..1]).unwrap();
        assert_eq!(cache.collect(&blobs(0)).unwrap(), Some(0));
        assert!(cache.find("b:1", "amd64").unwrap().is_some());
        cache.unname(&all[2..]).unwrap();
        assert!(cache.unnamed_bytes().unwrap() > 0);
        // While somebody adds, what they may be counting on stays.
        let adding = cache.add().unwrap();
        assert_eq!(cache.collect(&Garbage::All).unwrap(), None);
        drop(adding);
        assert!(cache.collect(&blobs(2)).unwrap().unwrap() > 0);
        assert_eq!((names(&cache), there(&cache)), (vec!["b:1".into()], 3));
        assert!(cache.find("b:1", "amd64").unwrap().is_some());
        assert_eq!(cache.unnamed_bytes().unwrap(), 0);
    }

    #[test]
    fn a_later_start_ends_what_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(dir.path()).unwrap();
        add(&cache, "a:1", b"one", true);
        // Of a pull that was cut off: a blob that is whole, and one that isn't.
        let adding = cache.add().unwrap();
        let whole = descriptor(b"whole", MediaType::ImageLayer);
        adding.put(&whole, b"whole").unwrap();
        let part = descriptor(b"part", MediaType::ImageLayer);
        let mut partial = adding.begin(&part).unwrap().unwrap();
        partial.write(b"pa").unwrap();
        drop((partial, adding));
        assert_eq!(cache.collect(&Garbage::Old).unwrap(), Some(0));
        assert!(cache.has(&whole));
        // The name is gone, the process died before the blobs were.
        cache.unname(&cache.list().unwrap()).unwrap();
        assert!(cache.collect(&Garbage::Old).unwrap().unwrap() > 0);
        assert_eq!(there(&cache), 0);
        let adding = cache.add().unwrap();
        assert_eq!(adding.begin(&part).unwrap().unwrap().length(), 2);
        drop(adding);
        cache.collect(&Garbage::All).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn an_image_that_is_replaced_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(dir.path()).unwrap();
        add(&cache, "a:1", b"one", true);
        add(&cache, "a:1", b"two", true);
        assert_eq!(there(&cache), 5);
        cache.collect(&Garbage::Old).unwrap();
        assert_eq!(there(&cache), 3);
        assert!(cache.find("a:1", "amd64").unwrap().is_some());
    }
}
