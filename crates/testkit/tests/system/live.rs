//! VMs that go on from where another one was.

use crate::disks::off;
use crate::foreign::persistent;
use crate::lifecycle::ready;
use crate::template;
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CommitRequest, CreateNode, ForkWait, LiveForkRequest, Wait};
use slicer_client::Client;
use slicer_testkit::{BOOT, LIMIT, Setup, TestDaemon, soon, wait_until};
use std::path::PathBuf;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("live": forks_go_on_where_their_source_was, the_disk_of_a_fork_goes_with_its_last_reader)
}

/// Counts in the guest's memory for as long as it lives.
const COUNT: &str = "nohup sh -c 'i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n; sleep 0.1; done' \
    > /dev/null 2>&1 &";
/// Writes numbers past the page cache to the disk, each after it has found there the one before, which it has
/// in memory: should disk and memory be of two moments, it says so in `~/torn`. It writes to memory meanwhile.
const WRITE: &str = "cat > ~/write <<'END'
read_back() { dd if=$HOME/disk iflag=direct bs=512 count=1 2>/dev/null | tr -d ' '; }
i=0
while :; do
  printf '%-511d\\n' $i | dd of=$HOME/disk oflag=direct conv=notrunc bs=512 count=1 2>/dev/null
  [ \"$(read_back)\" = $i ] || echo $i $(read_back) > ~/torn
  head -c 2M /dev/urandom > /dev/shm/noise
  [ \"$(read_back)\" = $i ] || echo $i $(read_back) > ~/torn
  i=$((i+1)); echo $i > /dev/shm/written
done
END
nohup sh ~/write > /dev/null 2>&1 &";
const OWN: &str = "hostname; cat /etc/hostname /etc/machine-id /sys/class/net/eth0/address; hostname -I; \
    head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; \
    timeout 60 sh -c 'until grep eth0 /proc/net/if_inet6; do sleep 0.2; done'";

/// Starts an SSH server that serves whoever comes with the host key it has in its memory.
const SERVE: &str = "cd /etc/ssh && ( [ -e ssh_host_ed25519_key ] || \
    sudo ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key ) && \
    sudo mkdir -p /run/sshd && sudo /usr/sbin/sshd -r -p 2222 -o PidFile=none";
/// The host key that it shows.
const SHOWN: &str = "ssh-keyscan -p 2222 -t ed25519 127.0.0.1 2>/dev/null | cut -d ' ' -f 3";

async fn count(client: &Client, vm: &str) -> u64 {
    says(client, vm, "cat /dev/shm/n")
        .await
        .parse()
        .unwrap_or_default()
}

/// Waits until what writes in a VM has come further.
async fn writes(client: &Client, vm: &str) {
    let written = async || says(client, vm, "cat /dev/shm/written || true").await;
    let before = written().await;
    wait_until(&format!("{vm} writes on"), LIMIT, async || {
        written().await != before
    })
    .await;
}

/// Forks a VM while it runs, and gives the fork's name once it is ready.
pub(crate) async fn fork_of(client: &Client, vm: &str) -> String {
    let request = LiveForkRequest::default();
    let forked = client.fork_live(vm, &request, ForkWait::Agent, Some(BOOT));
    forked.await.unwrap().vms.remove(0).hostname
}

/// Waits until what counts in a VM has come further.
async fn counts(client: &Client, vm: &str) {
    let before = count(client, vm).await;
    wait_until(&format!("{vm} counts on"), LIMIT, async || {
        count(client, vm).await > before
    })
    .await;
}

async fn forks_go_on_where_their_source_was() {
    let setup = Setup {
        warm: true,
        ..Setup::sandboxes()
    };
    let daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    let create = ["secret", "create", "key", "--from-literal", "sesame"];
    assert_eq!(daemon.cli(&create).await.code, 0);
    template::made(&daemon).await;
    // A clone, whose memory is partly the template's. One that is kept is forked where the daemon is killed.
    let node = CreateNode {
        tags: vec!["name=source".into(), "a=b".into()],
        ..CreateNode::default()
    };
    let made = client.create_node("sbox", &node, Some(Wait::Agent), Some(BOOT));
    let source = made.await.unwrap().hostname;
    assert!(template::cloned(&daemon, &source));
    says(&client, &source, COUNT).await;
    says(
        &client,
        &source,
        "echo before > ~/file; echo before > /dev/shm/note",
    )
    .await;
    counts(&client, &source).await;
    says(&client, &source, WRITE).await;
    writes(&client, &source).await;
    says(&client, &source, SERVE).await;
    let key = says(&client, &source, SHOWN).await;

    let fork = ["vm", "fork", "--live", "source", "--count", "2", "--wait"];
    let said = daemon.cli(&fork).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.text().starts_with("VM forked, paused for "),
        "{said:?}"
    );
    let forks = ["sbox-2", "sbox-3"];
    let mut seen = Vec::new();
    for vm in [source.as_str()].iter().chain(&forks) {
        counts(&client, vm).await;
        let own = says(&client, vm, OWN).await;
        let lines: Vec<String> = own.lines().map(|l| l.trim().to_owned()).collect();
        let ip = client.node(vm).await.unwrap().node.ip;
        assert_eq!((lines[0].as_str(), &lines[4]), (*vm, &ip));
        seen.extend(lines[1..].to_vec());
        let shown = says(&client, vm, SHOWN).await;
        let has = "cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub";
        assert_eq!(shown, says(&client, vm, has).await, "{vm}");
        assert_eq!(shown == key, *vm == source, "{vm}: {shown}");
        seen.push(shown);
        let files = says(&client, vm, "cat ~/file /dev/shm/note").await;
        assert_eq!(files, "before\nbefore", "{vm}");
        writes(&client, vm).await;
        let torn = says(
            &client,
            vm,
            "pkill -f ~/write; cat ~/torn 2>/dev/null; true",
        )
        .await;
        assert_eq!(torn, "", "{vm}");
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "{seen:?}");
    assert_eq!(client.node("sbox-2").await.unwrap().node.tags, ["a=b"]);
    // Secrets are the source's.
    let secret = "sudo cat /run/slicer/secrets/key";
    assert_eq!(says(&client, &source, secret).await, "sesame");
    says(&client, "sbox-2", &format!("! {secret}")).await;
    let request = LiveForkRequest {
        secrets: Some(vec!["key".into()]),
        ..LiveForkRequest::default()
    };
    // Of a fork, too.
    let forked = client.fork_live("sbox-2", &request, ForkWait::Agent, Some(BOOT));
    let grandchild = forked.await.unwrap().vms.remove(0).hostname;
    assert_eq!(says(&client, &grandchild, secret).await, "sesame");
    counts(&client, &grandchild).await;

    // What one writes is nobody else's, and survives whoever it came from.
    for vm in [source.as_str(), "sbox-2", "sbox-3", &grandchild] {
        says(&client, vm, &format!("echo {vm} > ~/file; sync")).await;
    }
    client.suspend("sbox-3").await.unwrap();
    client.restore("sbox-3", BOOT).await.unwrap();
    counts(&client, "sbox-3").await;
    client.delete_node("sbox", &source).await.unwrap();
    for vm in ["sbox-2", "sbox-3", &grandchild] {
        let read = "md5sum /usr/bin/* > /dev/null; cat ~/file";
        assert_eq!(says(&client, vm, read).await, vm);
    }
    for vm in ["sbox-2", "sbox-3", &grandchild] {
        client.delete_node("sbox", vm).await.unwrap();
    }
    // Nothing is left of it.
    assert!(
        soon(LIMIT, || template::directories(&daemon).len() == 1),
        "{:?}",
        template::directories(&daemon)
    );
    let refused = daemon.cli(&["vm", "fork", "--live", "sbox-9"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    drop(client);
    daemon.stop();
}

/// A fork parts its source's disk in two, of which the source goes on with the upper: the lower is there
/// until its disk, or what it has become, is not.
async fn the_disk_of_a_fork_goes_with_its_last_reader() {
    let setup = Setup {
        warm: false,
        ..template::minimal()
    };
    let daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    let source = persistent(&client).await;
    let fork = async || {
        let forked = fork_of(&client, &source).await;
        client.delete_node("sbox", &forked).await.unwrap();
        assert_eq!(template::directories(&daemon).len(), 1);
        off(&client, &source).await;
    };
    fork().await;
    client.reset_disk(&source).await.unwrap();
    assert_eq!(template::directories(&daemon), Vec::<PathBuf>::new());

    client.relaunch(&source).await.unwrap();
    ready(&client, &source).await;
    fork().await;
    let commit = CommitRequest::default();
    let commit = client.commit(&source, &commit).await.unwrap().commit_id;
    client.delete_node("sbox", &source).await.unwrap();
    assert_eq!(template::directories(&daemon).len(), 1);
    client.delete_commit(&commit).await.unwrap();
    assert_eq!(template::directories(&daemon), Vec::<PathBuf>::new());
    drop(client);
    daemon.stop();
}
