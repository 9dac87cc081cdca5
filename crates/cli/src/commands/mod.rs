//! One file a command; `vm` gathers those on VMs.

pub(crate) mod add;
pub(crate) mod bg;
pub(crate) mod commit;
pub(crate) mod completion;
pub(crate) mod cp;
pub(crate) mod delete;
pub(crate) mod disk;
pub(crate) mod docker;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod forward;
pub(crate) mod group;
pub(crate) mod health;
pub(crate) mod image;
pub(crate) mod info;
pub(crate) mod install;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod pause;
pub(crate) mod policy;
pub(crate) mod ready;
pub(crate) mod relaunch;
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod secret;
pub(crate) mod shell;
pub(crate) mod shutdown;
pub(crate) mod ssh;
pub(crate) mod suspend;
pub(crate) mod tag;
pub(crate) mod template;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod update;
pub(crate) mod version;
pub(crate) mod vm;

use crate::args::{Cli, Command};
use crate::error::CliError;
use crate::runtime::block_on;

/// Runs what the command line asks for and gives back the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8, CliError> {
    let connection = &cli.connection;
    match cli.command {
        Command::Version(c) => c.run(),
        Command::Completion(c) => c.run(),
        Command::Up(c) => c.run(),
        Command::Vm(c) => block_on(c.run(connection)),
        Command::Ls(c) => block_on(c.run(connection)),
        Command::Cp(c) => block_on(c.run(connection)),
        Command::Exec(c) => block_on(c.run(connection)),
        Command::Bg(c) => block_on(c.run(connection)),
        Command::Shell(c) => block_on(c.run(connection)),
        Command::Forward(c) => block_on(c.run(connection)),
        Command::Logs(c) => block_on(c.run(connection)),
        Command::Relaunch(c) => block_on(c.run(connection)),
        Command::SshConfig(c) => block_on(c.run(connection)),
        Command::SshProxy(c) => block_on(c.run(connection)),
        Command::Docker(c) => block_on(c.run(connection)),
        Command::Disk(c) => block_on(c.run(connection)),
        Command::Template(c) => block_on(c.run(connection)),
        Command::Image(c) => block_on(c.run(connection)),
        Command::Secret(c) => block_on(c.run(connection)),
        Command::Install(c) => block_on(c.run()),
        Command::Update(c) => block_on(c.run()),
        Command::Info(c) => block_on(c.run(connection)),
    }
}
