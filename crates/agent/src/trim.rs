//! Tells the host which blocks of the disks no file system uses.

use crate::sys;
use slicer_api::{ApiError, Trimmed};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use tokio::task::spawn_blocking;

/// Trims every file system on a disk that is mounted writable.
pub(crate) async fn trim() -> Result<Trimmed, ApiError> {
    let done = spawn_blocking(trim_all).await;
    done.map_err(|_| ApiError::internal("trimming failed unexpectedly"))?
        .map_err(|e| ApiError::internal(format!("cannot trim the file systems: {e}")))
}

fn trim_all() -> io::Result<Trimmed> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let (mut seen, mut bytes) = (HashSet::new(), 0);
    for place in places(&mounts) {
        // One that is covered by another, or just gone.
        let Ok(dir) = File::open(&place) else {
            continue;
        };
        if !seen.insert(dir.metadata()?.dev()) {
            continue;
        }
        match sys::trim(&dir) {
            Ok(trimmed) => bytes += trimmed,
            // It can't, or its disk can't.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {}
            Err(e) => {
                return Err(io::Error::new(
                    e.kind(),
                    format!("{}: {e}", place.display()),
                ));
            }
        }
    }
    Ok(Trimmed { bytes })
}

/// Where file systems on disks are mounted for writing.
fn places(mounts: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let mut words = line.split(' ');
        let (source, place) = (words.next()?, words.next()?);
        let options = words.nth(1)?;
        let writable = options.split(',').any(|option| option == "rw");
        (source.starts_with("/dev/") && writable).then(|| unescaped(place).into())
    };
    mounts.lines().filter_map(place).collect()
}

/// A path as /proc/self/mounts has it, with blanks and the like in octal.
fn unescaped(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (octal, plain)| {
            text.replace(octal, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_disks_are_trimmed() {
        let mounts = "\
proc /proc proc rw,nosuid 0 0
/dev/vda / ext4 rw,relatime,discard 0 0
/dev/vdb /cd iso9660 ro,relatime 0 0
/dev/vdc /with\\040blank ext4 noatime,rw 0 0
tmpfs /tmp tmpfs rw 0 0
nonsense
";
        let expected: [PathBuf; 2] = ["/".into(), "/with blank".into()];
        assert_eq!(places(mounts), expected);
    }
}
