use super::{Entitlements, PAGE, Program, check, sign};
use std::io::Read;

const OLDEST: (u32, u32) = (13, 0);

fn unpacked(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(packed);
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A program that ends at once, as LLVM's linker leaves it.
fn linked() -> Vec<u8> {
    unpacked(include_bytes!("testdata/linked.gz"))
}

/// The same, as rcodesign 0.29 has signed it with the daemon's entitlements.
fn signed() -> Vec<u8> {
    unpacked(include_bytes!("testdata/signed.gz"))
}

fn ours() -> Entitlements {
    Entitlements::from_plist(include_bytes!("../../mac/entitlements.plist")).unwrap()
}

#[test]
fn signs_as_rcodesign_does() {
    check(&signed(), "slicer-mac", &ours(), OLDEST).unwrap();
    let again = sign(signed(), "slicer-mac", &ours()).unwrap();
    assert!(again == signed());
}

#[test]
fn makes_room_for_more_than_the_linker_left() {
    let names = |n| format!("<key>com.example.{n:03}</key><true/>");
    let names: String = (0..40).map(names).collect();
    let many = format!("<plist><dict>{names}</dict></plist>");
    let many = Entitlements::from_plist(many.as_bytes()).unwrap();
    for wanted in [Entitlements::default(), ours(), many] {
        let done = sign(linked(), "slicer", &wanted).unwrap();
        check(&done, "slicer", &wanted, OLDEST).unwrap();
        let again = sign(done.clone(), "slicer", &wanted).unwrap();
        assert!(again == done);
        // What the program is of is as it was, but for the sizes in its load commands.
        let code = Program::parse(&done).unwrap().signature.offset;
        assert!(done[PAGE..code] == linked()[PAGE..code]);
    }
}

#[test]
fn another_signature_than_wanted_is_found() {
    let fails = |bytes: &[u8], name: &str, wanted: &Entitlements, oldest| {
        check(bytes, name, wanted, oldest).unwrap_err().to_string()
    };
    let none = Entitlements::default();
    // The linker's own signature has none of what follows the code directory.
    fails(&linked(), "t", &none, OLDEST);
    let said = fails(&signed(), "slicer-mac", &none, OLDEST);
    assert!(said.contains("com.apple.security.virtualization"), "{said}");
    let said = fails(&signed(), "slicer", &ours(), OLDEST);
    assert!(said.contains("signed as slicer-"), "{said}");
    let said = fails(&signed(), "slicer-mac", &ours(), (14, 0));
    assert!(said.contains("13"), "{said}");
    let bare = sign(linked(), "slicer-mac", &none).unwrap();
    let said = fails(&bare, "slicer-mac", &ours(), OLDEST);
    assert!(said.contains("entitled to"), "{said}");
}

#[test]
fn every_changed_byte_is_found() {
    let good = sign(linked(), "slicer-mac", &ours()).unwrap();
    let signature = Program::parse(&good).unwrap().signature.offset;
    // In the load commands and the signature more than in between.
    let places = (0..1024)
        .step_by(5)
        .chain((1024..signature).step_by(97))
        .chain((signature..good.len()).step_by(5));
    for place in places {
        let mut bad = good.clone();
        bad[place] ^= 0x40;
        let found = check(&bad, "slicer-mac", &ours(), OLDEST);
        assert!(found.is_err(), "a change at {place} passes");
    }
    for length in [0, 3, 31, 32, 500, signature, signature + 30, good.len() - 1] {
        check(&good[..length], "slicer-mac", &ours(), OLDEST).unwrap_err();
    }
}

#[test]
fn der_is_read_as_written() {
    let der = ours().to_der().unwrap();
    assert_eq!(Entitlements::from_der(&der).unwrap(), ours());
    // As Apple's tools write it.
    let apple = [
        b"\x70\x2d\x02\x01\x01\xb0\x28\x30\x26\x0c\x21".as_slice(),
        b"com.apple.security.virtualization",
        b"\x01\x01\xff",
    ];
    assert_eq!(der, apple.concat());
    for length in 0..der.len() {
        Entitlements::from_der(&der[..length]).unwrap_err();
    }
}
