//! `slicer image import`.

use super::list::short;
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_client::Stdin;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::task::{JoinHandle, spawn_blocking};

/// Take an image from a file into the daemon's cache
///
/// The file is an OCI layout in a tar archive, or what `docker save` writes; a directory is an OCI
/// layout. `image: NAME` in the configuration then needs no registry.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker save dev:latest | slicer image import -
  slicer image import dev.tar ghcr.io/me/dev:1
  slicer image import ./layout dev:1")]
pub(crate) struct Import {
    /// An archive, the directory of a layout, or - for stdin
    file: PathBuf,
    /// What it is called; what the archive says unless given
    name: Option<String>,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Import {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let (archive, packing) = open(&self.file)?;
        let imported = client.import_image(archive, self.name.as_deref()).await;
        if let Some(packing) = packing {
            // Who reads no more has said why.
            match packing.await {
                Ok(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => {
                    return Err(unreadable(&self.file)(e));
                }
                _ => {}
            }
        }
        let imported = imported?;
        let text = if self.json {
            output::json(&imported)?
        } else {
            let name = output::one_line(&imported.name);
            let digest = output::one_line(short(&imported.digest));
            format!("Image imported: {name} ({digest})\n")
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Read {
        path: path.clone(),
        source,
    }
}

type Packing = JoinHandle<io::Result<()>>;

/// The archive as a stream, and what packs it if that isn't done yet.
fn open(path: &Path) -> Result<(Stdin, Option<Packing>), CliError> {
    let failed = unreadable(path);
    if path == Path::new("-") {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    if !path.is_dir() {
        let file = File::open(path).map_err(failed)?;
        return Ok((Box::new(tokio::fs::File::from_std(file)), None));
    }
    if !path.join("index.json").is_file() {
        return Err(CliError::Usage(format!(
            "{} is no OCI layout: it has no index.json",
            path.display()
        )));
    }
    let (reader, writer) = io::pipe().map_err(failed)?;
    let layout = path.to_owned();
    let packing = spawn_blocking(move || pack(&layout, writer));
    let reader = tokio::fs::File::from_std(File::from(OwnedFd::from(reader)));
    Ok((Box::new(reader), Some(packing)))
}

/// Writes a layout as an archive.
fn pack(layout: &Path, to: PipeWriter) -> io::Result<()> {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 20, to));
    for name in ["oci-layout", "index.json"] {
        tar.append_path_with_name(layout.join(name), name)?;
    }
    tar.append_dir_all("blobs", layout.join("blobs"))?;
    io::Write::flush(&mut tar.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_layout_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        for (name, text) in [
            ("oci-layout", "{}"),
            ("index.json", "[]"),
            ("blobs/sha256/0", "blob"),
            ("other", "not of a layout"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let (mut reader, writer) = io::pipe().unwrap();
        let layout = dir.path().to_owned();
        let packing = std::thread::spawn(move || pack(&layout, writer));
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        packing.join().unwrap().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let files: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .filter(|name| !name.ends_with('/'))
            .collect();
        for name in ["oci-layout", "index.json", "blobs/sha256/0"] {
            assert!(files.iter().any(|f| f == name), "{files:?}");
        }
        assert!(!files.iter().any(|f| f == "other"));
    }
}
