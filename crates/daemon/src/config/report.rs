//! What is wrong, or odd, in a configuration file, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A place in the text. Both count from one, as editors do; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in it.
    pub column: usize,
}

/// One finding: `slicer-mac.yaml:12:13: host_groups[1].vcpu: expected …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file's name, as the caller gave it.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// What about it, beginning with the key's path.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(f, "{}:{line}:{column}: {}", self.file, self.message)
    }
}

/// Why something that doesn't stop the daemon is worth a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WarningKind {
    /// A key nobody knows, most often misspelt. It has no effect.
    UnknownKey,
    /// A known key whose value asks for something this version doesn't do yet.
    NotServed,
    /// The configuration is honoured, but not to the letter, or is unwise.
    Advice,
}

/// A finding that the daemon tells of at its start and then carries on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Why.
    pub kind: WarningKind,
    /// What and where.
    pub diagnostic: Diagnostic,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnostic.fmt(f)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error("{} not found: write one with `slicer-mac new > slicer-mac.yaml`", path.display())]
    Missing {
        /// The file looked for.
        path: PathBuf,
    },
    /// The file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file isn't one a person wrote.
    #[error("{} is larger than {limit} bytes: is it really the configuration?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, bytes.
        limit: u64,
    },
    /// It says something that can't be honoured: every such finding, in the order of the text.
    #[error("{}", lines(.0))]
    Invalid(Vec<Diagnostic>),
}

fn lines(findings: &[Diagnostic]) -> String {
    let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
    texts.join("\n")
}

/// Gathers findings while the text is read.
#[derive(Debug)]
pub(super) struct Report {
    file: String,
    errors: Vec<Diagnostic>,
    warnings: Vec<Warning>,
}

impl Report {
    pub(super) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, place: Place, message: impl Into<String>) {
        let finding = self.diagnostic(place, message.into());
        self.errors.push(finding);
    }

    pub(super) fn warn(&mut self, kind: WarningKind, place: Place, message: impl Into<String>) {
        let diagnostic = self.diagnostic(place, message.into());
        self.warnings.push(Warning { kind, diagnostic });
    }

    /// The value together with the warnings, or all errors. A value that is missing without an
    /// error having been told can't come from the readers, which tell before they give up.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Vec<Warning>), ConfigError> {
        self.errors.sort_by_key(|e| e.place);
        self.warnings.sort_by_key(|w| w.diagnostic.place);
        match value {
            Some(value) if self.errors.is_empty() => Ok((value, self.warnings)),
            _ => Err(ConfigError::Invalid(self.errors)),
        }
    }

    fn diagnostic(&self, place: Place, message: String) -> Diagnostic {
        Diagnostic {
            file: self.file.clone(),
            place,
            message,
        }
    }
}
