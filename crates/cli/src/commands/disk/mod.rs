//! `slicer disk`.

mod export;
mod list;
mod sparsify;

use crate::connection::Connection;
use crate::error::CliError;
use clap::Subcommand;

/// See to the disks of VMs
#[derive(Debug, Subcommand)]
pub(crate) enum Disk {
    #[command(visible_alias = "ls")]
    List(list::List),
    Export(export::Export),
    Sparsify(sparsify::Sparsify),
}

impl Disk {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        match self {
            Self::List(c) => c.run(connection).await,
            Self::Export(c) => c.run(connection).await,
            Self::Sparsify(c) => c.run(connection).await,
        }
    }
}
