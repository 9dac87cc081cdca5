//! A hostile archive can write nothing outside its destination.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_fuzz::{Cage, pieces, with_checksums};
use slicer_tree::{Dir, ExtractOptions, Extractor};
use std::sync::OnceLock;

static CAGE: OnceLock<Cage> = OnceLock::new();

fuzz_target!(|data: (u8, &[u8])| {
    let (cut, bytes) = data;
    let cage = CAGE.get_or_init(Cage::new);
    let root = Dir::open(&cage.inside()).unwrap();
    let mut extractor = Extractor::new(root, ExtractOptions::default());
    let tar = with_checksums(bytes);
    let fed = pieces(&tar, cut).try_for_each(|piece| extractor.feed(piece));
    // Given up or ended, what is there is the same.
    if fed.is_ok() {
        let _ = extractor.finish();
    } else {
        drop(extractor);
    }
    cage.check();
});
