//! Images in OCI layouts: finding one for an architecture, and reading its blobs.
//!
//! Sources: the OCI image specification 1.1 (image-layout.md, image-index.md, manifest.md).
//! Everything read is checked against its digest; every path is made from a digest, so nothing
//! outside the layout can be named.

use crate::compression::decompress;
use crate::digest::hex;
use crate::layoutdir::LayoutDir;
use crate::{ImageError, ImageRef};
use oci_spec::image::{
    Descriptor, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, MediaType,
};
use sha2::{Digest as _, Sha256};
use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// More than any manifest, index or configuration needs, bytes (registries have the same limit).
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// How deep indexes may be nested.
const MAX_NESTING: usize = 4;
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image for one architecture, found in a layout: its manifest and configuration are read and
/// checked, its layers are not yet.
#[derive(Debug, Clone)]
pub struct Resolved {
    layout: PathBuf,
    digest: String,
    config: ImageConfiguration,
    layers: Vec<Descriptor>,
}

impl Resolved {
    /// Finds the image for `linux` and `arch` (OCI's name of it, such as `amd64`).
    pub fn find(reference: &ImageRef, arch: &str) -> Result<Self, ImageError> {
        let unsupported = |kind| ImageError::Unsupported {
            reference: reference.to_string(),
            kind,
        };
        match reference {
            ImageRef::OciLayout { path, tag } => {
                Self::find_in(path, tag.as_deref(), arch, reference)
            }
            ImageRef::OciArchive { .. } => Err(unsupported("OCI archives")),
            ImageRef::DockerArchive { .. } => Err(unsupported("docker archives")),
            ImageRef::Registry(_) => Err(unsupported("images of registries")),
        }
    }

    fn find_in(
        layout: &Path,
        tag: Option<&str>,
        arch: &str,
        reference: &ImageRef,
    ) -> Result<Self, ImageError> {
        let read = |entry: &Descriptor| read_document(layout, entry);
        let entries = LayoutDir::new(layout).tagged(tag)?;
        let chosen = Chosen::among(entries, arch, reference, &read)?;
        Ok(Self {
            layout: layout.to_owned(),
            digest: chosen.entry.digest().to_string(),
            config: chosen.config,
            layers: chosen.manifest.layers().clone(),
        })
    }

    /// The digest of the image's manifest, such as `sha256:0123…`: what the image is.
    pub fn manifest_digest(&self) -> &str {
        &self.digest
    }

    /// The image's configuration: user, environment, labels.
    pub fn config(&self) -> &ImageConfiguration {
        &self.config
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// Opens a layer for [`Blob::read`].
    pub(crate) fn open_layer(&self, layer: &Descriptor) -> Result<Blob, ImageError> {
        Blob::open(&self.layout, layer)
    }
}

/// The image that was found for an architecture.
pub(crate) struct Chosen {
    pub(crate) entry: Descriptor,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: ImageConfiguration,
}

/// Gives a document, checked, and the name it has in errors.
type ReadDocument<'a> = dyn Fn(&Descriptor) -> Result<(PathBuf, Vec<u8>), ImageError> + 'a;

impl Chosen {
    /// Finds the image for `linux` and `arch` among `candidates` and what their indexes lead to.
    pub(crate) fn among(
        mut candidates: Vec<Descriptor>,
        arch: &str,
        reference: &ImageRef,
        read: &ReadDocument<'_>,
    ) -> Result<Self, ImageError> {
        let mut seen = Vec::new();
        for _ in 0..MAX_NESTING {
            let mut next = Vec::new();
            for entry in &candidates {
                if entry.platform().as_ref().is_some_and(|p| {
                    seen.push(format!("{}/{}", p.os(), p.architecture()));
                    p.os().to_string() != "linux" || p.architecture().to_string() != arch
                }) {
                    continue;
                }
                let (path, text) = read(entry)?;
                if is_index(entry.media_type()) {
                    let index: ImageIndex = parse(&path, &text)?;
                    next.extend(index.manifests().iter().cloned());
                    continue;
                }
                let manifest: ImageManifest = parse(&path, &text)?;
                let (path, text) = read(manifest.config())?;
                let config: ImageConfiguration = parse(&path, &text)?;
                if config.os().to_string() != "linux" || config.architecture().to_string() != arch {
                    seen.push(format!("{}/{}", config.os(), config.architecture()));
                    continue;
                }
                return Ok(Self {
                    entry: entry.clone(),
                    manifest,
                    config,
                });
            }
            if next.is_empty() {
                break;
            }
            candidates = next;
        }
        seen.dedup();
        Err(ImageError::NoPlatform {
            reference: reference.to_string(),
            arch: arch.to_owned(),
            available: if seen.is_empty() {
                "nothing".to_owned()
            } else {
                seen.join(", ")
            },
        })
    }
}

/// The entries of a layout's index that bear `tag`; without one, those of `latest`, or the only
/// image there is.
pub(crate) fn tagged(
    layout: &Path,
    entries: &[Descriptor],
    tag: Option<&str>,
) -> Result<Vec<Descriptor>, ImageError> {
    let name = |d: &Descriptor| {
        d.annotations()
            .as_ref()
            .and_then(|a| a.get(REF_NAME))
            .cloned()
    };
    let wanted = tag.unwrap_or("latest");
    let found: Vec<_> = entries
        .iter()
        .filter(|d| name(d).as_deref() == Some(wanted))
        .cloned()
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let mut names: Vec<_> = entries.iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    if tag.is_none() && !entries.is_empty() && names.len() <= 1 {
        return Ok(entries.to_vec());
    }
    Err(ImageError::NoTag {
        path: layout.to_owned(),
        tag: wanted.to_owned(),
        available: if names.is_empty() {
            "no tags".to_owned()
        } else {
            names.join(", ")
        },
    })
}

fn is_index(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageIndex
        || media_type.to_string() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &[u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(text).map_err(|e| ImageError::Layout {
        path: path.to_owned(),
        why: e.to_string(),
    })
}

/// Reads and checks a blob that is a JSON document.
pub(crate) fn read_document(
    layout: &Path,
    entry: &Descriptor,
) -> Result<(PathBuf, Vec<u8>), ImageError> {
    let mut blob = Blob::open(layout, entry)?;
    let path = blob.path.clone();
    if entry.size() > MAX_DOCUMENT {
        let why = format!("it claims to be {} bytes of JSON", entry.size());
        return Err(ImageError::Layout { path, why });
    }
    let mut text = Vec::new();
    blob.file
        .read_to_end(&mut text)
        .map_err(ImageError::io("read", &path))?;
    blob.check()?;
    Ok((path, text))
}

/// A blob of a layout. What is read from it counts only once [`Blob::check`] has succeeded.
pub(crate) struct Blob {
    path: PathBuf,
    digest: String,
    expected: String,
    size: u64,
    file: Hashing<BufReader<io::Take<File>>>,
}

impl Blob {
    pub(crate) fn open(layout: &Path, entry: &Descriptor) -> Result<Self, ImageError> {
        let digest = entry.digest();
        // The specification's other algorithms are in nobody's use; a valid digest of this one is
        // plain hexadecimal, so it can't lead out of the layout.
        if *digest.algorithm() != DigestAlgorithm::Sha256 {
            return Err(ImageError::Layout {
                path: layout.to_owned(),
                why: format!("the digest {digest} is not a sha256"),
            });
        }
        let path = layout.join("blobs/sha256").join(digest.digest());
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        // One byte more than expected shows that there is more.
        let file = file.take(entry.size().saturating_add(1));
        Ok(Self {
            digest: digest.to_string(),
            expected: digest.digest().to_owned(),
            size: entry.size(),
            file: Hashing::new(BufReader::with_capacity(256 << 10, file)),
            path,
        })
    }

    /// Hands the blob, decompressed, to `work`. A blob that is not what its digest says is the
    /// error that counts, whatever `work` made of it.
    pub(crate) fn read<T>(
        mut self,
        work: impl FnOnce(&str, &mut dyn Read) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let result = match decompress(&mut self.file) {
            Ok(mut plain) => work(&self.digest, &mut plain),
            Err(source) => Err(ImageError::Layer {
                layer: self.digest.clone(),
                source,
            }),
        };
        self.check()?;
        result
    }

    /// Reads what is left and compares.
    pub(crate) fn check(mut self) -> Result<(), ImageError> {
        io::copy(&mut self.file, &mut io::sink()).map_err(ImageError::io("read", &self.path))?;
        let found = match self.file.length.cmp(&self.size) {
            Ordering::Equal => {
                let found = self.file.digest();
                if found == self.expected {
                    return Ok(());
                }
                format!("digest {found}")
            }
            Ordering::Greater => format!("more than the promised {} bytes", self.size),
            Ordering::Less => {
                format!("{} of the promised {} bytes", self.file.length, self.size)
            }
        };
        Err(ImageError::Digest {
            path: self.path,
            found,
        })
    }
}

/// Digests what is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
    length: u64,
}

impl<R> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            length: 0,
        }
    }

    /// The digest of all that was read, in hexadecimal.
    pub(crate) fn digest(self) -> String {
        hex(&self.hash.finalize())
    }
}

impl<R: BufRead> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.length += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        if let Ok(buf) = self.inner.fill_buf() {
            self.hash.update(&buf[..n.min(buf.len())]);
        }
        self.length += n as u64;
        self.inner.consume(n);
    }
}
