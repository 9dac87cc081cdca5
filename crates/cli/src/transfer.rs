//! What a registry has to do with a command: naming it, and showing how far it is.

use crate::error::CliError;
use crate::output;
use clap::Args;
use indicatif::ProgressBar;
use slicer_image::{ImageRef, LayoutDir};
use slicer_registry::{Origin, Progress, Watcher};
use std::sync::Arc;

/// Where the programs come from when nobody says; whoever publishes builds names it in
/// `SLICER_BUNDLE` while building.
const BUNDLE: Option<&str> = option_env!("SLICER_BUNDLE");

/// Where to get slicer's own programs.
#[derive(Debug, Args)]
pub(crate) struct From {
    /// The bundle: a name in a registry, or oci:PATH[:TAG], a layout on this host
    #[arg(long, value_name = "REF", env = "SLICER_BUNDLE")]
    image: Option<String>,
    /// Speak plain HTTP to the registry
    #[arg(long)]
    insecure: bool,
}

impl From {
    pub(crate) fn origin(&self) -> Result<Origin, CliError> {
        let named = self.image.as_deref().filter(|name| !name.is_empty());
        let built_in = BUNDLE.filter(|name| !name.is_empty());
        let name = named.or(built_in).ok_or_else(|| {
            let why =
                "this build knows no registry to fetch from: name the bundle with --image REF";
            CliError::Usage(why.to_owned())
        })?;
        match ImageRef::parse(name).map_err(|e| CliError::Usage(e.to_string()))? {
            ImageRef::Registry(reference) => Ok(Origin::Registry {
                reference,
                insecure: self.insecure,
            }),
            ImageRef::OciLayout { path, tag } => Ok(Origin::Layout {
                dir: LayoutDir::new(path),
                tag,
            }),
            _ => Err(CliError::Usage(format!(
                "{name}: archives have to be unpacked first"
            ))),
        }
    }
}

/// The platform this command was built for, by Go's names.
pub(crate) fn platform() -> (&'static str, &'static str) {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    };
    (os, slicer_api::go_arch(std::env::consts::ARCH))
}

/// A bar on a terminal, and who tells it. Elsewhere only what fails and is tried again is told.
pub(crate) fn bar() -> (ProgressBar, Watcher) {
    let bar = output::byte_bar();
    let shown = bar.clone();
    let watcher = move |progress: Progress| match progress {
        Progress::Begun { bytes, .. } => {
            shown.set_position(0);
            shown.set_length(bytes);
        }
        Progress::Received(bytes) => shown.inc(bytes),
        Progress::Retrying { why } => {
            shown.suspend(|| output::note(&format!("trying again: {why}")));
        }
    };
    (bar, Arc::new(watcher))
}
