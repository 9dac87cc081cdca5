//! The store of secrets: one file each in `.secrets/`, whose name, permissions and owner are those
//! the file has in guests. Files put there by hand are secrets, too.
//!
//! A daemon that isn't root can't give files away: the owner is then kept beside, in
//! `.slicer/secrets/<name>.json`, and a file without that is root's.

use crate::DaemonError;
use crate::files;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};
use slicer_api::{
    ApiError, CreateSecret, GuestSecret, Secret, Timestamp, UpdateSecret, is_secret_name,
    parse_permissions,
};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Largest value, and most bytes of all values, so that all of them fit into one request to a
/// guest.
const MAX_VALUE: u64 = 1 << 20;
const MAX_TOTAL: u64 = 4 << 20;
const MAX_SECRETS: usize = 1000;
const DEFAULT_MODE: u32 = 0o600;

/// Who a secret's file belongs to in guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// The store. Its methods block.
#[derive(Debug)]
pub(crate) struct Secrets {
    dir: PathBuf,
    owners: PathBuf,
    root: bool,
    /// Held while something is changed.
    lock: Mutex<()>,
    changes: watch::Sender<u64>,
}

impl Secrets {
    /// The store of the working directory at `root`.
    pub(crate) fn open(root: &Path) -> Result<Self, DaemonError> {
        let dir = root.join(".secrets");
        let owners = root.join(".slicer/secrets");
        for dir in [&dir, &owners] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o700)))
                .map_err(DaemonError::io("create", dir))?;
        }
        Ok(Self {
            dir,
            owners,
            root: rustix::process::geteuid().is_root(),
            lock: Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// Tells of every change made through this store from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn owner_path(&self, name: &str) -> PathBuf {
        self.owners.join(format!("{name}.json"))
    }

    /// All secrets, by name. What is no plain file of a proper name is none.
    pub(crate) fn list(&self) -> Result<Vec<Secret>, DaemonError> {
        let failed = |e| DaemonError::io("read", &self.dir)(e);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else {
                continue;
            };
            if let Some(secret) = self.inspect(&name)? {
                all.push(secret);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn find(&self, name: &str) -> Result<Option<Secret>, DaemonError> {
        match self.inspect(name)? {
            // Found by another name it would be listed and granted by its own.
            Some(secret) if self.has_name(name)? => Ok(Some(secret)),
            _ => Ok(None),
        }
    }

    /// The secret that a name leads to.
    fn inspect(&self, name: &str) -> Result<Option<Secret>, DaemonError> {
        if !is_secret_name(name) {
            return Ok(None);
        }
        let path = self.path(name);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(DaemonError::io("inspect", path)(e)),
        };
        let owner = if self.root {
            Owner {
                uid: meta.uid(),
                gid: meta.gid(),
            }
        } else {
            self.kept_owner(name)?
        };
        let modified = meta.modified().ok().and_then(|t| t.try_into().ok());
        let modified: Option<Timestamp> = modified;
        Ok(Some(Secret {
            name: name.to_owned(),
            size: meta.len(),
            permissions: format!("{:04o}", meta.mode() & 0o777),
            uid: owner.uid,
            gid: owner.gid,
            modified_at: modified,
            mod_time: modified,
        }))
    }

    /// Whether a file has this very name: not every file system tells upper case from lower.
    fn has_name(&self, name: &str) -> Result<bool, DaemonError> {
        let entries = fs::read_dir(&self.dir).map_err(DaemonError::io("list", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(DaemonError::io("list", &self.dir))?;
            if entry.file_name() == name {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn kept_owner(&self, name: &str) -> Result<Owner, DaemonError> {
        let path = self.owner_path(name);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| DaemonError::io("read", path)(io::Error::other(e))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Owner::default()),
            Err(e) => Err(DaemonError::io("read", path)(e)),
        }
    }

    /// Makes a secret; it is durable when this returns.
    pub(crate) fn create(&self, new: &CreateSecret) -> Result<Secret, ApiError> {
        let name = &new.name;
        if !is_secret_name(name) {
            let name: String = name.chars().take(64).collect();
            return Err(ApiError::bad_request(format!(
                "invalid secret name {name:?}: use letters, digits, dots, dashes and underscores, \
                 at most 253, and no dot in front"
            )));
        }
        let value = decode(&new.data)?;
        let mode = new.permissions.as_deref().map_or(Ok(DEFAULT_MODE), mode)?;
        let owner = Owner {
            uid: new.uid.unwrap_or(0),
            gid: new.gid.unwrap_or(0),
        };
        let _lock = self.lock();
        // Whatever has the name, be it no secret, is not replaced.
        if fs::symlink_metadata(self.path(name)).is_ok() {
            return Err(ApiError::conflict(format!(
                "a secret named {name:?} exists already"
            )));
        }
        self.check_room(value.len() as u64, 0, true)?;
        self.write(name, Some(&value), mode, owner)
    }

    /// Changes a secret.
    pub(crate) fn update(&self, name: &str, change: &UpdateSecret) -> Result<Secret, ApiError> {
        let value = match change.data.as_deref() {
            None | Some("") => None,
            Some(data) => Some(decode(data)?),
        };
        let given = change.permissions.as_deref().filter(|p| !p.is_empty());
        let given = given.map(mode).transpose()?;
        let _lock = self.lock();
        let now = self.existing(name)?;
        let owner = Owner {
            uid: change.uid.unwrap_or(now.uid),
            gid: change.gid.unwrap_or(now.gid),
        };
        let mode = match given {
            Some(mode) => mode,
            None => mode(&now.permissions)?,
        };
        if let Some(value) = &value {
            self.check_room(value.len() as u64, now.size, false)?;
        }
        self.write(name, value.as_deref(), mode, owner)
    }

    /// Removes a secret.
    pub(crate) fn remove(&self, name: &str) -> Result<(), ApiError> {
        let _lock = self.lock();
        self.existing(name)?;
        let removed = files::remove(&self.path(name))
            .map_err(DaemonError::io("remove", self.path(name)))
            .and_then(|()| {
                let path = self.owner_path(name);
                files::remove(&path).map_err(DaemonError::io("remove", path))
            });
        self.changes.send_modify(|n| *n += 1);
        removed.map_err(|e| e.to_api())
    }

    fn existing(&self, name: &str) -> Result<Secret, ApiError> {
        let found = self.find(name).map_err(|e| e.to_api())?;
        found.ok_or_else(|| {
            let name: String = name.chars().take(64).collect();
            ApiError::not_found(format!("secret {name:?} not found"))
        })
    }

    fn check_room(&self, new: u64, old: u64, more: bool) -> Result<(), ApiError> {
        let all = self.list().map_err(|e| e.to_api())?;
        let total: u64 = all.iter().map(|s| s.size).sum();
        if total.saturating_sub(old).saturating_add(new) > MAX_TOTAL {
            return Err(ApiError::bad_request(format!(
                "all secrets together may have {} MiB: remove some first",
                MAX_TOTAL >> 20
            )));
        }
        if more && all.len() >= MAX_SECRETS {
            return Err(ApiError::bad_request(format!(
                "there may be {MAX_SECRETS} secrets: remove some first"
            )));
        }
        Ok(())
    }

    /// Writes a secret's file anew, or only what belongs to it, and tells of the change.
    fn write(
        &self,
        name: &str,
        value: Option<&[u8]>,
        mode: u32,
        owner: Owner,
    ) -> Result<Secret, ApiError> {
        let done = self.try_write(name, value, mode, owner);
        self.changes.send_modify(|n| *n += 1);
        done.map_err(|e| e.to_api())?;
        self.existing(name)
    }

    fn try_write(
        &self,
        name: &str,
        value: Option<&[u8]>,
        mode: u32,
        owner: Owner,
    ) -> Result<(), DaemonError> {
        let path = self.path(name);
        if !self.root {
            let text = serde_json::to_vec(&owner).unwrap_or_default();
            let kept = self.owner_path(name);
            files::write_atomically(&kept, &text).map_err(DaemonError::io("write", kept))?;
        }
        let give = |file: &fs::File| -> io::Result<()> {
            if self.root {
                let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
                rustix::fs::fchown(file, Some(uid), Some(gid))?;
            }
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        };
        let written = match value {
            None => fs::File::open(&path).and_then(|file| give(&file)),
            // Not beside it: the temporary file would be a secret, too, until it is renamed.
            Some(value) => tempfile::NamedTempFile::new_in(&self.owners).and_then(|mut file| {
                file.write_all(value)?;
                give(file.as_file())?;
                file.persist(&path).map_err(|e| e.error)?;
                files::sync_dir(&self.dir)
            }),
        };
        written.map_err(DaemonError::io("write", path))
    }

    /// The secrets a guest may see, with their values: those of these names, or all.
    pub(crate) fn granted(
        &self,
        names: Option<&[String]>,
    ) -> Result<Vec<GuestSecret>, DaemonError> {
        let _lock = self.lock();
        let mut granted = Vec::new();
        let mut total = 0;
        for secret in self.list()? {
            if names.is_some_and(|names| !names.contains(&secret.name)) {
                continue;
            }
            let path = self.path(&secret.name);
            let mut value = Vec::new();
            fs::File::open(&path)
                .and_then(|file| file.take(MAX_VALUE + 1).read_to_end(&mut value))
                .map_err(DaemonError::io("read", &path))?;
            total += value.len() as u64;
            // Put there by hand, since requests can't.
            if value.len() as u64 > MAX_VALUE || total > MAX_TOTAL {
                let why = format!(
                    "secrets may have {} MiB, together {}",
                    MAX_VALUE >> 20,
                    MAX_TOTAL >> 20
                );
                return Err(DaemonError::io("pass on", path)(io::Error::other(why)));
            }
            granted.push(GuestSecret {
                name: secret.name,
                data: STANDARD.encode(value),
                mode: parse_permissions(&secret.permissions).unwrap_or(DEFAULT_MODE),
                uid: secret.uid,
                gid: secret.gid,
            });
        }
        Ok(granted)
    }

    /// Refuses names that are no secret's.
    pub(crate) fn check_names(&self, names: &[String]) -> Result<(), ApiError> {
        for name in names {
            if self.find(name).map_err(|e| e.to_api())?.is_none() {
                let name: String = name.chars().take(64).collect();
                return Err(ApiError::bad_request(format!(
                    "there is no secret named {name:?}"
                )));
            }
        }
        Ok(())
    }
}

fn decode(data: &str) -> Result<Vec<u8>, ApiError> {
    let value = STANDARD
        .decode(data.trim())
        .map_err(|e| ApiError::bad_request(format!("invalid data: not base64: {e}")))?;
    if value.len() as u64 > MAX_VALUE {
        return Err(ApiError::bad_request(format!(
            "the value is larger than {} MiB",
            MAX_VALUE >> 20
        )));
    }
    Ok(value)
}

fn mode(text: &str) -> Result<u32, ApiError> {
    parse_permissions(text).ok_or_else(|| {
        let text: String = text.chars().take(16).collect();
        ApiError::bad_request(format!(
            "invalid permissions {text:?}: expected octal such as 0600, readable by the owner"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path, root: bool) -> Secrets {
        let mut store = Secrets::open(dir).unwrap();
        store.root &= root;
        store
    }

    fn new(name: &str, value: &str) -> CreateSecret {
        CreateSecret {
            name: name.into(),
            data: STANDARD.encode(value),
            ..CreateSecret::default()
        }
    }

    #[test]
    fn a_secrets_life() {
        for root in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let store = store(dir.path(), root);
            let changes = store.changes();
            let made = store.create(&new("key", "sesame\n")).unwrap();
            assert_eq!((made.size, &*made.permissions), (7, "0600"));
            assert!(made.modified_at.is_some() && made.mod_time == made.modified_at);
            assert_eq!(store.create(&new("key", "x")).unwrap_err().status, 409);

            let change = UpdateSecret {
                data: Some(String::new()),
                permissions: Some("0440".into()),
                ..UpdateSecret::default()
            };
            let changed = store.update("key", &change).unwrap();
            assert_eq!((changed.size, &*changed.permissions), (7, "0440"));
            let owner = made.uid;
            let change = UpdateSecret {
                data: Some(STANDARD.encode("more sesame")),
                uid: Some(if store.root { owner } else { 1000 }),
                ..UpdateSecret::default()
            };
            let changed = store.update("key", &change).unwrap();
            assert_eq!((changed.size, &*changed.permissions), (11, "0440"));
            assert_eq!(changed.uid, change.uid.unwrap());
            assert_eq!(store.list().unwrap(), [changed]);

            store.remove("key").unwrap();
            assert_eq!(store.remove("key").unwrap_err().status, 404);
            assert_eq!(store.update("key", &change).unwrap_err().status, 404);
            assert!(store.list().unwrap().is_empty());
            assert_eq!(*changes.borrow(), 4);
            for left in [
                dir.path().join(".secrets"),
                dir.path().join(".slicer/secrets"),
            ] {
                assert_eq!(fs::read_dir(left).unwrap().count(), 0);
            }
        }
    }

    #[test]
    fn guests_get_what_they_may_see() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), true);
        store.create(&new("a", "1")).unwrap();
        store.create(&new("b", "2")).unwrap();
        fs::write(dir.path().join(".secrets/by-hand"), "3").unwrap();
        fs::write(dir.path().join(".secrets/.hidden"), "4").unwrap();
        fs::create_dir(dir.path().join(".secrets/dir")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(".secrets/link")).unwrap();
        let names = |granted: Vec<GuestSecret>| -> Vec<String> {
            granted.into_iter().map(|s| s.name).collect()
        };
        assert_eq!(names(store.granted(None).unwrap()), ["a", "b", "by-hand"]);
        assert_eq!(names(store.granted(Some(&["b".into()])).unwrap()), ["b"]);
        assert!(store.granted(Some(&[])).unwrap().is_empty());
        store.check_names(&["a".into()]).unwrap();
        for name in ["c", "link", "../x"] {
            assert_eq!(store.check_names(&[name.into()]).unwrap_err().status, 400);
        }
    }

    #[test]
    fn what_cannot_be_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), true);
        for bad in [
            new("", "x"),
            new("../x", "x"),
            new(".x", "x"),
            CreateSecret {
                data: "no base64!".into(),
                ..new("x", "")
            },
            CreateSecret {
                permissions: Some("rw".into()),
                ..new("x", "")
            },
            new("x", &"y".repeat((1 << 20) + 1)),
        ] {
            assert_eq!(store.create(&bad).unwrap_err().status, 400, "{}", bad.name);
        }
        assert!(store.list().unwrap().is_empty());
    }
}
