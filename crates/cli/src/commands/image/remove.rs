//! `slicer image remove` and `slicer image wipe`.

use super::list::size;
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::RemovedImages;

/// Remove images from the daemon's cache
///
/// What other images have, and the base disks that VMs or commits read from, stay.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Name of an image, its digest or the beginning of that
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove even an image that a host group is made of: it is fetched again when needed
    #[arg(long, short)]
    force: bool,
    /// Print the daemon's answers as JSON
    #[arg(long)]
    json: bool,
}

/// Remove all images that no host group is made of, and what pulls left unfinished
#[derive(Debug, Args)]
pub(crate) struct Wipe {
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Remove {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let mut all = RemovedImages::default();
        let mut failed = None;
        for image in &self.images {
            match client.remove_image(image, self.force).await {
                Ok(gone) => {
                    all.removed.extend(gone.removed);
                    all.freed_bytes += gone.freed_bytes;
                    all.kept.extend(gone.kept);
                }
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        // What is gone is told even if the next one can't go.
        if failed.is_none() || !all.removed.is_empty() {
            tell(&all, self.json).await?;
        }
        failed.map_or(Ok(0), |e| Err(e.into()))
    }
}

impl Wipe {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let gone = connection.client()?.wipe_images().await?;
        tell(&gone, self.json).await?;
        Ok(0)
    }
}

async fn tell(gone: &RemovedImages, json: bool) -> Result<(), CliError> {
    let text = if json {
        output::json(gone)?
    } else {
        text(gone)
    };
    output::print(&text).await
}

fn text(gone: &RemovedImages) -> String {
    let removed = gone.removed.iter();
    let removed = removed.map(|name| format!("Image removed: {}\n", output::one_line(name)));
    let kept = gone.kept.iter().map(|kept| {
        let (name, reason) = (output::one_line(&kept.name), output::one_line(&kept.reason));
        format!("Kept: {name}: {reason}\n")
    });
    let freed = format!("Freed: {}\n", size(gone.freed_bytes));
    removed.chain(kept).chain([freed]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use slicer_api::KeptImage;

    #[test]
    fn what_went_and_what_stays_is_told() {
        let gone = RemovedImages {
            removed: vec!["a:1".into()],
            freed_bytes: 3 << 20,
            kept: vec![KeptImage {
                name: "b:1".into(),
                reason: "it is being pulled".into(),
            }],
        };
        assert_eq!(
            text(&gone),
            "Image removed: a:1\nKept: b:1: it is being pulled\nFreed: 3.00 MiB\n"
        );
    }
}
