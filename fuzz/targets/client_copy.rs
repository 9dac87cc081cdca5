//! A hostile guest that is copied from can write nothing outside the destination, whatever it says
//! of the source, its name and its size.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use slicer_api::{CopyMode, CopyOut};
use slicer_fuzz::{Cage, with_checksums};
use std::sync::{Arc, OnceLock};

#[derive(Debug, arbitrary::Arbitrary)]
struct Answer<'a> {
    mode: u8,
    kind: Option<bool>,
    name: Option<&'a [u8]>,
    file_mode: Option<u16>,
    length: Option<u16>,
    exact: bool,
    body: &'a [u8],
}

static CAGE: OnceLock<Cage> = OnceLock::new();

impl Answer<'_> {
    fn bytes(&self) -> Vec<u8> {
        let body = if self.exact {
            self.body.to_vec()
        } else {
            with_checksums(self.body)
        };
        let mut head = String::from("HTTP/1.1 200 OK\r\nconnection: close\r\n");
        if let Some(directory) = self.kind {
            let kind = if directory { "directory" } else { "file" };
            head += &format!("x-slicer-source-type: {kind}\r\n");
        }
        if let Some(name) = self.name {
            head += &format!("x-slicer-source-name-base64: {}\r\n", base64(name));
        }
        if let Some(mode) = self.file_mode {
            head += &format!("x-slicer-file-mode: {mode:o}\r\n");
        }
        if let Some(length) = self.length {
            head += &format!("content-length: {length}\r\n");
        }
        [head.as_bytes(), b"\r\n", &body].concat()
    }
}

/// Of RFC 4648, for URLs and without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three
            .iter()
            .chain(std::iter::repeat(&0))
            .take(3)
            .fold(0usize, |bits, byte| bits << 8 | usize::from(*byte));
        for digit in 0..=three.len() {
            text.push(DIGITS[bits >> (18 - 6 * digit) & 63].into());
        }
    }
    text
}

fuzz_target!(|answer: Answer<'_>| {
    let cage = CAGE.get_or_init(Cage::new);
    let inside = cage.inside();
    let modes = [
        CopyMode::Binary,
        CopyMode::Tar,
        CopyMode::V1Binary,
        CopyMode::V1Tar,
        CopyMode::V1Recursive,
    ];
    let mode = modes[usize::from(answer.mode) % modes.len()];
    // Into the directory, or to a name in it that is new.
    let to = match answer.mode / 64 {
        0 | 1 => inside,
        2 => inside.join("new"),
        _ => inside.join("new/"),
    };
    let bytes = answer.bytes();
    let copy = CopyOut::new(mode, "/x");
    slicer_fuzz::with_answer(&[&bytes], async |client| {
        let _ = client
            .copy_out("vm", &copy, &to, None, Arc::new(|_, _| {}))
            .await;
    });
    cage.check();
});
