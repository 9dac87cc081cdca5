//! What a fork must not share with its source and has on its disk: made anew before the image's
//! init starts, so that no program ever sees the source's.

use crate::error::{AgentError, io_error};
use crate::{init, log};
use slicer_api::Fixup;
use ssh_key::private::{Ed25519Keypair, Ed25519PrivateKey};
use ssh_key::{LineEnding, PrivateKey};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the SSH server has its host keys, below the root.
pub(crate) const SSH_DIR: &str = "etc/ssh";
/// A key of the largest kind takes seconds where the processor is emulated.
const KEYGEN_TIME: Duration = Duration::from_mins(2);
const KEYGEN_PAUSE: Duration = Duration::from_millis(5);
/// The kinds that are made in no time. Two primes for RSA are to be found first.
const QUICK: [&str; 2] = ["ed25519", "ecdsa"];
/// How the files of a key are called until they take its name.
const NEW: &str = "slicer-new";

/// What the host asks for on the kernel's command line. What isn't known is of a later host, which
/// will find that it was not done; ours has no such.
pub(crate) fn asked(command_line: &str) -> Vec<Fixup> {
    let words = command_line.split_whitespace();
    let lists = words.filter_map(|w| w.strip_prefix(Fixup::ARGUMENT));
    let fixups = lists.flat_map(|list| list.split(','));
    fixups.filter_map(|word| word.parse().ok()).collect()
}

/// Makes the system below `root` differ from its source. A fork that can't be told from its source
/// must not run, so every failure is one of the boot.
pub(crate) fn apply(fixups: &[Fixup], root: &Path) -> Result<(), AgentError> {
    for fixup in fixups {
        match fixup {
            // Part of the identity, which every boot brings.
            Fixup::Hostname => {}
            Fixup::MachineId => renew_machine_id(root)?,
            Fixup::SshHostKeys => renew_host_keys(&root.join(SSH_DIR), generate)?,
        }
    }
    Ok(())
}

fn renew_machine_id(root: &Path) -> Result<(), AgentError> {
    let path = root.join("etc/machine-id");
    init::renew_machine_id(&path)?;
    // Most images have a link there, or nothing.
    let dbus = root.join("var/lib/dbus/machine-id");
    if fs::symlink_metadata(&dbus).is_ok_and(|m| m.is_file()) {
        remove(&dbus)?;
        fs::copy(&path, &dbus).map_err(io_error("write", &dbus))?;
    }
    Ok(())
}

/// Replaces each key of `dir` by one of its kind. Where none can be made, the old one goes all the
/// same: an image whose keys are made on demand gets one, and in any other nobody can be deceived.
fn renew_host_keys(
    dir: &Path,
    generate: impl Fn(&str, &Path) -> io::Result<()>,
) -> Result<(), AgentError> {
    let keys = host_keys(dir)?;
    keys.iter().try_for_each(|key| key.renew(&generate))
}

/// Replaces the SSH host keys of a clone, which runs and is waited for: where the server has another key, one
/// that takes long to make is only removed, and given back for [`HostKey::make`].
///
/// # Errors
/// When one can't be replaced.
pub(crate) fn renew_host_keys_of_clone(root: &Path) -> Result<Vec<HostKey>, AgentError> {
    let dir = root.join(SSH_DIR);
    let (quick, slow): (Vec<_>, Vec<_>) = host_keys(&dir)?
        .into_iter()
        .partition(|k| QUICK.contains(&k.kind.as_str()));
    for key in &quick {
        key.renew(generate)?;
    }
    // A server that is told which keys to take may be left with none.
    let named = named_host_keys(&dir);
    let serves = |key: &HostKey| named.is_empty() || named.iter().any(|n| n.ends_with(key.name()));
    let wait = !quick.iter().any(serves);
    for key in &slow {
        if wait {
            key.renew(generate)?;
        } else {
            key.remove()?;
        }
    }
    Ok(if wait { Vec::new() } else { slow })
}

/// The host keys that the server's configuration in `dir` has it take (sshd_config(5)): without any, all.
fn named_host_keys(dir: &Path) -> Vec<PathBuf> {
    let more = fs::read_dir(dir.join("sshd_config.d"));
    let files = more.into_iter().flatten().flatten().map(|e| e.path());
    let mut named = Vec::new();
    for file in files.chain([dir.join("sshd_config")]) {
        let text = fs::read_to_string(file).unwrap_or_default();
        named.extend(text.lines().filter_map(|line| {
            let mut words = line
                .split(|c: char| c.is_whitespace() || c == '=' || c == '"')
                .filter(|w| !w.is_empty());
            let key = words.next()?.eq_ignore_ascii_case("HostKey");
            key.then(|| words.next().map(PathBuf::from))?
        }));
    }
    named
}

/// A host key of the SSH server's.
#[derive(Debug)]
pub(crate) struct HostKey {
    /// As `ssh-keygen -t` has it.
    kind: String,
    path: PathBuf,
}

impl HostKey {
    /// Makes one that was removed.
    pub(crate) fn make(&self) {
        if let Err(e) = self.renew(generate) {
            log::warn(&e.to_string());
        }
    }

    fn renew(&self, generate: impl Fn(&str, &Path) -> io::Result<()>) -> Result<(), AgentError> {
        let new = self.path.with_extension(NEW);
        for leftover in [new.clone(), public(&new)] {
            remove(&leftover)?;
        }
        // It is of the old key, and vouches for no other.
        remove(&self.certificate())?;
        match generate(&self.kind, &new) {
            Ok(()) => {
                for (from, to) in [(public(&new), public(&self.path)), (new, self.path.clone())] {
                    fs::rename(&from, &to).map_err(io_error("replace", &to))?;
                }
                Ok(())
            }
            Err(e) => {
                log::warn(&format!("{}: no new key: {e}", self.path.display()));
                self.remove()
            }
        }
    }

    fn remove(&self) -> Result<(), AgentError> {
        [self.certificate(), public(&self.path), self.path.clone()]
            .iter()
            .try_for_each(|file| remove(file))
    }

    fn name(&self) -> &Path {
        self.path.file_name().map_or(&self.path, Path::new)
    }

    fn certificate(&self) -> PathBuf {
        PathBuf::from(format!("{}-cert.pub", self.path.display()))
    }
}

fn public(key: &Path) -> PathBuf {
    key.with_added_extension("pub")
}

/// Whether the system below `root` has SSH host keys.
///
/// # Errors
/// When their directory can't be read.
pub(crate) fn has_host_keys(root: &Path) -> Result<bool, AgentError> {
    host_keys(&root.join(SSH_DIR)).map(|keys| !keys.is_empty())
}

/// SSH's host keys.
fn host_keys(dir: &Path) -> Result<Vec<HostKey>, AgentError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("read", dir)(e)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = name
            .strip_prefix("ssh_host_")
            .and_then(|n| n.strip_suffix("_key"));
        if let Some(kind) = kind {
            keys.push(HostKey {
                kind: kind.to_owned(),
                path: entry.path(),
            });
        }
    }
    Ok(keys)
}

fn generate(kind: &str, path: &Path) -> io::Result<()> {
    if kind == "ed25519" {
        return generate_ed25519(path);
    }
    let child = Command::new("/usr/bin/ssh-keygen")
        .args(["-q", "-t", kind, "-N", "", "-C", "", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait(child)
}

/// The kind that most have, without the program: a clone is to be ready sooner than that starts.
fn generate_ed25519(path: &Path) -> io::Result<()> {
    let mut seed = [0; Ed25519PrivateKey::BYTE_SIZE];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    let pair = Ed25519Keypair::from_seed(&seed);
    let key = PrivateKey::from(pair);
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    let public = key.public_key().to_openssh().map_err(io::Error::other)?;
    fs::write(path.with_added_extension("pub"), public + "\n")
}

/// Waits for a program, within bounds.
fn wait(mut child: Child) -> io::Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("ssh-keygen: {status}")))
            };
        }
        if start.elapsed() > KEYGEN_TIME {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(KEYGEN_PAUSE);
    }
}

/// Removes a file; one that isn't there is fine.
fn remove(path: &Path) -> Result<(), AgentError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_of_the_usual_kind_needs_no_program() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [0, 1].map(|n| dir.path().join(format!("ssh_host_ed25519_key{n}")));
        let keys = paths.each_ref().map(|path| {
            generate("ed25519", path).unwrap();
            let private = PrivateKey::read_openssh_file(path).unwrap();
            let public = fs::read_to_string(path.with_added_extension("pub")).unwrap();
            assert_eq!(private.public_key().to_openssh().unwrap(), public.trim());
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            public
        });
        assert_ne!(keys[0], keys[1]);
        assert!(generate("ed25519", &paths[0]).is_err());
    }

    #[test]
    fn what_is_asked_for_is_on_the_command_line() {
        let line = "console=ttyS0 quiet slicer.fresh=machine-id,ssh-host-keys,later x";
        assert_eq!(asked(line), [Fixup::MachineId, Fixup::SshHostKeys]);
        assert!(asked("quiet slicer.fresh= xslicer.fresh=hostname").is_empty());
    }

    #[test]
    fn the_machine_id_changes_wherever_it_is() {
        let root = tempfile::tempdir().unwrap();
        let (etc, dbus) = ("etc/machine-id", "var/lib/dbus/machine-id");
        for path in [etc, dbus] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "0123456789abcdef0123456789abcdef\n").unwrap();
        }
        apply(&[Fixup::MachineId, Fixup::Hostname], root.path()).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read(etc).len(), 33);
        assert_ne!(read(etc), "0123456789abcdef0123456789abcdef\n");
        assert_eq!(read(etc), read(dbus));
        // A link to the other stays one.
        fs::remove_file(root.path().join(dbus)).unwrap();
        std::os::unix::fs::symlink("/etc/machine-id", root.path().join(dbus)).unwrap();
        apply(&[Fixup::MachineId], root.path()).unwrap();
        assert!(root.path().join(dbus).is_symlink());
    }

    #[test]
    fn keys_are_replaced_by_their_kind_or_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/ssh");
        fs::create_dir_all(&dir).unwrap();
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
            let mut names: Vec<_> = entries.map(|n| n.into_string().unwrap()).collect();
            names.sort();
            names
        };
        for name in [
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
            "ssh_host_ed25519_key-cert.pub",
            "ssh_host_rsa_key",
            "ssh_host_rsa_key.pub",
            "sshd_config",
        ] {
            fs::write(dir.join(name), "old").unwrap();
        }
        renew_host_keys(&dir, |kind, path| {
            if kind == "rsa" {
                return Err(io::ErrorKind::NotFound.into());
            }
            fs::write(path, kind)?;
            fs::write(path.with_added_extension("pub"), kind)
        })
        .unwrap();
        assert!(has_host_keys(root.path()).unwrap());
        assert!(!has_host_keys(&root.path().join("absent")).unwrap());
        let left = [
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
            "sshd_config",
        ];
        assert_eq!(names(&dir), left);
        for key in &left[..2] {
            assert_eq!(fs::read_to_string(dir.join(key)).unwrap(), "ed25519");
        }
        renew_host_keys(&root.path().join("absent"), |_, _| Ok(())).unwrap();
    }

    #[test]
    fn a_key_that_takes_long_comes_later_where_that_is_no_harm() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(SSH_DIR);
        fs::create_dir_all(dir.join("sshd_config.d")).unwrap();
        let has = |name: &str| fs::read_to_string(dir.join(name)).ok();
        fs::write(dir.join("ssh_host_rsa_key"), "old").unwrap();
        fs::write(dir.join("ssh_host_rsa_key-cert.pub"), "old").unwrap();
        fs::write(dir.join("ssh_host_ed25519_key"), "old").unwrap();
        fs::write(
            dir.join("sshd_config"),
            "#HostKey /x\nHostKeyAlgorithms x\n",
        )
        .unwrap();
        let later = renew_host_keys_of_clone(root.path()).unwrap();
        assert_eq!(later.len(), 1);
        assert_eq!(later[0].kind, "rsa");
        assert_eq!(has("ssh_host_rsa_key"), None);
        assert_eq!(has("ssh_host_rsa_key-cert.pub"), None);
        assert!(has("ssh_host_ed25519_key").unwrap().contains("PRIVATE KEY"));

        // One that takes no other, or has none, isn't left without.
        let conf = dir.join("sshd_config.d/a.conf");
        for (line, wait) in [
            ("  hostkey /etc/ssh/ssh_host_rsa_key", true),
            ("HostKey=\"/x\"", true),
            ("HostKey /etc/ssh/ssh_host_ed25519_key", false),
        ] {
            fs::write(&conf, line).unwrap();
            fs::write(dir.join("ssh_host_rsa_key"), "old").unwrap();
            let later = renew_host_keys_of_clone(root.path()).unwrap();
            assert_eq!(later.is_empty(), wait, "{line}");
            assert_ne!(has("ssh_host_rsa_key").as_deref(), Some("old"));
        }
        fs::remove_file(conf).unwrap();
        fs::remove_file(dir.join("ssh_host_ed25519_key")).unwrap();
        assert!(named_host_keys(&dir).is_empty());
        fs::write(dir.join("ssh_host_rsa_key"), "old").unwrap();
        assert!(renew_host_keys_of_clone(root.path()).unwrap().is_empty());
        assert_ne!(has("ssh_host_rsa_key").as_deref(), Some("old"));
    }
}
