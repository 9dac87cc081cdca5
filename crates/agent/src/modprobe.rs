//! Loading kernel modules by name, with what they need, in images without a modprobe: the kernel
//! itself asks for modules through this then.
//!
//! Sources: modules.dep(5) for dependencies; depmod writes modules.alias beside it, one
//! `alias PATTERN MODULE` a line.

use crate::error::{AgentError, io_error};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where programs look for modprobe, and with it the kernel.
const USUAL: [&str; 2] = ["/sbin/modprobe", "/usr/sbin/modprobe"];
/// Whom the kernel asks for modules.
const ASKED: &str = "/proc/sys/kernel/modprobe";
/// What we are called where it shall ask us.
pub(crate) const NAME: &str = "/run/slicer/modprobe";

/// Has the kernel ask the agent for modules where the image has nothing for that.
pub(crate) fn offer(agent: &Path) -> Result<(), AgentError> {
    if USUAL.iter().any(|p| Path::new(p).exists()) {
        return Ok(());
    }
    match std::os::unix::fs::symlink(agent, NAME) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io_error("link", NAME)(e)),
        _ => {}
    }
    fs::write(ASKED, NAME).map_err(io_error("write", ASKED))
}

/// Loads these modules, named by name or by alias, with all they depend on.
pub(crate) fn run<S: AsRef<str>>(names: &[S]) -> Result<(), String> {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    let index = Index::read(&Path::new("/lib/modules").join(release)).map_err(|e| e.to_string())?;
    for name in names {
        let name = name.as_ref();
        let found = index.find(name);
        if found.is_empty() {
            return Err(format!("module {name:.100} not found"));
        }
        for module in found {
            index.load(&module, 0).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// How deep dependencies may go: those of a kernel's own modules are a handful deep.
const MAX_DEPTH: usize = 64;

/// What there is to load.
struct Index {
    dir: PathBuf,
    /// By name, with `_` for `-`: the file, and those it depends on.
    modules: HashMap<String, (String, Vec<String>)>,
    /// Pattern and module.
    aliases: Vec<(String, String)>,
    builtin: Vec<String>,
}

impl Index {
    fn read(dir: &Path) -> Result<Self, AgentError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(io_error("read", path))
        };
        let dep = read("modules.dep")?;
        // A directory that lacks them has modules all the same.
        let (alias, builtin) = (read("modules.alias"), read("modules.builtin"));
        Ok(Self::parse(
            dir,
            &dep,
            &alias.unwrap_or_default(),
            &builtin.unwrap_or_default(),
        ))
    }

    fn parse(dir: &Path, dep: &str, alias: &str, builtin: &str) -> Self {
        let modules = dep.lines().filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            let needs = needs.split_whitespace().map(module_name).collect();
            Some((module_name(file), (file.to_owned(), needs)))
        });
        let aliases = alias.lines().filter_map(|line| {
            let mut words = line.strip_prefix("alias ")?.split_whitespace();
            let (pattern, module) = (words.next()?, words.next()?);
            Some((underscored(pattern), underscored(module)))
        });
        Self {
            dir: dir.to_owned(),
            modules: modules.collect(),
            aliases: aliases.collect(),
            builtin: builtin.lines().map(module_name).collect(),
        }
    }

    /// The modules of this name, or else of this alias.
    fn find(&self, name: &str) -> Vec<String> {
        let name = underscored(name);
        if self.modules.contains_key(&name) || self.builtin.contains(&name) {
            return vec![name];
        }
        let of = |(pattern, module): &(String, String)| {
            matches(pattern.as_bytes(), name.as_bytes()).then(|| module.clone())
        };
        self.aliases.iter().filter_map(of).collect()
    }

    /// Loads a module, and before it what it needs.
    fn load(&self, name: &str, depth: usize) -> Result<(), AgentError> {
        let Some((file, needs)) = self.modules.get(name) else {
            // Built in, or removed since depmod saw it.
            return Ok(());
        };
        if depth < MAX_DEPTH {
            // The one that needs no other comes last in the list.
            for need in needs.iter().rev() {
                self.load(need, depth + 1)?;
            }
        }
        let path = self.dir.join(file);
        let opened = File::open(&path).map_err(io_error("open", &path))?;
        match rustix::system::finit_module(&opened, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(io_error("load module", path)(e)),
        }
    }
}

fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in a file: `kernel/net/br-x.ko` is `br_x`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    underscored(name.split(".ko").next().unwrap_or_default())
}

/// Whether a text is of a pattern with `*` and `?`. Sets in brackets, which only the aliases of
/// devices have, are not looked into: such devices are not asked for by name.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on when it doesn't fit: behind the last star, one byte later.
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b) if *b == b'?' || *b == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_lead_to_modules() {
        let dep = "kernel/net/bridge/br_netfilter.ko: kernel/net/bridge/bridge.ko kernel/net/llc.ko\n\
                   kernel/net/bridge/bridge.ko: kernel/net/llc.ko\nkernel/net/llc.ko:\n\
                   kernel/drivers/virtio-rng.ko:\n";
        let alias = "# made by depmod\nalias fs-fuse fuse\nalias nft-chain-*-nat nft_chain_nat\n\
                     alias net-pf-17-proto-? bridge\n";
        let index = Index::parse(Path::new("/m"), dep, alias, "kernel/fs/ext4/ext4.ko\n");
        assert_eq!(index.find("br-netfilter"), ["br_netfilter"]);
        assert_eq!(index.find("virtio_rng"), ["virtio_rng"]);
        assert_eq!(index.find("ext4"), ["ext4"]);
        assert_eq!(index.find("fs-fuse"), ["fuse"]);
        assert_eq!(index.find("nft-chain-2-nat"), ["nft_chain_nat"]);
        assert_eq!(index.find("net-pf-17-proto-3"), ["bridge"]);
        assert!(index.find("net-pf-17-proto-33").is_empty());
        assert!(index.find("").is_empty());
        let (file, needs) = &index.modules["br_netfilter"];
        assert_eq!(file, "kernel/net/bridge/br_netfilter.ko");
        assert_eq!(*needs, ["bridge", "llc"]);
    }

    proptest::proptest! {
        #[test]
        fn patterns_end(pattern in "[ab*?]{0,12}", text in "[ab]{0,12}") {
            let all = matches(pattern.as_bytes(), text.as_bytes());
            let starred = format!("*{pattern}*");
            proptest::prop_assert!(!all || matches(starred.as_bytes(), text.as_bytes()));
        }
    }
}
