use super::*;
use crate::record::DiskKind;
use crate::record::tests::sample;
use slicer_image::{overlay_disk, reflink_file};
use slicer_machine::DiskFormat;
use std::os::unix::fs::MetadataExt;

const QCOW2: &[DiskFormat] = &[DiskFormat::Raw, DiskFormat::Qcow2];
const RAW: &[DiskFormat] = &[DiskFormat::Raw];

/// A stopped VM with a disk.
fn place() -> (tempfile::TempDir, WorkDir, VmRecord) {
    let dir = tempfile::tempdir().unwrap();
    let work = WorkDir::open(dir.path()).unwrap();
    let mut vm = sample("sbox-1");
    vm.persistent = true;
    vm.disk = Some(DiskKind::Raw);
    vm.save(&work).unwrap();
    fs::write(work.disk("sbox-1"), "precious".repeat(1024)).unwrap();
    (dir, work, vm)
}

fn commit_of(vm: &VmRecord) -> CommitRecord {
    let disk = vm.disk.unwrap();
    CommitRecord::new(vm, disk, CommitRequest::default()).unwrap()
}

fn record(work: &WorkDir) -> VmRecord {
    VmRecord::read_all(work).unwrap().remove(0)
}

#[test]
fn a_commit_has_the_disk_and_the_vm_goes_on() {
    let (_dir, work, vm) = place();
    let shares = reflink_file(&work.disk("sbox-1"), &work.root().join("try")).unwrap();
    let commit = commit_of(&vm);
    let after = freeze(&work, &commit, QCOW2).unwrap();
    assert_eq!(after, record(&work));
    assert_eq!(after.commit_id.as_ref(), Some(&commit.id));
    let own = work.commit_disk(&commit.id);
    assert_eq!(fs::read(&own).unwrap(), "precious".repeat(1024).as_bytes());
    if !shares {
        assert_eq!(after.disk, Some(DiskKind::Qcow2));
        let under = backing_file(&work.disk("sbox-1")).unwrap();
        assert_eq!(under.as_deref(), Some(&*own));
    }
    // And once more, from what it is now.
    let next = commit_of(&after);
    let after = freeze(&work, &next, QCOW2).unwrap();
    assert_eq!(after, record(&work));
    let commits = Commits::open(&work).unwrap();
    let all = commits.list(&Filter::default());
    assert_eq!(
        all.iter().map(|c| &**c).collect::<Vec<_>>(),
        [&commit, &next]
    );
    assert!(!work.commit_before(&commit.id).exists());
}

#[test]
fn a_backend_of_raw_disks_gets_a_copy() {
    let (_dir, work, vm) = place();
    let commit = commit_of(&vm);
    let after = freeze(&work, &commit, RAW).unwrap();
    assert_eq!(after.disk, Some(DiskKind::Raw));
    let inode = |path| fs::metadata(path).unwrap().ino();
    let own = work.commit_disk(&commit.id);
    assert_ne!(inode(work.disk("sbox-1")), inode(own.clone()));
    assert!(fs::read(own).unwrap() == fs::read(work.disk("sbox-1")).unwrap());
}

/// What is done to make a commit of a disk that can't be shared, one step after the other.
fn step(n: usize, work: &WorkDir, commit: &CommitRecord) {
    let (id, vm) = (&commit.id, &commit.source);
    let (own, disk) = (work.commit_disk(id), work.disk(&vm.hostname));
    match n {
        0 => fs::create_dir(work.commit(id)).unwrap(),
        1 => {
            let before = serde_json::json!({
                "hostname": vm.hostname, "mac": vm.mac, "disk": vm.disk, "commit_id": null,
            });
            fs::write(work.commit_before(id), before.to_string()).unwrap();
        }
        2 => fs::hard_link(disk, own).unwrap(),
        3 => overlay_disk(&own, DiskKind::Raw.into(), &disk).unwrap(),
        4 => {
            let mut after = vm.clone();
            after.disk = Some(DiskKind::Qcow2);
            after.commit_id = Some(id.clone());
            after.save(work).unwrap();
        }
        _ => commit.save(work).unwrap(),
    }
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_commit_or_none() {
    for last in 0..=5 {
        let (_dir, work, vm) = place();
        let commit = commit_of(&vm);
        for n in 0..=last {
            step(n, &work, &commit);
        }
        let commits = Commits::open(&work).unwrap();
        let own = work.commit_disk(&commit.id);
        if last == 5 {
            assert_eq!(*commits.get(&commit.id).unwrap(), commit);
            assert_eq!(record(&work).disk, Some(DiskKind::Qcow2));
            assert!(!work.commit_before(&commit.id).exists() && own.exists());
            continue;
        }
        assert!(commits.list(&Filter::default()).is_empty());
        assert!(!work.commit(&commit.id).exists(), "after step {last}");
        assert_eq!(record(&work), vm, "after step {last}");
        let disk = fs::read(work.disk("sbox-1")).unwrap();
        assert_eq!(
            disk,
            "precious".repeat(1024).as_bytes(),
            "after step {last}"
        );
        assert_eq!(fs::metadata(work.disk("sbox-1")).unwrap().nlink(), 1);
        // Taken back once, it is.
        Commits::open(&work).unwrap();
    }
}

#[test]
fn what_fails_is_taken_back() {
    let (_dir, work, vm) = place();
    let commit = commit_of(&vm);
    // Where the record would be written.
    fs::create_dir_all(work.commit_record(&commit.id)).unwrap();
    freeze(&work, &commit, QCOW2).unwrap_err();
    let gone = CommitRecord {
        id: "cmt-1".into(),
        ..commit
    };
    fs::remove_file(work.disk("sbox-1")).unwrap();
    freeze(&work, &gone, QCOW2).unwrap_err();
    assert!(!work.commit("cmt-1").exists());
    assert_eq!(record(&work), vm);
}

#[test]
fn chains_have_an_end() {
    let (_dir, work, mut vm) = place();
    if reflink_file(&work.disk("sbox-1"), &work.root().join("try")).unwrap() {
        // Here a commit is a copy, and nothing lies over anything.
        return;
    }
    let mut last = None;
    while last.is_none() {
        match freeze(&work, &commit_of(&vm), QCOW2) {
            Ok(after) => vm = after,
            Err(e) => last = Some(e),
        }
    }
    let commits = fs::read_dir(work.commits()).unwrap().count();
    assert_eq!(commits, freeze::MAX_DEPTH);
    assert_eq!(last.unwrap().to_api().status, 409);
    assert_eq!(record(&work), vm);
}

#[test]
fn a_directory_may_move() {
    let (dir, work, vm) = place();
    let first = commit_of(&vm);
    let after = freeze(&work, &first, QCOW2).unwrap();
    let second = commit_of(&after);
    let after = freeze(&work, &second, QCOW2).unwrap();
    drop(work);
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("slicer");
    fs::rename(dir.path(), &moved).unwrap();
    let work = WorkDir::open(&moved).unwrap();
    let commits = Commits::open(&work).unwrap();
    for _ in 0..2 {
        follow(&work, &commits).unwrap();
        if after.disk == Some(DiskKind::Qcow2) {
            let below = |disk: &Path| backing_file(disk).unwrap().unwrap();
            let own = work.commit_disk(&second.id);
            assert_eq!(below(&work.disk("sbox-1")), own);
            assert_eq!(below(&own), work.commit_disk(&first.id));
        }
    }
    // What a guest writes into a raw disk names nothing.
    let mut raw = record(&work);
    raw.disk = Some(DiskKind::Raw);
    raw.save(&work).unwrap();
    let lost = moved.join("lost/.slicer/commits").join(&first.id);
    overlay_disk(
        &work.commit_disk(&first.id),
        first.disk.into(),
        &work.disk("sbox-1"),
    )
    .unwrap();
    slicer_image::set_backing_file(&work.disk("sbox-1"), &lost.join("disk.img")).unwrap();
    let before = fs::read(work.disk("sbox-1")).unwrap();
    follow(&work, &commits).unwrap();
    assert!(fs::read(work.disk("sbox-1")).unwrap() == before);
}

#[test]
fn a_commit_goes_when_nobody_needs_it() {
    let (_dir, work, vm) = place();
    let first = commit_of(&vm);
    let after = freeze(&work, &first, QCOW2).unwrap();
    let second = commit_of(&after);
    freeze(&work, &second, QCOW2).unwrap();
    let commits = Commits::open(&work).unwrap();
    let refused = |id: &str| commits.remove(&work, id).unwrap_err();
    assert_eq!(refused(&first.id).status, 409);
    let mut child = sample("sbox-2");
    child.mac = [2, 0, 0, 0, 0, 9];
    child.parent_commit_id = Some(second.id.clone());
    child.save(&work).unwrap();
    crate::vm::remove_files(&work, "sbox-1").unwrap();
    let e = refused(&second.id);
    assert!(e.message.contains("VM sbox-2"), "{e}");
    VmRecord::remove(&work, "sbox-2").unwrap();
    // A disk without a record is somebody's, too.
    let (orphan, own) = (work.disk("sbox-7"), work.commit_disk(&second.id));
    overlay_disk(&own, second.disk.into(), &orphan).unwrap();
    assert!(refused(&second.id).message.contains("sbox-7.img"));
    fs::remove_file(orphan).unwrap();
    if second.disk == DiskKind::Qcow2 {
        let e = refused(&first.id);
        assert!(e.message.contains(&second.id), "{e}");
    }
    commits.remove(&work, &second.id).unwrap();
    commits.remove(&work, &first.id).unwrap();
    assert_eq!(fs::read_dir(work.commits()).unwrap().count(), 0);
    assert_eq!(commits.get(&first.id).unwrap_err().status, 404);
}

#[test]
fn leftovers_and_strangers() {
    let (_dir, work, vm) = place();
    let commit = commit_of(&vm);
    freeze(&work, &commit, QCOW2).unwrap();
    let doomed = work.commits().join("cmt-9.deleting");
    fs::create_dir(&doomed).unwrap();
    fs::create_dir(work.commits().join("notes")).unwrap();
    fs::create_dir(work.commit("cmt-torn")).unwrap();
    fs::write(work.commit_record("cmt-torn"), "{").unwrap();
    let commits = Commits::open(&work).unwrap();
    assert_eq!(commits.list(&Filter::default()).len(), 1);
    assert!(!doomed.exists() && work.commits().join("notes").exists());
    assert!(work.commit("cmt-torn").exists());
}

#[test]
fn lists_are_filtered_and_keys_claimed() {
    let (_dir, work, vm) = place();
    let request = CommitRequest {
        tags: vec!["a".into(), "b".into()],
        cache_key: "k".into(),
        ..CommitRequest::default()
    };
    let commits = Commits::open(&work).unwrap();
    commits.add(CommitRecord::new(&vm, DiskKind::Raw, request).unwrap());
    commits.check_unclaimed(None).unwrap();
    commits.check_unclaimed(Some("other")).unwrap();
    assert_eq!(commits.check_unclaimed(Some("k")).unwrap_err().status, 409);
    let some = |text: &str| Some(text.to_owned());
    let found = |tags: &[&str], cache_key, source, mode| {
        let tags = tags.iter().map(|t| (*t).to_owned()).collect();
        commits
            .list(&Filter {
                tags,
                cache_key,
                source,
                mode,
            })
            .len()
    };
    assert_eq!(
        found(&["a", "b"], some("k"), some("sbox-1"), some("disk")),
        1
    );
    assert_eq!(found(&["a", "c"], None, None, None), 0);
    assert_eq!(found(&[], some("l"), None, None), 0);
    assert_eq!(found(&[], None, some("sbox-2"), None), 0);
    assert_eq!(found(&[], None, None, some("memory")), 0);
}

#[test]
fn names_of_commits_are_bounded() {
    let label = |name: &str, value: &str| CommitRequest {
        labels: BTreeMap::from([(name.to_owned(), value.to_owned())]),
        ..CommitRequest::default()
    };
    let long = "x".repeat(257);
    check(&label("a", "")).unwrap();
    for bad in [
        label("", "x"),
        label(&long, "x"),
        label("a", &long),
        label("a\n", "x"),
        CommitRequest {
            tags: vec![long.clone()],
            ..CommitRequest::default()
        },
        CommitRequest {
            cache_key: long.clone(),
            ..CommitRequest::default()
        },
        CommitRequest {
            labels: (0..65).map(|n| (n.to_string(), String::new())).collect(),
            ..CommitRequest::default()
        },
    ] {
        assert_eq!(check(&bad).unwrap_err().status, 400, "{bad:?}");
    }
}
