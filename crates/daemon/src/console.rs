//! A VM's serial console, kept in a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Most that is returned of a console, bytes.
const MAX_TAIL: u64 = 16 << 20;

/// The last `lines` lines of a console file, or all of it; nothing when there is no file yet.
/// What is not UTF-8 is replaced.
pub(crate) fn tail(path: &Path, lines: Option<usize>) -> io::Result<String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(e),
    };
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(MAX_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
    let Some(lines) = lines else { return Ok(text) };
    let body = text.strip_suffix('\n').unwrap_or(&text);
    let start = match lines {
        0 => return Ok(String::new()),
        n => body
            .rmatch_indices('\n')
            .nth(n - 1)
            .map_or(0, |(at, _)| at + 1),
    };
    Ok(text[start..].to_owned())
}

/// The last lines in one, for an error message.
pub(crate) async fn last_lines(path: &Path, lines: usize) -> String {
    let path: PathBuf = path.to_owned();
    let read = tokio::task::spawn_blocking(move || tail(&path, Some(lines))).await;
    let text = read.ok().and_then(Result::ok).unwrap_or_default();
    let parts: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    parts.join(" | ")
}

/// How a kernel's panic begins on its console.
const PANIC: &str = "Kernel panic - not syncing: ";
/// How the first line of a boot begins.
const FIRST: &str = "[    0.000000] ";
/// A panic is among these many lines, with all that is printed after it.
const PANIC_LINES: usize = 1000;

/// What the guest's kernel said when it panicked, if that was the end of its last boot.
pub(crate) async fn panic(path: &Path) -> Option<String> {
    let path: PathBuf = path.to_owned();
    let read = tokio::task::spawn_blocking(move || tail(&path, Some(PANIC_LINES))).await;
    panic_in(&read.ok()?.ok()?)
}

fn panic_in(console: &str) -> Option<String> {
    let ends = console.lines().rev().take_while(|l| !l.starts_with(FIRST));
    let said = ends.filter_map(|l| l.split_once(PANIC)).last()?.1.trim();
    Some(said.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_cut_at_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c");
        assert_eq!(tail(&file, Some(20)).unwrap(), "");
        std::fs::write(&file, b"a\r\nb\r\n\xffc\n").unwrap();
        assert_eq!(tail(&file, None).unwrap(), "a\nb\n\u{fffd}c\n");
        assert_eq!(tail(&file, Some(1)).unwrap().lines().count(), 1);
        assert_eq!(tail(&file, Some(2)).unwrap().lines().next(), Some("b"));
        assert_eq!(tail(&file, Some(9)).unwrap().lines().count(), 3);
        std::fs::write(&file, "x\nno end").unwrap();
        assert_eq!(tail(&file, Some(1)).unwrap(), "no end");
    }

    #[test]
    fn a_panic_of_the_last_boot_is_found() {
        let first = "[    0.000000] Linux version 6.1.0\n[    0.1] x\n";
        let end =
            "[    3.7] Kernel panic - not syncing: sysrq triggered crash\n[    3.8] Call Trace:\n";
        let said = Some("sysrq triggered crash".to_owned());
        assert_eq!(panic_in(first), None);
        assert_eq!(panic_in(&format!("{first}{end}")), said);
        assert_eq!(panic_in(&format!("{first}{end}{first}")), None);
        assert_eq!(panic_in(&format!("{first}{first}{end}")), said);
    }
}
