//! Where the default guest image and its kernel are installed.

use crate::ImageError;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The environment variable that says where they are: a directory with `image` and `kernel`, or
/// one with such a directory for each architecture.
pub const GUEST_DIR_VARIABLE: &str = "SLICER_GUEST_DIR";

/// The OCI layouts of the default guest image and its kernel; the tag in both is `latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestLayouts {
    /// The root filesystem.
    pub image: PathBuf,
    /// The kernel and its modules.
    pub kernel: PathBuf,
}

/// Finds the default guest image for an architecture (`amd64`, `arm64`): where
/// [`GUEST_DIR_VARIABLE`] says, or in `guest` beside the running executable, as `slicer install` puts
/// it there, or near it (in the build tree, or in `../share/slicer`), or in `/usr/share/slicer`.
pub fn find_guest(arch: &str) -> Result<GuestLayouts, ImageError> {
    find_here(arch, &["image", "kernel"]).map(|dir| GuestLayouts::in_dir(&dir))
}

/// Finds the kernel that came with slicer for an architecture, where [`find_guest`] looks. There need
/// not be an image beside it.
pub fn find_kernel(arch: &str) -> Result<PathBuf, ImageError> {
    find_here(arch, &["kernel"]).map(|dir| GuestLayouts::in_dir(&dir).kernel)
}

impl GuestLayouts {
    fn in_dir(dir: &Path) -> Self {
        Self {
            image: dir.join("image"),
            kernel: dir.join("kernel"),
        }
    }
}

fn find_here(arch: &str, parts: &[&str]) -> Result<PathBuf, ImageError> {
    let exe = std::env::current_exe().and_then(std::fs::canonicalize).ok();
    let variable = std::env::var_os(GUEST_DIR_VARIABLE);
    find(arch, parts, variable.as_deref(), exe.as_deref())
}

/// The first directory that has all these layouts.
fn find(
    arch: &str,
    parts: &[&str],
    variable: Option<&OsStr>,
    exe: Option<&Path>,
) -> Result<PathBuf, ImageError> {
    let mut candidates = Vec::new();
    if let Some(dir) = variable.filter(|dir| !dir.is_empty()) {
        // Somebody who says where it is does not want to be given another.
        candidates.extend([Path::new(dir).join(arch), PathBuf::from(dir)]);
    } else {
        let beside = exe.and_then(Path::parent);
        candidates.extend(beside.map(|dir| dir.join("guest").join(arch)));
        if let Some(dir) = beside.and_then(Path::parent) {
            candidates.push(dir.join("guest").join(arch));
            candidates.push(dir.join("share/slicer/guest").join(arch));
        }
        candidates.push(Path::new("/usr/share/slicer/guest").join(arch));
    }
    let has = |dir: &&PathBuf, part: &&str| dir.join(part).join("index.json").is_file();
    let found = candidates
        .iter()
        .find(|dir| parts.iter().all(|part| has(dir, part)));
    found.cloned().ok_or_else(|| ImageError::NoGuest {
        what: parts.first().copied().unwrap_or_default().to_owned(),
        arch: arch.to_owned(),
        searched: candidates
            .iter()
            .map(|dir| dir.display().to_string())
            .collect::<Vec<_>>()
            .join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn find(
        arch: &str,
        variable: Option<&OsStr>,
        exe: Option<&Path>,
    ) -> Result<GuestLayouts, ImageError> {
        super::find(arch, &["image", "kernel"], variable, exe).map(|dir| GuestLayouts::in_dir(&dir))
    }

    fn install(dir: &Path) -> GuestLayouts {
        let found = GuestLayouts {
            image: dir.join("image"),
            kernel: dir.join("kernel"),
        };
        for layout in [&found.image, &found.kernel] {
            fs::create_dir_all(layout).unwrap();
            fs::write(layout.join("index.json"), "{}").unwrap();
        }
        found
    }

    #[test]
    fn it_is_found_beside_the_executable() {
        let root = tempfile::tempdir().unwrap();
        let exe = root.path().join("release/slicer-mac");
        let missing = find("amd64", None, Some(&exe)).unwrap_err().to_string();
        assert!(missing.contains("make image"), "{missing}");
        let shared = install(&root.path().join("share/slicer/guest/amd64"));
        assert_eq!(find("amd64", None, Some(&exe)).unwrap(), shared);
        let built = install(&root.path().join("guest/amd64"));
        assert_eq!(find("amd64", None, Some(&exe)).unwrap(), built);
        let installed = install(&root.path().join("release/guest/amd64"));
        assert_eq!(find("amd64", None, Some(&exe)).unwrap(), installed);
        assert!(find("arm64", None, Some(&exe)).is_err());
    }

    #[test]
    fn a_kernel_is_found_without_an_image() {
        let root = tempfile::tempdir().unwrap();
        let exe = root.path().join("release/slicer-mac");
        let guest = install(&root.path().join("guest/arm64"));
        fs::remove_file(guest.image.join("index.json")).unwrap();
        assert!(find("arm64", None, Some(&exe)).is_err());
        let found = super::find("arm64", &["kernel"], None, Some(&exe)).unwrap();
        assert_eq!(found.join("kernel"), guest.kernel);
        let missing = super::find("amd64", &["kernel"], None, Some(&exe)).unwrap_err();
        let text = missing.to_string();
        assert!(text.starts_with("no guest kernel for amd64"), "{text}");
    }

    #[test]
    fn the_variable_decides_when_it_is_set() {
        let root = tempfile::tempdir().unwrap();
        let exe = root.path().join("release/slicer-mac");
        install(&root.path().join("guest/amd64"));
        let other = root.path().join("other");
        assert!(find("amd64", Some(other.as_os_str()), Some(&exe)).is_err());
        let flat = install(&other);
        assert_eq!(
            find("amd64", Some(other.as_os_str()), Some(&exe)).unwrap(),
            flat
        );
        let sorted = install(&other.join("amd64"));
        assert_eq!(
            find("amd64", Some(other.as_os_str()), Some(&exe)).unwrap(),
            sorted
        );
    }
}
