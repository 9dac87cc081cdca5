//! The watch on a VM's files.

use crate::client::{Call, vm_path};
use crate::conn::{Connection, empty_body};
use crate::exec::MAX_LINE;
use crate::lines::{LineDecoder, LineTooLong};
use crate::{Client, ClientError};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use slicer_api::{WatchEvent, WatchRequest};

impl Client {
    /// `GET /vm/{h}/fs/watch`: changes of files as they happen. What changes after this has
    /// returned is told. Dropping the stream ends the watch.
    pub async fn watch_files(
        &self,
        hostname: &str,
        request: &WatchRequest,
    ) -> Result<WatchStream, ClientError> {
        let path = vm_path(hostname, "/fs/watch");
        let call = Call::get(&path).query(request.to_query());
        let (response, connection) = self.send(&call, empty_body()).await?;
        Ok(WatchStream {
            what: call.what(),
            lines: LineDecoder::new(MAX_LINE),
            body: response.into_body(),
            _connection: connection,
        })
    }
}

/// The events of a watch.
#[derive(Debug)]
pub struct WatchStream {
    what: String,
    lines: LineDecoder,
    body: Incoming,
    _connection: Connection,
}

impl WatchStream {
    /// The next event; none when the watch is over, because it has told all it was asked for or
    /// nothing is left to watch.
    pub async fn next_event(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        loop {
            let line = self
                .lines
                .next_line()
                .map_err(|LineTooLong| ClientError::TooLarge {
                    request: self.what.clone(),
                    limit: MAX_LINE,
                })?;
            if let Some(line) = line {
                // An event's other lines say nothing that its data doesn't.
                let Some(data) = line.strip_prefix(b"data:") else {
                    continue;
                };
                return serde_json::from_slice(data).map(Some).map_err(|source| {
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
