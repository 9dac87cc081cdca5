//! `slicer vm`.

use super::{
    add::Add, bg::Bg, commit::Commit, cp::Cp, delete::Delete, exec::Exec, fork::Fork,
    forward::Forward, group::Group, health::Health, list::List, logs::Logs, pause::Pause,
    ready::Ready, relaunch::Relaunch, restore::Restore, resume::Resume, shell::Shell,
    shutdown::Shutdown, suspend::Suspend, tag::Tag, top::Top,
};
use crate::connection::Connection;
use crate::error::CliError;
use clap::Subcommand;

/// Work with VMs
#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    #[command(visible_alias = "launch")]
    Add(Add),
    #[command(visible_aliases = ["ls", "l"])]
    List(List),
    Group(Group),
    Ready(Ready),
    Health(Health),
    Exec(Exec),
    Cp(Cp),
    #[command(subcommand)]
    Bg(Bg),
    Shell(Shell),
    Forward(Forward),
    Logs(Logs),
    Pause(Pause),
    Resume(Resume),
    Suspend(Suspend),
    Restore(Restore),
    Shutdown(Shutdown),
    Relaunch(Relaunch),
    Delete(Delete),
    #[command(subcommand)]
    Tag(Tag),
    Commit(Commit),
    Fork(Fork),
    Top(Top),
}

impl Vm {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        match self {
            Self::Add(c) => c.run(connection).await,
            Self::List(c) => c.run(connection).await,
            Self::Group(c) => c.run(connection).await,
            Self::Ready(c) => c.run(connection).await,
            Self::Health(c) => c.run(connection).await,
            Self::Exec(c) => c.run(connection).await,
            Self::Cp(c) => c.run(connection).await,
            Self::Bg(c) => c.run(connection).await,
            Self::Shell(c) => c.run(connection).await,
            Self::Forward(c) => c.run(connection).await,
            Self::Logs(c) => c.run(connection).await,
            Self::Pause(c) => c.run(connection).await,
            Self::Resume(c) => c.run(connection).await,
            Self::Suspend(c) => c.run(connection).await,
            Self::Restore(c) => c.run(connection).await,
            Self::Shutdown(c) => c.run(connection).await,
            Self::Relaunch(c) => c.run(connection).await,
            Self::Delete(c) => c.run(connection).await,
            Self::Tag(c) => c.run(connection).await,
            Self::Commit(c) => c.run(connection).await,
            Self::Fork(c) => c.run(connection).await,
            Self::Top(c) => c.run(connection).await,
        }
    }
}
