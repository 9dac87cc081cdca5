//! A log of one line at a time: to the kernel's ring buffer where the agent runs as root in its
//! own VM, to standard error otherwise. There is no journal yet when the first lines are written,
//! and systemd picks the kernel's lines up later.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

static KMSG: OnceLock<File> = OnceLock::new();

/// Sends what follows to `/dev/kmsg` from here on. Without it, or where it can't be opened,
/// standard error is used.
pub(crate) fn to_kernel() {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = KMSG.set(file);
    }
}

/// Something worth knowing when a boot is looked into.
pub(crate) fn info(text: &str) {
    write(6, text);
}

/// A step of the boot, which the console shows, too.
pub(crate) fn notice(text: &str) {
    write(5, text);
}

/// Something that failed and was survived.
pub(crate) fn warn(text: &str) {
    write(4, text);
}

fn write(level: u8, text: &str) {
    // One write a line: the kernel takes each write as one record. Nobody is left to tell when it
    // fails.
    let _ = match KMSG.get() {
        Some(mut file) => file.write_all(format!("<{level}>slicer-agent: {text}\n").as_bytes()),
        None => std::io::stderr().write_all(format!("slicer-agent: {text}\n").as_bytes()),
    };
}
