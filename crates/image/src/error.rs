//! What can go wrong with images, disks and kernels.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate. Each variant names the file, the image or the layer entry it is about.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, such as `open`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An image reference that makes no sense.
    #[error("invalid image reference {reference:?}: {why}")]
    Reference {
        /// The reference as given.
        reference: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A kind of image reference that can't be read where it is.
    #[error("cannot read {reference:?} in place: {kind} go through an image cache")]
    Unsupported {
        /// The reference as given.
        reference: String,
        /// The kind of reference, in the plural.
        kind: &'static str,
    },
    /// A directory that is not an OCI image layout, or a broken one.
    #[error("{} is not a usable OCI image layout: {why}", path.display())]
    Layout {
        /// The layout, or the file in it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that is not an archive of images, or a broken one.
    #[error("{} is not a usable image archive: {why}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The layout or archive holds no such image.
    #[error("no image {tag:?} in {}; it has: {available}", path.display())]
    NoTag {
        /// The layout or archive.
        path: PathBuf,
        /// The tag that was asked for.
        tag: String,
        /// The tags it has.
        available: String,
    },
    /// The image exists, but not for this architecture.
    #[error("{reference} is not available for linux/{arch}; it has: {available}")]
    NoPlatform {
        /// The image.
        reference: String,
        /// The architecture that was asked for.
        arch: String,
        /// The platforms it has.
        available: String,
    },
    /// A blob is not what its name says.
    #[error("blob {} is damaged: its content has {found}; fetch the image again", path.display())]
    Digest {
        /// The blob.
        path: PathBuf,
        /// The digest or length it really has.
        found: String,
    },
    /// A layer can't be read as a tar archive.
    #[error("cannot read layer {layer}: {source}")]
    Layer {
        /// The layer's digest.
        layer: String,
        /// Why.
        source: io::Error,
    },
    /// A layer holds something that is refused.
    #[error("layer {layer}: refusing entry {entry:?}: {why}")]
    Entry {
        /// The layer's digest.
        layer: String,
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// The image unpacks to more than is allowed.
    #[error("image {image} unpacks to more than {limit} {unit}{}", larger(unit))]
    TooLarge {
        /// The image's manifest digest.
        image: String,
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The filesystem could not be laid out.
    #[error("cannot build filesystem {}: {source}", path.display())]
    Filesystem {
        /// The image file.
        path: PathBuf,
        /// Why.
        source: mkext4::Error,
    },
    /// Something expected in an image is not there.
    #[error("image {image} has no {what}")]
    Missing {
        /// The image's manifest digest.
        image: String,
        /// What is missing.
        what: String,
    },
    /// A kernel that can't be used.
    #[error("unusable kernel: {0}")]
    Kernel(#[from] crate::VmlinuxError),
    /// A disk can't be made smaller than its base.
    #[error(
        "disk size {size} is smaller than the {base_size} bytes of {}; choose a larger size",
        base.display()
    )]
    TooSmall {
        /// The base.
        base: PathBuf,
        /// Its size, bytes.
        base_size: u64,
        /// The size asked for, bytes.
        size: u64,
    },
    /// A disk larger than its filesystem could become.
    #[error("disk size {size} is larger than the limit of {limit} bytes")]
    DiskTooLarge {
        /// The size asked for, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// None of the allowed ways to clone a disk works here.
    #[error("cannot clone {} to {}: {why}", base.display(), dest.display())]
    NoClone {
        /// The base.
        base: PathBuf,
        /// The disk that was to be made.
        dest: PathBuf,
        /// What each way said.
        why: String,
    },
    /// A size that is none.
    #[error("invalid size {0:?}: expected a number and a unit, such as 512M, 15G or 1T")]
    Size(String),
    /// The default guest image is not installed.
    #[error(
        "no guest {what} for {arch} in {searched}: `slicer image build --arch {arch}` makes one, in \
         slicer's source `make image`, and SLICER_GUEST_DIR says where else it is"
    )]
    NoGuest {
        /// What of it: `image`, `kernel`.
        what: String,
        /// The architecture.
        arch: String,
        /// Where it was looked for.
        searched: String,
    },
}

impl ImageError {
    /// An [`ImageError::Io`] maker for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// What to do about an image that is too large.
fn larger(unit: &str) -> &'static str {
    if unit == "bytes" {
        "; if you trust it, give it a larger storage_size"
    } else {
        ", which is more than is allowed"
    }
}
