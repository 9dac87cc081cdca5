//! The keys that are part of the configuration but not served yet.
//!
//! They are checked as if they were, so that a file written today stays valid, and a value that
//! asks for something gets a notice at start. Serving a key means deleting its row here and reading
//! it where its neighbours are read.

use super::reader::{Field, Table};
use super::report::{Report, WarningKind};

/// A key that is not served yet.
struct Row {
    /// The table it is in, as [`check`] is told.
    table: &'static str,
    /// Its name.
    key: &'static str,
    /// What it may be, and which values ask for nothing.
    kind: Kind,
    /// What happens instead.
    instead: &'static str,
}

enum Kind {
    /// A truth value; `false` asks for nothing.
    Switch,
    /// Text; empty asks for nothing.
    Text,
    /// One of these words; the first asks for nothing, as does empty text.
    Word(&'static [&'static str]),
    /// A whole number up to this; 0 asks for nothing.
    Number(u64),
    /// A list of texts; an empty one asks for nothing.
    Texts,
    /// A table of lists; an empty one asks for nothing.
    Lists,
    /// Something that only adds to another key of the table, and asks for nothing by itself.
    Detail,
}

const TOP: &str = "";
const SSH: &str = "ssh";
const GROUP: &str = "host_groups[]";
const CA: &str = "host_groups[].ca";
const NETWORK: &str = "host_groups[].network";

pub(super) const NAT_INSTEAD: &str = "VMs are behind NAT";

const fn row(table: &'static str, key: &'static str, kind: Kind, instead: &'static str) -> Row {
    Row {
        table,
        key,
        kind,
        instead,
    }
}

const ROWS: &[Row] = &[
    row(
        TOP,
        "kernel_file",
        Kind::Text,
        "the kernel comes from kernel_image",
    ),
    row(TOP, "network_name", Kind::Text, NAT_INSTEAD),
    row(TOP, "pci", Kind::Lists, "no host device is passed to a VM"),
    row(
        SSH,
        "port",
        Kind::Number(65_535),
        "read the console with `slicer vm logs`",
    ),
    row(SSH, "bind_address", Kind::Detail, ""),
    row(
        GROUP,
        "storage",
        Kind::Word(&["image", "devmapper", "zfs"]),
        "disks are image files",
    ),
    row(GROUP, "gpu_count", Kind::Number(64), "VMs have no GPU"),
    row(CA, "generate", Kind::Switch, "no CA is made for the group"),
    row(
        CA,
        "files",
        Kind::Texts,
        "install certificates with `slicer vm exec`",
    ),
    row(NETWORK, "parent", Kind::Text, NAT_INSTEAD),
];

/// Checks the rows of `name`, which is the table's path with `[]` for every index.
pub(super) fn check(name: &str, table: &mut Table<'_>, report: &mut Report) {
    for row in ROWS.iter().filter(|r| r.table == name) {
        let Some(field) = table.take(row.key) else {
            continue;
        };
        if row.kind.asks(&field, report) == Some(true) {
            let text = format!("not served yet: {}", row.instead);
            field.warn(report, WarningKind::NotServed, text);
        }
    }
}

/// Checks a table of which no key is served.
pub(super) fn check_all(name: &str, key: &'static str, table: &mut Table<'_>, report: &mut Report) {
    if let Some(mut inner) = table.take(key).and_then(|field| field.table(report)) {
        check(name, &mut inner, report);
        inner.finish(report);
    }
}

impl Kind {
    /// Whether the value asks for something, or `None` when it isn't valid, which is reported.
    fn asks(&self, field: &Field<'_>, report: &mut Report) -> Option<bool> {
        match self {
            Self::Switch => field.truth(report),
            Self::Text => field.text(report).map(|t| !t.is_empty()),
            Self::Word(words) => {
                let text = field.text(report)?;
                if !text.is_empty() && !words.contains(&text) {
                    field.expected(report, &format!("one of {}", words.join(", ")));
                    return None;
                }
                Some(!text.is_empty() && words.first() != Some(&text))
            }
            Self::Number(most) => field.whole(0..=*most, report).map(|n| n > 0),
            Self::Texts => {
                let items = field.list(report)?;
                let valid = items.iter().filter_map(|i| i.text(report)).count();
                (valid == items.len()).then_some(!items.is_empty())
            }
            Self::Lists => {
                field.table(report)?;
                Some(!field.is_empty_collection())
            }
            Self::Detail => field.text(report).map(|_| false),
        }
    }
}

/// Each row's key and what happens instead, for the test that keeps the user guide true.
#[cfg(test)]
pub(super) fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROWS.iter().map(|row| (row.key, row.instead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_checked_exactly_once() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!([TOP, SSH, GROUP, CA, NETWORK].contains(&row.table));
            let again = ROWS[index + 1..]
                .iter()
                .any(|r| r.table == row.table && r.key == row.key);
            assert!(!again, "{}.{}", row.table, row.key);
        }
    }
}
