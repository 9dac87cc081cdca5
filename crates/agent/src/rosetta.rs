//! Rosetta: programs for x86-64 in a guest of Apple silicon.
//!
//! The host gives its interpreter as a share; the kernel is told to run programs by it, see
//! binfmt_misc in its documentation. It opens the interpreter once, so that containers and chroots,
//! which don't see the share, run them too.

use crate::error::{AgentError, io_error};
use crate::modprobe;
use rustix::mount::{MountFlags, mount};
use std::fs;
use std::path::Path;

/// The share's tag.
const TAG: &str = "rosetta";
/// Where it is mounted: on a tmpfs of our own, so that nothing of it is left in the image.
const DIR: &str = "/run/slicer/rosetta";
/// The interpreter in it.
const INTERPRETER: &str = "rosetta";
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";
/// The rule's name.
const NAME: &str = "rosetta";

/// The head of a 64-bit little-endian ELF for x86-64, of which nothing else counts than that it is
/// executable (2) or shared (3).
const MAGIC: &str = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00";
const MASK: &str =
    r"\xff\xff\xff\xff\xff\xfe\xfe\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
/// Opened once (F), with the credentials of the program (C), and the program handed over open (O).
const FLAGS: &str = "OCF";

/// Mounts the share and has the kernel use what is in it. Doing it twice changes nothing.
pub(crate) fn enable() -> Result<(), AgentError> {
    // It would be asked to run its own programs by an interpreter that is one of them.
    if cfg!(target_arch = "x86_64") {
        return Err(AgentError::Rosetta(
            "this guest is for x86-64 itself".to_owned(),
        ));
    }
    let interpreter = Path::new(DIR).join(INTERPRETER);
    if !interpreter.exists() {
        crate::shares::load_modules();
        fs::create_dir_all(DIR).map_err(io_error("create", DIR))?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        mount(TAG, DIR, "virtiofs", flags, c"").map_err(io_error("mount Rosetta at", DIR))?;
    }
    if !interpreter.exists() {
        let why = format!("the host's share has no {INTERPRETER}");
        return Err(AgentError::Rosetta(why));
    }
    let register = Path::new(BINFMT).join("register");
    if !register.exists() {
        // A kernel that has it built in knows no module of the name.
        let _ = modprobe::run(&["binfmt_misc"]);
        let flags = MountFlags::NOEXEC | MountFlags::NODEV | MountFlags::NOSUID;
        mount("binfmt_misc", BINFMT, "binfmt_misc", flags, c"")
            .map_err(io_error("mount", BINFMT))?;
    }
    // systemd's, or somebody's own, stays: it may have other flags for a reason.
    if Path::new(BINFMT).join(NAME).exists() {
        return Ok(());
    }
    fs::write(&register, rule(&interpreter)).map_err(io_error("write", &register))
}

fn rule(interpreter: &Path) -> String {
    let interpreter = interpreter.display();
    format!(":{NAME}:M::{MAGIC}:{MASK}:{interpreter}:{FLAGS}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of the rule's escapes.
    fn bytes(escaped: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = escaped;
        while let Some(c) = rest.chars().next() {
            if let Some(hex) = rest.strip_prefix(r"\x") {
                out.push(u8::from_str_radix(&hex[..2], 16).unwrap());
                rest = &hex[2..];
            } else {
                out.push(u8::try_from(c).unwrap());
                rest = &rest[1..];
            }
        }
        out
    }

    fn matches(head: &[u8]) -> bool {
        let (magic, mask) = (bytes(MAGIC), bytes(MASK));
        assert_eq!(magic.len(), mask.len());
        let masked = head.iter().zip(&mask).map(|(b, m)| b & m);
        masked.eq(magic.iter().zip(&mask).map(|(b, m)| b & m))
    }

    #[test]
    fn the_rule_is_for_programs_of_x86_64_alone() {
        let head = |kind: u8, machine: u8| {
            let mut head =
                *b"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00";
            (head[16], head[18]) = (kind, machine);
            head
        };
        assert!(matches(&head(2, 0x3e)), "executable");
        assert!(matches(&head(3, 0x3e)), "shared");
        assert!(!matches(&head(1, 0x3e)), "object");
        assert!(!matches(&head(2, 0xb7)), "aarch64");
        assert!(!matches(&head(2, 0x03)), "i386");
        let rule = rule(Path::new("/run/slicer/rosetta/rosetta"));
        // The kernel takes no longer ones, nor does a rule have other fields.
        assert!(rule.len() < 1920, "{rule}");
        assert_eq!(rule.matches(':').count(), 7);
        assert!(rule.ends_with(":/run/slicer/rosetta/rosetta:OCF"));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_guest_for_x86_64_has_no_use_for_it() {
        let e = enable().unwrap_err().to_string();
        assert!(e.contains("x86-64 itself"), "{e}");
    }
}
