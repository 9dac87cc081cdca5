//! Slicer's part of the user's ssh_config(5): a file of its own, and the line that includes it.

use super::SshError;
use crate::error::CliError;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Where it is, and who includes it.
pub(super) struct Include {
    file: PathBuf,
    pub(super) config: PathBuf,
}

impl Include {
    /// That of this user.
    pub(super) fn find() -> Result<Self, CliError> {
        let home = std::env::var_os("HOME").filter(|h| !h.is_empty());
        let home = PathBuf::from(home.ok_or(SshError::NoHome)?);
        Ok(Self {
            file: home.join(".slicer/ssh_config"),
            config: home.join(".ssh/config"),
        })
    }

    fn line(&self) -> Result<String, CliError> {
        let path = self.file.to_str().filter(|p| {
            // What ssh would read as the word's end, or as part of a pattern.
            !p.chars().any(|c| c.is_control() || "\"\\*?[".contains(c))
        });
        let path = path.ok_or_else(|| SshError::Unwritable(self.file.clone()))?;
        Ok(format!("Include \"{path}\""))
    }

    /// Writes the file and has it included.
    pub(super) fn install(&self, text: &str) -> Result<(), CliError> {
        let line = self.line()?;
        write(&self.file, text, 0o644)?;
        let before = read(&self.config)?;
        if let Some(after) = with_line(&before, &line) {
            write(&self.config, &after, 0o600)?;
        }
        Ok(())
    }

    /// Takes both away; false when there was nothing.
    pub(super) fn uninstall(&self) -> Result<bool, CliError> {
        let before = read(&self.config)?;
        let after = without_line(&before, &self.line()?);
        let included = after != before;
        if included {
            write(&self.config, &after, 0o600)?;
        }
        match fs::remove_file(&self.file) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(included),
            Err(source) => Err(CliError::File {
                action: "remove",
                path: self.file.clone(),
                source,
            }),
        }
    }
}

/// The configuration with the line in front, where it is under no condition; none when it is there
/// already.
fn with_line(config: &str, line: &str) -> Option<String> {
    let unconditional = config.lines().take_while(|l| {
        let word = l.trim_start().split([' ', '\t', '=']).next();
        !word.is_some_and(|w| w.eq_ignore_ascii_case("host") || w.eq_ignore_ascii_case("match"))
    });
    if unconditional.into_iter().any(|l| l.trim() == line) {
        return None;
    }
    let rest = without_line(config, line);
    let gap = if rest.is_empty() { "" } else { "\n" };
    Some(format!("{line}\n{gap}{rest}"))
}

fn without_line(config: &str, line: &str) -> String {
    let mut kept = String::with_capacity(config.len());
    let mut after = false;
    for l in config.split_inclusive('\n') {
        let is_gap = after && l.trim().is_empty();
        after = l.trim() == line;
        if !after && !is_gap {
            kept.push_str(l);
        }
    }
    kept
}

fn read(path: &Path) -> Result<String, CliError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(CliError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Replaces a file as a whole, or what a link in its place leads to. A new one has this mode.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CliError> {
    let failed = |source| CliError::Write {
        path: path.to_owned(),
        source,
    };
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    let mode = fs::metadata(&path).map_or(mode, |m| m.permissions().mode() & 0o777);
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    let done = file.as_file().set_permissions(Permissions::from_mode(mode));
    done.map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&path).map_err(|e| failed(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "Include \"/h/.slicer/ssh_config\"";

    #[test]
    fn the_line_is_added_once_and_in_front() {
        let theirs = "Host a\n  User b\n";
        let with = with_line(theirs, LINE).unwrap();
        assert_eq!(with, format!("{LINE}\n\n{theirs}"));
        assert_eq!(with_line(&with, LINE), None);
        assert_eq!(without_line(&with, LINE), theirs);
        assert_eq!(with_line("", LINE).unwrap(), format!("{LINE}\n"));
        // Below a host it counts for that host alone.
        let below = format!("{theirs}{LINE}\n");
        assert_eq!(with_line(&below, LINE).unwrap(), with);
        let before = format!("# mine\n  {LINE}\nHost a\n");
        assert_eq!(with_line(&before, LINE), None);
    }

    #[test]
    fn a_link_and_its_files_mode_stay() {
        let home = tempfile::tempdir().unwrap();
        let real = home.path().join("dotfiles");
        fs::write(&real, "Host a\n").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        let include = Include {
            file: home.path().join(".slicer/ssh_config"),
            config: home.path().join(".ssh/config"),
        };
        fs::create_dir(home.path().join(".ssh")).unwrap();
        std::os::unix::fs::symlink(&real, &include.config).unwrap();
        for _ in 0..2 {
            include.install("Host b\n").unwrap();
            let text = fs::read_to_string(&real).unwrap();
            assert_eq!(text.matches("Include").count(), 1, "{text}");
        }
        assert!(include.config.is_symlink());
        let mode = fs::metadata(&real).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(include.uninstall().unwrap());
        assert_eq!(fs::read_to_string(&real).unwrap(), "Host a\n");
        assert!(!include.file.exists());
        assert!(!include.uninstall().unwrap());
    }
}
