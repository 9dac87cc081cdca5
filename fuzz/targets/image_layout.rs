//! The documents of an image: index, manifest and configuration, apart by NUL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_image::{ImageRef, Resolved};

fuzz_target!(|bytes: &[u8]| {
    let mut parts: Vec<Vec<u8>> = bytes.split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    let Some(index) = parts.pop().filter(|_| parts.len() < 8) else {
        return;
    };
    let dir = tempfile::tempdir_in(slicer_fuzz::memory()).unwrap();
    slicer_fuzz::write_layout(dir.path(), &parts, &index);
    let reference = ImageRef::parse(&format!("oci:{}", dir.path().display())).unwrap();
    let _ = Resolved::find(&reference, "amd64");
});
