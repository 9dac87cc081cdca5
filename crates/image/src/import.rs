//! Images in archives, into the cache: from an archive's tar straight into blobs.
//!
//! Sources: the OCI image specification 1.1 (image-layout.md); for what `docker save` writes, the
//! Docker image specification 1.2 (`manifest.json`).

use crate::archive::{Archive, stamp};
use crate::cache::{REF_NAME, annotation};
use crate::compression::decompress;
use crate::layout::{Chosen, Hashing, parse, tagged};
use crate::{Adding, ImageCache, ImageError, ImageRef, Limits, Resolved, sha256};
use oci_spec::image::{
    Arch, Descriptor, DescriptorBuilder, Digest, DigestAlgorithm, ImageConfiguration, ImageIndex,
    ImageManifestBuilder, MediaType, Os, PlatformBuilder,
};
use serde::Deserialize;
use std::fs;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Between two looks whether somebody else is done with a blob, and how long they are looked for.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
const LOOK_TIME: Duration = Duration::from_mins(30);
/// What is read at a time, bytes.
const PIECE: usize = 1 << 20;
/// Where containerd and docker write an image's whole name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const DOCKER_INDEX: &str = "manifest.json";

/// An image of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Saved {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// What is in an archive of an image that was chosen: each blob, and its file's name.
struct Found {
    manifest: Descriptor,
    documents: Vec<(Descriptor, Vec<u8>)>,
    layers: Vec<(Descriptor, String)>,
}

impl ImageCache {
    /// The image for `linux` and `arch` of an archive on this host. It is read into the cache first
    /// unless that was done, and the file is as it was then by its size, time and inode.
    pub fn import(&self, reference: &ImageRef, arch: &str) -> Result<Resolved, ImageError> {
        let (ImageRef::OciArchive { path, .. } | ImageRef::DockerArchive { path, .. }) = reference
        else {
            return Resolved::find(reference, arch);
        };
        let name = reference.to_string();
        let now = match fs::metadata(path) {
            Ok(now) => now,
            // What it held is here.
            Err(e)
                if e.kind() == io::ErrorKind::NotFound
                    && let Some(image) = self.find_named(&name, arch) =>
            {
                return Ok(image);
            }
            Err(e) => return Err(ImageError::io("open", path)(e)),
        };
        if let Some(image) = self.find_made_of(&name, arch, Some(&stamp(&now)))? {
            return Ok(image);
        }
        let adding = self.add()?;
        let archive = Archive::open(path)?;
        let before = archive.stamp()?;
        let found = match reference {
            ImageRef::DockerArchive { name, .. } => {
                docker_image(&archive, path, name.as_deref(), arch, reference)?
            }
            _ => oci_image(&archive, path, reference, arch)?,
        };
        copy_all(&archive, &adding, &found)?;
        if archive.stamp()? != before {
            return Err(archive.unusable("it was changed while it was read: try again"));
        }
        adding.name_made_of(&name, &found.manifest, Some(&before))?;
        let image = self.find_made_of(&name, arch, Some(&before))?;
        image.ok_or_else(|| archive.unusable("what was read of it vanished from the cache"))
    }

    /// Reads the image for `linux` and `arch` of the archive at `path`, of either kind, into the
    /// cache under `name`, as if it came from a registry.
    pub fn import_as(&self, path: &Path, name: &str, arch: &str) -> Result<Resolved, ImageError> {
        let adding = self.add()?;
        let archive = Archive::open(path)?;
        let (of, tag) = (path.to_owned(), None);
        let found = if archive.has(DOCKER_INDEX) {
            let reference = ImageRef::DockerArchive {
                path: of,
                name: tag,
            };
            docker_image(&archive, path, None, arch, &reference).or_else(|e| match e {
                ImageError::NoTag { .. } => {
                    docker_image(&archive, path, Some(name), arch, &reference)
                }
                e => Err(e),
            })?
        } else {
            let reference = ImageRef::OciArchive { path: of, tag };
            oci_image(&archive, path, &reference, arch)?
        };
        copy_all(&archive, &adding, &found)?;
        adding.name(name, &found.manifest)?;
        let image = self.find(name, arch)?;
        image.ok_or_else(|| archive.unusable("what was read of it vanished from the cache"))
    }
}

/// The name of the one image in an archive, if there is one and it is a whole name.
pub fn archive_name(path: &Path) -> Result<Option<String>, ImageError> {
    let archive = Archive::open(path)?;
    let mut names: Vec<String> = if archive.has(DOCKER_INDEX) {
        let text = archive.document(DOCKER_INDEX)?;
        let saved: Vec<Saved> = parse(&archive.part(DOCKER_INDEX), &text)?;
        saved.iter().flat_map(Saved::tags).cloned().collect()
    } else {
        let text = archive.document("index.json")?;
        let index: ImageIndex = parse(&archive.part("index.json"), &text)?;
        let names = index.manifests().iter();
        let names =
            names.filter_map(|d| annotation(d, CONTAINERD_NAME).or(annotation(d, REF_NAME)));
        // A bare tag is no image's name.
        let whole = |name: &&str| name.contains([':', '/']);
        names
            .map(str::to_owned)
            .filter(|n| whole(&n.as_str()))
            .collect()
    };
    names.sort();
    names.dedup();
    Ok(names.pop().filter(|_| names.is_empty()))
}

/// Copies what was found into the cache.
fn copy_all(archive: &Archive, adding: &Adding, found: &Found) -> Result<(), ImageError> {
    for (blob, text) in &found.documents {
        adding.put(blob, text)?;
    }
    for (blob, file) in &found.layers {
        copy(archive, adding, blob, file)?;
    }
    Ok(())
}

/// Copies a layer into the cache, going on with what is there of an earlier attempt.
fn copy(
    archive: &Archive,
    adding: &Adding,
    blob: &Descriptor,
    file: &str,
) -> Result<(), ImageError> {
    let begun = Instant::now();
    let partial = loop {
        match adding.begin(blob) {
            Err(ImageError::Io { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < LOOK_TIME =>
            {
                std::thread::sleep(LOOK_PAUSE);
            }
            begun => break begun?,
        }
    };
    let Some(mut partial) = partial else {
        return Ok(());
    };
    let mut from = archive.read(file, partial.length())?;
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => partial.write(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ImageError::io("read", &archive.part(file))(e)),
        }
    }
    match partial.finish() {
        Err(ImageError::Digest { found, .. }) => Err(damaged(archive, file, &found)),
        done => done,
    }
}

fn damaged(archive: &Archive, file: &str, found: &str) -> ImageError {
    archive.unusable(&format!(
        "{file} is damaged, it has {found}: write it again"
    ))
}

/// The image of an OCI layout in an archive.
fn oci_image(
    archive: &Archive,
    path: &Path,
    reference: &ImageRef,
    arch: &str,
) -> Result<Found, ImageError> {
    let ImageRef::OciArchive { tag, .. } = reference else {
        return Err(archive.unusable("it is no OCI archive"));
    };
    if !archive.has("index.json") && archive.has(DOCKER_INDEX) {
        return Err(archive.unusable("it is a docker archive: write docker-archive:FILE"));
    }
    let index: ImageIndex = parse(
        &archive.part("index.json"),
        &archive.document("index.json")?,
    )?;
    let read = |blob: &Descriptor| {
        let file = blob_file(archive, blob)?;
        let text = archive.document(&file)?;
        let found = sha256(&text);
        if found != blob.digest().to_string() {
            return Err(damaged(archive, &file, &format!("digest {found}")));
        }
        Ok((archive.part(&file), text))
    };
    let entries = tagged(path, index.manifests(), tag.as_deref())?;
    let chosen = Chosen::among(entries, arch, reference, &read)?;
    let mut layers = Vec::new();
    for layer in chosen.manifest.layers() {
        let file = blob_file(archive, layer)?;
        let size = archive.size(&file)?;
        if size != layer.size() {
            let found = format!("{size} of the promised {} bytes", layer.size());
            return Err(damaged(archive, &file, &found));
        }
        layers.push((layer.clone(), file));
    }
    let config = chosen.manifest.config().clone();
    let documents = vec![
        (config.clone(), read(&config)?.1),
        (chosen.entry.clone(), read(&chosen.entry)?.1),
    ];
    let mut manifest = chosen.entry;
    manifest.set_platform(Some(platform(archive, arch)?));
    Ok(Found {
        manifest,
        documents,
        layers,
    })
}

fn blob_file(archive: &Archive, blob: &Descriptor) -> Result<String, ImageError> {
    let digest = blob.digest();
    if *digest.algorithm() != DigestAlgorithm::Sha256 {
        return Err(archive.unusable(&format!("the digest {digest} is not a sha256")));
    }
    Ok(format!("blobs/sha256/{}", digest.digest()))
}

/// The image of this name in what `docker save` wrote, as an OCI image.
fn docker_image(
    archive: &Archive,
    path: &Path,
    name: Option<&str>,
    arch: &str,
    reference: &ImageRef,
) -> Result<Found, ImageError> {
    if !archive.has(DOCKER_INDEX) && archive.has("index.json") {
        return Err(archive.unusable("it is an OCI archive: write oci-archive:FILE"));
    }
    let text = archive.document(DOCKER_INDEX)?;
    let saved: Vec<Saved> = parse(&archive.part(DOCKER_INDEX), &text)?;
    let saved = choose(&saved, path, name)?;
    let text = archive.document(&saved.config)?;
    let config_digest = sha256(&text);
    if promised(&saved.config).is_some_and(|hex| config_digest != format!("sha256:{hex}")) {
        return Err(damaged(
            archive,
            &saved.config,
            &format!("digest {config_digest}"),
        ));
    }
    let config: ImageConfiguration = parse(&archive.part(&saved.config), &text)?;
    if config.os().to_string() != "linux" || config.architecture().to_string() != arch {
        return Err(ImageError::NoPlatform {
            reference: reference.to_string(),
            arch: arch.to_owned(),
            available: format!("{}/{}", config.os(), config.architecture()),
        });
    }
    let ids = config.rootfs().diff_ids();
    if ids.len() != saved.layers.len() {
        return Err(archive.unusable(&format!(
            "its configuration tells of {} layers, {DOCKER_INDEX} of {}",
            ids.len(),
            saved.layers.len()
        )));
    }
    let mut layers = Vec::new();
    for (file, id) in saved.layers.iter().zip(ids) {
        layers.push((docker_layer(archive, file, id)?, file.clone()));
    }
    let config_blob = descriptor(archive, MediaType::ImageConfig, &config_digest, &text)?;
    let senseless = |e: &dyn std::fmt::Display| archive.unusable(&e.to_string());
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config_blob.clone())
        .layers(layers.iter().map(|(l, _)| l.clone()).collect::<Vec<_>>())
        .build()
        .map_err(|e| senseless(&e))?;
    let manifest = serde_json::to_vec(&manifest).map_err(|e| senseless(&e))?;
    let digest = sha256(&manifest);
    let mut manifest_blob = descriptor(archive, MediaType::ImageManifest, &digest, &manifest)?;
    manifest_blob.set_platform(Some(platform(archive, arch)?));
    Ok(Found {
        documents: vec![(config_blob, text), (manifest_blob.clone(), manifest)],
        manifest: manifest_blob,
        layers,
    })
}

/// The image that bears `name`, or the only one.
fn choose<'a>(
    saved: &'a [Saved],
    path: &Path,
    name: Option<&str>,
) -> Result<&'a Saved, ImageError> {
    let found = match (name, saved) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(name), _) => {
            let wanted = docker_name(name);
            let bears = |s: &&Saved| s.tags().iter().any(|t| docker_name(t) == wanted);
            saved.iter().find(bears)
        }
    };
    found.ok_or_else(|| {
        let names: Vec<_> = saved
            .iter()
            .flat_map(Saved::tags)
            .map(String::as_str)
            .collect();
        ImageError::NoTag {
            path: path.to_owned(),
            tag: name.unwrap_or("latest").to_owned(),
            available: if names.is_empty() {
                format!("{} images without names", saved.len())
            } else {
                names.join(", ")
            },
        }
    })
}

/// A name without what docker leaves out, with the tag it adds.
fn docker_name(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    match short.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => short.to_owned(),
        _ => format!("{short}:latest"),
    }
}

/// The digest that a file's name promises, `blobs/sha256/HEX` or `HEX.json`.
fn promised(file: &str) -> Option<&str> {
    let name = file.rsplit('/').next()?;
    let name = name.strip_suffix(".json").unwrap_or(name);
    let is_digest = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then_some(name)
}

/// A layer, whose plain tar has the digest `id`. Of one that is compressed the digest is worked out
/// first, and what it unpacks to is checked.
fn docker_layer(archive: &Archive, file: &str, id: &str) -> Result<Descriptor, ImageError> {
    let unreadable = |source| ImageError::Layer {
        layer: file.to_owned(),
        source,
    };
    let size = archive.size(file)?;
    let mut start = [0; 4];
    let read = archive
        .read(file, 0)?
        .read(&mut start)
        .map_err(unreadable)?;
    let kind = match &start[..read] {
        [0x1f, 0x8b, ..] => MediaType::ImageLayerGzip,
        [0x28, 0xb5, 0x2f, 0xfd] => MediaType::ImageLayerZstd,
        _ => return sized(archive, MediaType::ImageLayer, id, size),
    };
    let packed = archive.read(file, 0)?;
    let mut packed = Hashing::new(BufReader::with_capacity(PIECE, packed));
    let limit = Limits::default().max_bytes;
    let plain = decompress(&mut packed).map_err(unreadable)?;
    let mut plain = Hashing::new(BufReader::with_capacity(PIECE, plain.take(limit)));
    let length = io::copy(&mut plain, &mut io::sink()).map_err(unreadable)?;
    let unpacked = format!("sha256:{}", plain.digest());
    if length == limit || unpacked != id {
        return Err(damaged(archive, file, &format!("digest {unpacked}")));
    }
    io::copy(&mut packed, &mut io::sink()).map_err(unreadable)?;
    sized(archive, kind, &format!("sha256:{}", packed.digest()), size)
}

fn descriptor(
    archive: &Archive,
    kind: MediaType,
    digest: &str,
    text: &[u8],
) -> Result<Descriptor, ImageError> {
    sized(archive, kind, digest, text.len() as u64)
}

fn sized(
    archive: &Archive,
    kind: MediaType,
    digest: &str,
    size: u64,
) -> Result<Descriptor, ImageError> {
    let senseless = |e: &dyn std::fmt::Display| archive.unusable(&format!("{digest}: {e}"));
    let digest = Digest::from_str(digest).map_err(|e| senseless(&e))?;
    DescriptorBuilder::default()
        .media_type(kind)
        .digest(digest)
        .size(size)
        .build()
        .map_err(|e| senseless(&e))
}

fn platform(archive: &Archive, arch: &str) -> Result<oci_spec::image::Platform, ImageError> {
    PlatformBuilder::default()
        .os(Os::Linux)
        .architecture(Arch::from(arch))
        .build()
        .map_err(|e| archive.unusable(&e.to_string()))
}
