//! `slicer update`.

use super::version::VERSION;
use crate::error::CliError;
use crate::transfer::{self, From, platform};
use crate::{bundle, output};
use clap::Args;
use semver::Version;
use slicer_registry::{Bundle, BundleError};
use std::cmp::Ordering;
use std::path::Path;

/// The file of the bundle that is this command.
const SELF: &str = "slicer";

/// Replace this command with its newest version
///
/// It is fetched beside this one, checked against its digest, and put in its place in one step. Where
/// that takes other rights, run it with sudo. The daemon is updated by `slicer install slicer-mac`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    from: From,
    /// Only tell whether there is a newer one
    #[arg(long)]
    check: bool,
    /// Take what there is even if it isn't newer
    #[arg(long)]
    force: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Update {
    pub(crate) async fn run(self) -> Result<u8, CliError> {
        let (os, arch) = platform();
        let exe = std::env::current_exe().and_then(std::fs::canonicalize);
        let exe = exe.map_err(|source| CliError::File {
            action: "find",
            path: SELF.into(),
            source,
        })?;
        let (bar, watcher) = transfer::bar();
        let done = self.update(os, arch, &exe, watcher).await;
        bar.finish_and_clear();
        let (newest, order, updated) = done?;
        let text = if self.json {
            output::json(&serde_json::json!({
                "current": VERSION,
                "newest": newest,
                "available": order == Ordering::Greater,
                "updated": updated,
                "path": exe,
            }))?
        } else if updated {
            format!("Updated {} from {VERSION} to {newest}\n", exe.display())
        } else {
            match order {
                Ordering::Greater => {
                    format!("slicer {newest} is available, this is {VERSION}\n")
                }
                Ordering::Equal => format!("slicer {VERSION} is the newest version\n"),
                Ordering::Less => format!(
                    "slicer {VERSION} is newer than {newest}, which is there; --force takes that\n"
                ),
            }
        };
        output::print(&text).await?;
        Ok(0)
    }

    /// The version there is, how it compares to this one, and whether it was taken.
    async fn update(
        &self,
        os: &str,
        arch: &str,
        exe: &Path,
        watcher: slicer_registry::Watcher,
    ) -> Result<(String, Ordering, bool), CliError> {
        let found = Bundle::find(&self.from.origin()?, os, arch, watcher).await?;
        let newest = found.version().to_owned();
        let no_bundle = |why: String| BundleError::NoBundle {
            reference: found.digest().to_owned(),
            why,
        };
        let parse = |text: &str| {
            Version::parse(text).map_err(|e| no_bundle(format!("its version is {text:?}: {e}")))
        };
        let order = parse(&newest)?.cmp_precedence(&parse(VERSION)?);
        if self.check || (order != Ordering::Greater && !self.force) {
            return Ok((newest, order, false));
        }
        let mut files = found.files().iter();
        let file = files.find(|f| f.path() == Path::new(SELF) && f.executable());
        let file = file.ok_or_else(|| no_bundle(format!("it has no program {SELF}")))?;
        bundle::replace(&found, file, exe).await?;
        Ok((newest, order, true))
    }
}
