//! What VMs use.

use crate::client::{Call, segment};
use crate::{Client, ClientError};
use slicer_api::NodeStats;

impl Client {
    /// `GET /nodes/stats`: what each VM uses now.
    pub async fn stats(&self) -> Result<Vec<NodeStats>, ClientError> {
        self.fetch_list(Call::get("/nodes/stats")).await
    }

    /// `GET /node/{h}/stats`: what one VM uses now, as a list of one.
    pub async fn node_stats(&self, hostname: &str) -> Result<Vec<NodeStats>, ClientError> {
        let path = format!("/node/{}/stats", segment(hostname));
        self.fetch_list(Call::get(&path)).await
    }
}
