//! Writes an OCI image layout with one image of one layer.
//!
//! Source: the OCI image specification 1.1 (image-layout.md, manifest.md, config.md).

use crate::Result;
use crate::error::{Context as _, RecipeError};
use crate::program::Stop;
use oci_spec::image::{ImageIndex, ImageManifest, MediaType};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tag of the image.
const TAG: &str = "latest";
/// The annotation of the index that tells what the image was made of.
const INPUTS: &str = "slicer.inputs";
/// Compression level: beyond it, time grows faster than the image shrinks.
const LEVEL: &str = "-9";

/// Sizes of a layer, bytes.
pub(super) struct Info {
    /// As a tar archive.
    pub(super) unpacked: u64,
    /// As a blob.
    pub(super) packed: u64,
}

/// Writes a layout into the empty directory `dir`; `write` provides the layer's tar archive.
pub(super) fn write(
    dir: &Path,
    arch: &str,
    inputs: &str,
    stop: &Stop,
    write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
) -> Result<Info> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;

    let part = blobs.join("layer");
    let mut blob = Hashing::new(File::create(&part)?);
    let (input, output) = io::pipe()?;
    let mut tar = Hashing::new(output);
    let (packed, written) = std::thread::scope(|threads| {
        let packing = threads.spawn(|| {
            let mut zstd = Command::new("zstd");
            zstd.args([LEVEL, "-q", "-T0", "-c"]).stdin(input);
            stop.run(&mut zstd, |mut packed| io::copy(&mut packed, &mut blob))
        });
        let written = write(&mut tar).map(|()| tar.length);
        let (output, diff_id) = tar.finish();
        drop(output);
        (packing.join(), written.map(|unpacked| (unpacked, diff_id)))
    });
    // Whoever writes to a compressor that failed knows only that nobody reads any more.
    let packed =
        packed.map_err(|_| RecipeError::Unexpected("the compressor panicked".to_owned()))??;
    let (unpacked, diff_id) = written?;
    let (file, digest) = blob.finish();
    file.sync_all()?;
    fs::rename(&part, blobs.join(&digest))?;

    let config = blob_of(
        &blobs,
        &json!({
            "architecture": arch,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        }),
    )?;
    let manifest = blob_of(
        &blobs,
        &json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest,
            "config": descriptor(&MediaType::ImageConfig, &config.0, config.1),
            "layers": [descriptor(&MediaType::ImageLayerZstd, &digest, packed)],
        }),
    )?;
    let mut entry = descriptor(&MediaType::ImageManifest, &manifest.0, manifest.1);
    entry["platform"] = json!({ "architecture": arch, "os": "linux" });
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageIndex,
        "manifests": [entry],
        "annotations": { INPUTS: inputs },
    });
    write_index(dir, &index)?;
    Ok(Info { unpacked, packed })
}

/// Writes the layout of the same image for several architectures into the empty directory `dir`. Its
/// blobs are those of `layouts`, which are on the same filesystem, and take no room of their own.
pub(super) fn combine(dir: &Path, layouts: &[PathBuf]) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut manifests = Vec::new();
    for layout in layouts {
        let index = ImageIndex::from_file(layout.join("index.json"))?;
        manifests.extend(index.manifests().iter().cloned());
        for blob in fs::read_dir(layout.join("blobs/sha256"))? {
            let blob = blob?;
            let dest = blobs.join(blob.file_name());
            if !dest.exists() {
                fs::hard_link(blob.path(), &dest)
                    .with_context(|| format!("cannot link {}", dest.display()))?;
            }
        }
    }
    write_index(
        dir,
        &json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageIndex,
            "manifests": manifests,
        }),
    )
}

fn write_index(dir: &Path, index: &Value) -> Result<()> {
    sync_write(&dir.join("index.json"), &serde_json::to_vec_pretty(index)?)?;
    sync_write(
        &dir.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// What the layout at `dir` was made of, when there is one.
pub(super) fn inputs_of(dir: &Path) -> Option<String> {
    let index = ImageIndex::from_file(dir.join("index.json")).ok()?;
    index.annotations().as_ref()?.get(INPUTS).cloned()
}

/// The digest of the manifest of the layout's image.
pub(super) fn digest(dir: &Path) -> Result<String> {
    let index = ImageIndex::from_file(dir.join("index.json"))?;
    let manifest = index.manifests().first();
    let manifest = manifest.with_context(|| format!("no image in {}", dir.display()))?;
    Ok(manifest.digest().digest().to_owned())
}

/// The file of the only layer of the layout's image, a tar archive packed by zstd.
pub(super) fn layer(dir: &Path) -> Result<PathBuf> {
    let blobs = dir.join("blobs/sha256");
    let manifest = ImageManifest::from_file(blobs.join(digest(dir)?))?;
    match manifest.layers().as_slice() {
        [layer] => Ok(blobs.join(layer.digest().digest())),
        _ => Err(RecipeError::Unexpected(format!(
            "{} should have one layer",
            dir.display()
        ))),
    }
}

/// Puts a finished directory in the place of another.
pub fn replace(new: tempfile::TempDir, dest: &Path) -> Result<()> {
    let old = new.path().with_extension("old");
    if dest.exists() {
        fs::rename(dest, &old).with_context(|| format!("cannot move {}", dest.display()))?;
    }
    let new = new.keep();
    make_readable(&new)?;
    fs::rename(&new, dest).with_context(|| format!("cannot create {}", dest.display()))?;
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    Ok(())
}

/// Temporary directories are private; results are for everyone.
fn make_readable(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn blob_of(blobs: &Path, value: &Value) -> Result<(String, u64)> {
    let bytes = serde_json::to_vec(value)?;
    let digest = hex(&Sha256::digest(&bytes));
    sync_write(&blobs.join(&digest), &bytes)?;
    Ok((digest, bytes.len() as u64))
}

fn descriptor(media_type: &MediaType, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}

fn sync_write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Counts and digests what is written through it.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            length: 0,
        }
    }

    fn finish(self) -> (W, String) {
        (self.inner, hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.length += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slicer_image::{ImageRef, Resolved};

    fn layout(dir: &Path, arch: &str) {
        let info = write(dir, arch, "abc", &Stop::default(), &mut |tar| {
            Ok(tar.write_all(b"as if a tar")?)
        });
        assert_eq!(info.unwrap().unpacked, 11);
    }

    #[test]
    fn a_layout_tells_its_inputs_and_where_its_layer_is() {
        let dir = tempfile::tempdir().unwrap();
        layout(dir.path(), "amd64");
        assert_eq!(inputs_of(dir.path()).as_deref(), Some("abc"));
        let blob = File::open(layer(dir.path()).unwrap()).unwrap();
        let mut plain = Vec::new();
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(blob).unwrap();
        io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
        assert_eq!(plain, b"as if a tar");
        assert_eq!(digest(dir.path()).unwrap().len(), 64);
        assert!(layer(&dir.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_layout_of_two_architectures_has_the_image_of_each() {
        let root = tempfile::tempdir().unwrap();
        let parts = ["amd64", "arm64"].map(|arch| {
            let dir = root.path().join(arch);
            layout(&dir, arch);
            dir
        });
        let both = root.path().join("both");
        combine(&both, &parts).unwrap();
        let reference = ImageRef::parse(&format!("oci:{}:{TAG}", both.display())).unwrap();
        for (arch, part) in ["amd64", "arm64"].iter().zip(&parts) {
            let found = Resolved::find(&reference, arch).unwrap();
            let wanted = format!("sha256:{}", digest(part).unwrap());
            assert_eq!(found.manifest_digest(), wanted);
        }
    }

    #[test]
    fn the_error_of_whoever_provides_the_layer_is_the_one_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let done = write(dir.path(), "amd64", "abc", &Stop::default(), &mut |_| {
            Err(RecipeError::Unexpected("no root".to_owned()))
        });
        let error = done.err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("no root"));
    }
}
