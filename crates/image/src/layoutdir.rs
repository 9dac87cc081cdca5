//! An OCI layout as it is, whatever it holds: to hand on whole, or to look for an artifact in.

use crate::ImageError;
use crate::layout::{Blob, MAX_DOCUMENT, parse, read_document, tagged};
use oci_spec::image::{Descriptor, DigestAlgorithm, ImageIndex};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A layout's directory. Everything read from it is checked against its digest.
#[derive(Debug, Clone)]
pub struct LayoutDir {
    path: PathBuf,
}

impl LayoutDir {
    /// The layout in this directory, which is not looked at yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What bears this tag; without one, `latest` or the only thing there is. Never empty, and more
    /// than one where the layout itself is the index of several platforms.
    pub fn tagged(&self, tag: Option<&str>) -> Result<Vec<Descriptor>, ImageError> {
        let path = self.path.join("index.json");
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let mut text = Vec::new();
        file.take(MAX_DOCUMENT)
            .read_to_end(&mut text)
            .map_err(ImageError::io("read", &path))?;
        let index: ImageIndex = parse(&path, &text)?;
        tagged(&self.path, index.manifests(), tag)
    }

    /// A blob that is a document, checked.
    pub fn read(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        read_document(&self.path, blob).map(|(_, text)| text)
    }

    /// Reads a blob to its end, whatever its length, and compares it with its digest.
    pub fn check(&self, blob: &Descriptor) -> Result<(), ImageError> {
        Blob::open(&self.path, blob)?.check()
    }

    /// Where a blob is.
    pub fn blob(&self, blob: &Descriptor) -> Result<PathBuf, ImageError> {
        let digest = blob.digest();
        if *digest.algorithm() != DigestAlgorithm::Sha256 {
            return Err(ImageError::Layout {
                path: self.path.clone(),
                why: format!("the digest {digest} is not a sha256"),
            });
        }
        Ok(self.path.join("blobs/sha256").join(digest.digest()))
    }
}
