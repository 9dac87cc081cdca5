//! Connections that are made in a guest.

use crate::client::{Call, vm_path};
use crate::{Client, ClientError};
use http::HeaderName;
use http::header::HeaderValue;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use slicer_api::{ForwardTarget, UPSTREAM_HEADER};

impl Client {
    /// `GET /vm/{h}/forward`: connects to `target` in the guest. Each direction ends by itself.
    pub async fn forward(
        &self,
        hostname: &str,
        target: &ForwardTarget,
    ) -> Result<TokioIo<Upgraded>, ClientError> {
        let path = vm_path(hostname, "/forward");
        let call = Call::get(&path);
        let value = HeaderValue::from_str(&target.to_string());
        let value = value.map_err(|e| ClientError::Request {
            request: call.what(),
            source: e.into(),
        })?;
        let headers = [(HeaderName::from_static(UPSTREAM_HEADER), value)];
        let (_, io) = self.upgrade(call, "tcp", headers).await?;
        Ok(io)
    }
}
