//! `slicer completion`.

use crate::args::Cli;
use crate::error::CliError;
use crate::output;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

/// Print a shell's completion script
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(slicer completion bash)
  slicer completion zsh > ~/.zfunc/_slicer
  slicer completion fish > ~/.config/fish/completions/slicer.fish")]
pub(crate) struct Completion {
    /// Which shell
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self) -> Result<u8, CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "slicer", &mut script);
        output::print_now(&script)?;
        Ok(0)
    }
}
