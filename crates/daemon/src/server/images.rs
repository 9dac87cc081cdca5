//! Images: list, pull, import, remove, wipe.

use super::answer::Failure;
use super::nodes::{json, parameter};
use crate::DaemonError;
use crate::config::parse_arch;
use crate::store::{PullState, Pulled};
use crate::supervisor::Supervisor;
use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use hyper::header::CONTENT_TYPE;
use slicer_api::{ApiError, ErrorBody, Images, ImportedImage, PullFrame, PullImage, RemovedImages};
use slicer_image::ImageError;
use slicer_registry::PullError;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

/// Between two lines on how far a pull is.
const FRAME_PAUSE: Duration = Duration::from_millis(200);
/// How long a client that sends an archive may send nothing.
const SILENCE: Duration = Duration::from_mins(2);

type State_ = State<Arc<Supervisor>>;

pub(super) async fn list(State(supervisor): State_) -> Result<Json<Images>, Failure> {
    let images = supervisor.images.clone();
    let listed = spawn_blocking(move || images.list()).await;
    let listed = listed.map_err(|_| ApiError::internal("listing images failed unexpectedly"))?;
    Ok(Json(listed.map_err(|e| e.to_api())?))
}

/// The name in full of an image in a registry.
fn name(reference: &str) -> Result<String, ApiError> {
    let elsewhere = ["oci:", "oci-archive:", "docker-archive:"];
    if elsewhere.iter().any(|kind| reference.starts_with(kind)) {
        return Err(ApiError::bad_request(format!(
            "{reference:?} is on this host: only a registry's images are named here"
        )));
    }
    let reference = reference.strip_prefix("docker://").unwrap_or(reference);
    slicer_registry::canonical(reference).map_err(|e| ApiError::bad_request(e.to_string()))
}

pub(super) async fn pull(State(supervisor): State_, body: Body) -> Result<Response, Failure> {
    let request: PullImage = json(body).await?;
    let name = name(&request.reference)?;
    let arch = match request.arch.as_deref() {
        None => supervisor.images.arch_of(&name),
        Some(arch) => parse_arch(arch).ok_or_else(|| {
            ApiError::bad_request(format!(
                "there are no guests of the architecture {arch:?}: it may be amd64 or arm64"
            ))
        })?,
    };
    let receiver = supervisor.images.pull(&name, arch, request.insecure);
    let frames = Frames {
        receiver,
        retries: 0,
        first: true,
        ended: false,
    };
    let lines = stream::unfold(frames, async |mut frames| {
        let frame = frames.next().await?;
        // Frames of strings and numbers always encode.
        let mut line = serde_json::to_vec(&frame).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), frames))
    });
    let body = Body::from_stream(lines);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// What a client is told of a pull. The pull knows of it by its receiver.
struct Frames {
    receiver: watch::Receiver<PullState>,
    /// How many attempts it was told of.
    retries: u64,
    first: bool,
    ended: bool,
}

impl Frames {
    async fn next(&mut self) -> Option<PullFrame> {
        if self.ended {
            return None;
        }
        if !std::mem::take(&mut self.first) {
            let pause = tokio::time::sleep(FRAME_PAUSE);
            let over = self.receiver.wait_for(|state| state.outcome.is_some());
            tokio::select! {
                _ = over => {}
                () = pause => {}
            }
        }
        let state = self.receiver.borrow_and_update().clone();
        let gone = self.receiver.has_changed().is_err();
        Some(match state.outcome {
            Some(outcome) => {
                self.ended = true;
                last(outcome)
            }
            None if gone => {
                self.ended = true;
                error(&DaemonError::Stopping.to_api())
            }
            None if state.retries > self.retries => {
                self.retries = state.retries;
                PullFrame::Retrying { message: state.why }
            }
            None => PullFrame::Progress {
                received_bytes: state.received,
                total_bytes: state.total,
            },
        })
    }
}

/// How a pull ended.
fn last(outcome: Result<Pulled, Arc<PullError>>) -> PullFrame {
    match outcome {
        Ok(pulled) => PullFrame::Done {
            name: pulled.name,
            digest: pulled.digest,
            arch: pulled.arch.to_owned(),
            changed: pulled.changed,
        },
        Err(e) => error(&refused(e)),
    }
}

fn error(e: &ApiError) -> PullFrame {
    let ErrorBody { error, code } = e.body();
    PullFrame::Error {
        error,
        code: code.unwrap_or_default(),
    }
}

/// A failed pull, for who asked for just that.
fn refused(e: Arc<PullError>) -> ApiError {
    let text = e.to_string();
    match &*e {
        PullError::Reference { .. } => ApiError::bad_request(text),
        PullError::NotFound { .. } | PullError::NoPlatform { .. } => ApiError::not_found(text),
        PullError::Unauthorized { .. } => ApiError::forbidden(text),
        PullError::Network { .. } | PullError::Senseless { .. } => ApiError::bad_gateway(text),
        _ => DaemonError::Pull(e).to_api(),
    }
}

pub(super) async fn import(
    State(supervisor): State_,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<ImportedImage>, Response> {
    match import_archive(&supervisor, query.as_deref(), body).await {
        Ok(imported) => Ok(Json(imported)),
        Err((e, rest)) => Err(Failure(e).into_response_with(rest).await),
    }
}

/// Fails with what of the body is still to come.
async fn import_archive(
    supervisor: &Supervisor,
    query: Option<&str>,
    mut body: Body,
) -> Result<ImportedImage, (ApiError, Body)> {
    let reference = parameter(query, "reference").filter(|r| !r.is_empty());
    let wanted = match reference.as_deref().map(name).transpose() {
        Ok(wanted) => wanted,
        Err(e) => return Err((e, body)),
    };
    let images = supervisor.images.clone();
    let dir = images.uploads();
    // Removed when this is over, however it ends.
    let file = match receive(&dir, &mut body).await {
        Ok(file) => file,
        Err(e) => return Err((e, body)),
    };
    let done = spawn_blocking(move || images.import(file.path(), wanted)).await;
    let done = done.unwrap_or(Err(DaemonError::Internal("importing an image")));
    match done {
        Ok(Some(imported)) => Ok(ImportedImage {
            name: imported.name,
            digest: imported.digest,
            arch: imported.arch.to_owned(),
        }),
        Ok(None) => {
            let text = "the archive doesn't say what its image is called: give it a name";
            Err((ApiError::bad_request(text), body))
        }
        Err(e) => Err((unusable(&e), body)),
    }
}

async fn receive(dir: &Path, body: &mut Body) -> Result<tempfile::NamedTempFile, ApiError> {
    let failed = |e| DaemonError::io("write", dir)(e).to_api();
    let of = dir.to_owned();
    let made = spawn_blocking(move || {
        std::fs::create_dir_all(&of)?;
        tempfile::Builder::new().prefix("archive-").tempfile_in(of)
    });
    let made = made.await.map_err(|e| failed(std::io::Error::other(e)))?;
    let made = made.map_err(failed)?;
    let file = made.reopen().map_err(failed)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut any = false;
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await;
        let frame = frame.map_err(|_| ApiError::timeout("the archive stopped coming"))?;
        let Some(frame) = frame else { break };
        let frame =
            frame.map_err(|e| ApiError::bad_request(format!("cannot read request body: {e}")))?;
        if let Some(data) = frame.data_ref() {
            any |= !data.is_empty();
            file.write_all(data).await.map_err(failed)?;
        }
    }
    file.flush().await.map_err(failed)?;
    if any {
        Ok(made)
    } else {
        Err(ApiError::bad_request("the archive is empty"))
    }
}

/// What is wrong with an archive that can't be imported; its file is of no interest to the client.
fn unusable(e: &DaemonError) -> ApiError {
    let DaemonError::Image(image) = e else {
        return e.to_api();
    };
    match image {
        _ if e.is_disk_full() => e.to_api(),
        ImageError::Archive { why, .. } => {
            ApiError::bad_request(format!("this is no usable image archive: {why}"))
        }
        ImageError::Layout { path, why } => {
            let part = path.file_name().unwrap_or_default().to_string_lossy();
            ApiError::bad_request(format!("this is no usable image archive: {part}: {why}"))
        }
        ImageError::NoTag { available, .. } => ApiError::bad_request(format!(
            "the archive has several images, {available}: pack the one that is meant"
        )),
        ImageError::NoPlatform {
            arch, available, ..
        } => ApiError::bad_request(format!(
            "the archive has no image for linux/{arch}; it has: {available}"
        )),
        ImageError::Layer { .. } | ImageError::Digest { .. } | ImageError::Reference { .. } => {
            ApiError::bad_request(image.to_string())
        }
        _ => e.to_api(),
    }
}

pub(super) async fn remove(
    State(supervisor): State_,
    RawQuery(query): RawQuery,
) -> Result<Json<RemovedImages>, Failure> {
    let query = query.as_deref();
    let reference = parameter(query, "reference").filter(|r| !r.is_empty());
    let reference = reference
        .ok_or_else(|| ApiError::bad_request("reference is missing: the name of an image"))?;
    let force = match parameter(query, "force").as_deref() {
        None | Some("" | "false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::bad_request("force is true or false").into()),
    };
    Ok(Json(supervisor.images.remove(&reference, force).await?))
}

pub(super) async fn wipe(State(supervisor): State_) -> Result<Json<RemovedImages>, Failure> {
    Ok(Json(supervisor.images.wipe().await?))
}
