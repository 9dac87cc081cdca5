//! Images from registries into the image cache, and from OCI layouts to registries.
//!
//! Source: the OCI distribution specification 1.1, by way of oci-client. The image for one
//! architecture is chosen from an index; its blobs are fetched side by side, resumed where an
//! earlier attempt broke off, checked against their digests, and shared with all other images of
//! the cache. Credentials are those of Docker's configuration, its helpers included.
#![forbid(unsafe_code)]

mod blob;
mod bundle;
mod credentials;
mod error;
mod manifest;
mod push;
mod retry;

pub use bundle::{
    BUNDLE_TYPE, Bundle, BundleError, BundleFile, EXECUTABLE, FILE_TYPE, Origin, TITLE, VERSION,
};
pub use error::PullError;
pub use push::{PushError, Pushed, push};

use bytes::Bytes;
use error::Step;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::{Client, Reference};
use oci_spec::image::{
    Arch, Descriptor, DescriptorBuilder, Digest, ImageConfiguration, ImageIndex, ImageManifest,
    MediaType, Os, Platform, PlatformBuilder,
};
use slicer_image::{Adding, ImageCache, Resolved, sha256};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking};

/// Blobs that are fetched side by side.
const PARALLEL: usize = 4;
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// How long a registry may send nothing.
const SILENCE: Duration = Duration::from_mins(1);
/// The largest document that is taken, bytes: registries have the same limit.
const MAX_DOCUMENT: usize = 4 << 20;
const USER_AGENT: &str = concat!("slicer/", env!("CARGO_PKG_VERSION"));
/// More layers than any image has.
const MAX_LAYERS: usize = 1024;
/// What a registry may answer with for a name, by preference its own.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The image's name, see [`canonical`].
    pub reference: String,
    /// OCI's name of the architecture, such as `amd64`; the system is always `linux`.
    pub arch: String,
    /// Speak plain HTTP to its registry.
    pub insecure: bool,
}

/// How far a pull has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// What there is to fetch is known.
    Begun {
        /// Bytes of all blobs that are not in the cache.
        bytes: u64,
        /// How many those are.
        blobs: usize,
    },
    /// So many bytes more have come.
    Received(u64),
    /// Something failed and is tried again.
    Retrying {
        /// What, and why.
        why: String,
    },
}

/// Who is told of progress.
pub type Watcher = Arc<dyn Fn(Progress) + Send + Sync>;

/// An image's name in full, as the cache knows it: with its registry and its tag or digest.
/// `debian` is `docker.io/library/debian:latest`.
pub fn canonical(reference: &str) -> Result<String, PullError> {
    parse(reference).map(|r| r.whole())
}

fn parse(reference: &str) -> Result<Reference, PullError> {
    Reference::from_str(reference).map_err(|e| PullError::Reference {
        reference: reference.to_owned(),
        why: e.to_string(),
    })
}

/// Fetches the image, as its registry has it now, into the cache, and gives it its name there.
/// What is in the cache already is not fetched again. It may be called off at any moment.
pub async fn pull(
    cache: &ImageCache,
    wanted: &Wanted,
    watcher: Watcher,
) -> Result<Resolved, PullError> {
    let reference = parse(&wanted.reference)?;
    let registry = reference.resolve_registry().to_owned();
    let credentials = credentials::of(&registry).await;
    let job = Arc::new(Job {
        client: client(&registry, wanted.insecure, Some(SILENCE)),
        insecure: wanted.insecure,
        step: Step {
            reference: reference.whole(),
            registry,
            anonymous: credentials.anonymous(),
        },
        reference,
        watcher,
    });
    let cache = cache.clone();
    let adding = blocking(move || cache.add()).await?;
    job.run(wanted, Arc::new(adding), &credentials).await
}

/// A pull under way.
struct Job {
    client: Client,
    /// Whether the registry speaks plain HTTP.
    insecure: bool,
    reference: Reference,
    step: Step,
    watcher: Watcher,
}

/// A manifest and what describes it.
struct Manifest {
    descriptor: Descriptor,
    text: Bytes,
    parsed: ImageManifest,
}

impl Job {
    async fn run(
        self: Arc<Self>,
        wanted: &Wanted,
        adding: Arc<Adding>,
        credentials: &credentials::Credentials,
    ) -> Result<Resolved, PullError> {
        let auth = credentials.auth();
        self.client
            .store_auth_if_needed(self.reference.resolve_registry(), &auth)
            .await;
        let manifest = self.manifest(&auth, &wanted.arch).await?;
        let config = manifest.parsed.config().clone();
        let layers = manifest.parsed.layers().clone();
        if layers.len() > MAX_LAYERS {
            let why = format!("it has {} layers", layers.len());
            return Err(self.step.senseless(&why));
        }
        self.fetch(&adding, vec![config.clone()]).await?;
        self.check_platform(&adding, &config, &wanted.arch).await?;
        self.fetch(&adding, layers).await?;
        let (name, arch) = (self.reference.whole(), wanted.arch.clone());
        let found = blocking(move || {
            adding.put(&manifest.descriptor, &manifest.text)?;
            slicer_fault::point("pull.blobs");
            adding.name(&name, &manifest.descriptor)?;
            slicer_fault::point("pull.indexed");
            adding.cache().find(&name, &arch)
        })
        .await?;
        // Only somebody who removes files by hand could have come in between.
        found.ok_or_else(|| self.step.senseless("it vanished from the cache"))
    }

    /// The manifest of the image for `arch`.
    async fn manifest(
        &self,
        auth: &oci_client::secrets::RegistryAuth,
        arch: &str,
    ) -> Result<Manifest, PullError> {
        let text = self.document(&self.reference, auth).await?;
        let kind: serde_json::Value = self.read(&text)?;
        if kind.get("manifests").is_none() {
            let parsed: ImageManifest = self.read(&text)?;
            return self.described(text, parsed, arch);
        }
        let index: ImageIndex = self.read(&text)?;
        let platform = |d: &Descriptor| {
            let platform = d.platform().as_ref()?;
            Some(format!("{}/{}", platform.os(), platform.architecture()))
        };
        let name = format!("linux/{arch}");
        let mut entries = index.manifests().iter();
        let entry = entries.find(|d| platform(d).as_ref() == Some(&name));
        let Some(entry) = entry else {
            let mut available: Vec<_> = index.manifests().iter().filter_map(platform).collect();
            available.retain(|p| p != "unknown/unknown");
            available.dedup();
            return Err(self.step.no_platform(arch, &available.join(", ")));
        };
        let of_entry = self.reference.clone_with_digest(entry.digest().to_string());
        let text = self.document(&of_entry, auth).await?;
        let parsed: ImageManifest = self.read(&text)?;
        let manifest = self.described(text, parsed, arch)?;
        if manifest.descriptor.digest() != entry.digest() {
            let why = format!("its index promised {}", entry.digest());
            return Err(self.step.senseless(&why));
        }
        Ok(manifest)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, text: &[u8]) -> Result<T, PullError> {
        serde_json::from_slice(text).map_err(|e| self.step.senseless(&e.to_string()))
    }

    fn described(
        &self,
        text: Bytes,
        parsed: ImageManifest,
        arch: &str,
    ) -> Result<Manifest, PullError> {
        let senseless = |e: &dyn std::fmt::Display| self.step.senseless(&e.to_string());
        let digest = Digest::from_str(&sha256(&text)).map_err(|e| senseless(&e))?;
        let kind = parsed.media_type().clone();
        let descriptor = DescriptorBuilder::default()
            .media_type(kind.unwrap_or(MediaType::ImageManifest))
            .digest(digest)
            .size(text.len() as u64)
            .platform(platform(arch).map_err(|e| senseless(&e))?)
            .build()
            .map_err(|e| senseless(&e))?;
        Ok(Manifest {
            descriptor,
            text,
            parsed,
        })
    }

    /// Refuses an image without an index that is for another platform.
    async fn check_platform(
        &self,
        adding: &Arc<Adding>,
        config: &Descriptor,
        arch: &str,
    ) -> Result<(), PullError> {
        let (of, blob) = (Arc::clone(adding), config.clone());
        let text = blocking(move || of.cache().read(&blob)).await?;
        let config: ImageConfiguration = self.read(&text)?;
        let found = format!("{}/{}", config.os(), config.architecture());
        if found == format!("linux/{arch}") {
            Ok(())
        } else {
            Err(self.step.no_platform(arch, &found))
        }
    }

    /// Fetches those of the blobs that are not in the cache.
    async fn fetch(
        self: &Arc<Self>,
        adding: &Arc<Adding>,
        mut blobs: Vec<Descriptor>,
    ) -> Result<(), PullError> {
        blobs.retain(|blob| !adding.cache().has(blob));
        blobs.sort_by(|a, b| a.digest().digest().cmp(b.digest().digest()));
        blobs.dedup_by(|a, b| a.digest() == b.digest());
        // The largest first: the last to come is then a small one.
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size()));
        (self.watcher)(Progress::Begun {
            bytes: blobs.iter().map(Descriptor::size).sum(),
            blobs: blobs.len(),
        });
        let mut waiting = blobs.into_iter();
        // Dropped with this future, and its tasks with it.
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < PARALLEL
                && let Some(blob) = waiting.next()
            {
                let (job, adding) = (Arc::clone(self), Arc::clone(adding));
                tasks.spawn(async move { blob::fetch(&job, adding, blob).await });
            }
            match tasks.join_next().await {
                Some(Ok(done)) => done?,
                Some(Err(_)) => return Err(PullError::Internal),
                None => return Ok(()),
            }
        }
    }
}

fn platform(arch: &str) -> Result<Platform, oci_spec::OciSpecError> {
    PlatformBuilder::default()
        .os(Os::Linux)
        .architecture(Arch::from(arch))
        .build()
}

fn client(registry: &str, insecure: bool, silence: Option<Duration>) -> Client {
    // An error says that there is one already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let protocol = if insecure {
        ClientProtocol::HttpsExcept(vec![registry.to_owned()])
    } else {
        ClientProtocol::Https
    };
    Client::new(ClientConfig {
        protocol,
        connect_timeout: Some(CONNECT_TIME),
        read_timeout: silence,
        user_agent: USER_AGENT,
        // One request a blob, from the disk: a chunk a request would be in memory whole.
        use_monolithic_push: true,
        ..ClientConfig::default()
    })
}

/// Does work on files where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, slicer_image::ImageError> + Send + 'static,
) -> Result<T, PullError> {
    let done = spawn_blocking(work).await;
    Ok(done.map_err(|_| PullError::Internal)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_full() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (name, full) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("me/x:1", "docker.io/me/x:1".to_owned()),
            ("ghcr.io/a/b:v1", "ghcr.io/a/b:v1".to_owned()),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest".to_owned()),
            (
                &format!("ghcr.io/a/b@{digest}"),
                format!("ghcr.io/a/b@{digest}"),
            ),
        ] {
            assert_eq!(canonical(name).unwrap(), full);
        }
        for bad in ["", "a/UPPER", "a b", "x:", "x@sha256:1"] {
            assert!(canonical(bad).is_err(), "{bad}");
        }
    }
}
