//! `cargo xtask dist`: what is published. For each platform whose programs have been built, a tarball
//! and what its programs are made of; their sums; and one OCI layout with the bundle that
//! `slicer install` and `slicer update` take. Programs for Macs are signed.
//!
//! The same inputs give the same bytes: names are sorted, times are `SOURCE_DATE_EPOCH` or that of
//! the last commit, owners are root. `slicer-registry` says what a bundle is.

use crate::mac::{self, Entitlements};
use crate::sbom;
use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slicer_recipe::replace;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

// As `crates/registry/src/bundle.rs` has them.
const BUNDLE_TYPE: &str = "application/vnd.slicer.bundle.v1";
const FILE_TYPE: &str = "application/vnd.slicer.file.v1";
const EXECUTABLE: &str = "slicer.executable";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What the specification has artifacts without a configuration name.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What `cargo xtask dist` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the results
    #[arg(long, default_value = "target/dist")]
    out: PathBuf,
    /// For tests: the programs for Macs as `make mac-link` leaves them, and other architectures'
    /// bundles without the guest image, where it wasn't built
    #[arg(long)]
    quick: bool,
}

/// A platform that there may be programs for.
struct Platform {
    /// Go's names of them.
    os: &'static str,
    arch: &'static str,
    /// Where cargo puts what is built for it on another one.
    triple: &'static str,
    hypervisor: &'static str,
    programs: &'static [Program],
}

/// A program, and the package that it is built of.
struct Program {
    name: &'static str,
    package: &'static str,
    /// Whether it runs VMs, for which a Mac wants it to be entitled.
    runs_vms: bool,
}

const COMMAND: Program = Program {
    name: "slicer",
    package: "slicer-cli",
    runs_vms: false,
};
const DAEMON: Program = Program {
    name: "slicer-mac",
    package: "slicer-daemon",
    runs_vms: true,
};
const TRAY: Program = Program {
    name: "slicer-tray",
    package: "slicer-tray",
    runs_vms: false,
};
/// What runs in guests and is carried by the daemon.
const AGENT: &str = "slicer-agent";

const PLATFORMS: [Platform; 3] = [
    Platform {
        os: "linux",
        arch: "amd64",
        triple: "x86_64-unknown-linux-gnu",
        hypervisor: "qemu",
        programs: &[COMMAND, DAEMON, TRAY],
    },
    Platform {
        os: "linux",
        arch: "arm64",
        triple: "aarch64-unknown-linux-gnu",
        hypervisor: "qemu",
        programs: &[COMMAND, DAEMON, TRAY],
    },
    Platform {
        os: "darwin",
        arch: "arm64",
        triple: "aarch64-apple-darwin",
        hypervisor: "apple",
        programs: &[COMMAND, DAEMON, TRAY],
    },
];

/// The oldest macOS that programs run on; `mac/setup.sh` has it, too.
const OLDEST_MACOS: (u32, u32) = (13, 0);

impl Platform {
    /// Whether it is this one.
    fn native(&self) -> bool {
        self.os == slicer_api::go_os(std::env::consts::OS) && self.arch == host_arch()
    }

    fn mac(&self) -> bool {
        self.os == "darwin"
    }

    /// Where its programs are, if they have been built.
    fn programs(&self, target: &Path, quick: bool) -> Option<PathBuf> {
        let dir = if self.native() {
            target.join("release")
        } else if self.mac() {
            let profile = if quick { "link" } else { "release" };
            target.join("mac").join(self.triple).join(profile)
        } else {
            target.join(self.triple).join("release")
        };
        let there = |program: &Program| dir.join(program.name).is_file();
        self.programs.iter().all(there).then_some(dir)
    }
}

fn host_arch() -> &'static str {
    slicer_api::go_arch(std::env::consts::ARCH)
}

/// Where a file's content is.
enum Content {
    At(PathBuf),
    Bytes(Vec<u8>),
}

struct Entry {
    content: Content,
    executable: bool,
}

/// A bundle's files by their paths in it.
type Files = BTreeMap<String, Entry>;

/// Makes everything anew, in the place of what was made before.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = crate::workspace()?;
    let target = workspace.join("target");
    let epoch = epoch(workspace)?;
    let version = env!("CARGO_PKG_VERSION");
    let out = workspace.join(&args.out);
    let parent = out.parent().context("no directory for the results")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::Builder::new()
        .prefix(".dist-")
        .tempdir_in(parent)?;
    let mut layout = Layout::new(scratch.path().join("oci"))?;
    let mut sums = String::new();
    let mut manifests = Vec::new();
    for platform in &PLATFORMS {
        let Some(programs) = platform.programs(&target, args.quick) else {
            continue;
        };
        let files = files(platform, &programs, workspace, args.quick)?;
        let name = format!("slicer-{version}-{}-{}", platform.os, platform.arch);
        let archive = format!("{name}.tar.gz");
        tarball(&scratch.path().join(&archive), &name, &files, epoch)?;
        let (digest, size) = sum(&scratch.path().join(&archive))?;
        sums.extend([&digest, "  ", &archive, "\n"]);
        let parts = format!("{name}.cdx.json");
        fs::write(
            scratch.path().join(&parts),
            bill(platform, workspace, epoch)?,
        )?;
        let (parts_digest, _) = sum(&scratch.path().join(&parts))?;
        sums.extend([&parts_digest, "  ", &parts, "\n"]);
        manifests.push(layout.bundle(platform, &files, version)?);
        crate::text::say(&format!(
            "{archive}: {} files, {:.0} MB",
            files.len(),
            megabytes(size)
        ));
    }
    ensure!(
        !manifests.is_empty(),
        "no programs in {}: run `make build`",
        target.display()
    );
    layout.finish(&manifests, version)?;
    fs::write(scratch.path().join("SHA256SUMS"), sums)?;
    replace(scratch, &out)?;
    crate::text::say(&format!(
        "oci:{}/oci: the bundle for {} platform(s)",
        out.display(),
        manifests.len()
    ));
    Ok(())
}

/// Seconds since 1970 that all files are said to be of.
fn epoch(workspace: &Path) -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%ct"])
                .current_dir(workspace);
            String::from_utf8(output(&mut git)?)?
        }
    };
    let text = text.trim();
    text.parse()
        .with_context(|| format!("{text:?} is no number of seconds"))
}

/// What is in a platform's bundle.
fn files(platform: &Platform, programs: &Path, workspace: &Path, quick: bool) -> Result<Files> {
    let mut files = Files::new();
    let mut add = |path: &str, content, executable| {
        let entry = Entry {
            content,
            executable,
        };
        files.insert(path.to_owned(), entry);
    };
    for program in platform.programs {
        let file = programs.join(program.name);
        let content = if platform.mac() {
            Content::Bytes(for_macs(program, &file, workspace)?)
        } else {
            Content::At(file)
        };
        add(program.name, content, true);
    }
    check_agent(platform, &programs.join(DAEMON.name), workspace, quick)?;
    for (shell, file) in [
        ("bash", "slicer.bash"),
        ("zsh", "_slicer"),
        ("fish", "slicer.fish"),
    ] {
        let mut completion = Command::new(crate::programs()?.join(COMMAND.name));
        completion.args(["completion", shell]);
        let text = output(&mut completion)?;
        add(&format!("completions/{file}"), Content::Bytes(text), false);
    }
    let rosetta = workspace.join("dist/enable-rosetta.sh");
    add("enable-rosetta.sh", Content::At(rosetta), true);
    let guest = format!("guest/{}", platform.arch);
    // Relative to the directory the daemon works in, which is the one it is installed to.
    let image = format!("oci:{guest}/image:latest");
    let mut new = Command::new(crate::programs()?.join("slicer-mac"));
    new.args(["new", "--image", &image])
        .args(["--hypervisor", platform.hypervisor]);
    let config = output(&mut new)?;
    add("slicer-mac.yaml", Content::Bytes(config), false);
    for name in ["image", "kernel"] {
        let layout = workspace.join("target").join(&guest).join(name);
        if !layout.join("index.json").is_file() {
            if quick && platform.arch != host_arch() {
                continue;
            }
            bail!(
                "no guest {name} for {} in {}: run `make images`",
                platform.arch,
                layout.display()
            );
        }
        let mut paths = vec![PathBuf::from("index.json"), "oci-layout".into()];
        for blob in fs::read_dir(layout.join("blobs/sha256"))? {
            paths.push(Path::new("blobs/sha256").join(blob?.file_name()));
        }
        for path in paths {
            let name = format!("{guest}/{name}/{}", path.display());
            add(&name, Content::At(layout.join(path)), false);
        }
    }
    Ok(files)
}

/// A program for Macs, signed, and checked to be one that a Mac takes.
fn for_macs(program: &Program, file: &Path, workspace: &Path) -> Result<Vec<u8>> {
    let entitlements = if program.runs_vms {
        Entitlements::from_plist(&fs::read(workspace.join("xtask/mac/entitlements.plist"))?)?
    } else {
        Entitlements::default()
    };
    let sign = || {
        let signed = mac::sign(fs::read(file)?, program.name, &entitlements)?;
        mac::check(&signed, program.name, &entitlements, OLDEST_MACOS)?;
        Ok(signed)
    };
    let signed: Result<Vec<u8>> = sign();
    signed.with_context(|| format!("cannot sign {}", file.display()))
}

/// Whether the daemon carries the agent for guests of its own architecture.
fn check_agent(platform: &Platform, daemon: &Path, workspace: &Path, quick: bool) -> Result<()> {
    let agents = workspace.join("target/guest-programs").join(AGENT);
    let agent = agents.join(platform.arch);
    if quick && !agent.exists() {
        return Ok(());
    }
    let wanted = fs::read(&agent)
        .with_context(|| format!("no agent {}: run `make agents`", agent.display()))?;
    ensure!(
        contains(&fs::read(daemon)?, &wanted),
        "{} doesn't carry {}",
        daemon.display(),
        agent.display()
    );
    Ok(())
}

/// Whether some bytes are among others.
fn contains(all: &[u8], wanted: &[u8]) -> bool {
    // Agents begin alike only in their first bytes, so that few places are looked at further.
    all.windows(wanted.len()).any(|window| window == wanted)
}

/// What a platform's programs are made of, and the agent that they carry.
fn bill(platform: &Platform, workspace: &Path, epoch: u64) -> Result<String> {
    let mut roots: Vec<_> = platform
        .programs
        .iter()
        .map(|program| (program.package, platform.triple))
        .collect();
    let guest = match platform.arch {
        "arm64" => "aarch64-unknown-linux-gnu",
        _ => "x86_64-unknown-linux-gnu",
    };
    roots.push((AGENT, guest));
    sbom::of(workspace, &roots, epoch)
}

impl Entry {
    fn open(&self) -> Result<(Box<dyn Read + '_>, u64)> {
        Ok(match &self.content {
            Content::At(path) => {
                let file =
                    File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                let size = file.metadata()?.len();
                (Box::new(file), size)
            }
            Content::Bytes(bytes) => (Box::new(bytes.as_slice()), bytes.len() as u64),
        })
    }
}

fn tarball(path: &Path, top: &str, files: &Files, epoch: u64) -> Result<()> {
    let gzip = GzBuilder::new().write(File::create(path)?, Compression::new(6));
    let mut tar = tar::Builder::new(gzip);
    for (name, entry) in files {
        let (content, size) = entry.open()?;
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(if entry.executable { 0o755 } else { 0o644 });
        header.set_mtime(epoch);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, format!("{top}/{name}"), content)?;
    }
    tar.into_inner()?.finish()?.sync_all()?;
    Ok(())
}

/// A layout that is being written.
struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { dir })
    }

    /// Adds a platform's manifest; gives back what describes it.
    fn bundle(&mut self, platform: &Platform, files: &Files, version: &str) -> Result<Value> {
        let mut layers = Vec::new();
        for (name, entry) in in_order(files) {
            let mut layer = self.blob(FILE_TYPE, &mut *entry.open()?.0)?;
            layer["annotations"] = json!({ "org.opencontainers.image.title": name });
            if entry.executable {
                layer["annotations"][EXECUTABLE] = "true".into();
            }
            layers.push(layer);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": BUNDLE_TYPE,
            "config": self.blob(EMPTY, &mut b"{}".as_slice())?,
            "layers": layers,
            "annotations": { "org.opencontainers.image.version": version },
        });
        let text = serde_json::to_vec(&manifest)?;
        let mut entry = self.blob(MANIFEST, &mut text.as_slice())?;
        entry["artifactType"] = BUNDLE_TYPE.into();
        entry["platform"] = json!({ "os": platform.os, "architecture": platform.arch });
        Ok(entry)
    }

    fn blob(&self, kind: &str, content: &mut dyn Read) -> Result<Value> {
        let part = self.dir.join("blobs/part");
        let mut file = File::create(&part)?;
        let (digest, size) = copy(content, &mut file)?;
        file.sync_all()?;
        fs::rename(part, self.dir.join("blobs/sha256").join(&digest))?;
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size }))
    }

    /// Names the index of all platforms.
    fn finish(&self, manifests: &[Value], version: &str) -> Result<()> {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let all = self.blob(INDEX, &mut serde_json::to_vec(&index)?.as_slice())?;
        let named = |tag: &str| {
            let mut entry = all.clone();
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
            entry
        };
        let index = json!({ "schemaVersion": 2, "manifests": [named("latest"), named(version)] });
        fs::write(self.dir.join("index.json"), index.to_string())?;
        Ok(())
    }
}

/// A bundle's files as they are to be put in their places: a layout's index after its blobs, and
/// the programs after all they need.
fn in_order(files: &Files) -> Vec<(&String, &Entry)> {
    let mut all: Vec<_> = files.iter().collect();
    all.sort_by_key(|(name, entry)| match name.as_str() {
        name if name.contains("/blobs/") => 0,
        _ if entry.executable => 2,
        _ => 1,
    });
    all
}

/// The digest and length of a file.
fn sum(path: &Path) -> Result<(String, u64)> {
    copy(&mut File::open(path)?, &mut io::sink())
}

fn copy(from: &mut dyn Read, to: &mut dyn Write) -> Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut piece)?;
        if n == 0 {
            return Ok((hex(&hash.finalize()), size));
        }
        hash.update(&piece[..n]);
        to.write_all(&piece[..n])?;
        size += n as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Runs a program and returns what it printed; what it says on standard error is shown only when
/// it fails.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}; is it installed?"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}):\n{}", output.status, said.trim_end());
    }
    Ok(output.stdout)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Files {
        let entry = |text: &[u8], executable| Entry {
            content: Content::Bytes(text.to_vec()),
            executable,
        };
        Files::from([
            ("slicer".to_owned(), entry(b"program", true)),
            ("guest/x/index.json".to_owned(), entry(b"{}", false)),
            ("guest/x/blobs/sha256/1".to_owned(), entry(b"blob", false)),
        ])
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, epoch| {
            let path = dir.path().join(name);
            tarball(&path, "top", &some(), epoch).unwrap();
            let layout = Layout::new(dir.path().join(format!("{name}.oci")));
            let entry = layout.unwrap().bundle(&PLATFORMS[0], &some(), "1.0.0");
            (sum(&path).unwrap(), entry.unwrap())
        };
        assert_eq!(make("a", 1), make("b", 1));
        assert_ne!(make("a", 1), make("c", 2));
        let archive = flate2::read::GzDecoder::new(File::open(dir.path().join("a")).unwrap());
        let mut modes = Vec::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let entry = entry.unwrap();
            modes.push((
                entry.path().unwrap().into_owned(),
                entry.header().mode().unwrap(),
            ));
        }
        assert!(modes.contains(&("top/slicer".into(), 0o755)), "{modes:?}");
    }

    #[test]
    fn programs_come_after_what_they_need() {
        let files = some();
        let names: Vec<_> = in_order(&files)
            .into_iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            names,
            ["guest/x/blobs/sha256/1", "guest/x/index.json", "slicer"]
        );
    }
}
