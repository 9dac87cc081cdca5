//! `--arch`.

use clap::ValueEnum;

/// An architecture that guests can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// Go's name of it.
    pub(super) fn go_name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}
