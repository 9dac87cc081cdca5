//! How the clone of a guest becomes one of its own: what must not be the same in two guests, and is
//! because they began with the same memory.
//!
//! What stays is the kernel's boot id, for the journal and systemd have noted all they did under it.

use crate::error::{AgentError, io_error};
use crate::identity::write_in_place;
use crate::init::RUN_DIR;
use crate::{fresh, log, net, sshd, sys};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use slicer_api::{ApiError, Fixup, Identity, Renewal};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where it is noted which clone was made one of its own: it outlives the worker, as the guest does.
const NOTE: &str = "renewed";
/// What it says in a template without SSH host keys, and in one with some. Its clones write over it.
const TEMPLATES: [&str; 2] = ["-", "keys"];
/// The kernel's pool of random numbers.
const POOL: &str = "/dev/urandom";
/// Where the journal has a directory named for the machine.
const JOURNALS: [&str; 2] = ["/run/log/journal", "/var/log/journal"];
/// From what the next boot seeds its random numbers.
pub(crate) const SAVED_SEED: &str = "/var/lib/systemd/random-seed";

/// Refuses what could not be meant.
pub(crate) fn check(renewal: &Renewal) -> Result<(), ApiError> {
    let bad = |what| ApiError::bad_request(format!("invalid renewal: {what}"));
    if renewal.id.is_empty() || renewal.id.len() > 128 || renewal.id.chars().any(char::is_control) {
        return Err(bad("its id is not a name"));
    }
    seed(renewal)
        .map(drop)
        .ok_or_else(|| bad("its seed is not 64 bytes in base64"))
}

fn seed(renewal: &Renewal) -> Option<[u8; sys::SEED]> {
    let bytes = BASE64.decode(&renewal.seed).ok()?;
    bytes.try_into().ok()
}

/// Makes this guest one of its own, unless that was done. Blocks.
///
/// # Errors
/// What could not be made anew. A guest that may be another's twin is to let nobody in.
pub(crate) fn apply(identity: &Identity) -> Result<Later, AgentError> {
    let mut later = Later::default();
    let Some(renewal) = &identity.renewal else {
        return Ok(later);
    };
    let note = note();
    let done = fs::read_to_string(&note).unwrap_or_default();
    if done == renewal.id {
        return Ok(later);
    }
    // First, for what is made anew follows from it.
    let seed = seed(renewal).ok_or_else(|| {
        io_error("use", "the seed of a clone")(io::Error::from(io::ErrorKind::InvalidData))
    })?;
    let pool = fs::OpenOptions::new().write(true).open(POOL);
    let pool = pool.map_err(io_error("open", POOL))?;
    sys::reseed(pool.as_fd(), seed).map_err(io_error("seed", POOL))?;
    match fs::remove_file(SAVED_SEED) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", SAVED_SEED)(e));
        }
        _ => {}
    }
    if let Some(network) = &identity.network {
        let of_template = TEMPLATES.contains(&done.as_str());
        later.ipv6 = net::change_hardware_address(&renewal.mac, &network.mac, of_template)?;
    }
    let old = machine_id(Path::new("/"));
    fresh::apply(&[Fixup::MachineId], Path::new("/"))?;
    // A look for them takes its time, too.
    if done != TEMPLATES[0] {
        later.host_keys = fresh::renew_host_keys_of_clone(Path::new("/"))?;
        if fresh::has_host_keys(Path::new("/"))? {
            sshd::take_up_keys(&Path::new("/").join(fresh::SSH_DIR));
        }
    }
    if let (Some(old), Some(new)) = (old, machine_id(Path::new("/"))) {
        for dir in JOURNALS {
            // It is only where the journal's files are looked for.
            if let Err(e) = link_journal(Path::new(dir), &old, &new) {
                log::warn(&e.to_string());
            }
        }
    }
    write_in_place(&note, &renewal.id)?;
    Ok(later)
}

/// What is left to do for a clone, and is nothing that anybody waits for.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Later {
    /// The interface that is to draw IPv6 addresses. It takes a second or more until they can be used in
    /// any case, for it asks the network whether somebody has them (RFC 4862).
    ipv6: Option<String>,
    /// Those that take long to make.
    host_keys: Vec<fresh::HostKey>,
}

impl Later {
    /// Whether there is anything.
    pub(crate) fn is_nothing(&self) -> bool {
        self.ipv6.is_none() && self.host_keys.is_empty()
    }

    /// Does it. Blocks.
    pub(crate) fn run(self) {
        if let Some(interface) = self.ipv6
            && let Err(e) = net::set_ipv6(&interface, true)
        {
            log::warn(&e.to_string());
        }
        if self.host_keys.is_empty() {
            return;
        }
        for key in &self.host_keys {
            key.make();
        }
        sshd::take_up_keys(&Path::new("/").join(fresh::SSH_DIR));
    }
}

fn note() -> PathBuf {
    Path::new(RUN_DIR).join(NOTE)
}

/// Notes that this guest is to be a template.
///
/// # Errors
/// When that can't be written.
pub(crate) fn note_template() -> Result<(), AgentError> {
    let note = note();
    let has_keys = fresh::has_host_keys(Path::new("/"))?;
    fs::write(&note, TEMPLATES[usize::from(has_keys)]).map_err(io_error("write", &note))
}

fn machine_id(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("etc/machine-id")).ok()?;
    let id = text.trim();
    let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

/// Has the journal, which goes on in the directory of the machine's id of before, be found by its id of
/// now.
fn link_journal(dir: &Path, old: &str, new: &str) -> Result<(), AgentError> {
    let (from, link) = (dir.join(old), dir.join(new));
    let target = match fs::read_link(&from) {
        // Of a clone of a clone: to where that leads, for a path has so many links at most.
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => PathBuf::from(old),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("look at", &from)(e)),
    };
    symlink(&target, &link).map_err(io_error("link", &link))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal(id: &str, seed: &str) -> Renewal {
        Renewal {
            id: id.to_owned(),
            seed: seed.to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
        }
    }

    #[test]
    fn only_a_whole_seed_is_one() {
        let good = BASE64.encode([7; sys::SEED]);
        assert!(check(&renewal("a", &good)).is_ok());
        for (id, seed) in [
            ("", good.clone()),
            ("a\nb", good),
            ("a", BASE64.encode([7; 63])),
            ("a", "!".to_owned()),
            ("a", String::new()),
        ] {
            assert!(check(&renewal(id, &seed)).is_err(), "{id:?} {seed:?}");
        }
    }

    #[test]
    fn the_journal_is_found_under_the_new_id() {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<String> = (0..60).map(|n| format!("{n:032}")).collect();
        link_journal(dir.path(), &ids[0], &ids[1]).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::create_dir(dir.path().join(&ids[0])).unwrap();
        fs::write(dir.path().join(&ids[0]).join("system.journal"), "x").unwrap();
        for pair in ids.windows(2) {
            link_journal(dir.path(), &pair[0], &pair[1]).unwrap();
        }
        for id in ids {
            let path = dir.path().join(id).join("system.journal");
            assert_eq!(fs::read_to_string(path).unwrap(), "x");
        }
    }

    #[test]
    fn what_is_no_machine_id_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(machine_id(dir.path()), None);
        fs::create_dir(dir.path().join("etc")).unwrap();
        for (text, id) in [
            ("uninitialized\n", None),
            ("../../../../../../../../../../../x\n", None),
            ("0123456789abcdef0123456789abcdef\n", Some(32)),
        ] {
            fs::write(dir.path().join("etc/machine-id"), text).unwrap();
            assert_eq!(machine_id(dir.path()).map(|id| id.len()), id);
        }
    }
}
