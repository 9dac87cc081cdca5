//! Secrets in the guest: files in a directory in memory, exactly those the host gives.

use crate::error::{AgentError, io_error};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, openat, renameat, unlinkat};
use slicer_api::{ApiError, GuestSecret, GuestSecrets, is_secret_name};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Where they are.
pub(crate) const DIR: &str = "/run/slicer/secrets";
/// Bytes the request that gives them may have.
pub(crate) const BODY_LIMIT: usize = 8 << 20;
/// A name no secret can have.
const TEMPORARY: &str = ".new";

/// A secret whose value is decoded.
struct Decoded {
    name: String,
    value: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Decoded {
    fn of(secret: GuestSecret) -> Result<Self, ApiError> {
        let bad = |what| ApiError::bad_request(format!("invalid {what} of a secret"));
        if !is_secret_name(&secret.name) {
            return Err(bad("name"));
        }
        if secret.mode > 0o777 {
            return Err(bad("mode"));
        }
        Ok(Self {
            value: STANDARD.decode(&secret.data).map_err(|_| bad("value"))?,
            name: secret.name,
            mode: secret.mode,
            uid: secret.uid,
            gid: secret.gid,
        })
    }
}

/// Makes the files below `dir` those of `secrets`: adds, changes and removes. Blocks.
pub(crate) fn apply(dir: &Path, secrets: GuestSecrets) -> Result<(), ApiError> {
    let secrets = secrets.secrets.into_iter().map(Decoded::of);
    let secrets: Vec<Decoded> = secrets.collect::<Result<_, _>>()?;
    write_all(dir, &secrets).map_err(|e| ApiError::internal(e.to_string()))
}

fn write_all(dir: &Path, secrets: &[Decoded]) -> Result<(), AgentError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(io_error("make directory", dir))?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(dir, flags, Mode::empty()).map_err(io_error("open", dir))?;
    for secret in secrets {
        let path = dir.join(&secret.name);
        let _ = unlinkat(&handle, TEMPORARY, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&handle, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)
            .map_err(io_error("write", &path))?;
        let mut file = File::from(file);
        file.write_all(&secret.value)
            .map_err(io_error("write", &path))?;
        // Nobody but root until it belongs to whom it should. An agent that isn't root, as in
        // tests, can give files to nobody.
        if rustix::process::geteuid().is_root() {
            let owner = (Uid::from_raw(secret.uid), Gid::from_raw(secret.gid));
            rustix::fs::fchown(&file, Some(owner.0), Some(owner.1))
                .map_err(io_error("give away", &path))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(secret.mode))
            .map_err(io_error("change mode of", &path))?;
        renameat(&handle, TEMPORARY, &handle, &*secret.name).map_err(io_error("replace", &path))?;
    }
    let names: HashSet<&str> = secrets.iter().map(|s| &*s.name).collect();
    for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
        let name = entry.map_err(io_error("read", dir))?.file_name();
        let stays = name.to_str().is_some_and(|n| names.contains(n));
        if !stays {
            // A directory somebody made in there is not ours to remove.
            let _ = unlinkat(&handle, &*name, AtFlags::empty());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn secret(name: &str, value: &str, mode: u32) -> GuestSecret {
        GuestSecret {
            name: name.into(),
            data: STANDARD.encode(value),
            mode,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        }
    }

    fn given(secrets: Vec<GuestSecret>) -> GuestSecrets {
        GuestSecrets {
            secrets,
            answers: None,
        }
    }

    #[test]
    fn the_files_are_those_that_were_given() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("secrets");
        let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
        apply(
            &dir,
            given(vec![secret("a", "1", 0o600), secret("b", "2", 0o444)]),
        )
        .unwrap();
        assert_eq!((read("a"), read("b")), (Some("1".into()), Some("2".into())));
        let mode = fs::metadata(dir.join("b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o444);
        // Whatever a user of the guest put in place of a file is replaced, not followed.
        fs::remove_file(dir.join("a")).unwrap();
        let elsewhere = temp.path().join("elsewhere");
        fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.join("a")).unwrap();
        apply(&dir, given(vec![secret("a", "3", 0o600)])).unwrap();
        assert_eq!((read("a"), read("b")), (Some("3".into()), None));
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "theirs");
        apply(&dir, given(vec![])).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_secret_changes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("secrets");
        for bad in [
            secret("../x", "1", 0o600),
            secret("x", "1", 0o4755),
            GuestSecret {
                data: "?".into(),
                ..secret("x", "", 0o600)
            },
        ] {
            let all = vec![secret("a", "1", 0o600), bad];
            assert_eq!(apply(&dir, given(all)).unwrap_err().status, 400);
        }
        assert!(!dir.exists());
    }
}
