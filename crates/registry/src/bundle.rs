//! Bundles: slicer's own programs as an OCI artifact, a file a layer, for each platform in an index.
//!
//! Source: the OCI image specification 1.1, "Guidelines for Artifact Usage" of manifest.md. A layer's
//! title is the file's path, so other tools that know titles can fetch a bundle as well.

use crate::error::{PullError, Step};
use crate::{Job, MAX_LAYERS, SILENCE, Watcher, blocking, client, credentials, parse};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use slicer_image::{Adding, ImageCache, ImageError, LayoutDir, sha256};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The artifact's type.
pub const BUNDLE_TYPE: &str = "application/vnd.slicer.bundle.v1";
/// The media type of a file in it, which is not packed.
pub const FILE_TYPE: &str = "application/vnd.slicer.file.v1";
/// The annotation of a layer that says its file can be run, with the value `true`.
pub const EXECUTABLE: &str = "slicer.executable";
/// The annotation of a manifest that says which version it is.
pub const VERSION: &str = "org.opencontainers.image.version";
/// The annotation of a layer that says its file's path.
pub const TITLE: &str = "org.opencontainers.image.title";

/// The most that a bundle's files have together, bytes.
const MAX_SIZE: u64 = 4 << 30;
/// The longest path, bytes.
const MAX_PATH: usize = 1024;
/// What is copied at a time, bytes.
const PIECE: usize = 256 << 10;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It could not be fetched, or what was fetched is damaged.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// It exists, but not for this platform.
    #[error("{reference} is not available for {platform}; it has: {available}")]
    NoPlatform {
        /// The bundle.
        reference: String,
        /// What was asked for.
        platform: String,
        /// What it has.
        available: String,
    },
    /// What is there is something else.
    #[error("{reference} is no bundle of slicer's programs: {why}")]
    NoBundle {
        /// What was named.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
}

impl From<ImageError> for BundleError {
    fn from(e: ImageError) -> Self {
        Self::Pull(e.into())
    }
}

/// Where a bundle is.
#[derive(Debug, Clone)]
pub enum Origin {
    /// In a registry.
    Registry {
        /// Its name.
        reference: String,
        /// Speak plain HTTP.
        insecure: bool,
    },
    /// In an OCI layout on this host.
    Layout {
        /// The layout.
        dir: LayoutDir,
        /// Which of what it has, see [`LayoutDir::tagged`].
        tag: Option<String>,
    },
}

/// A bundle for one platform, none of whose files has been fetched.
pub struct Bundle {
    source: Source,
    version: String,
    digest: String,
    files: Vec<BundleFile>,
}

enum Source {
    Registry(Arc<Job>),
    Layout(LayoutDir, Watcher),
}

/// A file of a bundle.
#[derive(Debug, Clone)]
pub struct BundleFile {
    path: PathBuf,
    executable: bool,
    blob: Descriptor,
}

impl BundleFile {
    /// Its path: relative, and within the directory it is relative to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a program.
    pub fn executable(&self) -> bool {
        self.executable
    }

    /// What describes its content.
    pub fn blob(&self) -> &Descriptor {
        &self.blob
    }
}

impl Bundle {
    /// Finds the one for this platform, by Go's names of system and architecture.
    pub async fn find(
        origin: &Origin,
        os: &str,
        arch: &str,
        watcher: Watcher,
    ) -> Result<Self, BundleError> {
        match origin {
            Origin::Registry {
                reference,
                insecure,
            } => of_registry(reference, *insecure, os, arch, watcher).await,
            Origin::Layout { dir, tag } => {
                let (dir, tag) = (dir.clone(), tag.clone());
                let (os, arch) = (os.to_owned(), arch.to_owned());
                let work = move || of_layout(dir, tag.as_deref(), &os, &arch, watcher);
                let done = tokio::task::spawn_blocking(work).await;
                done.map_err(|_| PullError::Internal)?
            }
        }
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Its files, in the order they are to be put in their places.
    pub fn files(&self) -> &[BundleFile] {
        &self.files
    }

    /// Fetches these blobs, checked, into a cache of the caller's.
    pub async fn fetch(
        &self,
        blobs: Vec<Descriptor>,
        staging: &ImageCache,
    ) -> Result<(), BundleError> {
        let cache = staging.clone();
        let adding = Arc::new(blocking(move || cache.add()).await?);
        match &self.source {
            Source::Registry(job) => Ok(job.fetch(&adding, blobs).await?),
            Source::Layout(dir, watcher) => {
                let (dir, watcher) = (dir.clone(), watcher.clone());
                Ok(blocking(move || copy(&dir, &adding, blobs, &watcher)).await?)
            }
        }
    }

    fn of(
        source: Source,
        reference: &str,
        digest: String,
        text: &[u8],
    ) -> Result<Self, BundleError> {
        let no_bundle = |why: String| BundleError::NoBundle {
            reference: reference.to_owned(),
            why,
        };
        let manifest: ImageManifest =
            serde_json::from_slice(text).map_err(|e| no_bundle(e.to_string()))?;
        let kind = manifest.artifact_type().as_ref().map(ToString::to_string);
        if kind.as_deref() != Some(BUNDLE_TYPE) {
            let kind = kind.unwrap_or_else(|| "an image".to_owned());
            return Err(no_bundle(format!("it is {kind}")));
        }
        let annotations = manifest.annotations().as_ref();
        let version = annotations.and_then(|a| a.get(VERSION)).cloned();
        let version = version.ok_or_else(|| no_bundle("it has no version".to_owned()))?;
        let layers = manifest.layers();
        if layers.len() > MAX_LAYERS {
            return Err(no_bundle(format!("it has {} files", layers.len())));
        }
        let sizes = layers.iter().map(Descriptor::size);
        if sizes.fold(0, u64::saturating_add) > MAX_SIZE {
            return Err(no_bundle(format!("it has more than {MAX_SIZE} bytes")));
        }
        let mut paths = HashSet::new();
        let mut files = Vec::new();
        for blob in layers {
            let annotation = |key: &str| blob.annotations().as_ref().and_then(|a| a.get(key));
            let title = annotation(TITLE).map(String::as_str).unwrap_or_default();
            let path = within(title)
                .ok_or_else(|| no_bundle(format!("a file may not be called {title:?}")))?;
            // Where it is installed to, case may not count.
            if !paths.insert(path.to_string_lossy().to_lowercase()) {
                return Err(no_bundle(format!("{title:?} is in it twice")));
            }
            files.push(BundleFile {
                path,
                executable: annotation(EXECUTABLE).is_some_and(|v| v == "true"),
                blob: blob.clone(),
            });
        }
        Ok(Self {
            source,
            version,
            digest,
            files,
        })
    }
}

/// The path a title means, if it stays within its directory and hides nowhere in it.
fn within(title: &str) -> Option<PathBuf> {
    let path = Path::new(title);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(name) if !name.as_encoded_bytes().starts_with(b"."));
    let good = !title.is_empty()
        && title.len() <= MAX_PATH
        && !title.ends_with('/')
        && !title.chars().any(char::is_control)
        && path.components().all(plain);
    good.then(|| path.components().collect())
}

/// The entry for a platform.
fn choose<'a>(
    entries: &'a [Descriptor],
    os: &str,
    arch: &str,
    reference: &str,
) -> Result<&'a Descriptor, BundleError> {
    let wanted = format!("{os}/{arch}");
    let platform = |d: &Descriptor| {
        let platform = d.platform().as_ref()?;
        Some(format!("{}/{}", platform.os(), platform.architecture()))
    };
    let mut all = entries.iter();
    all.find(|d| platform(d).as_ref() == Some(&wanted))
        .ok_or_else(|| {
            let available: Vec<_> = entries.iter().filter_map(platform).collect();
            BundleError::NoPlatform {
                reference: reference.to_owned(),
                platform: wanted,
                available: if available.is_empty() {
                    "nothing".to_owned()
                } else {
                    available.join(", ")
                },
            }
        })
}

async fn of_registry(
    name: &str,
    insecure: bool,
    os: &str,
    arch: &str,
    watcher: Watcher,
) -> Result<Bundle, BundleError> {
    let reference = parse(name)?;
    let registry = reference.resolve_registry().to_owned();
    let credentials = credentials::of(&registry).await;
    let auth = credentials.auth();
    let job = Job {
        client: client(&registry, insecure, Some(SILENCE)),
        insecure,
        step: Step {
            reference: reference.whole(),
            registry,
            anonymous: credentials.anonymous(),
        },
        reference,
        watcher,
    };
    job.client
        .store_auth_if_needed(job.reference.resolve_registry(), &auth)
        .await;
    let whole = job.reference.whole();
    let text = job.document(&job.reference, &auth).await?;
    let index: ImageIndex = serde_json::from_slice(&text).map_err(|_| BundleError::NoBundle {
        reference: whole.clone(),
        why: "it has no platforms".to_owned(),
    })?;
    let entry = choose(index.manifests(), os, arch, &whole)?;
    let digest = entry.digest().to_string();
    let of_entry = job.reference.clone_with_digest(digest.clone());
    let text = job.document(&of_entry, &auth).await?;
    Bundle::of(Source::Registry(Arc::new(job)), &whole, digest, &text)
}

fn of_layout(
    dir: LayoutDir,
    tag: Option<&str>,
    os: &str,
    arch: &str,
    watcher: Watcher,
) -> Result<Bundle, BundleError> {
    let reference = format!("oci:{}", dir.path().display());
    let mut entries = dir.tagged(tag)?;
    if let [only] = entries.as_slice()
        && only.platform().is_none()
    {
        let text = dir.read(only)?;
        let index: Result<ImageIndex, _> = serde_json::from_slice(&text);
        let index = index.map_err(|_| BundleError::NoBundle {
            reference: reference.clone(),
            why: "it has no platforms".to_owned(),
        })?;
        entries.clone_from(index.manifests());
    }
    let entry = choose(&entries, os, arch, &reference)?;
    let text = dir.read(entry)?;
    let digest = sha256(&text);
    Bundle::of(Source::Layout(dir, watcher), &reference, digest, &text)
}

/// Copies blobs of a layout, checked.
fn copy(
    from: &LayoutDir,
    adding: &Adding,
    mut blobs: Vec<Descriptor>,
    watcher: &Watcher,
) -> Result<(), ImageError> {
    blobs.retain(|blob| !adding.cache().has(blob));
    watcher(crate::Progress::Begun {
        bytes: blobs.iter().map(Descriptor::size).sum(),
        blobs: blobs.len(),
    });
    for blob in blobs {
        let Some(mut partial) = adding.begin(&blob)? else {
            continue;
        };
        // What is left of an earlier attempt costs more to trust than to copy again.
        partial.restart()?;
        let path = from.blob(&blob)?;
        let io = |action| {
            let path = path.clone();
            move |source: io::Error| ImageError::Io {
                action,
                path,
                source,
            }
        };
        let mut file = File::open(&path).map_err(io("open"))?;
        let mut piece = vec![0; PIECE];
        loop {
            let n = file.read(&mut piece).map_err(io("read"))?;
            if n == 0 {
                break;
            }
            partial.write(&piece[..n])?;
            watcher(crate::Progress::Received(n as u64));
        }
        partial.finish()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_in_their_directory() {
        for good in ["slicer", "guest/amd64/kernel/index.json", "a/b"] {
            assert_eq!(within(good).unwrap(), Path::new(good));
        }
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "./a",
            ".ssh/x",
            "a/.b",
            "a\nb",
            "a/",
            "a\0b",
        ] {
            assert_eq!(within(bad), None, "{bad:?}");
        }
        assert_eq!(within("a//b").unwrap(), Path::new("a/b"));
        assert_eq!(within(&"x".repeat(MAX_PATH + 1)), None);
    }
}
