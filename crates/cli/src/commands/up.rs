//! `slicer up`.

use crate::error::CliError;
use clap::Args;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

const DAEMON: &str = "slicer-mac";

/// Run the daemon in the foreground (Linux)
///
/// Hands over to `slicer-mac up`, found beside this command or on the PATH, with all arguments.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Up {
    /// What `slicer-mac up` takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Up {
    pub(crate) fn run(self) -> Result<u8, CliError> {
        if !cfg!(target_os = "linux") {
            return Err(CliError::Usage(
                "`slicer up` is for Linux: on macOS run `slicer-mac up` in ~/slicer-mac".to_owned(),
            ));
        }
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.join(DAEMON)))
            .filter(|daemon| daemon.is_file());
        let program = beside.unwrap_or_else(|| PathBuf::from(DAEMON));
        // Only returns when it failed.
        let source = Command::new(&program).arg("up").args(self.args).exec();
        Err(CliError::Start {
            program: program.display().to_string(),
            source,
        })
    }
}
