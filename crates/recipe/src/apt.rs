//! The Debian archive, through apt, without touching this machine's own package state.

use crate::error::{Context as _, RecipeError};
use crate::program::Stop;
use crate::{Arch, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The apt sources of this machine that lead to Debian.
pub(super) struct Sources {
    /// In the deb822 format, or apt's one-line format.
    pub(super) text: String,
    /// The file name extension that tells apt the format.
    pub(super) extension: &'static str,
    /// Code name of the release, such as `bookworm`.
    pub(super) suite: String,
}

impl Sources {
    /// Reads them. An `Architectures` pin is dropped: the guest may have another one.
    pub(super) fn of_host() -> Result<Self> {
        let deb822 = Path::new("/etc/apt/sources.list.d/debian.sources");
        let list = Path::new("/etc/apt/sources.list");
        if let Ok(text) = fs::read_to_string(deb822) {
            let text = without_architectures(&text);
            let suite = text
                .lines()
                .find_map(|l| l.strip_prefix("Suites:")?.split_whitespace().next())
                .with_context(|| format!("no Suites in {}", deb822.display()))?
                .to_owned();
            return Ok(Self {
                text,
                extension: "sources",
                suite,
            });
        }
        let text = fs::read_to_string(list).with_context(|| {
            format!(
                "no Debian sources: neither {} nor {}",
                deb822.display(),
                list.display()
            )
        })?;
        let suite = text
            .lines()
            .filter(|l| l.starts_with("deb "))
            .find_map(|l| {
                l.split_whitespace()
                    .skip_while(|w| !w.contains("://"))
                    .nth(1)
            })
            .with_context(|| format!("no deb line in {}", list.display()))?
            .to_owned();
        Ok(Self {
            text,
            extension: "list",
            suite,
        })
    }

    /// Writes them into `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("debian.{}", self.extension));
        fs::write(&path, &self.text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn without_architectures(deb822: &str) -> String {
    deb822
        .lines()
        .filter(|l| !l.starts_with("Architectures:"))
        .fold(String::new(), |text, line| text + line + "\n")
}

/// An apt of its own: package lists, cache and configuration in one directory.
pub(super) struct Apt {
    dir: PathBuf,
    arch: Arch,
    options: Vec<String>,
    stop: Stop,
}

impl Apt {
    /// Sets one up in `dir` and fetches the package lists.
    pub(super) fn new(dir: &Path, sources: &Sources, arch: Arch, stop: &Stop) -> Result<Self> {
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let file = sources.write(dir)?;
        let at = |name: &str| dir.join(name).display().to_string();
        let options = [
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", dir.display()),
            format!("Dir::Etc::sourcelist={}", file.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("APT::Architecture={arch}"),
            format!("APT::Architectures={arch}"),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        let apt = Self {
            dir: dir.to_owned(),
            arch,
            options: options
                .into_iter()
                .flat_map(|o| ["-o".to_owned(), o])
                .collect(),
            stop: stop.clone(),
        };
        apt.stop
            .output(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    /// The package that `package`, which has no content of its own, stands for.
    pub(super) fn depends(&self, package: &str) -> Result<String> {
        let text = self
            .stop
            .output(self.command("apt-cache").args(["depends", package]))?;
        let text = String::from_utf8_lossy(&text);
        let found = text
            .lines()
            .find_map(|l| l.trim().strip_prefix("Depends: "));
        match found {
            Some(name) => Ok(name.trim().to_owned()),
            None => Err(RecipeError::Unexpected(format!(
                "package {package} for {} depends on nothing",
                self.arch
            ))),
        }
    }

    /// Downloads a package, checked against the archive's signature, and returns its file.
    pub(super) fn download(&self, package: &str) -> Result<PathBuf> {
        self.stop.output(
            self.command("apt-get")
                .args(["-qq", "download", package])
                .current_dir(&self.dir),
        )?;
        fs::read_dir(&self.dir)?
            .filter_map(|e| e.ok().map(|e| e.path()))
            .find(|p| p.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt-get downloaded no file for {package}"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architecture_pins_are_dropped() {
        let text = "Types: deb\nArchitectures: amd64\nSuites: bookworm\n";
        assert_eq!(
            without_architectures(text),
            "Types: deb\nSuites: bookworm\n"
        );
    }
}
