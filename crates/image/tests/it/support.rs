//! Images made on the spot, and looks into ext4 files with the tools of e2fsprogs.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Entries of a layer, with what tar can say of them.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

/// One entry; the rest is the default.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) kind: tar::EntryType,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) data: &'a [u8],
    pub(crate) link: &'a str,
    pub(crate) device: (u32, u32),
    pub(crate) pax: &'a [(&'a str, &'a [u8])],
    /// The size that the header says, if it isn't that of the data.
    pub(crate) claimed: Option<u64>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            kind: tar::EntryType::Regular,
            mode: 0o644,
            owner: (0, 0),
            data: b"",
            link: "",
            device: (0, 0),
            pax: &[],
            claimed: None,
        }
    }
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn add(&mut self, path: &str, entry: Entry<'_>) -> &mut Self {
        let times = [("mtime", &b"1700000000.5"[..])];
        let time = times
            .iter()
            .filter(|_| !entry.pax.iter().any(|(k, _)| *k == "mtime"));
        self.0
            .append_pax_extensions(time.chain(entry.pax).copied())
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(entry.claimed.unwrap_or(entry.data.len() as u64));
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        if entry.link.is_empty() {
            // Names that a tar writer would refuse are what some tests are about.
            if path.len() < 100 {
                header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                self.0.append(&header, entry.data).unwrap();
            } else {
                self.0.append_data(&mut header, path, entry.data).unwrap();
            }
        } else {
            self.0.append_link(&mut header, path, entry.link).unwrap();
        }
        self
    }

    pub(crate) fn dir(&mut self, path: &str, mode: u32) -> &mut Self {
        self.add(
            path,
            Entry {
                kind: tar::EntryType::Directory,
                mode,
                ..Entry::default()
            },
        )
    }

    pub(crate) fn file(&mut self, path: &str, data: &[u8]) -> &mut Self {
        self.add(
            path,
            Entry {
                data,
                ..Entry::default()
            },
        )
    }

    pub(crate) fn symlink(&mut self, path: &str, link: &str) -> &mut Self {
        self.add(
            path,
            Entry {
                kind: tar::EntryType::Symlink,
                link,
                ..Entry::default()
            },
        )
    }

    pub(crate) fn hard_link(&mut self, path: &str, link: &str) -> &mut Self {
        self.add(
            path,
            Entry {
                kind: tar::EntryType::Link,
                link,
                ..Entry::default()
            },
        )
    }

    pub(crate) fn device(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        device: (u32, u32),
    ) -> &mut Self {
        self.add(
            path,
            Entry {
                kind,
                device,
                ..Entry::default()
            },
        )
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Writes an image of these layers, tagged `latest`, for linux/amd64; the layers take turns in
/// being gzipped and plain. Returns the paths of their blobs.
pub(crate) fn layout(dir: &Path, layers: Vec<Layer>) -> Vec<PathBuf> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut paths = Vec::new();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for (i, layer) in layers.into_iter().enumerate() {
        let tar = layer.finish();
        diff_ids.push(digest(&tar));
        let blob = if i % 2 == 0 { gzip(&tar) } else { tar };
        descriptors.push(put(
            &blobs,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &blob,
        ));
        paths.push(blobs.join(digest(&blob).trim_start_matches("sha256:")));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(&blobs, "application/vnd.oci.image.config.v1+json", &config),
        "layers": descriptors,
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut entry = put(
        &blobs,
        "application/vnd.oci.image.manifest.v1+json",
        &manifest,
    );
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    paths
}

fn put(blobs: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: Vec<_> = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{}", hex.concat())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

/// Fails unless e2fsck finds nothing to mend.
pub(crate) fn e2fsck(image: &Path) {
    let out = tool("e2fsck")
        .arg("-fn")
        .arg(image)
        .output()
        .expect("e2fsprogs is not installed");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// What debugfs answers to a request.
pub(crate) fn debugfs(image: &Path, request: &str) -> String {
    let out = tool("debugfs")
        .args(["-R", request])
        .arg(image)
        .output()
        .expect("e2fsprogs is not installed");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What dumpe2fs says of a filesystem and its groups.
pub(crate) fn dumpe2fs(image: &Path) -> String {
    let out = tool("dumpe2fs").arg(image).output();
    String::from_utf8_lossy(&out.expect("e2fsprogs is not installed").stdout).into_owned()
}

/// A program of e2fsprogs, which may be outside of a user's PATH.
fn tool(name: &str) -> Command {
    let sbin = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(name));
    Command::new(
        sbin.into_iter()
            .find(|p| p.exists())
            .unwrap_or_else(|| name.into()),
    )
}

/// A small file system of its own, unmounted in the end.
pub(crate) struct Small(tempfile::TempDir);

impl Small {
    /// None where this process may not mount.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        let mounted = mount.arg(dir.path()).status();
        mounted.unwrap().success().then_some(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
