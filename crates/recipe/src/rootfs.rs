//! The root filesystem: Debian by mmdebstrap, or another recipe's root with more packages; then the
//! recipe's `customize.sh`.

use crate::error::Context as _;
use crate::{Build, Recipe, Result, layout, program, scratch_dir};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Writes the root filesystem of a recipe, whose base has been built, as a tar archive.
pub(super) fn build(build: &Build<'_>, recipe: Recipe, tar: &mut dyn Write) -> Result<()> {
    program::check_runs(build.arch)?;
    let started = Instant::now();
    let scratch = scratch_dir(&build.out)?;
    let sources = build.sources.write(scratch.path())?;
    let dir = recipe.dir(build.guest);
    let packages = listed(&dir.join("packages.txt"))?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=auto", "--format=tar", "--quiet"])
        .arg(format!("--architectures={}", build.arch))
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg("--aptopt=Acquire::Languages \"none\"");
    match recipe.base() {
        None => {
            command
                .arg("--variant=minbase")
                .arg(format!("--include={}", packages.join(",")));
        }
        Some(base) => {
            let layer = layout::layer(&build.out.join(base.layout()))?;
            command
                .arg("--variant=custom")
                .args(on_top_of(&layer, &packages));
        }
    }
    command
        // mmdebstrap passes a hook to a shell with the root as its first argument.
        .arg(format!(
            "--customize-hook='{}' \"$1\"",
            dir.join("customize.sh").display()
        ))
        .args([&build.sources.suite, "-"])
        .arg(sources)
        .stdin(Stdio::null());
    build.stop.run(&mut command, |mut stdout| {
        // The first byte comes when the root is complete.
        let mut first = [0];
        stdout.read_exact(&mut first)?;
        build.say_step(
            "install Debian and customize it (mmdebstrap)",
            started.elapsed(),
        );
        let packing = Instant::now();
        tar.write_all(&first)?;
        io::copy(&mut stdout, tar)?;
        build.say_step("pack the root filesystem", packing.elapsed());
        Ok(())
    })
}

/// The hooks that begin with the root of a layer and install packages in it, as mmdebstrap's manual
/// has it. The root has devices already, and sources that are not to be asked.
fn on_top_of(layer: &Path, packages: &[String]) -> [String; 2] {
    let packages: Vec<String> = packages.iter().map(|p| format!("'{p}'")).collect();
    [
        format!(
            "--setup-hook=tar --extract --zstd --file '{}' --directory \"$1\" --numeric-owner \
             --xattrs --xattrs-include='*' --exclude='./dev/*' \
             --exclude='./etc/apt/sources.list.d/*'",
            layer.display()
        ),
        format!(
            "--customize-hook=APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" apt-get --yes \
             --no-install-recommends -o DPkg::Chroot-Directory=\"$1\" install {}",
            packages.join(" ")
        ),
    ]
}

/// The names in a list of packages: one a line, `#` begins a comment.
fn listed(file: &Path) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines = text.lines().map(str::trim);
    Ok(lines
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(ToOwned::to_owned)
        .collect())
}
