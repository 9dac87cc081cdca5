//! From a registry to a disk that boots: by the product, and by the tools that others put together;
//! and a VM's disk out of that.

use super::bed::seconds;
use super::plan::Rounds;
use super::process::mib;
use super::{DISK_SIZE, median};
use crate::text::say;
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use slicer_image::{
    CloneKind, CloneOptions, ImageCache, Limits, build_base, clone_disk, parse_size,
};
use slicer_registry::{Wanted, pull};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Disks made in a row, for one sample: each takes less than a millisecond.
const CLONES: u32 = 20;
/// How long the registry may take to start.
const START_TIME: Duration = Duration::from_secs(30);
/// What the floor is made of.
const TOOLS: [&str; 4] = ["skopeo", "umoci", "mke2fs", "qemu-img"];

/// Times in seconds, one of each per pair.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// An image in a registry becomes a base.
    pub(crate) base: Vec<f64>,
    /// The same by `skopeo copy`, `umoci unpack` and `mke2fs -d`.
    pub(crate) tools: Vec<f64>,
    /// The most resident memory of the process that made a base, MiB.
    pub(crate) peak: Vec<f64>,
    /// A disk that is an overlay on the base.
    pub(crate) clone: Vec<f64>,
    /// The same by `qemu-img create -b`.
    pub(crate) qemu_img: Vec<f64>,
    /// A disk that shares the base's blocks; none where the file system can't do it.
    pub(crate) reflink: Vec<f64>,
    /// The same by `cp --reflink=always`.
    pub(crate) cp: Vec<f64>,
}

impl Samples {
    /// How fast it is, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        let ms = |times: &[f64]| 1e3 * median(times);
        let mut lines = vec![
            format!(
                "registry to base: {:.2} s with {:.0} MiB, skopeo, umoci and mke2fs {:.2} s",
                median(&self.base),
                median(&self.peak),
                median(&self.tools),
            ),
            format!(
                "overlay {:.2} ms, qemu-img {:.2} ms",
                ms(&self.clone),
                ms(&self.qemu_img)
            ),
        ];
        if !self.reflink.is_empty() {
            lines.push(format!(
                "reflink {:.2} ms, cp {:.2} ms",
                ms(&self.reflink),
                ms(&self.cp)
            ));
        }
        lines
    }
}

/// What `xtask base` takes: a base made in a process of its own, so that its memory can be told.
#[derive(clap::Args)]
pub(crate) struct BaseArgs {
    /// The image, in a registry on this host
    reference: String,
    /// The directory for the image cache
    cache: PathBuf,
    /// The base
    out: PathBuf,
}

/// What it says of itself.
#[derive(Serialize, Deserialize)]
struct Said {
    seconds: f64,
    peak_mib: f64,
}

/// Pulls an image and makes the base of it, as the daemon does.
pub(crate) fn base(args: &BaseArgs) -> Result<()> {
    let start = Instant::now();
    let cache = ImageCache::open(&args.cache)?;
    let wanted = Wanted {
        reference: args.reference.clone(),
        arch: slicer_api::go_arch(std::env::consts::ARCH).to_owned(),
        insecure: true,
    };
    let image = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(pull(&cache, &wanted, Arc::new(|_| ())))?;
    let size = parse_size(DISK_SIZE)?;
    build_base(&image, &args.out, size, &Limits::default(), &|_| ())?;
    let said = Said {
        seconds: start.elapsed().as_secs_f64(),
        peak_mib: mib(
            rustix::process::getpid().as_raw_nonzero().get(),
            "status",
            "VmHWM:",
        )?,
    };
    say(&serde_json::to_string(&said)?);
    Ok(())
}

/// Measures pairs of bases, from the image at `layout`, and of disks, below `dir`.
pub(crate) async fn measure(
    layout: &Path,
    dir: &Path,
    bases: Rounds,
    disks: Rounds,
) -> Result<Samples> {
    say("Image: bases and disks");
    for tool in TOOLS {
        let found = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if let Err(e) = found.await {
            bail!("cannot run {tool}, which the floor is made of: {e}: install it");
        }
    }
    let dir = dir.join("image");
    fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let registry = Registry::start(&dir).await?;
    let mut push = Command::new("skopeo");
    push.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"])
        // umoci takes no other.
        .arg("--dest-compress-format=gzip")
        .arg(format!("oci:{}:latest", layout.display()))
        .arg(format!("docker://{}", registry.image));
    seconds(push).await?;
    let mut samples = Samples::default();
    let base = dir.join("base.img");
    for pair in bases.run() {
        for product in [pair % 2 == 0, pair % 2 != 0] {
            if product {
                let said = of_product(&registry.image, &dir, &base).await?;
                samples.base.push(said.seconds);
                samples.peak.push(said.peak_mib);
            } else {
                samples.tools.push(of_tools(&registry.image, &dir).await?);
            }
        }
    }
    for pair in disks.run() {
        clones(&base, &dir, pair % 2 == 0, &mut samples).await?;
    }
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(samples)
}

/// From the registry to a base, with nothing in the cache.
async fn of_product(image: &str, dir: &Path, base: &Path) -> Result<Said> {
    let cache = dir.join("cache");
    let output = Command::new(std::env::current_exe()?)
        .arg("base")
        .arg(image)
        .args([&cache, base])
        .stderr(Stdio::inherit())
        .output()
        .await?;
    ensure!(output.status.success(), "xtask base: {}", output.status);
    fs::remove_dir_all(&cache)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The same by hand. What it leaves is removed when the clock has stopped.
async fn of_tools(image: &str, dir: &Path) -> Result<f64> {
    let (copy, bundle, disk) = (
        dir.join("copy"),
        dir.join("bundle"),
        dir.join("by-hand.img"),
    );
    let mut skopeo = Command::new("skopeo");
    skopeo
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
        .arg(format!("docker://{image}"))
        .arg(format!("oci:{}:latest", copy.display()));
    let mut umoci = Command::new("umoci");
    umoci
        .args(["unpack", "--image"])
        .arg(format!("{}:latest", copy.display()))
        .arg(&bundle);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-t", "ext4", "-d"])
        .arg(bundle.join("rootfs"))
        .arg(&disk)
        .arg(DISK_SIZE);
    let took = seconds(skopeo).await? + seconds(umoci).await? + seconds(mke2fs).await?;
    fs::remove_dir_all(&copy)?;
    fs::remove_dir_all(&bundle)?;
    fs::remove_file(&disk)?;
    Ok(took)
}

/// Disks out of the base, the product's first or last.
async fn clones(base: &Path, dir: &Path, first: bool, samples: &mut Samples) -> Result<()> {
    let disk = dir.join("disk.img");
    let path = |p: &Path| p.to_owned().into_os_string();
    let by_qemu = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
        .map(Into::into)
        .into_iter()
        .chain([path(base), path(&disk), DISK_SIZE.into()])
        .collect::<Vec<_>>();
    let by_cp = ["cp", "--reflink=always"]
        .map(Into::into)
        .into_iter()
        .chain([path(base), path(&disk)])
        .collect::<Vec<_>>();
    for product in [first, !first] {
        if product {
            let overlay = ours(base, &disk, CloneKind::Qcow2Overlay)?;
            samples.clone.push(overlay);
            if let Ok(reflink) = ours(base, &disk, CloneKind::Reflink) {
                samples.reflink.push(reflink);
            }
        } else {
            samples.qemu_img.push(theirs(&by_qemu, &disk).await?);
            if let Ok(cp) = theirs(&by_cp, &disk).await {
                samples.cp.push(cp);
            }
        }
    }
    Ok(())
}

/// Seconds for one of the product's disks.
fn ours(base: &Path, disk: &Path, kind: CloneKind) -> Result<f64> {
    let options = CloneOptions {
        size: parse_size(DISK_SIZE)?,
        kinds: &[kind],
        durable: false,
    };
    let mut took = Duration::ZERO;
    for _ in 0..CLONES {
        let start = Instant::now();
        clone_disk(base, disk, &options)?;
        took += start.elapsed();
        fs::remove_file(disk)?;
    }
    Ok((took / CLONES).as_secs_f64())
}

/// Seconds for one of a program's.
async fn theirs(command: &[std::ffi::OsString], disk: &Path) -> Result<f64> {
    let [program, args @ ..] = command else {
        bail!("there is no command");
    };
    let mut took = 0.0;
    for _ in 0..CLONES {
        let mut command = Command::new(program);
        command.args(args);
        let made = seconds(command).await;
        if disk.exists() {
            fs::remove_file(disk)?;
        }
        took += made?;
    }
    Ok(took / f64::from(CLONES))
}

/// Debian's docker-registry, which ends with this.
struct Registry {
    /// The name of the one image in it.
    image: String,
    _child: Child,
}

impl Registry {
    async fn start(dir: &Path) -> Result<Self> {
        let fetched = workspace()?.join("target/tools/debian/usr/bin/docker-registry");
        let program = if fetched.exists() {
            fetched
        } else {
            "docker-registry".into()
        };
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let file = dir.join("registry.yml");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            dir.join("registry").display()
        );
        fs::write(&file, config)?;
        let mut child = Command::new(&program)
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("docker-registry ended ({status})");
            }
            ensure!(
                start.elapsed() < START_TIME,
                "docker-registry does not answer"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self {
            image: format!("127.0.0.1:{port}/bench:latest"),
            _child: child,
        })
    }
}
