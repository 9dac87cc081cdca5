//! The architecture of a group's VMs.

use super::reader::Table;
use super::report::Report;
use slicer_machine::Arch;

const WORDS: [(&str, Arch); 4] = [
    ("amd64", Arch::X86_64),
    ("arm64", Arch::Aarch64),
    // As the kernel calls them.
    ("x86_64", Arch::X86_64),
    ("aarch64", Arch::Aarch64),
];

/// Reads `arch`; that of the host is meant where there is none.
#[expect(
    clippy::option_option,
    reason = "the outer is whether it is valid, as for every key"
)]
pub(super) fn read(table: &mut Table<'_>, report: &mut Report) -> Option<Option<Arch>> {
    let Some(field) = table.take("arch") else {
        return Some(None);
    };
    let text = field.text(report)?;
    if text.is_empty() {
        return Some(None);
    }
    let found = parse(text);
    if found.is_none() {
        field.expected(report, "amd64 or arm64");
    }
    found.map(Some)
}

/// The architecture of this name.
pub(crate) fn parse(text: &str) -> Option<Arch> {
    let found = WORDS.into_iter().find(|(word, _)| *word == text);
    found.map(|(_, arch)| arch)
}
