//! A kernel's file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let _ = slicer_image::uncompressed_kernel(file);
});
