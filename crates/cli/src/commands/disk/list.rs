//! `slicer disk list`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::Args;
use indicatif::HumanBytes;
use slicer_api::{Disk, DiskOwner, Disks};

/// List the disks of VMs and commits, and the bases they were made of
///
/// SIZE is the disk as the VM sees it, ON DISK what its file takes on this host. Where the file
/// system shares blocks between copies, what a disk shares with others counts for each of them.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let disks = connection.client()?.disks().await?;
        let text = if self.json {
            output::json(&disks)?
        } else {
            table(&disks)
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn table(all: &Disks) -> String {
    let columns = [
        "NAME",
        "KIND",
        "STATUS",
        "FORMAT",
        "SIZE",
        "ON DISK",
        "READS FROM",
    ];
    let mut table = Table::new(columns.map(|name| (name, 0)), 2);
    for disk in &all.disks {
        let status = disk.status.map(|s| s.to_string());
        table.row([
            short(&disk.name).to_owned(),
            kind(disk.kind).to_owned(),
            status.unwrap_or_else(|| "-".to_owned()),
            disk.format.to_string(),
            HumanBytes(disk.size_bytes).to_string(),
            HumanBytes(disk.disk_bytes).to_string(),
            below(all, disk),
        ]);
    }
    let total = HumanBytes(all.disk_bytes);
    format!("{}\nOn disk: {total}\n", table.render())
}

fn kind(kind: DiskOwner) -> &'static str {
    match kind {
        DiskOwner::Vm => "vm",
        DiskOwner::Commit => "commit",
        DiskOwner::Template => "template",
        DiskOwner::Base => "base",
    }
}

/// The name of the disk that another one lies over, or else its path.
fn below(all: &Disks, disk: &Disk) -> String {
    let Some(path) = &disk.backing_file else {
        return "-".to_owned();
    };
    let found = all.disks.iter().find(|other| other.path == *path);
    found
        .map_or(path.as_str(), |other| short(&other.name))
        .to_owned()
}

/// Of a digest, enough to tell it from others.
fn short(name: &str) -> &str {
    match name.strip_prefix("sha256:") {
        Some(hex) => hex.get(..12).unwrap_or(hex),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slicer_api::{DiskFormat, NodeStatus};

    #[test]
    fn the_table() {
        let base = Disk {
            name: format!("sha256:0123456789ab{}", "0".repeat(52)),
            kind: DiskOwner::Base,
            path: "/s/.slicer/bases/b.img".into(),
            format: DiskFormat::Raw,
            size_bytes: 15 << 30,
            disk_bytes: 300 << 20,
            backing_file: None,
            status: None,
        };
        let vm = Disk {
            name: "sbox-1".into(),
            kind: DiskOwner::Vm,
            path: "/s/sbox-1.img".into(),
            format: DiskFormat::Qcow2,
            disk_bytes: 1 << 20,
            backing_file: Some(base.path.clone()),
            status: Some(NodeStatus::Running),
            ..base.clone()
        };
        let all = Disks {
            disks: vec![vm, base],
            disk_bytes: 301 << 20,
        };
        assert_eq!(
            table(&all),
            "\
NAME          KIND  STATUS   FORMAT  SIZE       ON DISK     READS FROM
----          ----  ------   ------  ----       -------     ----------
sbox-1        vm    Running  qcow2   15.00 GiB  1.00 MiB    0123456789ab
0123456789ab  base  -        raw     15.00 GiB  300.00 MiB  -

On disk: 301.00 MiB
"
        );
    }
}
