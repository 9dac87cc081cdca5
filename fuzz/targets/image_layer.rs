//! A layer of an image, made into a file system.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_fuzz::with_checksums;
use slicer_image::{ImageRef, Limits, Resolved, build_base};

const CONFIG: &str =
    r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["@0"]}}"#;
const MANIFEST: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@1","size":#1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@0","size":#0}]}"#;
const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@2","size":#2}]}"#;

fuzz_target!(|data: (bool, &[u8])| {
    let (exact, bytes) = data;
    let layer = if exact {
        bytes.to_vec()
    } else {
        with_checksums(bytes)
    };
    let dir = tempfile::tempdir_in(slicer_fuzz::memory()).unwrap();
    slicer_fuzz::write_layout(
        dir.path(),
        &[layer, CONFIG.into(), MANIFEST.into()],
        INDEX.as_bytes(),
    );
    let reference = ImageRef::parse(&format!("oci:{}", dir.path().display())).unwrap();
    let Ok(image) = Resolved::find(&reference, "amd64") else {
        return;
    };
    let out = dir.path().join("base.img");
    let _ = build_base(&image, &out, 0, &Limits::default(), &|_| {});
});
