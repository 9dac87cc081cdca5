//! A manifest or index, from the registry. By a request of our own: oci-client takes documents of
//! any length into memory.

use crate::error::PullError;
use crate::retry::Retries;
use crate::{ACCEPTED, CONNECT_TIME, Job, MAX_DOCUMENT, SILENCE, USER_AGENT};
use bytes::Bytes;
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::{Response, header};
use slicer_image::sha256;

/// As much as is read of what a registry says of an error, bytes.
const MAX_MESSAGE: usize = 4 << 10;

/// What failed: what may pass, or what won't.
enum Failed {
    Request(OciDistributionError),
    TooLong,
}

impl From<reqwest::Error> for Failed {
    fn from(e: reqwest::Error) -> Self {
        Self::Request(e.into())
    }
}

impl Job {
    /// The document that a reference leads to; if by a digest, it has that.
    pub(crate) async fn document(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<Bytes, PullError> {
        let mut retries = Retries::new(self.watcher.clone());
        let text = loop {
            match self.request(reference, auth).await {
                Ok(text) => break text,
                Err(Failed::Request(e)) => retries.again(&self.step, "its manifest", e).await?,
                Err(Failed::TooLong) => {
                    let why = format!("its manifest has more than {MAX_DOCUMENT} bytes");
                    return Err(self.step.senseless(&why));
                }
            }
        };
        let found = sha256(&text);
        match reference.digest() {
            Some(wanted) if wanted != found => {
                let why = format!("its manifest has the digest {found} instead of {wanted}");
                Err(self.step.senseless(&why))
            }
            _ => Ok(text),
        }
    }

    async fn request(&self, reference: &Reference, auth: &RegistryAuth) -> Result<Bytes, Failed> {
        let operation = RegistryOperation::Pull;
        let token = self.client.auth(reference, auth, operation).await;
        let token = token.map_err(Failed::Request)?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME)
            .read_timeout(SILENCE)
            .user_agent(USER_AGENT)
            .build()?;
        let url = format!(
            "{}://{}/v2/{}/manifests/{}",
            if self.insecure { "http" } else { "https" },
            reference.resolve_registry(),
            reference.repository(),
            reference.digest().or(reference.tag()).unwrap_or("latest"),
        );
        let mut request = http.get(&url).header(header::ACCEPT, ACCEPTED.join(", "));
        request = match (token, auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        let mut response = request.send().await?;
        let status = response.status();
        if status.is_success() {
            return body(&mut response, MAX_DOCUMENT)
                .await?
                .ok_or(Failed::TooLong);
        }
        let message = body(&mut response, MAX_MESSAGE).await.ok().flatten();
        let message = String::from_utf8_lossy(&message.unwrap_or_default())
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        Err(Failed::Request(OciDistributionError::ServerError {
            code: status.as_u16(),
            url,
            message,
        }))
    }
}

/// What a response carries, unless that is more than `most` bytes.
async fn body(response: &mut Response, most: usize) -> reqwest::Result<Option<Bytes>> {
    let mut text = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if piece.len() > most - text.len() {
            return Ok(None);
        }
        text.extend_from_slice(&piece);
    }
    Ok(Some(text.into()))
}
