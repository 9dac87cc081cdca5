//! VMs' disks on the host's file systems: what they cost, and what they give back.
#![expect(
    clippy::print_stderr,
    reason = "says what was measured, and what could not be"
)]

use crate::foreign::{busybox, persistent, root};
use crate::lifecycle::sandbox;
use crate::tests;
use libtest_mimic::Trial;
use slicer_testkit::{Image, LIMIT, Setup, TestDaemon, wait_until};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("disks": cheap_on_ext4, cheap_on_btrfs, cheap_on_xfs, what_is_deleted_is_given_back)
}

const MIB: u64 = 1 << 20;
/// Room of the file systems that are mounted for a test, and of the files they are in.
const ROOM: u64 = 20 << 30;

/// A file system of its own in a file.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    /// Makes and mounts one, unless this host can't mount: then says why.
    fn new(kind: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(ROOM).unwrap();
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        let mut make = Command::new(format!("mkfs.{kind}"));
        let made = make.arg("-q").arg(&image).env("PATH", path).output();
        let made = made.unwrap_or_else(|e| panic!("no mkfs.{kind}: {e}: run `make deps`"));
        assert!(made.status.success(), "{made:?}");
        let place = dir.path().join("m");
        fs::create_dir(&place).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", kind, "-o", "loop"])
            .arg(&image)
            .arg(&place);
        let mounted = mount.env("PATH", path).output().unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
            eprintln!(
                "{kind} is not tested, for this host can't mount it: {}",
                why.trim()
            );
            return None;
        }
        Some(Self { dir })
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("m")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.place()).status();
    }
}

/// Bytes in use on the file system of a directory, once what is under way has been written.
fn used(dir: &Path) -> u64 {
    let file = File::open(dir).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    let stat = rustix::fs::fstatvfs(&file).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

/// Bytes that a file takes.
fn taken(file: &Path) -> u64 {
    rustix::fs::fsync(File::open(file).unwrap()).unwrap();
    fs::metadata(file).unwrap().blocks() * 512
}

fn is_qcow2(file: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(file).unwrap().read_exact(&mut magic).unwrap();
    magic == *b"QFI\xfb"
}

/// Launching a sandbox takes less than a MiB, and no disk has lost its holes.
async fn cheap_on(kind: &str, reflinks: bool) {
    let Some(mounted) = Mounted::new(kind) else {
        return;
    };
    let layout = tempfile::tempdir().unwrap();
    let mut setup = Setup::sandboxes();
    setup.image = Some(Image::default().layer(busybox()).write(layout.path()));
    let daemon = TestDaemon::start_at(&mounted.place(), &setup);
    let client = daemon.client();
    // What all of them share: base, kernel, directories.
    let first = sandbox(&client).await;
    let before = used(&mounted.place());
    let vm = sandbox(&client).await;
    let cost = used(&mounted.place()).saturating_sub(before);
    eprintln!("a sandbox on {kind}: {} KiB", cost / 1024);
    assert!(cost < MIB, "{cost} bytes on {kind}");
    let disk = daemon.dir().join(format!("{vm}.img"));
    assert_eq!(is_qcow2(&disk), !reflinks);
    // A second one writes what it likes.
    root(&client, &vm, "echo mine > /etc/motd && sync").await;
    root(&client, &first, "test ! -e /etc/motd").await;

    let kept = persistent(&client).await;
    let disk = daemon.dir().join(format!("{kept}.img"));
    assert!(!is_qcow2(&disk));
    let (size, room) = (fs::metadata(&disk).unwrap().len(), taken(&disk));
    assert_eq!(size, 15 << 30);
    assert!(room < 100 * MIB, "{room} bytes of a disk on {kind}");
    drop(client);
    daemon.stop();
}

async fn cheap_on_ext4() {
    cheap_on("ext4", false).await;
}

async fn cheap_on_btrfs() {
    cheap_on("btrfs", true).await;
}

async fn cheap_on_xfs() {
    cheap_on("xfs", true).await;
}

async fn what_is_deleted_is_given_back() {
    let layout = tempfile::tempdir().unwrap();
    let mut setup = Setup::sandboxes();
    setup.image = Some(Image::default().layer(busybox()).write(layout.path()));
    let daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    // A qcow2 overlay, where the host has no reflinks, and a plain file.
    let (thrown, kept) = tokio::join!(sandbox(&client), persistent(&client));
    for vm in [thrown, kept] {
        let disk = daemon.dir().join(format!("{vm}.img"));
        let before = taken(&disk);
        let write = "dd if=/dev/urandom of=/big bs=1M count=256 2>/dev/null && sync";
        root(&client, &vm, write).await;
        let full = taken(&disk);
        assert!(full >= before + 256 * MIB, "{before} {full}");
        root(&client, &vm, "rm /big && sync").await;
        wait_until("the room is given back", LIMIT, async || {
            taken(&disk) < before + 16 * MIB
        })
        .await;
        eprintln!(
            "256 MiB in {vm}: {} MiB before, {} with them, {} after",
            before / MIB,
            full / MIB,
            taken(&disk) / MIB
        );
    }
    drop(client);
    daemon.stop();
}
