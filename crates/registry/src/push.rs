//! From an OCI layout to a registry: an index with all it leads to, or one manifest; images and
//! artifacts alike, byte for byte.

use crate::error::{PullError, Step};
use crate::retry::Retries;
use crate::{
    Job, MAX_LAYERS, PARALLEL, Progress, SILENCE, Watcher, blocking, client, credentials, parse,
};
use bytes::Bytes;
use futures_util::stream;
use oci_client::Reference;
use oci_client::errors::OciDistributionError;
use oci_spec::image::{Descriptor, MediaType};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use slicer_image::{ImageError, LayoutDir, sha256};
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

/// How deep indexes may be nested, and how many manifests there may be.
const MAX_NESTING: usize = 4;
const MAX_MANIFESTS: usize = 256;
/// What is read of a blob at a time, bytes.
const PIECE: usize = 256 << 10;

/// Why a push failed; each says of what.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The layout can't be read, or is damaged.
    #[error(transparent)]
    Source(#[from] ImageError),
    /// The layout holds something no registry would take.
    #[error("cannot push {}: {why}", path.display())]
    Unusable {
        /// The layout.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The registry wants to know who pushes, or doesn't let them.
    #[error("{registry} lets {whom} push nothing to {reference}: run `docker login {registry}`")]
    Unauthorized {
        /// Where to.
        reference: String,
        /// Its registry.
        registry: String,
        /// Who asked.
        whom: &'static str,
    },
    /// The registry can't be reached, refuses, or broke off time and again.
    #[error("cannot push {what} of {reference} to {registry}: {why}{hint}")]
    Network {
        /// What was pushed.
        what: String,
        /// Where to.
        reference: String,
        /// Its registry.
        registry: String,
        /// What happened.
        why: String,
        /// What may help.
        hint: &'static str,
    },
    /// Anything else.
    #[error(transparent)]
    Other(PullError),
}

impl From<PullError> for PushError {
    /// The registry's answers are told as those to who pulls are, in other words.
    fn from(e: PullError) -> Self {
        match e {
            PullError::Cache(e) => Self::Source(e),
            PullError::Unauthorized {
                reference,
                registry,
                whom,
            } => Self::Unauthorized {
                reference,
                registry,
                whom,
            },
            PullError::NotFound {
                reference,
                registry,
                ..
            } => Self::Network {
                what: "it".to_owned(),
                reference,
                registry,
                why: "the registry has no such repository and makes none".to_owned(),
                hint: "",
            },
            PullError::Network {
                what,
                reference,
                registry,
                why,
                hint,
            } => Self::Network {
                what,
                reference,
                registry,
                why,
                hint: if hint.is_empty() {
                    ""
                } else {
                    "; if it speaks plain HTTP, say so with --insecure"
                },
            },
            e => Self::Other(e),
        }
    }
}

/// What a push has left in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The name it has there, in full.
    pub reference: String,
    /// The digest of what the name leads to.
    pub digest: String,
    /// Manifests, an index counted as one.
    pub manifests: usize,
    /// Blobs that were sent, and bytes of them.
    pub sent: usize,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Blobs that the registry had already.
    pub there: usize,
}

/// All that has to be in the registry, in the order manifests need: each after what it names.
struct Plan {
    blobs: Vec<Descriptor>,
    manifests: Vec<Document>,
    /// What the name will lead to.
    top: Document,
}

struct Document {
    kind: String,
    digest: String,
    text: Bytes,
}

/// Pushes what bears this tag in a layout, see [`LayoutDir::tagged`], to `reference`. Blobs that
/// the registry has are not sent. Progress counts the blobs that are to be looked for, then bytes.
/// It may be called off at any moment: the name changes last.
pub async fn push(
    layout: &LayoutDir,
    tag: Option<&str>,
    reference: &str,
    insecure: bool,
    watcher: Watcher,
) -> Result<Pushed, PushError> {
    let reference = parse(reference)?;
    let plan = {
        let (layout, tag) = (layout.clone(), tag.map(str::to_owned));
        let planned = tokio::task::spawn_blocking(move || Plan::of(&layout, tag.as_deref())).await;
        planned.map_err(|_| PushError::Other(PullError::Internal))??
    };
    if reference.digest().is_some_and(|d| d != plan.top.digest) {
        return Err(PushError::Unusable {
            path: layout.path().to_owned(),
            why: format!("its digest is {}, not the one named", plan.top.digest),
        });
    }
    let registry = reference.resolve_registry().to_owned();
    let credentials = credentials::of(&registry).await;
    // A limit of reading would count from the beginning of what is sent.
    let client = client(&registry, insecure, None);
    client
        .store_auth_if_needed(&registry, &credentials.auth())
        .await;
    let job = Arc::new(Job {
        client,
        insecure,
        step: Step {
            reference: reference.whole(),
            registry,
            anonymous: credentials.anonymous(),
        },
        reference,
        watcher,
    });
    let mut pushed = send_blobs(&job, layout, plan.blobs).await?;
    for document in &plan.manifests {
        let by_digest = job.reference.clone_with_digest(document.digest.clone());
        send_document(&job, &by_digest, document).await?;
    }
    send_document(&job, &job.reference, &plan.top).await?;
    pushed.digest = plan.top.digest;
    pushed.manifests = plan.manifests.len() + 1;
    Ok(pushed)
}

impl Plan {
    fn of(layout: &LayoutDir, tag: Option<&str>) -> Result<Self, PushError> {
        let entries = layout.tagged(tag)?;
        let mut found = Found {
            layout,
            seen: HashSet::new(),
            blobs: Vec::new(),
            manifests: Vec::new(),
        };
        for entry in &entries {
            found.follow(entry, 0)?;
        }
        let top = if entries.len() == 1 {
            // Followed last, for all it names comes before.
            found.manifests.pop()
        } else {
            Some(index_of(entries, layout)?)
        };
        let top = top.ok_or_else(|| found.unusable("it is empty"))?;
        Ok(Self {
            blobs: found.blobs,
            manifests: found.manifests,
            top,
        })
    }
}

/// The index of images that a layout has under one tag, without the tag.
fn index_of(entries: Vec<Descriptor>, layout: &LayoutDir) -> Result<Document, PushError> {
    let entries: Vec<_> = entries
        .into_iter()
        .map(|mut entry| {
            entry.set_annotations(None);
            entry
        })
        .collect();
    let kind = MediaType::ImageIndex.to_string();
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries });
    let text = serde_json::to_vec(&index).map_err(|e| PushError::Unusable {
        path: layout.path().to_owned(),
        why: e.to_string(),
    })?;
    Ok(Document {
        kind,
        digest: sha256(&text),
        text: text.into(),
    })
}

struct Found<'a> {
    layout: &'a LayoutDir,
    seen: HashSet<String>,
    blobs: Vec<Descriptor>,
    manifests: Vec<Document>,
}

impl Found<'_> {
    fn unusable(&self, why: &str) -> PushError {
        PushError::Unusable {
            path: self.layout.path().to_owned(),
            why: why.to_owned(),
        }
    }

    /// Adds what a manifest or index names, then itself.
    fn follow(&mut self, entry: &Descriptor, depth: usize) -> Result<(), PushError> {
        if depth >= MAX_NESTING {
            return Err(self.unusable(&format!("indexes are nested deeper than {MAX_NESTING}")));
        }
        if !self.seen.insert(entry.digest().to_string()) {
            return Ok(());
        }
        if self.manifests.len() >= MAX_MANIFESTS {
            return Err(self.unusable(&format!("it has more than {MAX_MANIFESTS} manifests")));
        }
        let text = self.layout.read(entry)?;
        let parsed: Value = self.parsed(&text)?;
        let named = |key: &str| parsed.get(key).cloned().filter(|v| !v.is_null());
        if let Some(manifests) = named("manifests") {
            let manifests: Vec<Descriptor> = self.parsed(manifests.to_string().as_bytes())?;
            for child in &manifests {
                self.follow(child, depth + 1)?;
            }
        } else {
            let layers = named("layers").unwrap_or_else(|| json!([]));
            let layers: Vec<Descriptor> = self.parsed(layers.to_string().as_bytes())?;
            if layers.len() > MAX_LAYERS {
                return Err(self.unusable(&format!("a manifest has {} layers", layers.len())));
            }
            let config = named("config").ok_or_else(|| self.unusable("a manifest is none"))?;
            let config: Descriptor = self.parsed(config.to_string().as_bytes())?;
            for blob in layers.into_iter().chain([config]) {
                if self.seen.insert(blob.digest().to_string()) {
                    self.blobs.push(blob);
                }
            }
        }
        self.manifests.push(Document {
            kind: entry.media_type().to_string(),
            digest: entry.digest().to_string(),
            text: text.into(),
        });
        Ok(())
    }

    fn parsed<T: serde::de::DeserializeOwned>(&self, text: &[u8]) -> Result<T, PushError> {
        serde_json::from_slice(text).map_err(|e| self.unusable(&e.to_string()))
    }
}

/// Sends those of the blobs that the registry hasn't.
async fn send_blobs(
    job: &Arc<Job>,
    layout: &LayoutDir,
    mut blobs: Vec<Descriptor>,
) -> Result<Pushed, PushError> {
    blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size()));
    (job.watcher)(Progress::Begun {
        bytes: blobs.iter().map(Descriptor::size).sum(),
        blobs: blobs.len(),
    });
    let mut pushed = Pushed {
        reference: job.reference.whole(),
        digest: String::new(),
        manifests: 0,
        sent: 0,
        sent_bytes: 0,
        there: 0,
    };
    let mut waiting = blobs.into_iter();
    // Dropped with this future, and its tasks with it.
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < PARALLEL
            && let Some(blob) = waiting.next()
        {
            let (job, layout) = (Arc::clone(job), layout.clone());
            tasks.spawn(async move {
                let size = blob.size();
                send_blob(&job, &layout, blob)
                    .await
                    .map(|sent| sent.then_some(size))
            });
        }
        match tasks.join_next().await {
            Some(Ok(done)) => match done? {
                Some(size) => {
                    pushed.sent += 1;
                    pushed.sent_bytes += size;
                }
                None => pushed.there += 1,
            },
            Some(Err(_)) => return Err(PushError::Other(PullError::Internal)),
            None => return Ok(pushed),
        }
    }
}

/// Sends a blob, if the registry hasn't got it; returns whether it hadn't.
async fn send_blob(job: &Job, layout: &LayoutDir, blob: Descriptor) -> Result<bool, PushError> {
    let digest = blob.digest().to_string();
    let what = format!("blob {digest}");
    let mut retries = Retries::new(job.watcher.clone());
    let there = loop {
        let asked = job.client.blob_exists(&job.reference, &digest);
        match bounded(asked, &Taken::default()).await {
            Ok(there) => break there,
            Err(e) => retries.again(&job.step, &what, answered(e)).await?,
        }
    };
    if there {
        (job.watcher)(Progress::Received(blob.size()));
        return Ok(false);
    }
    // What is damaged here is said so, rather than sent to be refused.
    let (of, wanted) = (layout.clone(), blob.clone());
    blocking(move || of.check(&wanted)).await?;
    let path = layout.blob(&blob)?;
    loop {
        let file = File::open(&path).await.map_err(|source| ImageError::Io {
            action: "open",
            path: path.clone(),
            source,
        })?;
        let taken = Taken::default();
        let body = pieces(file, job.watcher.clone(), taken.clone());
        let size = Some(blob.size());
        let sent = job
            .client
            .push_blob_stream(&job.reference, body, &digest, size);
        match bounded(sent, &taken).await {
            Ok(_) => return Ok(true),
            Err(e) => retries.again(&job.step, &what, answered(e)).await?,
        }
    }
}

/// Pieces of a blob that were taken to be sent.
type Taken = Arc<AtomicU64>;

/// Ends a request of which nothing was taken for a while, and which wasn't answered either.
async fn bounded<T>(
    request: impl Future<Output = Result<T, OciDistributionError>>,
    taken: &Taken,
) -> Result<T, OciDistributionError> {
    let mut request = pin!(request);
    loop {
        let before = taken.load(Ordering::Relaxed);
        match tokio::time::timeout(SILENCE, &mut request).await {
            Ok(done) => return done,
            Err(_) if taken.load(Ordering::Relaxed) != before => {}
            Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }
}

/// A file's content piece by piece, each told of when it is asked for.
fn pieces(
    file: File,
    watcher: Watcher,
    taken: Taken,
) -> impl futures_util::Stream<Item = Result<Bytes, OciDistributionError>> {
    stream::try_unfold(
        (file, watcher, taken),
        |(mut file, watcher, taken)| async move {
            let mut piece = vec![0; PIECE];
            let n = file.read(&mut piece).await?;
            if n == 0 {
                return Ok(None);
            }
            piece.truncate(n);
            taken.fetch_add(1, Ordering::Relaxed);
            watcher(Progress::Received(n as u64));
            Ok(Some((Bytes::from(piece), (file, watcher, taken))))
        },
    )
}

async fn send_document(job: &Job, to: &Reference, document: &Document) -> Result<(), PushError> {
    let kind = HeaderValue::from_str(&document.kind).map_err(|e| {
        let why = format!("a manifest's media type {:?}: {e}", document.kind);
        PushError::Other(job.step.senseless(&why))
    })?;
    let what = format!("manifest {}", document.digest);
    let mut retries = Retries::new(job.watcher.clone());
    loop {
        let sent = job
            .client
            .push_manifest_raw(to, document.text.clone(), kind.clone());
        match bounded(sent, &Taken::default()).await {
            Ok(_) => return Ok(()),
            Err(e) => retries.again(&job.step, &what, answered(e)).await?,
        }
    }
}

/// An error that is the registry's answer, as one: oci-client tells some as failed requests, which
/// would be tried again.
fn answered(e: OciDistributionError) -> OciDistributionError {
    match e {
        OciDistributionError::RequestError(e) => match (e.status(), e.url()) {
            (Some(status), url) => OciDistributionError::ServerError {
                code: status.as_u16(),
                url: url.map(ToString::to_string).unwrap_or_default(),
                message: String::new(),
            },
            (None, _) => OciDistributionError::RequestError(e),
        },
        e => e,
    }
}
