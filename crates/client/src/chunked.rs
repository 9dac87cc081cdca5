//! Large files into a VM, in pieces that travel side by side and are put together there. Each is
//! checked by its SHA-256, and the file appears when all is well.

use crate::client::{Call, vm_path};
use crate::conn::RequestBody;
use crate::cp::{CopyError, Progress, blocking, local};
use crate::{Client, ClientError};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use sha2::{Digest as _, Sha256};
use slicer_api::{
    CHUNKED_COPY, CopyIn, CopyMode, ExecBuffered, ExecRequest, MAX_CHUNK, OCTETS, UploadChunk,
    UploadManifest, UploadSession,
};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces that travel at a time.
const AT_ONCE: usize = 4;
const AGENT: &str = "/usr/local/bin/slicer-agent";
const PIECE: usize = 128 << 10;
const PIECES: usize = 2;
/// How long the VM has to clean up after a failure.
const ABORT_LIMIT: Duration = Duration::from_secs(10);
/// The mode of pieces on their way.
const PRIVATE: u32 = 0o600;

/// Whether a file of this size, going there, is sent in pieces.
pub(crate) fn is_worth_it(copy: &CopyIn, size: u64) -> bool {
    size > MAX_CHUNK && copy.path.starts_with(b"/") | copy.path.starts_with(b"~")
}

impl Client {
    /// Copies a file in pieces. `None` when the VM's agent can't put them together.
    pub(crate) async fn copy_in_pieces(
        &self,
        hostname: &str,
        from: &Path,
        size: u64,
        copy: &CopyIn,
        progress: &Progress,
    ) -> Result<Option<()>, CopyError> {
        let Ok(destination) = std::str::from_utf8(&copy.path) else {
            return Ok(None);
        };
        let check = self.agent(hostname, &["upload", "check"]).await?;
        if check.exit_code != 0 || !check.stdout.contains(CHUNKED_COPY) {
            return Ok(None);
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| local("copy", from)(io::Error::other(e)))?;
        let Ok(session) = UploadSession::beside(destination, id) else {
            return Ok(None);
        };
        let sent = self.send_pieces(hostname, from, size, copy, &session, progress);
        let done = match sent.await {
            Ok(chunks) => {
                let manifest = UploadManifest::new(copy, destination, size, chunks);
                self.finalise(hostname, copy, &session, &manifest).await
            }
            Err(e) => Err(e),
        };
        if done.is_err() {
            // What failed is what is told.
            let abort = self.upload(hostname, "abort", copy, &session);
            let _ = tokio::time::timeout(ABORT_LIMIT, abort).await;
        }
        done.map(Some)
    }

    async fn send_pieces(
        &self,
        hostname: &str,
        from: &Path,
        size: u64,
        copy: &CopyIn,
        session: &UploadSession,
        progress: &Progress,
    ) -> Result<Vec<UploadChunk>, CopyError> {
        let sent = Arc::new(AtomicU64::new(0));
        let report = move |bytes: u64| {
            let before = sent.fetch_add(bytes, Ordering::Relaxed);
            progress(before + bytes, Some(size));
        };
        let pieces = (0..size.div_ceil(MAX_CHUNK)).map(|n| {
            let (start, report) = (n * MAX_CHUNK, &report);
            let length = MAX_CHUNK.min(size - start);
            async move {
                let index = usize::try_from(n).unwrap_or(usize::MAX);
                let to = CopyIn {
                    uid: copy.uid,
                    gid: copy.gid,
                    permissions: Some(PRIVATE),
                    ..CopyIn::new(CopyMode::Binary, session.chunk(index))
                };
                let sum = self.send_piece(hostname, from, start, length, &to, report);
                Ok::<_, CopyError>(UploadChunk {
                    index,
                    size: length,
                    sha256: sum.await?,
                })
            }
        });
        futures_util::stream::iter(pieces)
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Sends a part of a file and gives back its SHA-256 in hex.
    async fn send_piece(
        &self,
        hostname: &str,
        from: &Path,
        start: u64,
        length: u64,
        to: &CopyIn,
        report: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<String, CopyError> {
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let body = futures_util::stream::unfold(receiver, |mut receiver| async {
            let piece = receiver.recv().await?;
            Some((piece.map(Frame::data), receiver))
        });
        let sending = self.put(
            hostname,
            to,
            length,
            RequestBody::new(StreamBody::new(body)),
        );
        let feeding = async {
            let path = from.to_owned();
            let mut state = blocking(move || {
                let mut file = File::open(&path).map_err(local("open", &path))?;
                file.seek(SeekFrom::Start(start))
                    .map_err(local("read", &path))?;
                Ok((file.take(length), Sha256::new()))
            })
            .await?;
            let mut left = length;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let path = from.to_owned();
                let (back, piece) = blocking(move || {
                    let (mut file, mut sum) = state;
                    let mut buffer = vec![0; most];
                    file.read_exact(&mut buffer).map_err(local("read", &path))?;
                    sum.update(&buffer);
                    Ok(((file, sum), Bytes::from(buffer)))
                })
                .await?;
                state = back;
                left -= piece.len() as u64;
                report(piece.len() as u64);
                if sender.send(Ok(piece)).await.is_err() {
                    // Whoever takes no more says why.
                    break;
                }
            }
            drop(sender);
            let mut hex = String::with_capacity(64);
            for byte in state.1.finalize() {
                // A string takes whatever is written.
                let _ = write!(hex, "{byte:02x}");
            }
            Ok::<_, CopyError>(hex)
        };
        let sending = async { sending.await.map_err(CopyError::from) };
        let (hex, ()) = tokio::try_join!(feeding, sending)?;
        Ok(hex)
    }

    /// `POST /vm/{h}/cp` of a body whose length is known.
    async fn put(
        &self,
        hostname: &str,
        to: &CopyIn,
        length: u64,
        body: RequestBody,
    ) -> Result<(), ClientError> {
        let path = vm_path(hostname, "/cp");
        let mut call = Call::post(&path).query(to.to_query());
        call.headers.extend([
            (CONTENT_TYPE, HeaderValue::from_static(OCTETS)),
            (CONTENT_LENGTH, length.into()),
        ]);
        let (response, _connection) = self.send(&call, body).await?;
        // The answer says nothing, and comes when all is in place.
        let _ = response.into_body().collect().await;
        Ok(())
    }

    async fn finalise(
        &self,
        hostname: &str,
        copy: &CopyIn,
        session: &UploadSession,
        manifest: &UploadManifest,
    ) -> Result<(), CopyError> {
        let to = CopyIn {
            uid: copy.uid,
            gid: copy.gid,
            permissions: Some(PRIVATE),
            ..CopyIn::new(CopyMode::Binary, session.manifest())
        };
        let text = serde_json::to_vec(manifest).map_err(|source| ClientError::Decode {
            request: "the upload's manifest".to_owned(),
            source,
        })?;
        let length = text.len() as u64;
        let body = RequestBody::new(Full::new(Bytes::from(text)).map_err(|never| match never {}));
        self.put(hostname, &to, length, body).await?;
        self.upload(hostname, "finalise", copy, session).await
    }

    async fn upload(
        &self,
        hostname: &str,
        action: &str,
        copy: &CopyIn,
        session: &UploadSession,
    ) -> Result<(), CopyError> {
        let (manifest, uid, gid) = (
            session.manifest(),
            copy.uid.to_string(),
            copy.gid.to_string(),
        );
        let args = [
            "upload",
            action,
            "--manifest",
            &manifest,
            "--uid",
            &uid,
            "--gid",
            &gid,
        ];
        let done = self.agent(hostname, &args).await?;
        if done.exit_code == 0 {
            return Ok(());
        }
        let said = done.stderr.lines().next().unwrap_or_default();
        let message = match (said, &done.error) {
            ("", Some(e)) => e.clone(),
            (said, _) => said.to_owned(),
        };
        Err(CopyError::Vm(message))
    }

    /// Runs the agent's command in the VM, as root.
    async fn agent(&self, hostname: &str, args: &[&str]) -> Result<ExecBuffered, ClientError> {
        let request = ExecRequest {
            cmd: AGENT.to_owned(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            uid: 0,
            gid: 0,
            cwd: Some("/".to_owned()),
            ..ExecRequest::default()
        };
        self.exec_buffered(hostname, &request).await
    }
}
