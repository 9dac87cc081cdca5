//! Checking, from what a kernel reads and without what signs.

use super::{
    AD_HOC, CODE_DIRECTORY, CODE_DIRECTORY_SIZE, CODE_DIRECTORY_SLOT, DER_ENTITLEMENTS,
    DER_ENTITLEMENTS_SLOT, ENTITLEMENTS, ENTITLEMENTS_SLOT, Entitlements, HASH, MAIN_BINARY, PAGE,
    PAGE_BITS, Program, REQUIREMENTS, REQUIREMENTS_SLOT, SHA_256, SIGNATURE, VERSION, WRAPPER,
    WRAPPER_SLOT, array, commands, hash, slice, u32_at,
};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

const LOAD_DYLIB: u32 = 0xc;
const BUILD_VERSION: u32 = 0x32;
const MACOS: u32 = 1;

/// Whether a Mac takes a program as it is: all hashes are right, it is signed ad hoc with this
/// identifier and exactly these entitlements, and it loads libraries of macOS only, of this version
/// or later, as `(major, minor)`.
pub(crate) fn check(
    bytes: &[u8],
    identifier: &str,
    entitlements: &Entitlements,
    oldest: (u32, u32),
) -> Result<()> {
    let program = Program::parse(bytes)?;
    check_commands(bytes, oldest)?;
    let room = slice(bytes, program.signature.offset, program.signature.size)?;
    let blobs = blobs(room)?;
    let code = &bytes[..program.signature.offset];
    let directory = blobs
        .get(&CODE_DIRECTORY_SLOT)
        .context("no code directory")?;
    let slots = check_directory(directory, code, &program, identifier)?;
    for (&slot, blob) in &blobs {
        let magic = match slot {
            CODE_DIRECTORY_SLOT => CODE_DIRECTORY,
            REQUIREMENTS_SLOT => REQUIREMENTS,
            ENTITLEMENTS_SLOT => ENTITLEMENTS,
            DER_ENTITLEMENTS_SLOT => DER_ENTITLEMENTS,
            WRAPPER_SLOT => WRAPPER,
            _ => bail!("something unknown in slot {slot} of the signature"),
        };
        ensure!(big(blob, 0)? == magic, "slot {slot} holds something else");
        if slot == WRAPPER_SLOT {
            ensure!(blob.len() == 8, "it is signed by somebody");
        } else if slot != CODE_DIRECTORY_SLOT {
            ensure!(
                slots.get(&slot) == Some(&hash(blob)),
                "the hash of slot {slot} is wrong"
            );
        }
    }
    for slot in slots.keys() {
        ensure!(blobs.contains_key(slot), "nothing in slot {slot}");
    }
    let text = blobs.get(&ENTITLEMENTS_SLOT);
    let text = text.map(|blob| Entitlements::from_plist(&blob[8..]));
    let der = blobs.get(&DER_ENTITLEMENTS_SLOT);
    let der = der.map(|blob| Entitlements::from_der(&blob[8..]));
    for found in [text, der] {
        let found = found.transpose()?.unwrap_or_default();
        ensure!(
            found == *entitlements,
            "entitled to {found:?}, not to {entitlements:?}"
        );
    }
    Ok(())
}

fn check_commands(bytes: &[u8], oldest: (u32, u32)) -> Result<()> {
    let mut version = None;
    for command in commands(bytes)? {
        match command? {
            (LOAD_DYLIB, at) => {
                let size = u32_at(bytes, at + 4)?;
                let name_at = u32_at(bytes, at + 8)?;
                let name = slice(bytes, at, size as usize)?
                    .get(name_at as usize..)
                    .context("a library's name is beyond its command")?;
                let name = name.split(|b| *b == 0).next().unwrap_or(name);
                ensure!(
                    name.starts_with(b"/usr/lib/") || name.starts_with(b"/System/Library/"),
                    "{} is no library of macOS",
                    name.escape_ascii()
                );
            }
            (BUILD_VERSION, at) => {
                ensure!(u32_at(bytes, at + 8)? == MACOS, "not for macOS");
                let packed = u32_at(bytes, at + 12)?;
                version = Some((packed >> 16, packed >> 8 & 0xff));
            }
            _ => {}
        }
    }
    let version = version.context("it doesn't say which macOS it is for")?;
    ensure!(
        version == oldest,
        "for macOS {version:?}, not {oldest:?} and later"
    );
    Ok(())
}

/// What the signature consists of, by slots; the code directory is looked at no further.
fn blobs(room: &[u8]) -> Result<BTreeMap<u32, &[u8]>> {
    ensure!(big(room, 0)? == SIGNATURE, "no signature");
    let all = slice(room, 0, big(room, 4)? as usize)?;
    let count = big(all, 8)? as usize;
    let mut blobs = BTreeMap::new();
    // They lie one after the other, without gaps that nobody would look at.
    let mut end = 12 + 8 * count;
    for entry in 0..count {
        let slot = big(all, 12 + 8 * entry)?;
        let at = big(all, 16 + 8 * entry)? as usize;
        ensure!(at == end, "slot {slot} is not where it should be");
        let blob = slice(all, at, big(all, at + 4)? as usize)?;
        ensure!(blob.len() >= 8, "nothing in slot {slot}");
        end += blob.len();
        ensure!(
            blobs.insert(slot, blob).is_none(),
            "two of slot {slot} in the signature"
        );
    }
    ensure!(end == all.len(), "something follows the last slot");
    ensure!(
        room[end..].iter().all(|byte| *byte == 0),
        "something follows the signature"
    );
    Ok(blobs)
}

/// Compares the code with its hashes; gives back those of what is in other slots.
fn check_directory(
    directory: &[u8],
    code: &[u8],
    program: &Program,
    identifier: &str,
) -> Result<BTreeMap<u32, [u8; HASH]>> {
    let field = |n: usize| big(directory, 4 * n);
    ensure!(field(2)? == VERSION, "a code directory of another version");
    let flags = field(3)?;
    ensure!(flags == AD_HOC, "flags {flags:#x}: not signed ad hoc");
    let (hashes_at, identifier_at) = (field(4)? as usize, field(5)? as usize);
    let (slots, pages) = (field(6)?, field(7)? as usize);
    ensure!(field(8)? as usize == code.len(), "not all code is signed");
    let kind = slice(directory, 36, 4)?;
    ensure!(
        kind == [32, SHA_256, 0, PAGE_BITS],
        "hashes of another kind"
    );
    ensure!(
        slice(directory, 40, 24)? == [0; 24],
        "unknown fields in the code directory"
    );
    let end = (
        u64::try_from(program.text.offset)?,
        u64::try_from(program.text.size)?,
    );
    let big64 = |at| array(directory, at).map(u64::from_be_bytes);
    ensure!(
        (big64(64)?, big64(72)?, big64(80)?) == (end.0, end.1, MAIN_BINARY),
        "another segment of code is signed"
    );
    let name = slice(directory, identifier_at, identifier.len() + 1)?;
    ensure!(
        identifier_at == CODE_DIRECTORY_SIZE
            && name.strip_suffix(b"\0") == Some(identifier.as_bytes()),
        "signed as {}",
        name.escape_ascii()
    );
    ensure!(
        hashes_at == identifier_at + name.len() + slots as usize * HASH,
        "the hashes are not where they should be"
    );
    ensure!(
        directory.len() == hashes_at + pages * HASH && pages == code.len().div_ceil(PAGE),
        "not as many hashes as pages"
    );
    for (number, page) in code.chunks(PAGE).enumerate() {
        let wanted: [u8; HASH] = array(directory, hashes_at + number * HASH)?;
        ensure!(wanted == hash(page), "the hash of page {number} is wrong");
    }
    let mut others = BTreeMap::new();
    for slot in 1..=slots {
        let wanted: [u8; HASH] = array(directory, hashes_at - slot as usize * HASH)?;
        if wanted != [0; HASH] {
            others.insert(slot, wanted);
        }
    }
    Ok(others)
}

fn big(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}
