use super::*;
use crate::config::{Config, Host};
use slicer_image::{CloneKind, CloneOptions, ImageRef, clone_disk};
use slicer_machine::Arch;
use slicer_testkit::{image_layout, kernel_layout};

struct Bed {
    dir: tempfile::TempDir,
    bases: Bases,
    groups: Vec<HostGroupConfig>,
}

/// A working directory with the groups `a` and `b`.
fn bed() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let work = Arc::new(WorkDir::open(dir.path()).unwrap());
    let text = "config:\n  image: oci:x\n  host_groups:\n    - name: a\n      storage_size: 256M\n    \
                - name: b\n      storage_size: 256M\n";
    Bed {
        bases: Bases::new(work),
        groups: Config::parse(text, "test", &Host::current())
            .unwrap()
            .0
            .host_groups,
        dir,
    }
}

impl Bed {
    fn image(&self, name: &str, make: impl FnOnce(&Path) -> String) -> Resolved {
        let reference = make(&self.dir.path().join(name));
        let arch = Arch::host().unwrap().go_name();
        Resolved::find(&ImageRef::parse(&reference).unwrap(), arch).unwrap()
    }

    fn disk(&self, name: &str, base: &Path) -> PathBuf {
        let disk = self.dir.path().join(name);
        let options = CloneOptions {
            size: 512 << 20,
            kinds: &[CloneKind::Qcow2Overlay],
            durable: false,
        };
        clone_disk(base, &disk, &options).unwrap();
        disk
    }

    fn link(&self, group: &str) -> PathBuf {
        self.bases.work.base(group)
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn groups_of_one_image_share_its_base() {
    let bed = bed();
    let image = bed.image("image", image_layout);
    let mut made = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = bed
            .groups
            .iter()
            .map(|group| scope.spawn(|| bed.bases.prepare(group, &image).unwrap()))
            .collect();
        made.extend(threads.into_iter().map(|t| t.join().unwrap()));
    });
    assert_eq!(made[0], made[1]);
    let first = inode(&made[0]);
    assert!(["a", "b"].iter().all(|g| inode(&bed.link(g)) == first));
    // Nor is it made again, or removed, by a daemon that starts.
    bed.bases.remove_unused(&["a", "b"]).unwrap();
    bed.bases.prepare(&bed.groups[0], &image).unwrap();
    assert_eq!(inode(&made[0]), first);
    // Another size is another base.
    let mut larger = bed.groups[1].clone();
    larger.storage_size = 512 << 20;
    assert_ne!(bed.bases.prepare(&larger, &image).unwrap(), made[0]);
    assert_eq!(inode(&bed.link("a")), first);
    assert_ne!(inode(&bed.link("b")), first);
}

#[test]
fn what_disks_read_from_stays_when_the_image_changes() {
    let bed = bed();
    let old = bed.image("image", image_layout);
    let new = bed.image("kernel", kernel_layout);
    let group = &bed.groups[0];
    let first = bed.bases.prepare(group, &old).unwrap();
    let content = fs::read(&first).unwrap();
    let disk = bed.disk("a-1.img", &first);
    let second = bed.bases.prepare(group, &new).unwrap();
    assert_ne!(first, second);
    assert_eq!(inode(&bed.link("a")), inode(&second));
    bed.bases.remove_unused(&["a"]).unwrap();
    assert!(fs::read(&first).unwrap() == content && second.exists());

    // A commit below `.slicer` counts like a VM's disk.
    let commits = bed.dir.path().join(".slicer/commits/one");
    fs::create_dir_all(&commits).unwrap();
    fs::rename(&disk, commits.join("disk.img")).unwrap();
    bed.bases.remove_unused(&["a"]).unwrap();
    assert!(first.exists());
    // A disk that makes no sense may need anything.
    fs::remove_file(commits.join("disk.img")).unwrap();
    let mut senseless = b"QFI\xfb\0\0\0\x03".to_vec();
    senseless.extend([0xff; 100]);
    fs::write(bed.dir.path().join("a-2.img"), senseless).unwrap();
    bed.bases.remove_unused(&["a"]).unwrap();
    assert!(first.exists());
    fs::remove_file(bed.dir.path().join("a-2.img")).unwrap();
    bed.bases.remove_unused(&["a"]).unwrap();
    assert!(!first.exists() && second.exists());

    // Neither group nor disk.
    bed.bases.remove_unused(&["b"]).unwrap();
    assert!(!second.exists() && !bed.link("a").exists());
    assert_eq!(fs::read_dir(bed.bases.work.bases()).unwrap().count(), 0);
}

#[test]
fn working_directories_of_before_are_taken_over() {
    let bed = bed();
    let old = bed.image("image", image_layout);
    let new = bed.image("kernel", kernel_layout);
    let group = &bed.groups[0];
    let link = bed.link("a");
    let size = group.storage_size;
    build_base(&old, &link, size, &Limits::default(), &|_| {}).unwrap();
    let before = inode(&link);
    bed.disk("a-1.img", &link);
    let base = bed.bases.prepare(group, &old).unwrap();
    assert_eq!(inode(&base), before);
    // The name that the disk reads from keeps leading to what it led to.
    let second = bed.bases.prepare(group, &new).unwrap();
    assert_eq!(inode(&link), before);
    bed.bases.remove_unused(&["a"]).unwrap();
    assert!(second.exists() && link.exists());
    fs::remove_file(bed.dir.path().join("a-1.img")).unwrap();
    bed.bases.prepare(group, &new).unwrap();
    assert_eq!(inode(&link), inode(&second));
}

#[test]
fn what_a_kill_left_is_mended() {
    let bed = bed();
    let image = bed.image("image", image_layout);
    let group = &bed.groups[0];
    let base = bed.bases.prepare(group, &image).unwrap();
    let content = fs::read(&base).unwrap();
    let note = PathBuf::from(format!("{}.json", base.display()));
    // Killed before the note, before the link, before anything but the use.
    fs::remove_file(&note).unwrap();
    bed.bases.remove_unused(&["a"]).unwrap();
    assert!(fs::read(bed.bases.prepare(group, &image).unwrap()).unwrap() == content);
    fs::remove_file(bed.link("a")).unwrap();
    fs::write(bed.bases.work.bases().join(".a.link.slicer-part"), "x").unwrap();
    fs::write(bed.bases.work.bases().join(".x.img.1.slicer-part"), "x").unwrap();
    bed.bases.work.sweep().unwrap();
    assert_eq!(bed.bases.prepare(group, &image).unwrap(), base);
    assert_eq!(inode(&bed.link("a")), inode(&base));
    for path in [&base, &note, &bed.link("a")] {
        fs::remove_file(path).unwrap();
    }
    bed.bases.remove_unused(&["a"]).unwrap();
    assert!(fs::read(bed.bases.prepare(group, &image).unwrap()).unwrap() == content);
    assert_eq!(fs::read_dir(bed.bases.work.bases()).unwrap().count(), 3);
}
