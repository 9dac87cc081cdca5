//! Tags.

use crate::client::{Call, vm_path};
use crate::{Client, ClientError};
use hyper::Method;
use slicer_api::{Tags, TagsChange};

impl Client {
    /// `GET /vm/{h}/tags`.
    pub async fn tags(&self, hostname: &str) -> Result<Tags, ClientError> {
        self.fetch(Call::new(Method::GET, &vm_path(hostname, "/tags")))
            .await
    }

    /// `PATCH /vm/{h}/tags`: changes a VM's tags; gives all it has then.
    pub async fn change_tags(
        &self,
        hostname: &str,
        change: &TagsChange,
    ) -> Result<Tags, ClientError> {
        let path = vm_path(hostname, "/tags");
        self.fetch(Call::new(Method::PATCH, &path).json(change)?)
            .await
    }
}
