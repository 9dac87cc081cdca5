//! The files of the recipes, `guest/`, as a part of this program.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../guest/", $path)))),*]
    };
}

/// Each file's path below `guest/` and its content.
const FILES: &[(&str, &[u8])] = files![
    "customize.sh",
    "debian.sources",
    "docker/customize.sh",
    "docker/packages.txt",
    "finish.sh",
    "lean.txt",
    "minimal/customize.sh",
    "minimal/packages.txt",
    "overlay/etc/default/locale",
    "overlay/etc/profile.d/sbin.sh",
    "overlay/etc/ssh/sshd_config.d/host-key.conf",
    "overlay/etc/sudoers.d/90-ubuntu",
    "overlay/etc/systemd/journald.conf.d/volatile.conf",
    "overlay/etc/systemd/system/ssh-host-keys.service",
    "overlay/etc/systemd/system/ssh.service.d/host-keys.conf",
    "overlay/etc/systemd/system/systemd-tmpfiles-setup-dev.service.d/lean.conf",
    "overlay/etc/systemd/system/systemd-udevd.service.d/background.conf",
    "packages.txt",
];

/// Writes them into a directory that goes away by itself. Without root the recipes run as a user
/// who has nothing in common with this one, so everybody may read it.
pub(crate) fn write() -> io::Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("slicer-recipe-")
        .tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    for (path, content) in FILES {
        let dest = dir.path().join(path);
        let mut parent = dir.path().to_owned();
        for name in Path::new(path).parent().into_iter().flatten() {
            parent.push(name);
            if !parent.is_dir() {
                fs::create_dir(&parent)?;
                fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
            }
        }
        fs::write(&dest, content)?;
        // The recipes' own scripts, not what they copy.
        let is_script =
            dest.extension().is_some_and(|e| e == "sh") && !path.starts_with("overlay/");
        let mode = if is_script { 0o755 } else { 0o644 };
        fs::set_permissions(&dest, fs::Permissions::from_mode(mode))?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_recipes_is_left_out() {
        let written = write().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest");
        let digest = |dir: &Path| crate::digest_tree(dir, |_| true).unwrap();
        assert_eq!(digest(written.path()), digest(&source));
        for (path, _) in FILES {
            let mode = |dir: &Path| fs::metadata(dir.join(path)).unwrap().permissions().mode();
            assert_eq!(
                mode(written.path()) & 0o100,
                mode(&source) & 0o100,
                "{path}"
            );
        }
    }
}
