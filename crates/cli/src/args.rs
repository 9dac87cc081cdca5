//! The command line as a whole. Each command's own flags are in its file.

use crate::commands::{
    bg::Bg, completion::Completion, cp::Cp, disk::Disk, docker::Docker, exec::Exec,
    forward::Forward, image::Image, info::Info, install::Install, list::List, logs::Logs,
    relaunch::Relaunch, secret::Secret, shell::Shell, ssh::SshConfig, ssh::SshProxy,
    template::Template, up::Up, update::Update, version::Version, vm::Vm,
};
use crate::connection::Connection;
use clap::{Parser, Subcommand};

/// Linux VMs for developers: a persistent one, and sandboxes to throw away.
#[derive(Debug, Parser)]
#[command(name = "slicer", version, propagate_version = false)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(subcommand, visible_alias = "v")]
    Vm(Vm),
    #[command(visible_alias = "list")]
    Ls(List),
    Exec(Exec),
    Cp(Cp),
    #[command(subcommand)]
    Bg(Bg),
    Shell(Shell),
    Forward(Forward),
    Logs(Logs),
    Relaunch(Relaunch),
    #[command(subcommand)]
    Secret(Secret),
    SshConfig(SshConfig),
    SshProxy(SshProxy),
    #[command(subcommand)]
    Docker(Docker),
    #[command(subcommand)]
    Image(Image),
    #[command(subcommand)]
    Disk(Disk),
    #[command(subcommand)]
    Template(Template),
    Install(Install),
    Update(Update),
    Info(Info),
    Version(Version),
    Completion(Completion),
    Up(Up),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_daemon_may_be_named_anywhere() {
        for line in [
            "slicer --url /s --token-file t vm list",
            "slicer vm --url /s --token-file t list",
            "slicer vm list --url /s --token-file t",
            "slicer v l --api /s --token-file t",
            "slicer ls --api=/s --token-file=t",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.connection.url.as_deref(), Some("/s"), "{line}");
            assert_eq!(cli.connection.token_file.as_deref(), Some("t"), "{line}");
        }
    }
}
