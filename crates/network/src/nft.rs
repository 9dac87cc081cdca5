//! Rules, by the program nft(8).

use crate::NetworkError;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where it is, besides `PATH`: ordinary users have no such directories there.
const PLACES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The program.
pub(crate) fn find() -> Result<PathBuf, NetworkError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(PLACES.iter().map(PathBuf::from));
    let mut files = dirs.map(|dir| dir.join("nft"));
    files
        .find(|file| file.is_file())
        .ok_or(NetworkError::NftMissing)
}

/// Has rules taken, all or none, in the network namespace of this thread.
pub(crate) fn apply(nft: &Path, rules: &str) -> Result<(), NetworkError> {
    let failed = |source: io::Error| NetworkError::io("run", nft)(source);
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let fed = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(rules.as_bytes()),
        None => Ok(()),
    };
    let done = child.wait_with_output().map_err(failed)?;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        let line = text.lines().find(|l| !l.trim().is_empty());
        let line = line.unwrap_or("it said nothing").trim();
        return Err(NetworkError::Nft(line.chars().take(300).collect()));
    }
    fed.map_err(failed)
}
