//! Tiny OCI image layouts, made on the spot, so that the real image path runs within milliseconds.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slicer_machine::Arch;
use std::fs;
use std::path::Path;

/// Writes the layout of an image with next to nothing in its root file system; returns its
/// reference.
pub fn image_layout(dir: &Path) -> String {
    write_layout(
        dir,
        &[("etc/os-release", b"NAME=tiny\n"), ("sbin/init", b"#!")],
    )
}

/// Writes the layout of a kernel image, whose kernel boots nowhere; returns its reference.
pub fn kernel_layout(dir: &Path) -> String {
    let files: &[(&str, &[u8])] = &[
        ("boot/kernel", b"\x7fELF and so on"),
        (
            "boot/modules.load",
            b"[early]\nkernel/blk.ko\n[late]\nkernel/net.ko\n",
        ),
        ("lib/modules/6.1-test/kernel/blk.ko", b"block"),
        ("lib/modules/6.1-test/kernel/net.ko", b"network"),
        ("lib/modules/6.1-test/modules.dep", b"kernel/blk.ko:\n"),
    ];
    write_layout(dir, files)
}

fn write_layout(dir: &Path, files: &[(&str, &[u8])]) -> String {
    let mut layer = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        layer.append_data(&mut header, path, *data).unwrap();
    }
    Image::default()
        .layer(layer.into_inner().unwrap())
        .write(dir)
}

/// An image to be written as an OCI layout.
#[derive(Debug, Default)]
pub struct Image {
    arch: Option<Arch>,
    layers: Vec<(String, Vec<u8>)>,
    config: Value,
}

impl Image {
    /// An image that begins with the only layer of the image in this layout, which has one for one
    /// architecture.
    pub fn from_layout(layout: &Path) -> Self {
        let read = |entry: &Value| -> Vec<u8> {
            let digest = entry["digest"].as_str().unwrap().replace(':', "/");
            fs::read(layout.join("blobs").join(digest)).unwrap()
        };
        let parse = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
        let index = parse(&fs::read(layout.join("index.json")).unwrap());
        let manifest = parse(&read(&index["manifests"][0]));
        let layer = &manifest["layers"][0];
        let kind = layer["mediaType"].as_str().unwrap().to_owned();
        Self {
            arch: None,
            layers: vec![(kind, read(layer))],
            config: Value::Null,
        }
    }

    /// The image for guests of this architecture; else it is for the host's.
    #[must_use]
    pub fn of(mut self, arch: Arch) -> Self {
        self.arch = Some(arch);
        self
    }

    /// The image with this layer on top, a tar archive.
    #[must_use]
    pub fn layer(mut self, tar: Vec<u8>) -> Self {
        let kind = "application/vnd.oci.image.layer.v1.tar".to_owned();
        self.layers.push((kind, tar));
        self
    }

    /// The image with this for the `config` of its configuration: `Entrypoint`, `Env` and so on.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Writes the layout, or adds the image to that of another architecture's; returns its reference.
    pub fn write(&self, dir: &Path) -> String {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |media_type: &str, bytes: &[u8]| -> Value {
            let digest = digest(bytes);
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
            json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
        };
        let diff_ids: Vec<_> = self.layers.iter().map(|(_, l)| digest(l)).collect();
        let arch = self.arch.or(Arch::host()).unwrap().go_name();
        let mut config = json!({
            "architecture": arch, "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        if !self.config.is_null() {
            config["config"] = self.config.clone();
        }
        let config = config.to_string();
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": put("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": self.layers.iter().map(|(kind, l)| put(kind, l)).collect::<Vec<_>>(),
        });
        let mut entry = put(manifest_type, manifest.to_string().as_bytes());
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        entry["platform"] = json!({ "architecture": arch, "os": "linux" });
        let index = dir.join("index.json");
        let mut manifests = match fs::read_to_string(&index) {
            Ok(text) => serde_json::from_str::<Value>(&text).unwrap()["manifests"].take(),
            Err(_) => json!([]),
        };
        let manifests = manifests.as_array_mut().unwrap();
        manifests.retain(|m| m["platform"]["architecture"] != arch);
        manifests.push(entry);
        let text = json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
        fs::write(index, text).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        format!("oci:{}:latest", dir.display())
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: Vec<_> = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{}", hex.concat())
}
