//! The root filesystem: Debian by mmdebstrap, then the recipe's `customize.sh`.

use super::{Build, say_step, scratch_dir};
use anyhow::{Context, Result, bail};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Writes the root filesystem as a tar archive.
pub(super) fn build(build: &Build, tar: &mut dyn Write) -> Result<()> {
    let started = Instant::now();
    let scratch = scratch_dir(build)?;
    let sources = build.sources.write(scratch.path())?;
    let addition = build.recipe.addition().map(|a| build.guest.join(a));
    let recipes: Vec<&Path> = [Some(&build.guest), addition.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    let mut packages = Vec::new();
    for recipe in &recipes {
        packages.extend(listed(&recipe.join("packages.txt"))?);
    }
    let mut command = Command::new("mmdebstrap");
    command
        .args([
            "--mode=auto",
            "--variant=minbase",
            "--format=tar",
            "--quiet",
        ])
        .arg(format!("--architectures={}", build.arch))
        .arg(format!("--include={}", packages.join(",")))
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg("--aptopt=Acquire::Languages \"none\"")
        // mmdebstrap passes a hook to a shell with the root as its first argument.
        .args(recipes.iter().map(|recipe| {
            let script = recipe.join("customize.sh");
            format!("--customize-hook='{}' \"$1\"", script.display())
        }))
        .args([&build.sources.suite, "-"])
        .arg(sources)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .context("cannot run mmdebstrap; is it installed?")?;
    let mut stderr = child
        .stderr
        .take()
        .context("mmdebstrap has no standard error")?;
    let mut stdout = child
        .stdout
        .take()
        .context("mmdebstrap has no standard output")?;
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        let _ = stderr.read_to_string(&mut said);
        said
    });
    // The first byte comes when the root is complete.
    let mut first = [0];
    let copied = stdout.read_exact(&mut first).and_then(|()| {
        say_step(
            "install Debian and customize it (mmdebstrap)",
            started.elapsed(),
        );
        let packing = Instant::now();
        tar.write_all(&first)?;
        io::copy(&mut stdout, tar)?;
        say_step("pack the root filesystem", packing.elapsed());
        Ok(())
    });
    drop(stdout);
    let status = child.wait()?;
    let said = said.join().unwrap_or_default();
    if !status.success() {
        bail!("mmdebstrap failed ({status}):\n{}", said.trim_end());
    }
    copied.context("cannot pack the root filesystem")
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
