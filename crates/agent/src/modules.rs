//! Kernel modules: the list in the initramfs, and loading.
//!
//! The list is text, one module a line, in the order they load. Those under `[early]` are needed
//! to reach the root disk and the host; those under `[late]` (network, entropy, …) are loaded in
//! the background after the hand-over to the image's init. `NAME` is `/modules/NAME.ko`,
//! uncompressed. Empty lines and lines that start with `#` are skipped.

use crate::error::{AgentError, io_error};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Where the initramfs keeps modules, relative to its root.
const DIR: &str = "modules";

/// The two parts of the list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ModuleList {
    /// Loaded before the root disk is looked for.
    pub(crate) early: Vec<String>,
    /// Loaded in the background.
    pub(crate) late: Vec<String>,
}

impl ModuleList {
    /// Reads the list's text.
    pub(crate) fn parse(text: &str) -> Result<Self, AgentError> {
        let mut list = Self::default();
        let mut section: Option<&mut Vec<String>> = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let plain = line
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            match (line, &mut section) {
                ("[early]", _) => section = Some(&mut list.early),
                ("[late]", _) => section = Some(&mut list.late),
                (name, Some(names)) if plain => names.push(name.to_owned()),
                _ => {
                    return Err(AgentError::ModuleList {
                        line: index + 1,
                        text: line.chars().take(64).collect(),
                    });
                }
            }
        }
        Ok(list)
    }

    /// Reads the list of the initramfs whose root is `initramfs`. An initramfs without one has a
    /// kernel that needs no modules.
    pub(crate) fn read(initramfs: BorrowedFd<'_>) -> Result<Self, AgentError> {
        let path = format!("{DIR}/load");
        let file = match openat(
            initramfs,
            &path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(file) => file,
            // Nor has a worker whose supervisor was not started from the initramfs.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Self::default()),
            Err(e) => return Err(io_error("open", path)(e)),
        };
        let text =
            std::io::read_to_string(std::fs::File::from(file)).map_err(io_error("read", path))?;
        Self::parse(&text)
    }
}

/// Loads one module of the initramfs whose root is `initramfs`. One that is loaded, or built in,
/// is success.
pub(crate) fn load(initramfs: BorrowedFd<'_>, name: &str) -> Result<(), AgentError> {
    let path = format!("{DIR}/{name}.ko");
    let file = openat(
        initramfs,
        &path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io_error("open", &path))?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(io_error("load module", path)(e)),
    }
}

/// Gives the memory of the modules and of the agent's first copy back to the system: an initramfs
/// stays in memory under the root that was mounted over it.
pub(crate) fn discard_all(initramfs: BorrowedFd<'_>, list: &ModuleList) {
    let modules = list
        .early
        .iter()
        .chain(&list.late)
        .map(|n| format!("{n}.ko"));
    for file in modules.chain(["load".to_owned()]) {
        // What can't be removed costs a little memory, no more.
        let _ = unlinkat(initramfs, format!("{DIR}/{file}"), AtFlags::empty());
    }
    let _ = unlinkat(initramfs, "init", AtFlags::empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_keep_their_order() {
        let list = ModuleList::parse(
            "# made by slicer\n[early]\nvirtio_ring\nvirtio\n\n  virtio_blk \n[late]\nvirtio-rng\n",
        )
        .unwrap();
        assert_eq!(list.early, ["virtio_ring", "virtio", "virtio_blk"]);
        assert_eq!(list.late, ["virtio-rng"]);
    }

    #[test]
    fn an_empty_list_is_a_list() {
        assert_eq!(ModuleList::parse("").unwrap(), ModuleList::default());
        assert_eq!(
            ModuleList::parse("[early]\n[late]\n").unwrap(),
            ModuleList::default()
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (text, line) in [
            ("virtio", 1),
            ("[early]\n../x", 2),
            ("[early]\na\n[middle]\n", 3),
            ("[late]\na b", 2),
        ] {
            match ModuleList::parse(text) {
                Err(AgentError::ModuleList { line: at, .. }) => assert_eq!(at, line, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            let _ = ModuleList::parse(&text);
        }
    }
}
