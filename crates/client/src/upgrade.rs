//! Calls after which a connection speaks something other than HTTP.

use crate::client::Call;
use crate::conn::empty_body;
use crate::{Client, ClientError};
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::time::Duration;

/// The guest has 8 s to connect to what it is asked for.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);

impl Client {
    /// Has the connection of this call change to `protocol`. Gives back the answer's headers, too.
    pub(crate) async fn upgrade(
        &self,
        mut call: Call<'_>,
        protocol: &'static str,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    ) -> Result<(HeaderMap, TokioIo<Upgraded>), ClientError> {
        call.headers.extend([
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static(protocol)),
        ]);
        call.headers.extend(headers);
        let handshake = async {
            let (mut response, _connection) = self.send(&call, empty_body()).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(ClientError::NotUpgraded {
                    request: call.what(),
                });
            }
            let upgraded = hyper::upgrade::on(&mut response).await;
            let upgraded = upgraded.map_err(|source| ClientError::Transport {
                request: call.what(),
                source,
            })?;
            Ok((response.headers().clone(), TokioIo::new(upgraded)))
        };
        let done = tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await;
        done.unwrap_or_else(|_| {
            Err(ClientError::Timeout {
                request: call.what(),
                limit: HANDSHAKE_LIMIT,
            })
        })
    }
}
