//! VMs that begin as a template.

use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, Template, Wait};
use slicer_client::Client;
use slicer_testkit::{BOOT, Group, LIMIT, SBOX, Setup, TestDaemon, minimal_layout, wait_until};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("template": twenty_clones_are_each_one_of_their_own, what_is_wrong_with_a_template_costs_a_boot)
}

fn setup() -> Setup {
    Setup {
        warm: true,
        ..Setup::of([Group {
            ram_mb: 384,
            ..SBOX
        }])
    }
}

/// Sandboxes that boot sooner, of an image without an init.
pub(crate) fn minimal() -> Setup {
    Setup {
        image: Some(format!("oci:{}:latest", minimal_layout().display())),
        ..setup()
    }
}

async fn templates(daemon: &TestDaemon) -> Vec<Template> {
    daemon.client().templates().await.unwrap()
}

/// Waits until there is a template, and gives its id.
pub(crate) async fn made(daemon: &TestDaemon) -> String {
    wait_until("a template is there", BOOT, async || {
        !templates(daemon).await.is_empty()
    })
    .await;
    templates(daemon).await.remove(0).id
}

/// How often a daemon has read the templates that an earlier one made.
pub(crate) fn checks(daemon: &TestDaemon) -> usize {
    daemon
        .log()
        .matches("templates of before are whole")
        .count()
}

/// Waits until one has done so more often than `before`: VMs begin as templates from then on.
pub(crate) async fn checked(daemon: &TestDaemon, before: usize) {
    wait_until("the templates are checked", LIMIT, async || {
        checks(daemon) > before
    })
    .await;
}

/// The templates' directories, whole or not.
pub(crate) fn directories(daemon: &TestDaemon) -> Vec<PathBuf> {
    let all = fs::read_dir(daemon.dir().join(".slicer/templates")).unwrap();
    all.map(|entry| entry.unwrap().path()).collect()
}

/// Whether a VM began as a template, by what the daemon says of its machine.
pub(crate) fn cloned(daemon: &TestDaemon, vm: &str) -> bool {
    let log = daemon.log();
    let last = log.lines().rfind(|l| {
        l.contains(&format!("{vm}: launched in")) || l.contains(&format!("{vm}: cloned in"))
    });
    last.is_some_and(|l| l.contains("cloned in"))
}

async fn launch(client: &Client, node: &CreateNode) -> String {
    let made = client.create_node("sbox", node, Some(Wait::Userdata), Some(BOOT));
    made.await.unwrap().hostname
}

/// What must not be the same in two VMs, one a line.
const OWN: &str = "hostname; cat /etc/hostname /etc/machine-id /sys/class/net/eth0/address; hostname -I; \
    head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; mktemp -u XXXXXXXXXXXX; \
    timeout 60 sh -c 'until grep eth0 /proc/net/if_inet6; do sleep 0.2; done'";

/// Prints where a VM's TCP connections begin to count, for a few pairs of ports and without what time adds
/// (`seq_scale` of Linux' net/core/secure_seq.c: a step each 64 ns of the clock): what is left is drawn
/// by a secret of its kernel.
const SEQUENCES: &str = r#"sudo perl -MSocket -e '
    for my $port (7000..7003) {
        my $at = sockaddr_in($port, INADDR_LOOPBACK);
        my ($server, $client);
        socket($server, PF_INET, SOCK_STREAM, 6) && bind($server, $at) && listen($server, 1) or die $!;
        socket($client, PF_INET, SOCK_STREAM, 6) or die $!;
        bind($client, sockaddr_in($port + 1000, INADDR_LOOPBACK)) && connect($client, $at) or die $!;
        my $now = time;
        # TCP_REPAIR, TCP_REPAIR_QUEUE to that of what is sent, TCP_QUEUE_SEQ
        setsockopt($client, 6, 19, 1) && setsockopt($client, 6, 20, 2) or die $!;
        my $sequence = unpack "L", getsockopt($client, 6, 21);
        print(($sequence - $now * 15625000) % 4294967296, "\n");
    }'"#;

/// Whether two VMs' sequences are the same, but for what the time it took to ask may have added.
fn are_alike(one: &[u32], other: &[u32]) -> bool {
    /// Two seconds, of which a clock that only knows seconds takes one.
    const NEAR: u32 = 2 * 15_625_000;
    assert_eq!((one.len(), other.len()), (4, 4));
    let near = |(a, b): (&u32, &u32)| a.wrapping_sub(*b).min(b.wrapping_sub(*a)) < NEAR;
    one.iter().zip(other).all(near)
}

async fn sequences(client: &Client, vm: &str) -> Vec<u32> {
    let said = says(client, vm, SEQUENCES).await;
    said.lines().map(|l| l.parse().unwrap()).collect()
}

async fn twenty_clones_are_each_one_of_their_own() {
    const ALL: u64 = 20;
    let mut daemon = TestDaemon::start(&setup());
    let client = daemon.client();
    let create = ["secret", "create", "key", "--from-literal", "sesame"];
    assert_eq!(daemon.cli(&create).await.code, 0);
    let id = made(&daemon).await;
    let mut launching = JoinSet::new();
    for n in 0..ALL {
        let client = client.clone();
        launching.spawn(async move {
            let node = CreateNode {
                userdata: format!(
                    "echo {n} > /root/told; cat /run/slicer/secrets/key >> /root/told"
                ),
                tags: vec![format!("name=clone{n}")],
                ..CreateNode::default()
            };
            let vm = launch(&client, &node).await;
            let clock: f64 = says(&client, &vm, "date +%s.%N").await.parse().unwrap();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            assert!((clock - now.as_secs_f64()).abs() < 10.0, "{vm}: {clock}");
            let told = says(&client, &vm, "sudo cat /root/told").await;
            assert_eq!(told, format!("{n}\nsesame"), "{vm}");
            let own = says(&client, &vm, OWN).await;
            let ip = client.node(&vm).await.unwrap().node.ip;
            let lines: Vec<String> = own.lines().map(|l| l.trim().to_owned()).collect();
            assert_eq!(lines[0], vm);
            assert_eq!(lines[1], vm);
            assert_eq!(lines[4], ip, "{vm}");
            let counts_from = sequences(&client, &vm).await;
            (vm, lines[1..].to_vec(), counts_from)
        });
    }
    let all = launching.join_all().await;
    let mut seen = BTreeSet::new();
    for (vm, lines, counts_from) in &all {
        assert!(cloned(&daemon, vm), "{vm}");
        // One VM's are what they were, which shows that those of two would be seen to be the same.
        if *vm == "sbox-1" {
            assert!(are_alike(counts_from, &sequences(&client, vm).await));
        }
        for (other, _, others) in all.iter().filter(|(other, ..)| other != vm) {
            assert!(
                !are_alike(counts_from, others),
                "{vm} and {other}: {others:?}"
            );
        }
        for line in lines {
            assert!(seen.insert(line.clone()), "{vm}: {line} is another's, too");
        }
    }
    let listed = templates(&daemon).await;
    assert_eq!((listed[0].clones, listed.len()), (ALL, 1), "{listed:?}");

    // What one does is nobody else's.
    says(
        &client,
        "sbox-1",
        "echo one > ~/file; echo one > /dev/shm/x; sync",
    )
    .await;
    says(
        &client,
        "sbox-2",
        "test ! -e ~/file && test ! -e /dev/shm/x",
    )
    .await;
    let journal = says(&client, "sbox-2", "sudo journalctl --no-pager -n 200").await;
    assert!(journal.contains("sbox-2 "), "{journal}");
    for n in 3..=ALL {
        client
            .delete_node("sbox", &format!("sbox-{n}"))
            .await
            .unwrap();
    }

    // A clone needs no template to be saved and restored, but for what it reads of its disk.
    client.suspend("sbox-1").await.unwrap();
    let removed = daemon.cli(&["template", "remove", &id]).await;
    assert_eq!(removed.code, 0, "{removed:?}");
    assert!(templates(&daemon).await.is_empty());
    client.restore("sbox-1", BOOT).await.unwrap();
    let kept = says(
        &client,
        "sbox-1",
        "cat ~/file /dev/shm/x; md5sum /usr/bin/* > /dev/null",
    )
    .await;
    assert_eq!(kept, "one\none");
    assert_eq!(says(&client, "sbox-1", "hostname").await, "sbox-1");
    // Its disk goes with the last who reads from it, at the next start.
    assert_eq!(directories(&daemon).len(), 1);
    for vm in ["sbox-1", "sbox-2"] {
        client.delete_node("sbox", vm).await.unwrap();
    }
    daemon.terminate();
    daemon.launch();
    wait_until("what is left is removed", LIMIT, async || {
        !directories(&daemon).iter().any(|d| d.ends_with(&id))
    })
    .await;
    drop(client);
    daemon.stop();
}

/// Changes one byte of a template's file.
fn flip(path: &std::path::Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

async fn what_is_wrong_with_a_template_costs_a_boot() {
    let mut daemon = TestDaemon::start(&minimal());
    let first = made(&daemon).await;
    // While no daemon looks, and what can be seen from outside is as before.
    daemon.crash();
    let memory = daemon
        .dir()
        .join(".slicer/templates")
        .join(&first)
        .join("memory");
    let before = fs::metadata(&memory).unwrap().modified().unwrap();
    flip(&memory, 128 << 20);
    File::options()
        .write(true)
        .open(&memory)
        .unwrap()
        .set_modified(before)
        .unwrap();
    daemon.launch();
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    assert!(!cloned(&daemon, &vm));
    client.delete_node("sbox", &vm).await.unwrap();
    let second = made(&daemon).await;
    assert_ne!(first, second);
    assert!(daemon.log().contains("is damaged"), "{}", daemon.log());

    // Another shape than the template's is booted, and asks for one of its own.
    let other = CreateNode {
        ram_bytes: 256 << 20,
        ..CreateNode::default()
    };
    let vm = launch(&client, &other).await;
    assert!(!cloned(&daemon, &vm));
    let kept = CreateNode {
        persistent: true,
        ..CreateNode::default()
    };
    let kept = launch(&client, &kept).await;
    assert!(!cloned(&daemon, &kept));
    client.delete_node("sbox", &kept).await.unwrap();

    // While it looks.
    let memory = daemon
        .dir()
        .join(".slicer/templates")
        .join(&second)
        .join("memory");
    File::options()
        .write(true)
        .open(&memory)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let vm = launch(&client, &CreateNode::default()).await;
    assert!(!cloned(&daemon, &vm));
    assert!(
        daemon.log().contains("was changed since"),
        "{}",
        daemon.log()
    );
    wait_until(
        "the template of the other shape is there",
        BOOT,
        async || {
            templates(&daemon)
                .await
                .iter()
                .any(|t| t.ram_bytes == 256 << 20)
        },
    )
    .await;
    let vm = launch(&client, &other).await;
    assert!(cloned(&daemon, &vm));
    let all = templates(&daemon).await;
    let third = all.iter().find(|t| t.ram_bytes == 256 << 20).unwrap();
    daemon.terminate();

    // By another QEMU, as after an upgrade of it.
    let told = daemon
        .dir()
        .join(".slicer/templates")
        .join(&third.id)
        .join("template.json");
    let text = fs::read_to_string(&told).unwrap();
    let other_qemu = text.replacen(r#"major\\\":"#, r#"major\\\":9"#, 1);
    assert_ne!(text, other_qemu);
    fs::write(&told, other_qemu).unwrap();
    let before = checks(&daemon);
    daemon.launch();
    checked(&daemon, before).await;
    let vm = launch(&client, &other).await;
    assert!(!cloned(&daemon, &vm));
    assert!(
        daemon.log().contains("wrote it, and this is"),
        "{}",
        daemon.log()
    );
    drop(client);
    daemon.terminate();
    assert!(daemon.processes().is_empty());
}
