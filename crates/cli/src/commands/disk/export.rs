//! `slicer disk export`.

use crate::connection::Connection;
use crate::error::{CliError, TERMINATED};
use crate::output;
use bytes::Bytes;
use clap::Args;
use indicatif::{HumanBytes, ProgressBar};
use serde_json::json;
use slicer_api::DiskFormat;
use slicer_client::DiskStream;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// What is left as a hole when it is all zeros, bytes.
const BLOCK: usize = 4096;
/// Pieces that wait to be written.
const AHEAD: usize = 4;

/// Write a VM's whole disk to a file of its own
///
/// The VM has to be off; of one that is paused it is the disk as after a power cut. The file needs
/// no other one: what the disk reads from its image or a commit is in it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer disk export slicer-1 --output slicer-1.qcow2
  slicer disk export slicer-1 --format raw --output slicer-1.img
  slicer disk export slicer-1 --output - | ssh host 'cat > slicer-1.qcow2'")]
pub(crate) struct Export {
    /// Hostname or friendly name
    vm: String,
    /// The file, which is replaced if it exists; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How its bytes are in the file: qcow2, or raw, with holes for what is empty
    #[arg(long, default_value_t)]
    format: DiskFormat,
    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,
}

impl Export {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let to_stdout = self.output == Path::new("-");
        if to_stdout && (io::stdout().is_terminal() || self.json) {
            let text = "the disk itself would go to standard output: name a file with --output";
            return Err(CliError::Usage(text.to_owned()));
        }
        let client = connection.client()?;
        let stream = client
            .with_vm(&self.vm, async |h| client.export_disk(h, self.format).await)
            .await?;
        let bar = output::byte_bar();
        if let Some(length) = stream.length() {
            bar.set_length(length);
        }
        if to_stdout {
            print(stream, &bar).await?;
            bar.finish_and_clear();
            return Ok(0);
        }
        let mut terminated = signal(SignalKind::terminate()).map_err(CliError::Terminal)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(CliError::Terminal)?;
        let saved = tokio::select! {
            saved = save(stream, &self.output, &bar) => saved?,
            // What is unfinished goes.
            _ = terminated.recv() => return Ok(TERMINATED),
            _ = hung_up.recv() => return Ok(TERMINATED),
        };
        bar.finish_and_clear();
        let text = if self.json {
            output::json(&json!({
                "file": self.output.display().to_string(),
                "format": self.format,
                "bytes": saved.0,
                "disk_bytes": saved.1,
            }))?
        } else {
            format!(
                "{}: {} on disk\n",
                self.output.display(),
                HumanBytes(saved.1)
            )
        };
        output::print(&text).await?;
        Ok(0)
    }
}

async fn print(mut stream: DiskStream, bar: &ProgressBar) -> Result<(), CliError> {
    let mut stdout = tokio::io::stdout();
    while let Some(piece) = stream.next_piece().await? {
        stdout.write_all(&piece).await.map_err(CliError::Output)?;
        bar.inc(piece.len() as u64);
    }
    stdout.flush().await.map_err(CliError::Output)
}

/// Saves a disk under its name, complete or not at all; gives its bytes and what they take.
async fn save(
    mut stream: DiskStream,
    path: &Path,
    bar: &ProgressBar,
) -> Result<(u64, u64), CliError> {
    let failed = |source| CliError::Write {
        path: path.to_owned(),
        source,
    };
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    // Goes with this future, whatever ends it.
    let file = NamedTempFile::with_prefix_in(".slicer-export-", dir).map_err(failed)?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let to = file.as_file().try_clone().map_err(failed)?;
    let writing = spawn_blocking(move || write(&to, receiver));
    let received = async {
        while let Some(piece) = stream.next_piece().await? {
            bar.inc(piece.len() as u64);
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok::<_, CliError>(())
    };
    received.await?;
    let bytes = writing
        .await
        .map_err(io::Error::other)
        .and_then(|written| written)
        .map_err(failed)?;
    let target = path.to_owned();
    let placed = spawn_blocking(move || {
        let taken = file.as_file().metadata()?.blocks() * 512;
        file.persist(&target).map_err(|e| e.error)?;
        Ok(taken)
    });
    let taken = placed.await.map_err(io::Error::other).and_then(|p| p);
    Ok((bytes, taken.map_err(failed)?))
}

/// Writes what comes, but for what is zeros.
fn write(file: &File, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<u64> {
    let mut at = 0;
    while let Some(piece) = pieces.blocking_recv() {
        let mut rest = &piece[..];
        while !rest.is_empty() {
            // Blocks of the file, wherever pieces begin.
            let within = usize::try_from(at % BLOCK as u64).unwrap_or_default();
            let (block, behind) = rest.split_at(rest.len().min(BLOCK - within));
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at)?;
            }
            at += block.len() as u64;
            rest = behind;
        }
    }
    file.set_len(at)?;
    file.sync_all()?;
    Ok(at)
}
