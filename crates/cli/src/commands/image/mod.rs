//! `slicer image`.

mod arch;
mod build;
mod import;
mod list;
mod pull;
mod push;
mod remove;

use crate::connection::Connection;
use crate::error::CliError;
use clap::Subcommand;

/// See to the images that VMs are made of
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    #[command(visible_alias = "ls")]
    List(list::List),
    Build(build::Build),
    Push(push::Push),
    Pull(pull::Pull),
    Import(import::Import),
    #[command(visible_aliases = ["rm", "delete"])]
    Remove(remove::Remove),
    Wipe(remove::Wipe),
}

impl Image {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        match self {
            Self::List(c) => c.run(connection).await,
            Self::Build(c) => c.run().await,
            Self::Push(c) => c.run().await,
            Self::Pull(c) => c.run(connection).await,
            Self::Import(c) => c.run(connection).await,
            Self::Remove(c) => c.run(connection).await,
            Self::Wipe(c) => c.run(connection).await,
        }
    }
}
