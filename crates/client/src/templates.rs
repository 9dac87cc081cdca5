//! Templates.

use crate::client::{Call, segment};
use crate::{Client, ClientError};
use hyper::Method;
use slicer_api::{RemovedTemplate, Template};

impl Client {
    /// `GET /templates`: the VMs that others begin as.
    pub async fn templates(&self) -> Result<Vec<Template>, ClientError> {
        self.fetch(Call::get("/templates")).await
    }

    /// `DELETE /templates/{id}`: removes a template. VMs that began as it go on.
    pub async fn remove_template(&self, id: &str) -> Result<RemovedTemplate, ClientError> {
        let path = format!("/templates/{}", segment(id));
        self.fetch(Call::new(Method::DELETE, &path)).await
    }
}
