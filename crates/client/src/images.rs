//! The images a daemon keeps.

use crate::client::Call;
use crate::{Client, ClientError};
use slicer_api::Images;

impl Client {
    /// `GET /images`: the images in the daemon's cache.
    pub async fn images(&self) -> Result<Images, ClientError> {
        self.fetch(Call::get("/images")).await
    }
}
