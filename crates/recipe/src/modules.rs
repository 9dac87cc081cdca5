//! Which kernel modules the initramfs loads, and in which order.
//!
//! Sources: modules.dep(5) and modules.softdep as depmod writes them.

use crate::Arch;
use crate::Result;
use crate::error::{Context as _, RecipeError};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// The modules asked for, in two groups: each one loaded costs about 15 ms under emulation.
pub(super) struct Wanted {
    /// Before the root can be mounted and the channel to the host opened.
    early: &'static [&'static str],
    /// By the agent in the background: network first, then what mounts need.
    late: &'static [&'static str],
}

/// The modules for an architecture.
pub(super) fn wanted(arch: Arch) -> Wanted {
    match arch {
        Arch::Amd64 => Wanted {
            early: &["virtio_pci", "virtio_blk", "virtio_console"],
            late: &[
                "virtio_net",
                "autofs4",
                "overlay",
                "virtio-rng",
                "virtio_balloon",
                "fuse",
                "virtiofs",
                "vsock",
                "vmw_vsock_virtio_transport",
            ],
        },
        // Apple's channel is a vsock. Some Arm machines have their devices on virtio-mmio.
        Arch::Arm64 => Wanted {
            early: &[
                "virtio_pci",
                "virtio_mmio",
                "virtio_blk",
                "virtio_console",
                "vsock",
                "vmw_vsock_virtio_transport",
            ],
            late: &[
                "virtio_net",
                "autofs4",
                "overlay",
                "virtio-rng",
                "virtio_balloon",
                "fuse",
                "virtiofs",
            ],
        },
    }
}

impl Wanted {
    /// One text per choice of modules, to notice changes.
    pub(super) fn describe(&self) -> String {
        format!("{:?} {:?}", self.early, self.late)
    }

    /// The text of `boot/modules.load`: the sections `[early]` and `[late]`, in each the paths of
    /// modules below `lib/modules/VERSION`, in the order in which they can be loaded.
    pub(super) fn resolve(&self, index: &Index) -> Result<String> {
        let mut done = HashSet::new();
        let mut text = String::new();
        for (section, names) in [("early", self.early), ("late", self.late)] {
            for part in ["[", section, "]\n"] {
                text.push_str(part);
            }
            for name in names {
                for path in index.closure(&normal(name), &mut done)? {
                    text.push_str(path);
                    text.push('\n');
                }
            }
        }
        Ok(text)
    }
}

/// What depmod found out about one kernel's modules. Names are normal: with underscores.
#[derive(Default)]
pub(super) struct Index {
    /// Name to path, and the names that must be loaded before it, nearest first.
    modules: HashMap<String, (String, Vec<String>)>,
    /// Name to the names that should be loaded before it.
    soft: HashMap<String, Vec<String>>,
    builtin: HashSet<String>,
}

impl Index {
    /// Reads it from `lib/modules/VERSION`.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Self::parse(
            &read("modules.dep")?,
            &read("modules.softdep")?,
            &read("modules.builtin")?,
        ))
    }

    fn parse(dep: &str, softdep: &str, builtin: &str) -> Self {
        let modules = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, deps)| {
                let deps = deps.split_whitespace().map(name_of).collect();
                (name_of(path), (path.to_owned(), deps))
            })
            .collect();
        let mut soft: HashMap<String, Vec<String>> = HashMap::new();
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(module) = words.next() else { continue };
            let mut pre = false;
            for word in words {
                match word {
                    "pre:" => pre = true,
                    "post:" => pre = false,
                    name if pre => soft.entry(normal(module)).or_default().push(normal(name)),
                    _ => {}
                }
            }
        }
        Self {
            modules,
            soft,
            builtin: builtin.lines().map(name_of).collect(),
        }
    }

    /// Paths of a module and of all it needs that are not in `done` yet, in load order.
    fn closure(&self, name: &str, done: &mut HashSet<String>) -> Result<Vec<&str>> {
        if self.builtin.contains(name) || done.contains(name) {
            return Ok(Vec::new());
        }
        let Some((path, deps)) = self.modules.get(name) else {
            return Err(RecipeError::Unexpected(format!(
                "this kernel has no module {name}"
            )));
        };
        // First, so that modules that softly depend on each other come to an end.
        done.insert(name.to_owned());
        let mut paths = Vec::new();
        for soft in self.soft.get(name).into_iter().flatten() {
            if self.modules.contains_key(soft) {
                paths.extend(self.closure(soft, done)?);
            }
        }
        for dep in deps.iter().rev() {
            paths.extend(self.closure(dep, done)?);
        }
        paths.push(path);
        Ok(paths)
    }
}

/// The name of a module by its path.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_before_what_needs_them_and_once() {
        let index = Index::parse(
            "k/virtio.ko: k/virtio_ring.ko\nk/virtio_ring.ko:\n\
             k/virtio_pci.ko: k/virtio.ko k/virtio_ring.ko\nk/virtio_blk.ko: k/virtio.ko k/virtio_ring.ko\n\
             k/virtio_console.ko: k/virtio.ko k/virtio_ring.ko\nk/failover.ko:\nk/virtio-rng.ko:\n\
             k/virtio_net.ko: k/failover.ko\nk/vsock.ko:\nk/vmw_vsock_virtio_transport.ko: k/vsock.ko\n\
             k/fuse.ko:\nk/virtiofs.ko: k/fuse.ko\nk/virtio_balloon.ko:\nk/overlay.ko:\n",
            "# a comment\nsoftdep virtio_net pre: overlay absent post: fuse\n",
            "kernel/fs/autofs4.ko\n",
        );
        let text = wanted(Arch::Amd64).resolve(&index).unwrap();
        assert_eq!(
            text,
            "[early]\nk/virtio_ring.ko\nk/virtio.ko\nk/virtio_pci.ko\nk/virtio_blk.ko\n\
             k/virtio_console.ko\n[late]\nk/overlay.ko\nk/failover.ko\nk/virtio_net.ko\n\
             k/virtio-rng.ko\nk/virtio_balloon.ko\nk/fuse.ko\nk/virtiofs.ko\nk/vsock.ko\n\
             k/vmw_vsock_virtio_transport.ko\n"
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_an_error() {
        let missing = wanted(Arch::Amd64).resolve(&Index::default()).unwrap_err();
        assert!(missing.to_string().contains("virtio_pci"), "{missing}");
    }
}
