//! What the host has to add to a VM's own log.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Adds a line to the file of a VM's console. Nobody is left to tell when that fails.
pub(crate) fn note(console: &Path, text: &str) {
    let file = OpenOptions::new().append(true).create(true).open(console);
    if let Ok(mut file) = file {
        // One write, so that the guest's own lines don't come between.
        let _ = file.write_all(format!("\r\nslicer: {text}\r\n").as_bytes());
    }
}
