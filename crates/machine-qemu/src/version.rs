//! Which QEMU it is, as far as it matters to how guests are started.

use crate::process::{Spawner, Start};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tracing::warn;

/// How long it may take to say so.
const TIME: Duration = Duration::from_secs(5);
/// More than it says.
const LIMIT: u64 = 4096;

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    major: u32,
}

impl Version {
    /// Asks a program of QEMU's. None when it says nothing of the kind.
    pub(crate) async fn of(spawner: &Spawner, program: &Path) -> Option<Self> {
        let start = Start {
            program: program.to_owned(),
            args: vec!["--version".into()],
            sockets: None,
            tap: None,
            share: None,
            dir: None,
            nice: false,
        };
        let asked = async {
            let mut child = spawner.spawn(start).await.ok()?;
            let mut text = String::new();
            let out = child.stdout.take()?;
            out.take(LIMIT).read_to_string(&mut text).await.ok()?;
            child.wait().await.ok()?;
            Self::parse(&text)
        };
        let version = tokio::time::timeout(TIME, asked).await.ok().flatten();
        if version.is_none() {
            warn!("{} does not tell its version", program.display());
        }
        version
    }

    /// From what `--version` prints.
    fn parse(text: &str) -> Option<Self> {
        let (_, version) = text.split_once("QEMU emulator version ")?;
        let (major, _) = version.split_once('.')?;
        let major = major.parse().ok()?;
        Some(Self { major })
    }

    /// From the answer to QMP's `query-version`.
    pub(crate) fn from_qmp(answer: &Value) -> Option<Self> {
        let major = answer["qemu"]["major"].as_u64()?.try_into().ok()?;
        Some(Self { major })
    }

    /// Whether it knows of all that an emulated guest writes while its memory is written out. Before 9 it
    /// missed some, by which the guest was wrecked
    /// (<https://gitlab.com/qemu-project/qemu/-/commit/03bfc2188f0>); 10 was seen to be right.
    pub(crate) fn knows_what_is_written(self) -> bool {
        self.major >= 10
    }

    /// Whether it translates the same guest code again for each address a program is loaded at. QEMU 10
    /// does not; those before had stopped sharing translations in their releases of January 2024, for a
    /// bug.
    pub(crate) fn translates_by_address(self) -> bool {
        self.major < 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::emulated_kernel_args;
    use serde_json::json;

    #[test]
    fn the_version_is_read_off_the_first_line() {
        let debian =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c)";
        assert_eq!(Version::parse(debian), Some(Version { major: 7 }));
        let plain = "QEMU emulator version 10.1.0\n";
        assert_eq!(Version::parse(plain), Some(Version { major: 10 }));
        for other in [
            "",
            "QEMU emulator version ",
            "QEMU emulator version x.1",
            "qemu",
        ] {
            assert_eq!(Version::parse(other), None, "{other}");
        }
    }
    #[test]
    fn a_guest_is_written_while_it_runs_by_those_that_can() {
        let of = |major| Version::from_qmp(&json!({ "qemu": { "major": major } }));
        assert!(of(10).unwrap().knows_what_is_written());
        assert!(!of(7).unwrap().knows_what_is_written());
        assert_eq!(Version::from_qmp(&json!({})), None);
    }

    #[test]
    fn addresses_are_random_where_that_costs_nothing() {
        let args = |text| emulated_kernel_args(Version::parse(text));
        let old = args("QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)");
        assert_eq!(old, " mitigations=off norandmaps");
        assert_eq!(args("QEMU emulator version 10.0.2"), " mitigations=off");
        assert_eq!(args("who knows"), " mitigations=off");
    }
}
