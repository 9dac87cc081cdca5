//! `slicer vm cp`.

use crate::connection::Connection;
use crate::error::{CliError, TERMINATED};
use crate::output;
use clap::{Args, ValueEnum};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use indicatif::ProgressBar;
use slicer_api::{AUTO_ID, CopyIn, CopyMode, CopyOut, Excludes};
use slicer_client::{Client, Copied, LocalFilter, Progress, Sending};
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// The file in a directory that says what of it isn't copied.
const IGNORE_FILE: &str = ".slicerignore";

/// How a copy travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A single file
    Binary,
    /// A directory
    Tar,
}

/// Copy files and directories into a VM or out of it
///
/// One side is VM:PATH, where ~ is the home directory in the VM. Copies go where cp(1) would put
/// them: into a directory that exists, else to exactly the name; DIR/. is what is in a directory.
/// Links and devices are left out. What the .slicerignore of a directory names, in the form of
/// .gitignore, isn't copied into a VM.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer vm cp notes.txt sbox-1:
  slicer vm cp ./src sbox-1:~/work
  slicer vm cp --exclude '*.log' --uid 0 ./etc/. sbox-1:/etc/app
  slicer vm cp sbox-1:/var/log/syslog .")]
pub(crate) struct Cp {
    /// What to copy: PATH or VM:PATH
    source: OsString,
    /// Where to: PATH or VM:PATH
    destination: OsString,
    /// Copy directories; that is done in any case
    #[arg(short, long)]
    recursive: bool,
    /// Insist on a file or a directory
    #[arg(long)]
    mode: Option<Mode>,
    /// Owner in the VM; the image's default user unless given
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Group in the VM; the user's own unless given
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// Mode of files, octal; the source's unless given
    #[arg(long, value_name = "MODE", value_parser = permissions)]
    permissions: Option<u32>,
    /// Leave out what matches this pattern; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Have the VM check large files that are copied into it, by SHA-256; slower
    #[arg(long)]
    verify: bool,
}

fn permissions(text: &str) -> Result<u32, String> {
    slicer_api::permissions(text).map_err(|e| e.message)
}

/// A side that is in a VM: the name before the first colon, unless that could be a path.
fn remote(side: &OsStr) -> Option<(String, Vec<u8>)> {
    let bytes = side.as_bytes();
    let colon = bytes.iter().position(|b| *b == b':')?;
    let name = std::str::from_utf8(&bytes[..colon]).ok()?;
    if name.len() < 2 || name.contains('/') {
        return None;
    }
    let path = match &bytes[colon + 1..] {
        // As scp has it.
        b"" => b"~/".to_vec(),
        path => path.to_vec(),
    };
    Some((name.to_owned(), path))
}

impl Cp {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let excludes = Excludes::new(self.exclude.iter().map(String::as_str))
            .map_err(|e| CliError::Usage(format!("--exclude: {e}")))?;
        let (bar, progress) = bar();
        let mut terminated = signal(SignalKind::terminate()).map_err(CliError::Terminal)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(CliError::Terminal)?;
        let copied = tokio::select! {
            copied = self.copy(&client, excludes, progress) => copied?,
            // What is unfinished goes with the copy.
            _ = terminated.recv() => return Ok(TERMINATED),
            _ = hung_up.recv() => return Ok(TERMINATED),
        };
        bar.finish_and_clear();
        if copied.skipped > 0 {
            output::hint(&format!(
                "{} links or special files were left out",
                copied.skipped
            ));
        }
        Ok(0)
    }

    async fn copy(
        &self,
        client: &Client,
        excludes: Excludes,
        progress: Progress,
    ) -> Result<Copied, CliError> {
        let find = async |vm: &str| {
            client
                .with_vm(vm, async |h| Ok(client.node(h).await?.node.hostname))
                .await
        };
        let copied = match (remote(&self.source), remote(&self.destination)) {
            (None, Some((vm, path))) => {
                let from = PathBuf::from(&self.source);
                self.check_mode(&from)?;
                let hostname = find(&vm).await?;
                let copy = CopyIn {
                    uid: self.uid.unwrap_or(AUTO_ID),
                    gid: self.gid.unwrap_or(AUTO_ID),
                    permissions: self.permissions,
                    ..CopyIn::new(CopyMode::V1Binary, path)
                };
                let filter = filter(&from, excludes)?;
                let sending = if self.verify {
                    Sending::Checked
                } else {
                    Sending::Streamed
                };
                client
                    .copy_in(&hostname, &from, &copy, sending, filter, progress)
                    .await
            }
            (Some((vm, path)), None) => {
                let hostname = find(&vm).await?;
                let mode = match self.mode {
                    None => CopyMode::V1Recursive,
                    Some(Mode::Binary) => CopyMode::V1Binary,
                    Some(Mode::Tar) => CopyMode::V1Tar,
                };
                let copy = CopyOut {
                    exclude: excludes,
                    ..CopyOut::new(mode, path)
                };
                let to = Path::new(&self.destination);
                client
                    .copy_out(&hostname, &copy, to, self.permissions, progress)
                    .await
            }
            _ => {
                let text = "exactly one of the two must be VM:PATH";
                return Err(CliError::Usage(text.to_owned()));
            }
        };
        Ok(copied?)
    }

    fn check_mode(&self, from: &Path) -> Result<(), CliError> {
        let is_dir = from.is_dir();
        match self.mode {
            Some(Mode::Binary) if is_dir => Err(CliError::Usage(format!(
                "{} is a directory: leave --mode binary out",
                from.display()
            ))),
            Some(Mode::Tar) if !is_dir && from.exists() => Err(CliError::Usage(format!(
                "{} is not a directory: leave --mode tar out",
                from.display()
            ))),
            _ => Ok(()),
        }
    }
}

/// What of a directory is copied: neither what was excluded nor what it wants ignored.
fn filter(from: &Path, excludes: Excludes) -> Result<LocalFilter, CliError> {
    let file = from.join(IGNORE_FILE);
    let ignored = if from.is_dir() && file.is_file() {
        let mut builder = GitignoreBuilder::new("");
        let wrong = |e: ignore::Error| CliError::Read {
            path: file.clone(),
            source: std::io::Error::other(e),
        };
        if let Some(e) = builder.add(&file) {
            return Err(wrong(e));
        }
        builder.build().map_err(wrong)?
    } else {
        Gitignore::empty()
    };
    Ok(Arc::new(move |path: &[u8], is_dir: bool| {
        let matched = ignored.matched(Path::new(OsStr::from_bytes(path)), is_dir);
        !matched.is_ignore() && !excludes.excludes(path)
    }))
}

/// A progress bar, shown on a terminal only.
fn bar() -> (ProgressBar, Progress) {
    if !std::io::stderr().is_terminal() {
        return (ProgressBar::hidden(), Arc::new(|_, _| {}));
    }
    let bar = output::byte_bar();
    let shown = bar.clone();
    let progress = move |done: u64, total: Option<u64>| {
        if let Some(total) = total {
            shown.set_length(total);
        }
        shown.set_position(done);
    };
    (bar, Arc::new(progress))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let side = |text: &str| {
            remote(OsStr::new(text)).map(|(vm, path)| (vm, String::from_utf8(path).unwrap()))
        };
        for (text, vm, path) in [
            ("sbox-1:/tmp/x", "sbox-1", "/tmp/x"),
            ("sbox-1:", "sbox-1", "~/"),
            ("web:a:b", "web", "a:b"),
            ("slicer-1:~/x", "slicer-1", "~/x"),
        ] {
            assert_eq!(side(text), Some((vm.into(), path.into())), "{text}");
        }
        for text in ["./a:b", "/a:b", "a/b:c", "plain", "c:/windows", ":x"] {
            assert_eq!(side(text), None, "{text}");
        }
    }

    #[test]
    fn ignored_files_stay_here() {
        let dir = tempfile::tempdir().unwrap();
        let text = "# comment\ntarget/\n*.log\n!keep.log\n/top\n";
        std::fs::write(dir.path().join(IGNORE_FILE), text).unwrap();
        let excludes = Excludes::new(["*.tmp"]).unwrap();
        let filter = filter(dir.path(), excludes).unwrap();
        for (path, is_dir, copied) in [
            ("target", true, false),
            ("target", false, true),
            ("a/target", true, false),
            ("a.log", false, false),
            ("a/keep.log", false, true),
            ("top", false, false),
            ("a/top", false, true),
            ("a.tmp", false, false),
            (".slicerignore", false, true),
        ] {
            assert_eq!(filter(path.as_bytes(), is_dir), copied, "{path}");
        }
    }
}
