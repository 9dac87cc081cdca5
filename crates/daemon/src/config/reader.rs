//! Typed access to the tree: a wrong type is reported with what was found and what is expected, an
//! unknown key with the known one it resembles.

use super::report::{Place, Report, WarningKind};
use super::tree::{Entry, Node, Value};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// How much of a value is repeated in a message.
const QUOTED_CHARS: usize = 40;

/// A mapping being read. Every key is taken by its reader; what is left in the end is unknown.
pub(super) struct Table<'n> {
    path: String,
    place: Place,
    entries: &'n [Entry],
    known: Vec<&'static str>,
}

impl<'n> Table<'n> {
    /// Reads `node` as a mapping whose keys are called `PATH.key`, or `key` when `path` is empty.
    pub(super) fn open(path: &str, node: &'n Node, report: &mut Report) -> Option<Self> {
        let Value::Table(entries) = &node.value else {
            let name = if path.is_empty() { "the file" } else { path };
            mismatch(name, node, "a table of `key: value` lines", report);
            return None;
        };
        Some(Self {
            path: path.to_owned(),
            place: node.place,
            entries,
            known: Vec::new(),
        })
    }

    /// Where it begins.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The full name of a key of it.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// A key's value, unless it is absent or null, which mean the same. The key is known from now.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'n>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|e| e.key == key)?;
        (!entry.node.is_null()).then(|| Field {
            path: self.path_of(key),
            node: &entry.node,
        })
    }

    /// Warns of every key that nobody took.
    pub(super) fn finish(self, report: &mut Report) {
        for entry in self.entries {
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            let hint = match closest(&entry.key, &self.known) {
                Some(known) => format!(": did you mean {known}?"),
                None => " and has no effect".to_owned(),
            };
            let path = self.path_of(&shorten(&entry.key));
            report.warn(
                WarningKind::UnknownKey,
                entry.place,
                format!("{path}: unknown key{hint}"),
            );
        }
    }
}

/// A value and its full name.
#[derive(Debug, Clone)]
pub(super) struct Field<'n> {
    path: String,
    node: &'n Node,
}

impl<'n> Field<'n> {
    /// Where it begins.
    pub(super) fn place(&self) -> Place {
        self.node.place
    }

    /// Its full name.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Reports that it is wrong: `PATH: MESSAGE`.
    pub(super) fn error(&self, report: &mut Report, message: impl AsRef<str>) {
        report.error(self.place(), format!("{}: {}", self.path, message.as_ref()));
    }

    /// Reports that it is odd: `PATH: MESSAGE`.
    pub(super) fn warn(&self, report: &mut Report, kind: WarningKind, message: impl AsRef<str>) {
        let text = format!("{}: {}", self.path, message.as_ref());
        report.warn(kind, self.place(), text);
    }

    /// Reports that it isn't what was `expected`.
    pub(super) fn expected(&self, report: &mut Report, expected: &str) {
        mismatch(&self.path, self.node, expected, report);
    }

    /// Any scalar, as it was written and trimmed: a name may look like a number.
    pub(super) fn text(&self, report: &mut Report) -> Option<&'n str> {
        if let Value::Scalar { text, .. } = &self.node.value {
            return Some(text.trim());
        }
        self.expected(report, "text");
        None
    }

    /// A path, with `~/` replaced. Empty text is refused.
    pub(super) fn file(&self, home: Option<&Path>, report: &mut Report) -> Option<PathBuf> {
        let text = self.text(report)?;
        if text.is_empty() {
            self.expected(report, "a path");
            return None;
        }
        let Some(rest) = text.strip_prefix("~/") else {
            return Some(PathBuf::from(text));
        };
        if home.is_none() {
            self.error(
                report,
                "~/ can't be replaced without a home directory: set HOME or give a full path",
            );
        }
        Some(home?.join(rest))
    }

    /// A truth value, in any of the spellings YAML has had for it.
    pub(super) fn truth(&self, report: &mut Report) -> Option<bool> {
        if let Value::Scalar { text, plain: true } = &self.node.value {
            match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => return Some(true),
                "false" | "no" | "off" => return Some(false),
                _ => {}
            }
        }
        self.expected(report, "true or false");
        None
    }

    /// A whole number in `range`.
    pub(super) fn whole(&self, range: RangeInclusive<u64>, report: &mut Report) -> Option<u64> {
        let found = match &self.node.value {
            Value::Scalar { text, plain: true } => text.parse::<i128>().ok(),
            _ => None,
        };
        let Some(number) = found else {
            self.expected(report, "a whole number");
            return None;
        };
        let inside = u64::try_from(number).ok().filter(|n| range.contains(n));
        if inside.is_none() {
            let (low, high) = range.into_inner();
            self.expected(report, &format!("a whole number from {low} to {high}"));
        }
        inside
    }

    /// The items of a list, null ones included, called `PATH[0]`, `PATH[1]`, …
    pub(super) fn list(&self, report: &mut Report) -> Option<Vec<Field<'n>>> {
        let Value::List(items) = &self.node.value else {
            self.expected(report, "a list");
            return None;
        };
        let name = |(index, node)| Field {
            path: format!("{}[{index}]", self.path),
            node,
        };
        Some(items.iter().enumerate().map(name).collect())
    }

    /// Its keys.
    pub(super) fn table(&self, report: &mut Report) -> Option<Table<'n>> {
        Table::open(&self.path, self.node, report)
    }

    /// Its keys, called `key` rather than `PATH.key`.
    pub(super) fn as_root(&self, report: &mut Report) -> Option<Table<'n>> {
        let table = self.table(report)?;
        Some(Table {
            path: String::new(),
            ..table
        })
    }

    /// Whether it is an empty list or table.
    pub(super) fn is_empty_collection(&self) -> bool {
        match &self.node.value {
            Value::List(items) => items.is_empty(),
            Value::Table(entries) => entries.is_empty(),
            Value::Scalar { .. } => false,
        }
    }
}

/// The candidate that `text` was most likely meant to be, if any is near enough.
pub(super) fn closest<'c>(text: &str, candidates: &[&'c str]) -> Option<&'c str> {
    // A long text resembles nothing, and the distance costs its length.
    if text.len() > QUOTED_CHARS {
        return None;
    }
    let scored = candidates
        .iter()
        .map(|c| (strsim::damerau_levenshtein(&text.to_lowercase(), c), *c));
    let (distance, best) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 2.min(best.len() / 2)).then_some(best)
}

fn mismatch(path: &str, node: &Node, expected: &str, report: &mut Report) {
    let found = describe(node);
    report.error(
        node.place,
        format!("{path}: expected {expected}, found {found}"),
    );
}

fn describe(node: &Node) -> String {
    match &node.value {
        _ if node.is_null() => "nothing".to_owned(),
        Value::Scalar { text, plain: true } if is_truth(text) => text.clone(),
        Value::Scalar { text, plain: true } if text.parse::<f64>().is_ok() => {
            format!("the number {}", shorten(text))
        }
        Value::Scalar { text, .. } => format!("text {:?}", shorten(text)),
        Value::List(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

fn is_truth(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "false")
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= QUOTED_CHARS {
        return text.to_owned();
    }
    text.chars().take(QUOTED_CHARS).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_or_none() {
        let known = ["vcpu", "ram_gb", "storage_size", "name"];
        assert_eq!(closest("vcpus", &known), Some("vcpu"));
        assert_eq!(closest("ram-gb", &known), Some("ram_gb"));
        assert_eq!(closest("storge_size", &known), Some("storage_size"));
        assert_eq!(closest("Name", &known), Some("name"));
        assert_eq!(closest("colour", &known), None);
        assert_eq!(closest(&"v".repeat(9999), &known), None);
    }
}
