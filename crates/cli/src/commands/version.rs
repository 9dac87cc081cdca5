//! `slicer version`.

use crate::error::CliError;
use crate::output;
use clap::Args;

/// The CLI's own version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Show the version of this command; asks no daemon
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Version {
    pub(crate) fn run(self) -> Result<u8, CliError> {
        let text = if self.json {
            output::json(&serde_json::json!({ "version": VERSION }))?
        } else {
            format!("slicer {VERSION}\n")
        };
        output::print_now(text.as_bytes())?;
        Ok(0)
    }
}
