//! Writes initramfs archives.
//!
//! Source: Linux's Documentation/driver-api/early-userspace/buffer-format.rst, the "newc" form.

/// An archive in memory.
#[derive(Debug, Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHAR: u32 = 0o020_000;

impl Cpio {
    pub(crate) fn dir(&mut self, path: &str, permissions: u32) {
        self.entry(path, DIR | permissions, (0, 0), &[]);
    }

    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, FILE | permissions, (0, 0), content);
    }

    pub(crate) fn char_device(&mut self, path: &str, permissions: u32, device: (u32, u32)) {
        self.entry(path, CHAR | permissions, device, &[]);
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// A header of 13 hexadecimal fields, the name, the content; each padded to 4 bytes.
    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIR != 0 { 2 } else { 1 };
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            length(content.len()),
            0,
            0,
            major,
            minor,
            length(path.len() + 1),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Lengths are bounded long before this by those who call.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut cpio = Cpio::default();
        cpio.file("ab", 0o644, b"xyz");
        let bytes = cpio.finish();
        let header = "07070100000001000081a40000000000000000000000010000000000000003\
                      0000000000000000000000000000000000000003 00000000";
        let header: String = header.split(' ').collect();
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..121], b"ab\0\0\0\0xyz\x000");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn gnu_cpio_lists_it_where_there_is_one() {
        let mut cpio = Cpio::default();
        cpio.dir("dev", 0o755);
        cpio.char_device("dev/console", 0o600, (5, 1));
        cpio.file("init", 0o755, &[7; 1000]);
        let Ok(mut child) = Command::new("cpio")
            .arg("-tv")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            println!("no cpio program here");
            return;
        };
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&cpio.finish())
            .unwrap();
        let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dev"),
            "{text}"
        );
        assert!(
            lines[1].starts_with("crw-------") && lines[1].contains("5,   1"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 1000 "),
            "{text}"
        );
    }
}
