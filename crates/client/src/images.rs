//! The images a daemon keeps.

use crate::client::Call;
use crate::conn::{Connection, RequestBody, empty_body};
use crate::lines::{LineDecoder, LineTooLong};
use crate::{Client, ClientError, MAX_LINE, Stdin};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::Method;
use hyper::body::Incoming;
use slicer_api::{Images, ImportedImage, PullFrame, PullImage, RemovedImages};
use std::time::Duration;
use tokio_util::io::ReaderStream;

/// How long a removal may take: it waits for launches that are reading images.
const REMOVE_LIMIT: Duration = Duration::from_mins(2);
/// What of an archive is sent at a time, bytes.
const CHUNK: usize = 1 << 20;

impl Client {
    /// `GET /images`: the images in the daemon's cache.
    pub async fn images(&self) -> Result<Images, ClientError> {
        self.fetch(Call::get("/images")).await
    }

    /// `POST /images/pull`: fetches what an image's name leads to now. Unbounded in time: dropping
    /// the stream ends the pull, unless others wait for the same.
    pub async fn pull_image(&self, request: &PullImage) -> Result<PullStream, ClientError> {
        let call = Call::post("/images/pull").json(request)?;
        let body = call.json.clone().map_or_else(empty_body, |json: Bytes| {
            RequestBody::new(Full::new(json).map_err(|never| match never {}))
        });
        let (response, connection) = self.send(&call, body).await?;
        Ok(PullStream {
            what: call.what(),
            lines: LineDecoder::new(MAX_LINE),
            body: response.into_body(),
            _connection: connection,
        })
    }

    /// `POST /images/import`: sends an archive of an image, which is kept under `name`, or else
    /// under the one it bears. Unbounded in time.
    pub async fn import_image(
        &self,
        archive: Stdin,
        name: Option<&str>,
    ) -> Result<ImportedImage, ClientError> {
        let mut call = Call::post("/images/import");
        if let Some(name) = name {
            call.query = reference(name);
        }
        let tar = HeaderValue::from_static("application/x-tar");
        call.headers.push((CONTENT_TYPE, tar));
        let chunks = ReaderStream::with_capacity(archive, CHUNK).map_ok(Frame::data);
        let body = RequestBody::new(StreamBody::new(chunks));
        let (response, _connection) = self.send(&call, body).await?;
        let answer = crate::client::read(&call.what(), response.into_body(), MAX_LINE).await?;
        serde_json::from_slice(&answer).map_err(|source| ClientError::Decode {
            request: call.what(),
            source,
        })
    }

    /// `DELETE /images`: removes an image, by its name, its digest or the beginning of that. With
    /// `force` even one that a host group is made of.
    pub async fn remove_image(
        &self,
        image: &str,
        force: bool,
    ) -> Result<RemovedImages, ClientError> {
        let mut query = reference(image);
        if force {
            query.push_str("&force=true");
        }
        let mut call = Call::new(Method::DELETE, "/images").query(query);
        call.limit = REMOVE_LIMIT;
        self.fetch(call).await
    }

    /// `POST /images/wipe`: removes all images that nobody uses.
    pub async fn wipe_images(&self) -> Result<RemovedImages, ClientError> {
        let mut call = Call::post("/images/wipe");
        call.limit = REMOVE_LIMIT;
        self.fetch(call).await
    }
}

fn reference(name: &str) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("reference", name)
        .finish()
}

/// How a pull goes on.
#[derive(Debug)]
pub struct PullStream {
    what: String,
    lines: LineDecoder,
    body: Incoming,
    _connection: Connection,
}

impl PullStream {
    /// The next frame; none behind the last one.
    pub async fn next_frame(&mut self) -> Result<Option<PullFrame>, ClientError> {
        loop {
            let line = self
                .lines
                .next_line()
                .map_err(|LineTooLong| ClientError::TooLarge {
                    request: self.what.clone(),
                    limit: MAX_LINE,
                })?;
            if let Some(line) = line {
                return serde_json::from_slice(&line).map(Some).map_err(|source| {
                    ClientError::Decode {
                        request: self.what.clone(),
                        source,
                    }
                });
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.lines.push(data);
                    }
                }
                Some(Err(source)) => {
                    return Err(ClientError::BrokenOff {
                        request: self.what.clone(),
                        source,
                    });
                }
                None => return Ok(None),
            }
        }
    }
}
