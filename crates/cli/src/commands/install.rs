//! `slicer install`.

use crate::error::CliError;
use crate::transfer::{self, From, platform};
use crate::{bundle, output};
use clap::Args;
use slicer_registry::Bundle;
use std::path::PathBuf;

/// What can be installed.
const TOOLS: &str = "slicer-mac";

/// Fetch slicer's daemon and what it needs
///
/// The bundle for this platform is checked against its digests and put into DIR: programs, guest
/// image, kernel, and a configuration. Run again it updates them; slicer-mac.yaml stays as it is.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// What to install: slicer-mac
    tool: String,
    /// Where to [default: ~/slicer-mac]
    dir: Option<PathBuf>,
    #[command(flatten)]
    from: From,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Install {
    pub(crate) async fn run(self) -> Result<u8, CliError> {
        if self.tool != TOOLS {
            return Err(CliError::Usage(format!(
                "there is no {:?} to install; there is: {TOOLS}",
                self.tool
            )));
        }
        let dir = match self.dir {
            Some(dir) => dir,
            None => std::env::home_dir()
                .filter(|home| !home.as_os_str().is_empty())
                .map(|home| home.join(TOOLS))
                .ok_or_else(|| {
                    CliError::Usage("there is no home directory: name one to install to".to_owned())
                })?,
        };
        let dir = std::path::absolute(&dir).map_err(|source| CliError::File {
            action: "find",
            path: dir.clone(),
            source,
        })?;
        let (os, arch) = platform();
        let (bar, watcher) = transfer::bar();
        let done = async {
            let found = Bundle::find(&self.from.origin()?, os, arch, watcher).await?;
            let placed = bundle::install(&found, &dir).await?;
            Ok::<_, CliError>((found, placed))
        };
        let done = done.await;
        bar.finish_and_clear();
        let (found, placed) = done?;
        if placed.beside.is_some() {
            output::note(&format!(
                "kept your {}; the one of this version differs, and is beside it with the ending .new",
                dir.join(bundle::CONFIG).display()
            ));
        }
        let text = if self.json {
            output::json(&serde_json::json!({
                "tool": self.tool,
                "version": found.version(),
                "platform": format!("{os}/{arch}"),
                "digest": found.digest(),
                "directory": dir,
                "written": placed.written,
                "unchanged": placed.unchanged,
                "new_config": placed.beside,
            }))?
        } else {
            format!(
                "Installed {} {} for {os}/{arch} in {dir}: {} files written, {} were there\n\
                 Start it: cd {dir} && ./slicer-mac up\n",
                self.tool,
                found.version(),
                placed.written.len(),
                placed.unchanged,
                dir = dir.display(),
            )
        };
        output::print(&text).await?;
        Ok(0)
    }
}
