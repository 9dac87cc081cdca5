//! Durations, sizes and references of images.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::{format_duration, parse_duration, permissions};
use slicer_image::{ImageRef, parse_size};

fuzz_target!(|text: &str| {
    if let Ok(duration) = parse_duration(text) {
        let shown = format_duration(duration);
        assert!(parse_duration(&shown).is_ok(), "{text:?} is {shown}");
    }
    if let Ok(mode) = permissions(text) {
        assert!(mode <= 0o7777, "{text:?}");
    }
    let _ = parse_size(text);
    let _ = ImageRef::parse(text);
});
