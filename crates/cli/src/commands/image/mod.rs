//! `slicer image`.

mod list;
mod push;

use crate::connection::Connection;
use crate::error::CliError;
use clap::Subcommand;

/// See to the images that VMs are made of
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    #[command(visible_alias = "ls")]
    List(list::List),
    Push(push::Push),
}

impl Image {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        match self {
            Self::List(c) => c.run(connection).await,
            Self::Push(c) => c.run().await,
        }
    }
}
