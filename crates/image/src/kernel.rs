//! Kernels: from a kernel image to the files a virtual machine boots with.
//!
//! A kernel image is an OCI image whose layers hold `boot/kernel` (what a hypervisor boots
//! directly), `boot/modules.load` (see [`LoadList`]) and `lib/modules/VERSION/`.

use crate::cpio::Cpio;
use crate::digest::sha256;
use crate::ext4::{self, Shape};
use crate::files::{Partial, read_note, write_file, write_note};
use crate::merge::Merged;
use crate::tree::{DirId, Node};
use crate::{ImageError, Limits, Resolved, uncompressed_kernel};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Goes up when the same kernel and agent should give other files.
const FORMAT: u32 = 1;
/// More than any kernel or module has, bytes.
const MAX_FILE: u64 = 512 << 20;
/// A journal's least size: the filesystem is only ever read.
const JOURNAL_BLOCKS: u32 = 1024;

/// What a virtual machine boots with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFiles {
    /// The uncompressed kernel: an ELF vmlinux on x86-64, an Image on Arm.
    pub kernel: PathBuf,
    /// The initramfs, a plain cpio: the agent as `/init`, the modules it loads at boot as
    /// `/modules/NAME.ko`, and their names, in load order, in `/modules/load`, whose sections are
    /// `[early]` (before the root can be mounted and the channel opened) and `[late]`.
    pub initramfs: PathBuf,
    /// A read-only ext4 whose root holds `VERSION/`: the guest's `/lib/modules`.
    pub modules: PathBuf,
    /// The kernel's version, such as `6.1.0-56-cloud-amd64`.
    pub version: String,
}

/// What is written beside the files: of what they were made.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    format: u32,
    /// Digest of the kernel image's manifest.
    manifest: String,
    /// Digest of the agent.
    agent: String,
    version: String,
}

/// Makes the boot files of a kernel image and an agent (a static executable) in `out_dir`, unless
/// those that are there were made of the very same. Only what changed is written: a new agent
/// costs a new initramfs. Each file is replaced at once, so running machines keep theirs.
pub fn prepare_kernel(
    image: &Resolved,
    agent: &[u8],
    out_dir: &Path,
) -> Result<KernelFiles, ImageError> {
    fs::create_dir_all(out_dir).map_err(ImageError::io("create", out_dir))?;
    let note_path = out_dir.join("kernel.json");
    let note = read_note::<Note>(&note_path)
        .filter(|n| n.format == FORMAT && n.manifest == image.manifest_digest());
    let mut files = KernelFiles {
        kernel: out_dir.join("Image"),
        initramfs: out_dir.join("initramfs.cpio"),
        modules: out_dir.join("modules.ext4"),
        version: String::new(),
    };
    let agent_digest = sha256(agent);
    let kernel_current = note.is_some() && files.kernel.exists() && files.modules.exists();
    if let Some(note) = &note
        && kernel_current
        && note.agent == agent_digest
        && files.initramfs.exists()
    {
        files.version.clone_from(&note.version);
        return Ok(files);
    }

    let merged = Merged::read(image, &Limits::default(), &|_| {})?;
    let (modules_dir, version) = modules_dir(&merged)?;
    files.version = version;
    // Until all is done, nothing may vouch for what is there.
    match fs::remove_file(&note_path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(ImageError::io("remove", &note_path)(e));
        }
        _ => {}
    }
    if !kernel_current {
        let kernel = merged
            .contents(&["boot/kernel".to_owned()], MAX_FILE)?
            .concat();
        write_file(&files.kernel, &uncompressed_kernel(&kernel)?)?;
        let partial = Partial::create(&files.modules)?;
        let shape = Shape {
            label: "modules",
            uuid: crate::base::uuid(&format!("modules of {}", image.manifest_digest())),
            min_size: 0,
            journal_blocks: JOURNAL_BLOCKS,
        };
        ext4::write(
            &merged,
            modules_dir,
            &shape,
            partial.file(),
            partial.path(),
            &|_| {},
        )?;
        partial.finish()?;
    }
    write_file(
        &files.initramfs,
        &initramfs(&merged, &files.version, agent)?,
    )?;
    write_note(
        &note_path,
        &Note {
            format: FORMAT,
            manifest: image.manifest_digest().to_owned(),
            agent: agent_digest,
            version: files.version.clone(),
        },
    )?;
    Ok(files)
}

/// `lib/modules`, and the one kernel version in it.
fn modules_dir(merged: &Merged<'_>) -> Result<(DirId, String), ImageError> {
    let missing = |what: &str| ImageError::Missing {
        image: merged.image.manifest_digest().to_owned(),
        what: what.to_owned(),
    };
    let Some(Node::Dir(dir)) = merged.tree.get("lib/modules") else {
        return Err(missing("directory lib/modules"));
    };
    let mut versions = merged.tree.children(dir);
    match (versions.next(), versions.next()) {
        (Some((name, Node::Dir(_))), None) => {
            let version = std::str::from_utf8(name).map_err(|_| missing("readable version"))?;
            Ok((dir, version.to_owned()))
        }
        _ => Err(missing("single kernel version in lib/modules")),
    }
}

/// The archive the kernel unpacks as its first root.
fn initramfs(merged: &Merged<'_>, version: &str, agent: &[u8]) -> Result<Vec<u8>, ImageError> {
    let list = merged
        .contents(&["boot/modules.load".to_owned()], 1 << 20)?
        .concat();
    let list =
        LoadList::parse(&String::from_utf8_lossy(&list)).map_err(|why| ImageError::Missing {
            image: merged.image.manifest_digest().to_owned(),
            what: format!("usable boot/modules.load: {why}"),
        })?;
    let paths: Vec<_> = list
        .modules
        .iter()
        .map(|m| format!("lib/modules/{version}/{}", m.path))
        .collect();
    let contents = merged.contents(&paths, MAX_FILE)?;

    let mut cpio = Cpio::default();
    for dir in ["dev", "proc", "sys", "run", "newroot", "modules"] {
        cpio.dir(dir, 0o755);
    }
    cpio.char_device("dev/console", 0o600, (5, 1));
    cpio.char_device("dev/null", 0o666, (1, 3));
    cpio.file("init", 0o755, agent);
    cpio.file("modules/load", 0o644, list.flat().as_bytes());
    for (module, content) in list.modules.iter().zip(&contents) {
        cpio.file(&format!("modules/{}.ko", module.name()), 0o644, content);
    }
    Ok(cpio.finish())
}

/// The modules loaded at boot: lines with their paths below `lib/modules/VERSION`, in the order in
/// which they can be loaded, in the sections `[early]` and `[late]`.
#[derive(Debug, PartialEq, Eq)]
struct LoadList {
    modules: Vec<Module>,
}

#[derive(Debug, PartialEq, Eq)]
struct Module {
    path: String,
    late: bool,
}

impl Module {
    /// The file's name without `.ko`.
    fn name(&self) -> &str {
        let file = self.path.rsplit('/').next().unwrap_or(&self.path);
        file.strip_suffix(".ko").unwrap_or(file)
    }
}

impl LoadList {
    fn parse(text: &str) -> Result<Self, String> {
        let mut modules: Vec<Module> = Vec::new();
        let mut late = None;
        for line in text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            match (line, late) {
                ("[early]", _) => late = Some(false),
                ("[late]", _) => late = Some(true),
                (path, Some(late)) => {
                    if path.strip_suffix(".ko").is_none() {
                        return Err(format!("{path:?} is not an uncompressed module"));
                    }
                    let module = Module {
                        path: path.to_owned(),
                        late,
                    };
                    if modules.iter().any(|m| m.name() == module.name()) {
                        return Err(format!("{} is in it twice", module.name()));
                    }
                    modules.push(module);
                }
                (line, None) => return Err(format!("{line:?} is in no section")),
            }
        }
        Ok(Self { modules })
    }

    /// The same with names in the place of paths: what the agent reads.
    fn flat(&self) -> String {
        let mut text = String::new();
        for (section, late) in [("[early]", false), ("[late]", true)] {
            text.push_str(section);
            text.push('\n');
            for module in self.modules.iter().filter(|m| m.late == late) {
                text.push_str(module.name());
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_lists_are_flattened_in_order() {
        let text = "# by depmod\n[early]\nkernel/b.ko\nkernel/x/a.ko\n\n[late]\nkernel/c.ko\n";
        let list = LoadList::parse(text).unwrap();
        assert_eq!(list.flat(), "[early]\nb\na\n[late]\nc\n");
    }

    #[test]
    fn ambiguous_load_lists_are_refused() {
        assert!(LoadList::parse("a.ko\n").is_err());
        assert!(LoadList::parse("[early]\nx/a.ko\n[late]\ny/a.ko\n").is_err());
        assert!(LoadList::parse("[early]\nx/a.ko.xz\n").is_err());
    }
}
