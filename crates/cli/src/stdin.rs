//! What a remote command gets as its stdin.

use rustix::fs::{FileType, fstat, stat};
use slicer_client::Stdin;

/// The CLI's own stdin, when there can be something in it: a pipe, a file, a socket, a device.
/// None for a terminal and for `/dev/null`, which also stands in for a closed stdin.
pub(crate) fn source() -> Option<Stdin> {
    let stdin = std::io::stdin();
    let found = fstat(&stdin).ok()?;
    let wanted = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => false,
        FileType::CharacterDevice => {
            let null = stat("/dev/null").is_ok_and(|null| null.st_rdev == found.st_rdev);
            !null && !std::io::IsTerminal::is_terminal(&stdin)
        }
        _ => true,
    };
    wanted.then(|| Box::new(tokio::io::stdin()) as Stdin)
}
