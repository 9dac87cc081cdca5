//! `slicer image push`.

use crate::error::CliError;
use crate::{output, transfer};
use clap::Args;
use indicatif::HumanBytes;
use slicer_image::{ImageRef, LayoutDir};
use slicer_registry::push;
use std::path::Path;

/// Publish an image of an OCI layout in a registry; asks no daemon
///
/// An index goes with the images of all its architectures. What the registry has already is not
/// sent. Credentials are those of `docker login`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The layout: oci:PATH[:TAG], or its directory
    source: String,
    /// The name it is to have, such as registry.example.com/me/dev:1
    #[arg(value_name = "REF")]
    reference: String,
    /// Speak plain HTTP to the registry
    #[arg(long)]
    insecure: bool,
    /// Print what was pushed as JSON
    #[arg(long)]
    json: bool,
}

impl Push {
    pub(crate) async fn run(self) -> Result<u8, CliError> {
        let (layout, tag) = layout(&self.source)?;
        let (bar, watcher) = transfer::bar();
        let done = push(
            &layout,
            tag.as_deref(),
            &self.reference,
            self.insecure,
            watcher,
        )
        .await;
        bar.finish_and_clear();
        let pushed = done?;
        let text = if self.json {
            output::json(&serde_json::json!({
                "reference": pushed.reference,
                "digest": pushed.digest,
                "manifests": pushed.manifests,
                "blobs_pushed": pushed.sent,
                "bytes_pushed": pushed.sent_bytes,
                "blobs_present": pushed.there,
            }))?
        } else {
            format!(
                "Pushed {}\nDigest: {}\nBlobs: {} pushed ({}), {} were there\n",
                pushed.reference,
                pushed.digest,
                pushed.sent,
                HumanBytes(pushed.sent_bytes),
                pushed.there
            )
        };
        output::print(&text).await?;
        Ok(0)
    }
}

/// The layout a source names.
fn layout(source: &str) -> Result<(LayoutDir, Option<String>), CliError> {
    if Path::new(source).is_dir() {
        return Ok((LayoutDir::new(source), None));
    }
    match ImageRef::parse(source).map_err(|e| CliError::Usage(e.to_string()))? {
        ImageRef::OciLayout { path, tag } => Ok((LayoutDir::new(path), tag)),
        _ => Err(CliError::Usage(format!(
            "{source} is no OCI layout: name one as oci:PATH[:TAG], or its directory"
        ))),
    }
}
