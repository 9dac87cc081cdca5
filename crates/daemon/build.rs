//! Embeds the guest agent, so that daemon and agent are always of one version, and the commit.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut table = String::from(
        "/// The agents built into this daemon, by Go's name of the architecture.\npub(crate) const BUILT_IN: &[(&str, &[u8])] = &[\n",
    );
    // Where `make agent` puts them. A directory that is missing counts as changed every time, and this
    // crate takes long; what comes into it later is noticed.
    let agents = root.join("target/guest-programs/slicer-agent");
    println!("cargo::rerun-if-changed={}", agents.display());
    for arch in ["amd64", "arm64"] {
        if let Ok(file) = agents.join(arch).canonicalize() {
            let file = file.display().to_string();
            let line = writeln!(table, "    ({arch:?}, include_bytes!({file:?})),");
            line.expect("writing to a string");
        }
    }
    table.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("agents.rs"), table).expect("OUT_DIR is writable");

    // In a worktree these aren't where one would think.
    for name in ["HEAD", "refs/heads"] {
        let path = git(&root, &["rev-parse", "--git-path", name]).map(|path| root.join(path));
        if let Some(path) = path.filter(|p| p.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let commit = git(&root, &["rev-parse", "--short=12", "HEAD"]);
    println!(
        "cargo::rustc-env=SLICER_GIT_COMMIT={}",
        commit.unwrap_or_else(|| "unknown".into())
    );
}

fn git(root: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).current_dir(root).output();
    let output = output.ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
