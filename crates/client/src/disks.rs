//! The disks a daemon keeps.

use crate::client::{Call, segment};
use crate::conn::{Connection, empty_body};
use crate::{Client, ClientError};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use slicer_api::{DiskFormat, Disks, SparsifiedDisk};
use std::time::Duration;

/// How long a guest may take to tell what it doesn't use.
const SPARSIFY_LIMIT: Duration = Duration::from_mins(6);

impl Client {
    /// `GET /disks`: the disks of VMs and commits, and the bases they were made of.
    pub async fn disks(&self) -> Result<Disks, ClientError> {
        self.fetch(Call::get("/disks")).await
    }

    /// `GET /disks/{h}/export`: the whole disk of a VM that is off or paused. Unbounded in time:
    /// dropping the stream ends it.
    pub async fn export_disk(
        &self,
        hostname: &str,
        format: DiskFormat,
    ) -> Result<DiskStream, ClientError> {
        let path = format!("/disks/{}/export", segment(hostname));
        let call = Call::new(Method::GET, &path).query(format!("format={format}"));
        let (response, connection) = self.send(&call, empty_body()).await?;
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(DiskStream {
            what: call.what(),
            length,
            body: response.into_body(),
            _connection: connection,
        })
    }

    /// `POST /disks/{h}/sparsify`: gives back to the host what a running VM's disk doesn't use.
    pub async fn sparsify_disk(&self, hostname: &str) -> Result<SparsifiedDisk, ClientError> {
        let path = format!("/disks/{}/sparsify", segment(hostname));
        let mut call = Call::post(&path);
        call.limit = SPARSIFY_LIMIT;
        self.fetch(call).await
    }

    /// `POST /disks/{h}/reset`: removes the disk of a VM that is off; its next start makes a fresh
    /// one.
    pub async fn reset_disk(&self, hostname: &str) -> Result<(), ClientError> {
        let path = format!("/disks/{}/reset", segment(hostname));
        self.call(Call::post(&path)).await.map(drop)
    }
}

/// A disk that is on its way.
#[derive(Debug)]
pub struct DiskStream {
    what: String,
    length: Option<u64>,
    body: Incoming,
    _connection: Connection,
}

impl DiskStream {
    /// How many bytes there are in all, if that is told.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; none behind the last. A disk that is cut short is an error.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
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
