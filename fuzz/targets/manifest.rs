//! The manifest of a copy in pieces, which the guest's user can have written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::{MAX_CHUNK, UploadManifest, UploadSession};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(session) = UploadSession::of_manifest(text)
    {
        assert!(text.starts_with(session.dir()), "{text:?}");
    }
    let Some(manifest) = slicer_fuzz::json::<UploadManifest>(bytes) else {
        return;
    };
    if let Ok(copy) = manifest.check() {
        assert!(!copy.path.is_empty() && !copy.path.contains(&0));
        assert!(!copy.source_name.contains(&b'/'));
        for (number, chunk) in manifest.chunks.iter().enumerate() {
            assert_eq!(chunk.index, number);
            assert!(chunk.size <= MAX_CHUNK);
        }
    }
});
