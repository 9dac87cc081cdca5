//! Headers of archives, without the files: everything is left out. However an archive is cut into
//! pieces, it means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::Excludes;
use slicer_fuzz::{pieces, with_checksums};
use slicer_tree::{Dir, ExtractOptions, Extracted, Extractor};
use std::path::Path;

fn read(tar: &[u8], cut: u8) -> Result<Extracted, String> {
    let options = ExtractOptions {
        exclude: Excludes::new(["*"]).unwrap(),
        ..ExtractOptions::default()
    };
    let mut extractor = Extractor::new(Dir::open(Path::new("/proc/self")).unwrap(), options);
    for piece in pieces(tar, cut) {
        extractor.feed(piece).map_err(|e| e.to_string())?;
    }
    extractor.finish().map_err(|e| e.to_string())
}

fuzz_target!(|data: (u8, bool, &[u8])| {
    let (cut, fix, bytes) = data;
    let tar = if fix {
        with_checksums(bytes)
    } else {
        bytes.to_vec()
    };
    assert_eq!(read(&tar, 0), read(&tar, cut));
});
