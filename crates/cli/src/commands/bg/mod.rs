//! `slicer vm bg`.

mod exec;
mod logs;
mod manage;

use crate::connection::Connection;
use crate::error::CliError;
use clap::{Args, Subcommand};

/// Run commands in the background of a VM
///
/// They go on without this command, and are known by an id. What they wrote last stays in the VM's
/// memory until they are removed.
#[derive(Debug, Subcommand)]
pub(crate) enum Bg {
    Exec(exec::Exec),
    List(manage::List),
    Info(manage::Info),
    Logs(logs::Logs),
    Wait(manage::Wait),
    Kill(manage::Kill),
    Remove(manage::Remove),
}

/// Which background command.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Hostname or friendly name
    vm: String,
    /// The command's id, such as ex_0123456789abcdef
    #[arg(value_name = "ID")]
    id: String,
}

impl Bg {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        match self {
            Self::Exec(c) => c.run(connection).await,
            Self::List(c) => c.run(connection).await,
            Self::Info(c) => c.run(connection).await,
            Self::Logs(c) => c.run(connection).await,
            Self::Wait(c) => c.run(connection).await,
            Self::Kill(c) => c.run(connection).await,
            Self::Remove(c) => c.run(connection).await,
        }
    }
}
