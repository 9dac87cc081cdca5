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
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        layer.append_data(&mut header, path, *data).unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let config = json!({
        "architecture": Arch::host().unwrap().go_name(), "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let put = |kind: &str, bytes: &[u8]| -> Value {
        let digest = digest(bytes);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("config.v1+json", config.to_string().as_bytes()),
        "layers": [put("layer.v1.tar", &layer)],
    });
    let mut entry = put("manifest.v1+json", manifest.to_string().as_bytes());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    format!("oci:{}:latest", dir.display())
}

fn digest(bytes: &[u8]) -> String {
    let hex: Vec<_> = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{}", hex.concat())
}
