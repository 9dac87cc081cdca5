//! The kernel image: Debian's cloud kernel, made ready to boot directly, and all its modules.

use super::apt::Apt;
use crate::error::{Context as _, RecipeError};
use crate::{Build, Result, modules, program, scratch_dir};
use ruzstd::decoding::StreamingDecoder;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Writes the kernel image's layer: `boot/kernel`, `boot/config`, `boot/modules.load` and
/// `lib/modules/VERSION/`.
pub(super) fn build(build: &Build<'_>, tar: &mut dyn Write) -> Result<()> {
    let scratch = scratch_dir(&build.out)?;
    let apt = build.step("fetch package lists", || {
        Apt::new(
            &scratch.path().join("apt"),
            &build.sources,
            build.arch,
            build.stop,
        )
    })?;
    let deb = build.step("download the kernel", || {
        apt.download(&apt.depends(&format!("linux-image-cloud-{}", build.arch))?)
    })?;
    let root = scratch.path().join("root");
    build.step("unpack the kernel package", || unpack(&deb, &root))?;
    build.step("extract the uncompressed kernel", || {
        let file = fs::read(root.join("boot/vmlinuz"))?;
        let kernel = slicer_image::uncompressed_kernel(&file)?;
        fs::remove_file(root.join("boot/vmlinuz"))?;
        Ok(fs::write(root.join("boot/kernel"), kernel)?)
    })?;
    build.step("resolve modules (depmod)", || {
        let version = version(&root)?;
        let depmod = program::depmod().unwrap_or("depmod");
        build
            .stop
            .output(Command::new(depmod).arg("-b").arg(&root).arg(&version))?;
        let list = modules::wanted(build.arch).resolve(&modules::Index::read(
            &root.join("lib/modules").join(&version),
        )?)?;
        Ok(fs::write(root.join("boot/modules.load"), list)?)
    })?;
    build.step("pack kernel and modules", || pack(&root, tar))
}

/// The kernel's version: the only directory in `lib/modules`.
fn version(root: &Path) -> Result<String> {
    let mut names = fs::read_dir(root.join("lib/modules"))?
        .map(|e| e.map(|e| e.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    match (
        names.pop().map(std::ffi::OsString::into_string),
        names.is_empty(),
    ) {
        (Some(Ok(name)), true) => Ok(name),
        _ => Err(RecipeError::Unexpected(
            "the package should hold the modules of one kernel".to_owned(),
        )),
    }
}

/// Unpacks what is needed of a Debian package: an ar archive with a compressed tar in it (deb(5)).
fn unpack(deb: &Path, root: &Path) -> Result<()> {
    let mut archive = ar::Archive::new(BufReader::new(File::open(deb)?));
    while let Some(entry) = archive.next_entry() {
        let entry = entry?;
        let data: Box<dyn Read> = match entry.header().identifier() {
            b"data.tar.xz" => Box::new(lzma_rust2::XzReader::new(entry, true)),
            b"data.tar.zst" => Box::new(StreamingDecoder::new(entry).map_err(io::Error::other)?),
            b"data.tar" => Box::new(entry),
            _ => continue,
        };
        return unpack_tar(data, root);
    }
    Err(RecipeError::Unexpected(format!(
        "{} has no data.tar that can be read",
        deb.display()
    )))
}

fn unpack_tar(data: impl Read, root: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(data);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if let Some(wanted) = destination(&path).filter(|_| entry.header().entry_type().is_file()) {
            let mut dest = root.join(wanted);
            fs::create_dir_all(
                dest.parent()
                    .with_context(|| "an entry without a directory")?,
            )?;
            // From Debian 13 on modules are compressed, which the boot is not to wait for.
            if dest.extension().is_some_and(|e| e == "xz") {
                dest.set_extension("");
                let mut module = lzma_rust2::XzReader::new(&mut entry, true);
                io::copy(&mut module, &mut File::create(&dest)?)?;
            } else {
                io::copy(&mut entry, &mut File::create(&dest)?)?;
            }
        }
    }
    Ok(())
}

/// Where a file of the package goes; nowhere for those that are not needed. Versions are dropped
/// from names in `boot`.
fn destination(path: &Path) -> Option<PathBuf> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    // The kernel's files are in usr/lib from Debian 13 on.
    if parts.first().is_some_and(|p| *p == "usr") {
        parts.remove(0);
    }
    match parts.as_slice() {
        [boot, file] if *boot == "boot" => {
            let name = file.to_str()?.split('-').next()?;
            ["vmlinuz", "config"]
                .contains(&name)
                .then(|| Path::new("boot").join(name))
        }
        [lib, modules, ..] if *lib == "lib" && *modules == "modules" => {
            Some(parts.iter().collect())
        }
        _ => None,
    }
}

/// Packs a tree of plain files in the order of their names, as root's, without times.
fn pack(root: &Path, tar: &mut dyn Write) -> Result<()> {
    let mut archive = tar::Builder::new(tar);
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let name = path.strip_prefix(root).unwrap_or(&path);
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if path.is_dir() {
            let mut children = fs::read_dir(&path)?
                .map(|e| e.map(|e| e.path()))
                .collect::<io::Result<Vec<_>>>()?;
            children.sort();
            pending.extend(children.into_iter().rev());
            if name.as_os_str().is_empty() {
                continue;
            }
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            archive.append_data(&mut header, name, io::empty())?;
        } else {
            let file = File::open(&path)?;
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(file.metadata()?.len());
            archive.append_data(&mut header, name, file)?;
        }
    }
    Ok(archive.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_unpacked_whatever_their_compression() {
        let mut packed =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
        packed.write_all(b"b's code").unwrap();
        let packed = packed.finish().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        for (path, data) in [
            ("./lib/modules/6/a.ko", b"a's code".as_slice()),
            ("./usr/lib/modules/6/b.ko.xz", &packed),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, path, data).unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let root = tempfile::tempdir().unwrap();
        unpack_tar(archive.as_slice(), root.path()).unwrap();
        let modules = root.path().join("lib/modules/6");
        assert_eq!(fs::read(modules.join("a.ko")).unwrap(), b"a's code");
        assert_eq!(fs::read(modules.join("b.ko")).unwrap(), b"b's code");
        assert!(!modules.join("b.ko.xz").exists());
    }

    #[test]
    fn only_kernel_config_and_modules_are_taken() {
        let to = |p: &str| destination(Path::new(p)).map(|p| p.display().to_string());
        assert_eq!(
            to("./boot/vmlinuz-6.1.0-9-cloud-amd64").as_deref(),
            Some("boot/vmlinuz")
        );
        assert_eq!(
            to("./boot/config-6.1.0-9-cloud-amd64").as_deref(),
            Some("boot/config")
        );
        assert_eq!(to("./boot/System.map-6.1.0-9-cloud-amd64"), None);
        let module = "lib/modules/6.1/kernel/fs/fuse/fuse.ko";
        assert_eq!(to(&format!("./{module}")).as_deref(), Some(module));
        assert_eq!(to(&format!("./usr/{module}")).as_deref(), Some(module));
        assert_eq!(to("./usr/share/doc/x/copyright"), None);
        assert_eq!(to("lib/modules/../../etc/passwd"), None);
    }
}
