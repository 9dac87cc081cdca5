//! What takes long to prepare and is the same for every daemon: base disks, kernels, and whether
//! KVM works. It is prepared once, by a daemon, and kept below the build directory; daemons check
//! themselves whether it is still right.

use crate::daemon::{TestDaemon, bin_dir};
use crate::setup::{Group, SBOX, SLICER, Setup};
use rustix::fs::{FlockOperation, flock};
use slicer_api::CreateNode;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();

/// The directory of the template, made first where it is missing.
fn template() -> &'static Path {
    TEMPLATE.get_or_init(|| {
        let home = bin_dir().join("../testkit");
        fs::create_dir_all(&home).unwrap();
        let home = home.canonicalize().unwrap();
        // Other test processes may want the same.
        let lock = File::create(home.join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let dir = home.join("template");
        fs::create_dir_all(&dir).unwrap();
        prepare(&dir);
        dir
    })
}

fn prepare(dir: &Path) {
    let setup = Setup::of([Group { count: 0, ..SLICER }, SBOX]);
    let daemon = TestDaemon::start_in(dir.to_owned(), &setup);
    // A launch waits for the image and, the first, for the trial of KVM.
    let launch = async |group: &str| {
        let client = daemon.client();
        let request = CreateNode::default();
        let vm = client.create_node(group, &request, None, None).await;
        let vm = vm.unwrap().hostname;
        client.delete_node(group, &vm).await.unwrap();
    };
    // From a thread of its own, runtime included, because the caller may be within a runtime.
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { tokio::join!(launch("slicer"), launch("sbox")) });
        });
        work.join().unwrap();
    });
    daemon.stop();
}

/// How a file of the template comes into a working directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// As a link where that can be, else as a copy.
    HardLink,
    /// As a symbolic link: takes no room.
    Symlink,
}

/// Puts what is prepared for these groups into a daemon's working directory.
pub(crate) fn install(groups: &[Group], dir: &Path, via: Via) {
    let template = template();
    let own = dir.canonicalize().unwrap();
    if own == template {
        return;
    }
    let bases = Path::new(".slicer/bases");
    fs::create_dir_all(dir.join(bases)).unwrap();
    for base in fs::read_dir(template.join(bases)).unwrap() {
        let base = base.unwrap();
        let name = base.file_name();
        if !name.to_string_lossy().ends_with(".use") {
            put(&base.path(), &dir.join(bases).join(&name), via);
        }
    }
    let verdict = Path::new(".slicer/accelerator.json");
    if template.join(verdict).exists() {
        fs::copy(template.join(verdict), dir.join(verdict)).unwrap();
    }
    for group in groups {
        // Groups share an image here, so any group's base is every group's base.
        let from = if ["slicer", "sbox"].contains(&group.name) {
            group.name
        } else {
            "sbox"
        };
        let base = |name: &str| format!("{name}-base.img");
        put(&template.join(base(from)), &dir.join(base(group.name)), via);
        let used = |name: &str| bases.join(format!("{name}.use"));
        put(
            &template.join(used(from)),
            &dir.join(used(group.name)),
            Via::HardLink,
        );
        let kernel = dir.join("kernel").join(group.name);
        fs::create_dir_all(&kernel).unwrap();
        for file in fs::read_dir(template.join("kernel").join(from)).unwrap() {
            let file = file.unwrap();
            put(&file.path(), &kernel.join(file.file_name()), via);
        }
    }
}

/// Daemons replace these files and never write to them, so they may be shared.
fn put(from: &Path, to: &Path, via: Via) {
    let done = match via {
        Via::HardLink => fs::hard_link(from, to),
        Via::Symlink => std::os::unix::fs::symlink(from, to),
    };
    if done.is_err() {
        let copied = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([from, to])
            .status();
        assert!(copied.unwrap().success(), "cannot copy {}", from.display());
    }
}
