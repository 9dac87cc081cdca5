//! A host folder in a VM: the product's, and one by a virtiofsd started by hand.

use super::floor::{Floor, Sharer};
use super::plan::Rounds;
use super::{create, median};
use crate::daemon::Daemon;
use crate::programs;
use crate::text::say;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use slicer_api::ExecRequest;
use slicer_client::Client;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the daemon looks for it, too.
const PLACES: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];
/// Leaves three times behind, in seconds: to write a file, to read it, and for many small ones.
const SCRIPT: &str = r#"
set -e
now() { echo "${EPOCHREALTIME/,/.}"; }
sync
a=$(now)
dd if=/dev/zero of=big bs=1M count=64 conv=fsync status=none
b=$(now)
echo 3 > /proc/sys/vm/drop_caches
c=$(now)
dd if=big of=/dev/null bs=1M status=none
d=$(now)
rm big
mkdir small
cd small
e=$(now)
for i in {1..500}; do : > f$i; done
ls -l > /dev/null
rm f*
f=$(now)
cd ..
rmdir small
echo $b - $a $d - $c $f - $e
"#;

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// A file written.
    pub(crate) write: Vec<f64>,
    /// The same, by hand.
    pub(crate) floor_write: Vec<f64>,
    /// A file read.
    pub(crate) read: Vec<f64>,
    /// The same, by hand.
    pub(crate) floor_read: Vec<f64>,
    /// Many small files made, listed and removed.
    pub(crate) files: Vec<f64>,
    /// The same, by hand.
    pub(crate) floor_files: Vec<f64>,
}

impl Samples {
    /// How long it takes, for people.
    pub(crate) fn story(&self) -> String {
        let ms = |times: &[f64]| 1e3 * median(times);
        format!(
            "share: write {:.0} ms, by hand {:.0} ms; read {:.0} ms, by hand {:.0} ms; files {:.0} ms, \
             by hand {:.0} ms",
            ms(&self.write),
            ms(&self.floor_write),
            ms(&self.read),
            ms(&self.floor_read),
            ms(&self.files),
            ms(&self.floor_files),
        )
    }
}

/// Measures pairs of each, in alternating order. `file` is the configuration of a daemon that isn't
/// running, and is left as it is.
pub(crate) async fn measure(pairs: Rounds, file: &Path, floor: &Floor) -> Result<Samples> {
    let dir = file.parent().context("a configuration is in a directory")?;
    let before = fs::read_to_string(file)?;
    let (ours, theirs) = (dir.join("shared"), dir.join("shared-by-hand"));
    for folder in [&ours, &theirs] {
        fs::create_dir_all(folder)?;
    }
    let line = "      share_home: shared\n      network:\n";
    fs::write(file, before.replacen("      network:\n", line, 1))?;
    let daemon = Daemon::start(&programs()?.join("slicer-mac"), dir).await?;
    let client = daemon.client()?;
    let vm = create(&client).await?;
    let socket = dir.join("virtiofsd.sock");
    let sharer = floor.sharer(&by_hand(&theirs, &socket)?, &socket).await?;
    let mut samples = Samples::default();
    for pair in pairs.run() {
        for product in [pair % 2 == 0, pair % 2 != 0] {
            let [write, read, files] = if product {
                in_product(&client, &vm).await?
            } else {
                in_floor(&sharer).await?
            };
            let into = if product {
                [&mut samples.write, &mut samples.read, &mut samples.files]
            } else {
                [
                    &mut samples.floor_write,
                    &mut samples.floor_read,
                    &mut samples.floor_files,
                ]
            };
            for (list, time) in into.into_iter().zip([write, read, files]) {
                list.push(time);
            }
        }
        say(&format!("Shares {:2}: {}", pair + 1, samples.story()));
    }
    sharer.end().await?;
    client.delete_node(super::GROUP, &vm).await?;
    daemon.stop(false).await?;
    fs::write(file, before)?;
    Ok(samples)
}

/// The command line of the virtiofsd the daemon finds, with the daemon's options but those for users.
fn by_hand(folder: &Path, socket: &Path) -> Result<Vec<OsString>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("virtiofsd"));
    let named = std::env::var_os("SLICER_VIRTIOFSD").map(PathBuf::from);
    let all = named
        .into_iter()
        .chain(on_path)
        .chain(PLACES.map(PathBuf::from));
    let Some(program) = all.into_iter().find(|p| p.is_file()) else {
        bail!("there is no virtiofsd: see docs/guide/shares.md");
    };
    let help = Command::new(&program).arg("--help").output()?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let (folder, socket) = (folder.display(), socket.display());
    let mut line = vec![
        program.into_os_string(),
        format!("--socket-path={socket}").into(),
    ];
    let options: Vec<String> = if help.contains("--shared-dir") {
        vec![
            format!("--shared-dir={folder}"),
            "--sandbox=namespace".into(),
            "--log-level=error".into(),
        ]
    } else {
        [
            "log_level=err".into(),
            "sandbox=namespace".into(),
            format!("source={folder}"),
        ]
        .into_iter()
        .flat_map(|option: String| ["-o".to_owned(), option])
        .collect()
    };
    line.extend(options.into_iter().map(OsString::from));
    Ok(line)
}

async fn in_product(client: &Client, vm: &str) -> Result<[f64; 3]> {
    let request = ExecRequest {
        cmd: format!("cd ~ubuntu/home\n{SCRIPT}"),
        shell: Some("/bin/bash".to_owned()),
        uid: 0,
        gid: 0,
        ..ExecRequest::default()
    };
    let done = client.exec_buffered(vm, &request).await?;
    ensure!(done.exit_code == 0, "{done:?}");
    times(&done.stdout)
}

async fn in_floor(sharer: &Sharer) -> Result<[f64; 3]> {
    times(&sharer.says(&format!("cd /mnt\n{SCRIPT}")).await?)
}

fn times(text: &str) -> Result<[f64; 3]> {
    let clock: Vec<f64> = text
        .split_whitespace()
        .filter(|word| *word != "-")
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    match clock[..] {
        [write_end, write, read_end, read, files_end, files] => {
            Ok([write_end - write, read_end - read, files_end - files])
        }
        _ => bail!("the guest said {text:?}"),
    }
}
