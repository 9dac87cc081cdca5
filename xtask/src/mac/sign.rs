//! Signing.

use super::{
    AD_HOC, CODE_DIRECTORY, CODE_DIRECTORY_SIZE, CODE_DIRECTORY_SLOT, DER_ENTITLEMENTS,
    DER_ENTITLEMENTS_SLOT, ENTITLEMENTS, ENTITLEMENTS_SLOT, Entitlements, HASH, MAIN_BINARY, PAGE,
    PAGE_BITS, Program, REQUIREMENTS, REQUIREMENTS_SLOT, SHA_256, SIGNATURE, VERSION, WRAPPER,
    WRAPPER_SLOT, hash,
};
use anyhow::Result;

/// Signatures end where something of 16 bytes may begin.
const ALIGNMENT: usize = 16;
/// Apple silicon's pages of memory.
const MEMORY_PAGE: u64 = 16 << 10;

/// Signs a program that the linker has signed, or this before, anew: what is signed already has the
/// same bytes after it.
pub(crate) fn sign(
    mut bytes: Vec<u8>,
    identifier: &str,
    entitlements: &Entitlements,
) -> Result<Vec<u8>> {
    let program = Program::parse(&bytes)?;
    let limit = program.signature.offset;
    let mut blobs = vec![(REQUIREMENTS_SLOT, blob(REQUIREMENTS, &[0; 4])?)];
    if !entitlements.is_empty() {
        let text = blob(ENTITLEMENTS, &entitlements.to_plist()?)?;
        blobs.push((ENTITLEMENTS_SLOT, text));
        let der = blob(DER_ENTITLEMENTS, &entitlements.to_der()?)?;
        blobs.push((DER_ENTITLEMENTS_SLOT, der));
    }
    let slots = blobs.last().map_or(0, |(slot, _)| *slot as usize);
    let directory =
        CODE_DIRECTORY_SIZE + identifier.len() + 1 + (slots + limit.div_ceil(PAGE)) * HASH;
    let wrapper = (WRAPPER_SLOT, blob(WRAPPER, &[])?);
    let others: usize = blobs.iter().map(|(_, blob)| blob.len()).sum();
    let count = blobs.len() + 2;
    let size = 12 + 8 * count + directory + others + wrapper.1.len();
    let room = size.next_multiple_of(ALIGNMENT).max(program.signature.size);

    // The load commands are among what is hashed.
    bytes.resize(limit + room, 0);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(
        program.signature.command + 12,
        &u32::try_from(room)?.to_le_bytes(),
    );
    let link_edit = u64::try_from(limit + room - program.link_edit.offset)?;
    let at = program.link_edit.command;
    put(
        at + 32,
        &link_edit.next_multiple_of(MEMORY_PAGE).to_le_bytes(),
    );
    put(at + 48, &link_edit.to_le_bytes());

    let directory = code_directory(&bytes[..limit], &program, identifier, &blobs)?;
    blobs.insert(0, (CODE_DIRECTORY_SLOT, directory));
    blobs.push(wrapper);
    let signature = super_blob(&blobs)?;
    bytes.truncate(limit);
    bytes.extend(signature);
    bytes.resize(limit + room, 0);
    Ok(bytes)
}

fn code_directory(
    code: &[u8],
    program: &Program,
    identifier: &str,
    blobs: &[(u32, Vec<u8>)],
) -> Result<Vec<u8>> {
    let slots = blobs.last().map_or(0, |(slot, _)| *slot);
    let pages = code.len().div_ceil(PAGE);
    let identifier_at = u32::try_from(CODE_DIRECTORY_SIZE)?;
    let hashes_at = CODE_DIRECTORY_SIZE + identifier.len() + 1 + slots as usize * HASH;
    let mut content = Vec::new();
    for number in [
        VERSION,
        AD_HOC,
        u32::try_from(hashes_at)?,
        identifier_at,
        slots,
        u32::try_from(pages)?,
        u32::try_from(code.len())?,
    ] {
        content.extend(number.to_be_bytes());
    }
    content.extend([u8::try_from(HASH)?, SHA_256, 0, PAGE_BITS]);
    // Of what is spread out, of a team, and of code beyond 4 GiB there is nothing.
    content.extend([0; 4 + 4 + 4 + 4 + 8]);
    for number in [
        u64::try_from(program.text.offset)?,
        u64::try_from(program.text.size)?,
        MAIN_BINARY,
    ] {
        content.extend(number.to_be_bytes());
    }
    content.extend(identifier.as_bytes());
    content.push(0);
    // The slots lie before the pages, the first one next to them.
    for slot in (1..=slots).rev() {
        let blob = blobs.iter().find(|(at, _)| *at == slot);
        content.extend(blob.map_or([0; HASH], |(_, blob)| hash(blob)));
    }
    for page in code.chunks(PAGE) {
        content.extend(hash(page));
    }
    blob(CODE_DIRECTORY, &content)
}

fn blob(magic: u32, content: &[u8]) -> Result<Vec<u8>> {
    let size = u32::try_from(8 + content.len())?;
    let mut blob = magic.to_be_bytes().to_vec();
    blob.extend(size.to_be_bytes());
    blob.extend(content);
    Ok(blob)
}

fn super_blob(blobs: &[(u32, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut content = u32::try_from(blobs.len())?.to_be_bytes().to_vec();
    let mut at = 12 + 8 * blobs.len();
    for (slot, blob) in blobs {
        content.extend(slot.to_be_bytes());
        content.extend(u32::try_from(at)?.to_be_bytes());
        at += blob.len();
    }
    for (_, blob) in blobs {
        content.extend(blob);
    }
    blob(SIGNATURE, &content)
}
