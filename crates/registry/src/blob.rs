//! One blob, from the registry into the cache.

use crate::error::PullError;
use crate::retry::Retries;
use crate::{Job, Progress, blocking};
use bytes::Bytes;
use futures_util::StreamExt as _;
use oci_client::client::BlobResponse;
use oci_spec::image::Descriptor;
use slicer_image::{Adding, ImageError, PartialBlob};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

/// Between two looks whether somebody else is done, and how long they are looked for.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
const LOOK_TIME: Duration = Duration::from_mins(30);
/// Pieces on their way to the disk.
const QUEUE: usize = 16;
/// How often a blob is fetched from its beginning that turns out damaged.
const DAMAGED_TRIES: u32 = 2;

/// Fetches a blob unless it is in the cache, or somebody else has put it there meanwhile.
pub(crate) async fn fetch(
    job: &Job,
    adding: Arc<Adding>,
    blob: Descriptor,
) -> Result<(), PullError> {
    for attempt in 1.. {
        let Some(partial) = begin(&adding, &blob).await? else {
            return Ok(());
        };
        let partial = fill(job, partial, &blob).await?;
        match blocking(move || partial.finish()).await {
            Err(PullError::Cache(e @ ImageError::Digest { .. })) if attempt < DAMAGED_TRIES => {
                (job.watcher)(Progress::Retrying { why: e.to_string() });
            }
            Err(PullError::Cache(ImageError::Digest { found, .. })) => {
                let why = format!("its blob {} is damaged, it has {found}", blob.digest());
                return Err(job.step.senseless(&why));
            }
            done => return done,
        }
    }
    Ok(())
}

/// Begins the blob as soon as nobody else makes it.
async fn begin(adding: &Arc<Adding>, blob: &Descriptor) -> Result<Option<PartialBlob>, PullError> {
    let begun = Instant::now();
    loop {
        let (of, wanted) = (Arc::clone(adding), blob.clone());
        match blocking(move || of.begin(&wanted)).await {
            Err(PullError::Cache(ImageError::Io { source, .. }))
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                if begun.elapsed() > LOOK_TIME {
                    return Err(PullError::Busy {
                        blob: blob.digest().to_string(),
                        minutes: LOOK_TIME.as_secs() / 60,
                    });
                }
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            done => return done,
        }
    }
}

enum Piece {
    Bytes(Bytes),
    Restart,
}

/// A thread that writes what it is sent.
struct Writer {
    pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<Result<PartialBlob, ImageError>>,
}

impl Writer {
    fn new(mut partial: PartialBlob) -> Self {
        let (pieces, mut receiver) = mpsc::channel(QUEUE);
        let thread = spawn_blocking(move || {
            while let Some(piece) = receiver.blocking_recv() {
                match piece {
                    Piece::Bytes(bytes) => partial.write(&bytes)?,
                    Piece::Restart => partial.restart()?,
                }
            }
            Ok(partial)
        });
        Self { pieces, thread }
    }

    /// What came of it.
    async fn end(self) -> Result<PartialBlob, PullError> {
        drop(self.pieces);
        Ok(self.thread.await.map_err(|_| PullError::Internal)??)
    }
}

/// Fetches what is missing, however often the connection breaks while there is progress.
async fn fill(
    job: &Job,
    partial: PartialBlob,
    blob: &Descriptor,
) -> Result<PartialBlob, PullError> {
    let digest = blob.digest().to_string();
    let what = format!("blob {digest}");
    let size = partial.size();
    let mut done = partial.length();
    (job.watcher)(Progress::Received(done));
    let writer = Writer::new(partial);
    let mut retries = Retries::new(job.watcher.clone());
    while done < size {
        let offset = (done > 0).then_some(done);
        let response = match offset {
            None => {
                let whole = job.client.pull_blob_stream(&job.reference, digest.as_str());
                whole.await.map(BlobResponse::Full)
            }
            Some(offset) => {
                let rest = job.client.pull_blob_stream_partial(
                    &job.reference,
                    digest.as_str(),
                    offset,
                    None,
                );
                rest.await
            }
        };
        let mut stream = match response {
            Ok(BlobResponse::Partial(stream)) => stream,
            Ok(BlobResponse::Full(stream)) => {
                // A registry that knows no ranges begins anew.
                if done > 0 && writer.pieces.send(Piece::Restart).await.is_err() {
                    return writer.end().await;
                }
                done = 0;
                stream
            }
            Err(e) => {
                retries.again(&job.step, &what, e).await?;
                continue;
            }
        };
        let broken = loop {
            match stream.next().await {
                Some(Ok(bytes)) => {
                    let length = bytes.len() as u64;
                    done = done.saturating_add(length);
                    if writer.pieces.send(Piece::Bytes(bytes)).await.is_err() {
                        // It says itself why it gave up.
                        return writer.end().await;
                    }
                    (job.watcher)(Progress::Received(length));
                    retries.progressed();
                }
                // What is damaged shows at the end, by our own sums.
                Some(Err(_)) | None if done >= size => break None,
                Some(Err(e)) => break Some(e.to_string()),
                None => break Some("the connection ended early".to_owned()),
            }
        };
        if let Some(why) = broken {
            retries.broken(&job.step, &what, &why).await?;
        }
    }
    writer.end().await
}
