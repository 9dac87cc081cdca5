//! VMs' disks on the host's file systems: what they cost, and what they give back.
#![expect(
    clippy::print_stderr,
    reason = "says what was measured, and what could not be"
)]

use crate::foreign::{busybox, persistent, root};
use crate::lifecycle::{check_disk, ready, sandbox};
use crate::template::{cloned, directories, made, minimal};
use crate::tests;
use libtest_mimic::Trial;
use slicer_api::{CommitRequest, DiskFormat, ExecRequest, NodeStatus, ShutdownAction};
use slicer_client::Client;
use slicer_testkit::{BOOT, Image, LIMIT, Setup, TestDaemon, bin_dir, wait_until};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("disks":
        cheap_on_ext4,
        cheap_on_btrfs,
        cheap_on_xfs,
        what_is_deleted_is_given_back,
        whole_disks_are_exported,
        a_full_host_is_waited_for,
        a_template_without_room_costs_a_boot,
    )
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
        Self::of_size(kind, ROOM)
    }

    fn of_size(kind: &str, room: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(room).unwrap();
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

/// What a file in a raw disk says.
fn in_disk(disk: &Path, file: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", &format!("cat {file}")]).arg(disk);
    let path = "/usr/sbin:/sbin:/usr/bin:/bin";
    let output = debugfs.env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
}

async fn whole_disks_are_exported() {
    let layout = tempfile::tempdir().unwrap();
    let mut setup = Setup::sandboxes();
    setup.image = Some(Image::default().layer(busybox()).write(layout.path()));
    let daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    let (thrown, kept) = tokio::join!(sandbox(&client), persistent(&client));
    let at = |name: &str| daemon.dir().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    sparsified(&daemon, &client, &kept).await;

    // One that runs is not exported; one that is paused is, with what it had written.
    root(&client, &thrown, "echo thrown > /root/said && sync").await;
    let refused = daemon
        .cli(&["disk", "export", &thrown, "--output", "no"])
        .await;
    assert!(
        refused.stderr.contains("shut it down first, or pause it"),
        "{refused:?}"
    );
    client.pause(&thrown).await.unwrap();
    let export = ["disk", "export", &thrown, "-o", "thrown.qcow2", "--json"];
    let saved = daemon.cli(&export).await.json();
    assert_eq!(saved["format"], "qcow2");
    assert!(saved["bytes"].as_u64().unwrap() < 64 * MIB, "{saved}");
    qemu_img(&["check", "-q", "-f", "qcow2", &text("thrown.qcow2")]);
    let (from, to) = (text("thrown.qcow2"), text("thrown.img"));
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &from, &to]);
    assert_eq!(in_disk(&at("thrown.img"), "/root/said"), "thrown\n");

    // As long as somebody reads it, its VM doesn't run on.
    let mut stream = client.export_disk(&thrown, DiskFormat::Raw).await.unwrap();
    assert_eq!(stream.length(), Some(15 << 30));
    assert!(stream.next_piece().await.unwrap().is_some());
    for e in [
        client.resume(&thrown).await.unwrap_err(),
        client
            .shutdown(&thrown, ShutdownAction::Shutdown)
            .await
            .unwrap_err(),
    ] {
        assert_eq!(e.status(), Some(409));
        assert!(e.to_string().contains("being exported"), "{e}");
    }
    drop(stream);
    wait_until("its VM may run again", LIMIT, async || {
        client.resume(&thrown).await.is_ok()
    })
    .await;
    assert_eq!(root(&client, &thrown, "cat /root/said").await, "thrown");

    // A disk that lies over a commit's, which was copied from the base.
    root(&client, &kept, "echo first > /root/first").await;
    off(&client, &kept).await;
    client
        .commit(&kept, &CommitRequest::default())
        .await
        .unwrap();
    client.relaunch(&kept).await.unwrap();
    ready(&client, &kept).await;
    root(&client, &kept, "echo second > /root/second").await;
    off(&client, &kept).await;
    let export = [
        "disk", "export", &kept, "--format", "raw", "--output", "kept.img",
    ];
    let said = daemon.cli(&export).await;
    assert!(said.text().starts_with("kept.img: "), "{said:?}");
    assert_eq!(fs::metadata(at("kept.img")).unwrap().len(), 15 << 30);
    assert!(taken(&at("kept.img")) < 100 * MIB);
    check_disk(&at("kept.img"));
    for word in ["first", "second"] {
        let file = format!("/root/{word}");
        assert_eq!(in_disk(&at("kept.img"), &file), format!("{word}\n"));
    }

    let listed = daemon.cli(&["disk", "list", "--json"]).await.json();
    let disks = listed["disks"].as_array().unwrap();
    let kinds = disks.iter().map(|d| d["kind"].as_str().unwrap());
    let (bases, others): (Vec<_>, Vec<_>) = kinds.partition(|kind| *kind == "base");
    assert_eq!(others, ["vm", "vm", "commit"]);
    // That of the default image may be there, too.
    assert!(!bases.is_empty());
    let of = |name: &str| disks.iter().find(|d| d["name"] == name).unwrap();
    assert_eq!(of(&kept)["status"], "Stopped");
    assert_eq!(of(&thrown)["status"], "Running");
    assert_eq!(of(&thrown)["size_bytes"], 15_u64 << 30);
    let table = daemon.cli(&["disk", "ls"]).await;
    assert!(table.text().contains(&thrown), "{table:?}");

    interrupted(&daemon, &kept).await;
    drop(client);
    daemon.stop();
}

/// What the guest deleted while it was not told to say so is given back when asked.
async fn sparsified(daemon: &TestDaemon, client: &Client, vm: &str) {
    let disk = daemon.dir().join(format!("{vm}.img"));
    let write = "mount -o remount,nodiscard / && \
                 dd if=/dev/urandom of=/big bs=1M count=64 2>/dev/null && sync && rm /big && sync";
    root(client, vm, write).await;
    let before = taken(&disk);
    let said = daemon.cli(&["disk", "sparsify", vm, "--json"]).await.json();
    let after = said["disk_bytes"].as_u64().unwrap();
    assert!(after + 60 * MIB < before, "{said}");
    assert!(said["disk_bytes_before"].as_u64().unwrap() > after + 60 * MIB);
    assert!(said["trimmed_bytes"].as_u64().unwrap() >= 64 * MIB);
    let off = daemon.cli(&["disk", "sparsify", "sbox-99"]).await;
    assert!(off.stderr.contains("not found"), "{off:?}");
}

/// An export that is interrupted leaves nothing.
async fn interrupted(daemon: &TestDaemon, vm: &str) {
    let mut child = tokio::process::Command::new(bin_dir().join("slicer"))
        .args(["disk", "export", vm, "--format", "raw", "-o", "late.img"])
        .env("SLICER_URL", daemon.dir().join("slicer.sock"))
        .current_dir(daemon.dir())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let begun = || {
        let names = fs::read_dir(daemon.dir()).unwrap();
        let mut names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.any(|name| name.starts_with(".slicer-export-"))
    };
    wait_until("the export has begun", LIMIT, async || begun()).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::INT).unwrap();
    let ended = child.wait().await.unwrap();
    assert_eq!(ended.code(), Some(130));
    assert!(!begun());
    assert!(!daemon.dir().join("late.img").exists());
}

pub(crate) async fn off(client: &Client, vm: &str) {
    client.shutdown(vm, ShutdownAction::Shutdown).await.unwrap();
    wait_until("it is off", BOOT, async || {
        client.node(vm).await.unwrap().node.status == NodeStatus::Stopped
    })
    .await;
}

/// A write that the host has no room for is not lost: the VM waits, and goes on by itself.
async fn a_full_host_is_waited_for() {
    let Some(mounted) = Mounted::of_size("ext4", 400 * MIB) else {
        return;
    };
    let layout = tempfile::tempdir().unwrap();
    let mut setup = Setup::sandboxes();
    setup.image = Some(Image::default().layer(busybox()).write(layout.path()));
    let daemon = TestDaemon::start_at(&mounted.place(), &setup);
    let client = daemon.client();
    let vm = sandbox(&client).await;
    // Nothing is left but what the VM has of its disk already.
    let fill = mounted.place().join("fill");
    let mut file = File::create(&fill).unwrap();
    let full = std::io::copy(&mut std::io::repeat(7), &mut file).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    file.sync_all().unwrap();
    // Open, it would keep its room when it is removed.
    drop(file);
    let write = "dd if=/dev/urandom of=/big bs=1M count=40 2>/dev/null && sync && \
                 sha256sum /big > /sum && sync && echo written";
    let request = ExecRequest {
        cmd: write.to_owned(),
        shell: Some("/bin/sh".to_owned()),
        uid: 0,
        ..ExecRequest::default()
    };
    let writing = client.exec_buffered(&vm, &request);
    let meanwhile = async {
        wait_until("the VM waits", LIMIT, async || {
            client.node(&vm).await.unwrap().node.status == NodeStatus::Paused
        })
        .await;
        let e = client.health(&vm).await.unwrap_err();
        assert_eq!(e.status(), Some(409));
        assert!(e.to_string().contains("no room"), "{e}");
        // Nobody else gets a disk, and is told why.
        let refused = daemon.cli(&["vm", "launch", "sbox"]).await;
        assert!(refused.stderr.contains("free some space"), "{refused:?}");
        fs::remove_file(&fill).unwrap();
    };
    let (written, ()) = tokio::join!(writing, meanwhile);
    assert_eq!(written.unwrap().exit_code, 0);
    assert_eq!(
        client.node(&vm).await.unwrap().node.status,
        NodeStatus::Running
    );
    let check = "echo 3 > /proc/sys/vm/drop_caches && sha256sum -c /sum";
    assert_eq!(root(&client, &vm, check).await, "/big: OK");
    assert!(daemon.log().contains("runs on"));
    drop(client);
    daemon.stop();
}

/// A host that gets full while a template is made has none, VMs that boot, and one once there is room.
async fn a_template_without_room_costs_a_boot() {
    /// What is left to VMs, and is too little for a template's memory.
    const LEFT: u64 = 48 * MIB;
    let Some(mounted) = Mounted::of_size("ext4", 4 << 30) else {
        return;
    };
    let mut daemon = TestDaemon::start_at(&mounted.place(), &minimal());
    let making = || {
        let mut all = directories(&daemon).into_iter();
        all.any(|dir| dir.join("memory").exists())
    };
    wait_until("a template boots", BOOT, async || making()).await;
    let fill = mounted.place().join("fill");
    let file = File::create(&fill).unwrap();
    let stat = rustix::fs::fstatvfs(&file).unwrap();
    let size = stat.f_bfree * stat.f_frsize - LEFT;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    drop(file);
    wait_until("it is given up", BOOT, async || {
        daemon.log().contains("no template: ")
    })
    .await;
    let log = daemon.log();
    assert!(log.contains("trying once more to make a template"), "{log}");
    assert!(log.contains("free some space"), "{log}");
    assert!(directories(&daemon).is_empty());
    assert!(daemon.processes().is_empty());
    let client = daemon.client();
    let vm = sandbox(&client).await;
    assert!(!cloned(&daemon, &vm));
    assert_eq!(root(&client, &vm, "hostname").await, vm);
    client.delete_node("sbox", &vm).await.unwrap();
    fs::remove_file(fill).unwrap();
    daemon.terminate();
    daemon.launch();
    made(&daemon).await;
    let client = daemon.client();
    let vm = sandbox(&client).await;
    assert!(cloned(&daemon, &vm));
    assert_eq!(root(&client, &vm, "hostname").await, vm);
    drop(client);
    daemon.stop();
}
