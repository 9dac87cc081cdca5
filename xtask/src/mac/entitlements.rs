//! What a program is entitled to, in the two forms that a signature has it in.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;

// Tags of DER.
const APPLICATION_16: u8 = 0x70;
const CONTEXT_16: u8 = 0xb0;
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTF8: u8 = 0x0c;
const BOOLEAN: u8 = 0x01;

/// A set of entitlements that each are there or not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Entitlements(BTreeSet<String>);

impl Entitlements {
    /// Reads them from a property list of truths.
    pub(crate) fn from_plist(text: &[u8]) -> Result<Self> {
        let list: plist::Dictionary = plist::from_bytes(text)?;
        let mut names = BTreeSet::new();
        for (name, value) in list {
            ensure!(
                value.as_boolean() == Some(true),
                "the entitlement {name} is not just true"
            );
            names.insert(name);
        }
        Ok(Self(names))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn to_plist(&self) -> Result<Vec<u8>> {
        let truth = |name: &String| (name.clone(), plist::Value::Boolean(true));
        let list: plist::Dictionary = self.0.iter().map(truth).collect();
        let mut text = Vec::new();
        plist::Value::Dictionary(list).to_writer_xml(&mut text)?;
        Ok(text)
    }

    pub(super) fn to_der(&self) -> Result<Vec<u8>> {
        let mut pairs = Vec::new();
        for name in &self.0 {
            let pair = [tagged(UTF8, name.as_bytes())?, tagged(BOOLEAN, &[0xff])?];
            pairs.extend(tagged(SEQUENCE, &pair.concat())?);
        }
        let version = tagged(INTEGER, &[1])?;
        let all = [version, tagged(CONTEXT_16, &pairs)?];
        tagged(APPLICATION_16, &all.concat())
    }

    /// Reads what [`to_der`](Self::to_der) writes, and nothing else.
    pub(super) fn from_der(bytes: &[u8]) -> Result<Self> {
        let mut outer = Reader(bytes);
        let mut all = Reader(outer.take(APPLICATION_16)?);
        ensure!(outer.0.is_empty(), "something follows the entitlements");
        ensure!(
            all.take(INTEGER)? == [1],
            "entitlements of an unknown version"
        );
        let mut pairs = Reader(all.take(CONTEXT_16)?);
        ensure!(all.0.is_empty(), "something follows the entitlements");
        let mut names = BTreeSet::new();
        while !pairs.0.is_empty() {
            let mut pair = Reader(pairs.take(SEQUENCE)?);
            let name = std::str::from_utf8(pair.take(UTF8)?)?;
            let last = names
                .last()
                .is_none_or(|last: &String| last.as_str() < name);
            ensure!(last, "the entitlements are not in order");
            ensure!(
                pair.take(BOOLEAN)? == [0xff] && pair.0.is_empty(),
                "the entitlement {name} is not just true"
            );
            names.insert(name.to_owned());
        }
        Ok(Self(names))
    }
}

fn tagged(tag: u8, content: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![tag];
    match (u8::try_from(content.len()), u16::try_from(content.len())) {
        (Ok(short @ 0..=0x7f), _) => bytes.push(short),
        (Ok(one), _) => bytes.extend([0x81, one]),
        (_, Ok(two)) => {
            bytes.push(0x82);
            bytes.extend(two.to_be_bytes());
        }
        _ => bail!("too many entitlements"),
    }
    bytes.extend(content);
    Ok(bytes)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The content of the next value, which has this tag.
    fn take(&mut self, tag: u8) -> Result<&'a [u8]> {
        let found = self.bytes(1)?[0];
        ensure!(found == tag, "tag {found:#x} in the place of {tag:#x}");
        let length = match self.bytes(1)?[0] {
            short @ 0..=0x7f => short.into(),
            0x81 => self.bytes(1)?[0].into(),
            0x82 => usize::from(self.bytes(1)?[0]) << 8 | usize::from(self.bytes(1)?[0]),
            _ => bail!("entitlements longer than any"),
        };
        self.bytes(length)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .context("entitlements that break off")?;
        self.0 = rest;
        Ok(taken)
    }
}
