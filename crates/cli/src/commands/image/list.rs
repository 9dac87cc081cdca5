//! `slicer image list`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::Args;
use indicatif::HumanBytes;
use slicer_api::{Image, Images};

/// List the images in the daemon's cache
///
/// SIZE is what is transferred of an image. ON DISK is what it takes here, with the base disks that
/// were made from it; what several images have is in each one's number, and once in the total.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let images = connection.client()?.images().await?;
        let text = if self.json {
            output::json(&images)?
        } else {
            table(&images)
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn table(all: &Images) -> String {
    let columns = [
        "NAME", "DIGEST", "ARCH", "SIZE", "ON DISK", "USED BY", "PULLED",
    ];
    let mut table = Table::new(columns.map(|name| (name, 0)), 2);
    for image in &all.images {
        table.row([
            image.name.clone(),
            short(&image.digest).to_owned(),
            image.arch.clone(),
            size(image.size_bytes),
            size(image.disk_bytes),
            users(image),
            image.pulled_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        ]);
    }
    let total = format!("\nOn disk: {}\n", size(all.disk_bytes));
    let other = if all.other_bytes > 0 {
        let bytes = size(all.other_bytes);
        format!("Of no image: {bytes}, which `slicer image wipe` removes\n")
    } else {
        String::new()
    };
    table.render() + &total + &other
}

/// The first digits of a digest, which are enough to name an image by.
pub(super) fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Who uses an image: groups by their names, VMs and commits likewise.
fn users(image: &Image) -> String {
    let groups = image.host_groups.iter().map(|g| format!("group {g}"));
    let vms = image.vms.iter().cloned();
    groups
        .chain(vms)
        .chain(image.commits.iter().cloned())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let image = Image {
            name: "ghcr.io/me/dev:1".into(),
            digest: format!("sha256:0123456789ab{}", "0".repeat(52)),
            arch: "amd64".into(),
            size_bytes: 60 << 20,
            disk_bytes: 300 << 20,
            reclaimable_bytes: 0,
            host_groups: vec!["sbox".into()],
            vms: vec!["sbox-1".into()],
            commits: Vec::new(),
            created_at: None,
            pulled_at: "2026-01-02T03:04:05.6Z".parse().unwrap(),
        };
        let all = Images {
            images: vec![image],
            disk_bytes: 300 << 20,
            other_bytes: 1 << 20,
        };
        assert_eq!(
            table(&all),
            "\
NAME              DIGEST        ARCH   SIZE       ON DISK     USED BY             PULLED
----              ------        ----   ----       -------     -------             ------
ghcr.io/me/dev:1  0123456789ab  amd64  60.00 MiB  300.00 MiB  group sbox, sbox-1  2026-01-02 03:04:05

On disk: 300.00 MiB
Of no image: 1.00 MiB, which `slicer image wipe` removes
"
        );
    }
}
