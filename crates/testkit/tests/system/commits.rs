//! Commits of VMs' disks, and VMs forked from them.

use crate::lifecycle::{launch, names, ready};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{
    CommitRequest, CreateNode, ForkRequest, ForkWait, Forked, NodeStatus, ShutdownAction, TagMode,
};
use slicer_client::{Client, CommitFilter};
use slicer_testkit::{BOOT, Group, LIMIT, SBOX, Setup, TestDaemon, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("commits": a_commit_and_its_forks, a_daemon_killed_while_committing,
        a_chain_of_ten_stays_fast)
}

fn small() -> Setup {
    Setup::of([Group {
        ram_mb: 384,
        ..SBOX
    }])
}

fn persistent() -> CreateNode {
    CreateNode {
        persistent: true,
        ..CreateNode::default()
    }
}

async fn off(client: &Client, vm: &str) {
    client.shutdown(vm, ShutdownAction::Shutdown).await.unwrap();
    until_off(client, vm).await;
}

async fn until_off(client: &Client, vm: &str) {
    wait_until(&format!("{vm} is off"), BOOT, async || {
        client.node(vm).await.unwrap().node.status == NodeStatus::Stopped
    })
    .await;
}

async fn commit(client: &Client, vm: &str) -> String {
    let made = client.commit(vm, &CommitRequest::default()).await;
    made.unwrap().commit_id
}

async fn fork(client: &Client, id: &str, request: &ForkRequest) -> Forked {
    let made = client.fork(id, request, ForkWait::Agent, Some(BOOT)).await;
    made.unwrap()
}

/// What no two VMs may have in common.
const WHO: &str = "hostname; cat /etc/machine-id /etc/hostname /etc/ssh/ssh_host_ed25519_key.pub; \
                   sudo cat /sys/class/net/e*/address; hostname -I | tr ' ' '\\n' | head -1; \
                   ssh-keygen -y -f <(sudo cat /etc/ssh/ssh_host_ed25519_key)";

fn differ(a: &str, b: &str) {
    assert_eq!(a.lines().count(), 7, "{a}");
    for (a, b) in a.lines().zip(b.lines()) {
        assert_ne!(a, b);
    }
}

async fn a_commit_and_its_forks() {
    let mut daemon = TestDaemon::start(&small());
    let client = daemon.client();
    for (name, data) in [("key", "c2VzYW1l"), ("other", "eA==")] {
        let body = format!(r#"{{"name":"{name}","data":"{data}"}}"#);
        assert_eq!(daemon.raw().post("/secrets", body).await.status, 201);
    }
    let request = CreateNode {
        tags: vec!["name=source".into(), "role=db".into()],
        secrets: Some(vec!["key".into()]),
        userdata: "echo ran >> /home/ubuntu/userdata".into(),
        ..persistent()
    };
    let source = launch(&client, &request).await;
    let setup = "echo precious > ~/file; sudo systemctl start ssh-host-keys.service; \
                 while ! [ -s ~/userdata ]; do sleep 0.1; done";
    says(&client, &source, setup).await;
    let was = says(&client, &source, WHO).await;
    let running = daemon.raw().post("/vm/sbox-1/commit", "").await;
    assert_eq!(running.status, 409, "{}", running.text());
    off(&client, &source).await;

    let line = "vm commit source --tag stage=1 --cache-key first --label by=test --json";
    let made = daemon
        .cli(&line.split(' ').collect::<Vec<_>>())
        .await
        .json();
    let id = made["commit_id"].as_str().unwrap().to_owned();
    assert_eq!(made["parent_status"], "stopped");
    let listed = daemon.cli(&["vm", "commit", "list", "--source", "sbox-1", "--json"]);
    let listed = listed.await.json();
    assert_eq!(listed[0]["commit_id"], *id);
    assert_eq!(listed[0]["labels"]["by"], "test");
    assert_eq!(
        client.node(&source).await.unwrap().commit_id.as_ref(),
        Some(&id)
    );

    let forking = [
        "vm", "fork", &id, "--tag", "n=1", "--name", "child", "--wait", "--json",
    ];
    let other = ForkRequest {
        tags: vec!["n=2".into()],
        tag_mode: Some(TagMode::Replace),
        secrets: Some(vec![]),
        persistent: Some(false),
        ..ForkRequest::default()
    };
    let (first, second) = tokio::join!(daemon.cli(&forking), fork(&client, &id, &other));
    let first = first.json();
    assert_eq!(
        (&first["child_status"], &first["status"]),
        (&"running".into(), &"forked".into())
    );
    let (first, second) = (
        first["hostname"].as_str().unwrap().to_owned(),
        second.hostname,
    );
    let (a, b) = tokio::join!(says(&client, &first, WHO), says(&client, &second, WHO));
    differ(&a, &b);
    differ(&a, &was);
    differ(&b, &was);
    assert!(a.starts_with(&first), "{a}");
    let secrets = "cat ~/file ~/userdata; ls /run/slicer/secrets 2>/dev/null | cat";
    assert_eq!(says(&client, &first, secrets).await, "precious\nran\nkey");
    assert_eq!(says(&client, &second, secrets).await, "precious\nran");
    let detail = client.node(&first).await.unwrap();
    assert_eq!(detail.parent_commit_id.as_ref(), Some(&id));
    assert_eq!(detail.node.tags, ["role=db", "name=child", "n=1"]);
    assert!(detail.node.persistent);
    let detail = client.node(&second).await.unwrap();
    assert_eq!(detail.node.tags, ["n=2"]);
    let needed = client.delete_commit(&id).await.unwrap_err();
    assert_eq!(needed.status(), Some(409), "{needed}");

    // The source goes on as it was, and what it does is its own.
    client.relaunch(&source).await.unwrap();
    ready(&client, &source).await;
    assert_eq!(says(&client, &source, WHO).await, was);
    assert_eq!(
        says(&client, &source, "cat ~/file; echo later > ~/file").await,
        "precious"
    );
    says(&client, &first, "echo changed > ~/file; sync ~/file").await;

    drop(client);
    daemon.crash();
    daemon.launch();
    let client = daemon.client();
    let stopped = NodeStatus::Stopped;
    assert_eq!(
        names(&client).await,
        [(source.clone(), stopped), (first.clone(), stopped)]
    );
    client.relaunch(&first).await.unwrap();
    ready(&client, &first).await;
    // Once it is somebody, it stays that.
    assert_eq!(says(&client, &first, WHO).await, a);
    assert_eq!(says(&client, &first, "cat ~/file").await, "changed");
    off(&client, &first).await;

    // A fork of a fork, which keeps the names of what it is of.
    let next = commit(&client, &first).await;
    let same = ForkRequest {
        fixups: Some(vec![]),
        ..ForkRequest::default()
    };
    let grandchild = fork(&client, &next, &same).await;
    assert_eq!(grandchild.source_hostname, first);
    let grandchild = grandchild.hostname;
    let lines = says(&client, &grandchild, WHO).await;
    let (same, before): (Vec<_>, Vec<_>) = (lines.lines().collect(), a.lines().collect());
    assert_eq!([&same[..4], &same[6..]], [&before[..4], &before[6..]]);
    assert_ne!(same[4..6], before[4..6]);
    assert_eq!(
        says(&client, &grandchild, "cat ~/file ~/userdata").await,
        "changed\nran"
    );

    let refused = async |id: &str| client.delete_commit(id).await.unwrap_err().status();
    assert_eq!([refused(&id).await, refused(&next).await], [Some(409); 2]);
    for vm in [&grandchild, &first] {
        client.delete_node("sbox", vm).await.unwrap();
    }
    let deleted = daemon.cli(&["vm", "commit", "delete", &next]).await;
    assert_eq!(deleted.text(), format!("Commit deleted: {next}\n"));
    assert_eq!(refused(&id).await, Some(409));
    client.delete_node("sbox", &source).await.unwrap();
    client.delete_commit(&id).await.unwrap();
    assert!(
        client
            .commits(&CommitFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    let commits = daemon.dir().join(".slicer/commits");
    assert_eq!(fs::read_dir(commits).unwrap().count(), 0);
    for vm in [&source, &first, &second, &grandchild] {
        assert!(!daemon.has_files_of(vm), "{:?}", daemon.files());
    }
    drop(client);
    daemon.stop();
}

/// The files of commits' disks.
fn commit_disks(dir: &Path) -> Vec<PathBuf> {
    let commits = fs::read_dir(dir.join(".slicer/commits")).unwrap();
    let dirs = commits.map(|e| e.unwrap().path());
    dirs.map(|d| d.join("disk.img")).collect()
}

fn is_qcow2(disk: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    let read = fs::File::open(disk).unwrap().read_exact(&mut magic);
    read.is_ok() && magic == *b"QFI\xfb"
}

/// Fails unless both disks read the same.
fn same_content(disk: &Path, raw: &Path) {
    let format = if is_qcow2(disk) { "qcow2" } else { "raw" };
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", format, "-F", "raw"])
        .args([disk, raw])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compared.stdout);
    assert!(compared.status.success(), "{}: {said}", disk.display());
}

async fn a_daemon_killed_while_committing() {
    // Killed at moments spread over a commit, it comes back with a whole one or none, and with a VM
    // that has its data.
    let mut daemon = TestDaemon::start(&small());
    let client = daemon.client();
    let vm = launch(&client, &persistent()).await;
    says(&client, &vm, "echo precious > ~/file").await;
    off(&client, &vm).await;
    let disk = daemon.dir().join(format!("{vm}.img"));
    let was = daemon.dir().join("was.raw");
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([&disk, &was])
        .status();
    assert!(copied.unwrap().success());
    drop(client);
    let mut whole = 0;
    for delay in [0, 1, 2, 3, 4, 6, 8, 12, 20] {
        let client = daemon.client();
        let committing = tokio::spawn(async move {
            let made = client.commit("sbox-1", &CommitRequest::default()).await;
            made.is_ok()
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        daemon.crash();
        let acknowledged = committing.await.unwrap();
        daemon.launch();
        let client = daemon.client();
        let listed = client
            .commits(&CommitFilter::default())
            .await
            .unwrap()
            .len();
        assert!(
            listed == whole || listed == whole + 1,
            "{listed} after {delay} ms"
        );
        assert!(listed > whole || !acknowledged, "lost after {delay} ms");
        whole = listed;
        let disks = commit_disks(daemon.dir());
        assert_eq!(disks.len(), whole, "{disks:?} after {delay} ms");
        for disk in disks.iter().chain([&disk]) {
            same_content(disk, &was);
        }
    }
    let client = daemon.client();
    if whole == 0 {
        commit(&client, &vm).await;
    }
    let all = client.commits(&CommitFilter::default()).await.unwrap();
    client.relaunch(&vm).await.unwrap();
    let request = ForkRequest::default();
    let forking = fork(&client, &all.last().unwrap().commit_id, &request);
    let (fork, ()) = tokio::join!(forking, ready(&client, &vm));
    for vm in [&vm, &fork.hostname] {
        assert_eq!(says(&client, vm, "cat ~/file").await, "precious");
    }
    drop(client);
    daemon.stop();
}

/// A boot under load varies by less than this; a chain that is slow would take a multiple.
const SLOWER: f64 = 1.5;

async fn a_chain_of_ten_stays_fast() {
    let daemon = TestDaemon::start(&small());
    let client = daemon.client();
    let mut vm = launch(&client, &persistent()).await;
    let mut boots = Vec::new();
    let mut ids = Vec::new();
    for depth in 1..=10 {
        let write = format!("dd if=/dev/urandom of=d{depth} bs=1M count=2 status=none; ls | wc -l");
        assert_eq!(says(&client, &vm, &write).await, depth.to_string());
        off(&client, &vm).await;
        let id = commit(&client, &vm).await;
        let begun = Instant::now();
        vm = fork(&client, &id, &ForkRequest::default()).await.hostname;
        boots.push(begun.elapsed().as_secs_f64());
        ids.push(id);
    }
    // The first and the tenth by turns, because the machine's load changes.
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let mut times = Vec::new();
        for id in [&ids[0], &ids[9]] {
            let begun = Instant::now();
            let forked = fork(&client, id, &ForkRequest::default()).await;
            times.push(begun.elapsed().as_secs_f64());
            client.delete_node("sbox", &forked.hostname).await.unwrap();
        }
        ratios.push(times[1] / times[0]);
    }
    ratios.sort_by(f64::total_cmp);
    assert!(
        ratios[1] < SLOWER,
        "ten deep to one deep: {ratios:?}; along the chain: {boots:?} s"
    );
    tokio::time::timeout(LIMIT, client.delete_node("sbox", &vm))
        .await
        .unwrap()
        .unwrap();
    drop(client);
    daemon.stop();
}
