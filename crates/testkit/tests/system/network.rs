//! Networks of real VMs, on a host that is a network namespace of its own.

#[path = "network/outside.rs"]
mod outside;

use crate::lifecycle::launch;
use crate::live::fork_of;
use crate::ssh::key_pair;
use crate::tests;
use crate::tour::{says, sh};
use libtest_mimic::Trial;
use outside::{HOST, HOST_TOO, NAME, OTHER, Outside, WORLD, run};
use slicer_api::{CreateNode, NetworkPolicy};
use slicer_client::Client;
use slicer_testkit::{Group, LIMIT, SBOX, Setup, TestDaemon, alive, run_command, soon, wait_until};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

pub(crate) fn trials() -> Vec<Trial> {
    let trials = tests!("network": nat, bridge, isolated, without_privileges);
    // Making namespaces takes root; without it the tests are shown as ignored.
    let root = rustix::process::geteuid().is_root();
    let trials = trials.into_iter();
    trials.map(|t| t.with_ignored_flag(!root)).collect()
}

/// A daemon on the host, with a group of small VMs in this network.
fn daemon(outside: &Outside, network: &str) -> TestDaemon {
    let mut setup = Setup::of([Group {
        ram_mb: 256,
        ..SBOX
    }]);
    setup.group = format!("      network: {{{network}, dns_servers: [{WORLD}]}}\n");
    setup.wrap = outside.on_host();
    TestDaemon::start(&setup)
}

/// What a server on this port says to a VM, if anybody answers.
async fn fetch(client: &Client, vm: &str, to: Ipv4Addr, port: u16) -> Option<String> {
    let script = format!("timeout 10 bash -c 'exec 3<>/dev/tcp/{to}/{port} && head -n 1 <&3'");
    let done = sh(client, vm, &script).await;
    (done.exit_code == 0).then(|| done.stdout.trim().to_owned())
}

/// Checks what the agent set, and that names are resolved by the group's own server.
async fn check_identity(client: &Client, vm: &str, gateway: &str) -> Ipv4Addr {
    let ip = client.node(vm).await.unwrap().node.ip;
    let own = "ip -4 -br address show scope global | awk '{print $3}'";
    assert_eq!(says(client, vm, own).await, format!("{ip}/24"));
    let route = says(client, vm, "ip -4 route show default").await;
    assert!(route.contains(&format!("via {gateway} ")), "{route}");
    let resolver = says(client, vm, "grep ^nameserver /etc/resolv.conf").await;
    assert_eq!(resolver, format!("nameserver {WORLD}"));
    let found = says(client, vm, &format!("getent ahostsv4 {NAME} | head -n 1")).await;
    assert!(found.starts_with(&WORLD.to_string()), "{found}");
    assert_ne!(sh(client, vm, "getent hosts other.test").await.exit_code, 0);
    ip.parse().unwrap()
}

async fn nat() {
    let outside = Outside::new();
    let daemon = daemon(&outside, "mode: nat, gateway: 10.76.0.1/24");
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    let ip = check_identity(&client, &vm, "10.76.0.1").await;
    assert_eq!(ip, Ipv4Addr::new(10, 76, 0, 2));
    let host = Some(HOST.to_string());
    assert_eq!(fetch(&client, &vm, WORLD, 80).await, host);
    assert_eq!(outside.devices(), [""; 0]);
    assert_eq!(outside.rules(), "");
    let lists = r#"{"network":{"allow":["10.0.0.1"]}}"#;
    let refused = daemon.raw().post("/hostgroup/sbox/nodes", lists).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    drop(client);
    daemon.stop();
}

/// Has the world try to reach a VM by the way through the host.
fn check_unseen(outside: &Outside, net: &str, vm: Ipv4Addr) {
    let route = format!("ip -n {} route replace {net} via {HOST}", outside.world);
    run(&route);
    let ssh = SocketAddr::from((vm, 22));
    assert_eq!(Outside::greeting(&outside.world, ssh), None);
    run(&route.replace("replace", "del"));
}

/// Waits until the host can talk to a VM's SSH server by the VM's address.
async fn until_seen(outside: &Outside, vm: Ipv4Addr) {
    let ssh = SocketAddr::from((vm, 22));
    wait_until("the host sees the VM", LIMIT, async || {
        Outside::greeting(&outside.host, ssh).is_some_and(|text| text.starts_with("SSH-"))
    })
    .await;
}

/// Where the host listens for what VMs count.
const COUNTED: u16 = 7000;

/// What the host hears of VMs.
struct Heard {
    lines: Lines<BufReader<ChildStdout>>,
    _listener: Child,
}

impl Heard {
    /// Has a VM tell the host all numbers, one after the other, and waits for the first.
    async fn of(outside: &Outside, client: &Client, vm: &str) -> Self {
        let listen = format!(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.bind(('0.0.0.0', {COUNTED}))\n\
             while True:\n data, (ip, _) = s.recvfrom(64)\n print(ip, data.decode(), flush=True)"
        );
        let words = outside.on_host();
        let mut listener = Command::new(&words[0]);
        listener
            .args(&words[1..])
            .args(["python3", "-c", &listen])
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut listener = listener.spawn().unwrap();
        let lines = BufReader::new(listener.stdout.take().unwrap()).lines();
        let tell = format!(
            "use IO::Socket::INET; while (1) {{ select undef, undef, undef, 0.002; \
             my $s = IO::Socket::INET->new(PeerAddr => \"{HOST_TOO}:{COUNTED}\", Proto => \"udp\") \
             or next; $s->send(++$n) }}"
        );
        let script = format!("perl -e '{tell}' </dev/null >/dev/null 2>&1 &");
        says(client, vm, &script).await;
        let mut heard = Self {
            lines,
            _listener: listener,
        };
        heard.next().await;
        heard
    }

    /// Who said what next.
    async fn next(&mut self) -> (Ipv4Addr, String) {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
        let line = line.unwrap().unwrap().unwrap();
        let (ip, number) = line.split_once(' ').unwrap();
        (ip.parse().unwrap(), number.to_owned())
    }

    /// Checks that nobody but this VM said anything in its name, and that its fork, once it is told who it is,
    /// goes on in its own.
    async fn check(mut self, vm: Ipv4Addr, forked: Ipv4Addr) {
        let (mut own, mut after) = (BTreeSet::new(), 0);
        while after < 20 {
            let (ip, number) = self.next().await;
            if ip == vm {
                assert!(own.insert(number.clone()), "{vm} said {number} twice");
            } else {
                assert_eq!(ip, forked);
                after += 1;
            }
        }
        assert!(own.len() > 20, "{own:?}");
    }
}

/// What is left of networks is nothing.
fn check_clean(outside: &Outside) {
    let clean = soon(LIMIT, || {
        outside.devices().is_empty() && outside.rules().is_empty()
    });
    assert!(clean, "{:?}\n{}", outside.devices(), outside.rules());
}

/// Kills the daemon, and looks at what the next one makes of it.
fn crash_and_come_back(daemon: &mut TestDaemon, outside: &Outside) {
    let pids = daemon.processes();
    assert!(!pids.is_empty());
    daemon.crash();
    assert!(soon(LIMIT, || !pids.iter().any(|pid| alive(*pid))));
    assert!(!outside.rules().is_empty());
    daemon.launch();
    check_clean(outside);
}

async fn bridge() {
    let outside = Outside::new();
    let network = "mode: bridge, gateway: 10.77.0.1/24, range: 10.77.0.10-10.77.0.11, \
                   bridge: br-test, tap_prefix: tap-test";
    let mut daemon = daemon(&outside, network);
    let client = daemon.client();
    let home = tempfile::tempdir().unwrap();
    let request = CreateNode {
        ssh_keys: vec![key_pair(home.path()).await],
        ..CreateNode::default()
    };
    let (one, two) = tokio::join!(launch(&client, &request), launch(&client, &request));
    let one_ip = check_identity(&client, &one, "10.77.0.1").await;
    let two_ip = check_identity(&client, &two, "10.77.0.1").await;
    let mut ips = [one_ip, two_ip].map(|ip| ip.octets()[3]);
    ips.sort_unstable();
    assert_eq!(ips, [10, 11]);
    let full = daemon.raw().post("/hostgroup/sbox/nodes", "{}").await;
    assert_eq!(full.status, 409, "{}", full.text());
    let mut devices = outside.devices();
    devices.sort();
    assert_eq!(devices, ["br-test", "tap-test0", "tap-test1"]);

    // Out, in the host's name; to the host; to each other; and in from the host, but not the world.
    let host = Some(HOST.to_string());
    assert_eq!(fetch(&client, &one, WORLD, 80).await, host);
    let own = Some(one_ip.to_string());
    assert_eq!(fetch(&client, &one, HOST_TOO, 80).await, own);
    until_seen(&outside, one_ip).await;
    until_seen(&outside, two_ip).await;
    let neighbour = fetch(&client, &one, two_ip, 22).await;
    assert!(neighbour.is_some_and(|text| text.starts_with("SSH-")));
    check_unseen(&outside, "10.77.0.0/24", one_ip);
    let words = outside.on_host();
    let mut ssh = Command::new(&words[0]);
    ssh.args(&words[1..])
        .args(["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-i"])
        .arg(home.path().join("key"))
        .args(["-o", "StrictHostKeyChecking=no", "-o"])
        .args(["UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
        .args([&format!("ubuntu@{one_ip}"), "hostname"]);
    assert_eq!(run_command(ssh, None).await.text(), format!("{one}\n"));

    // A fork takes up another place on the bridge, and leaves its source's to it.
    client.delete_node("sbox", &two).await.unwrap();
    assert!(soon(LIMIT, || outside.devices().len() == 2));
    let heard = Heard::of(&outside, &client, &one).await;
    let forked = fork_of(&client, &one).await;
    let forked_ip = check_identity(&client, &forked, "10.77.0.1").await;
    assert_ne!(forked_ip, one_ip);
    heard.check(one_ip, forked_ip).await;
    assert_eq!(outside.devices().len(), 3, "{:?}", outside.devices());
    until_seen(&outside, forked_ip).await;
    for vm in [&forked, &one] {
        assert_eq!(fetch(&client, vm, WORLD, 80).await, host, "{vm}");
    }
    let neighbour = fetch(&client, &forked, one_ip, 22).await;
    assert!(neighbour.is_some_and(|text| text.starts_with("SSH-")));
    client.delete_node("sbox", &forked).await.unwrap();
    assert!(soon(LIMIT, || outside.devices().len() == 2));

    // A VM that was suspended is on the bridge again.
    client.suspend(&one).await.unwrap();
    check_clean(&outside);
    let restored = daemon.cli(&["vm", "restore", &one]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(fetch(&client, &one, WORLD, 80).await, host);
    until_seen(&outside, one_ip).await;

    drop(client);
    crash_and_come_back(&mut daemon, &outside);
    let client = daemon.client();
    let again = launch(&client, &request).await;
    assert_eq!(fetch(&client, &again, WORLD, 80).await, host);
    drop(client);
    daemon.terminate();
    check_clean(&outside);
}

async fn isolated() {
    let outside = Outside::new();
    let network =
        format!("mode: isolated, gateway: 10.78.0.1/24, allow: ['{WORLD}:80', '{WORLD}:53']");
    let mut daemon = daemon(&outside, &network);
    let client = daemon.client();
    let strings = |list: &[String]| Some(list.to_vec());
    let own = NetworkPolicy {
        allow: strings(&[format!("{OTHER}:80"), format!("{WORLD}:53")]),
        drop: strings(&["203.0.113.0/24".to_owned()]),
    };
    let request = CreateNode {
        network: Some(own.clone()),
        ..CreateNode::default()
    };
    let plain = CreateNode::default();
    let (one, two) = tokio::join!(launch(&client, &plain), launch(&client, &request));
    let one_ip = check_identity(&client, &one, "10.78.0.1").await;
    let two_ip = check_identity(&client, &two, "10.78.0.1").await;

    // The group's list: that, and nothing else.
    let host = Some(HOST.to_string());
    assert_eq!(fetch(&client, &one, WORLD, 80).await, host);
    assert_eq!(fetch(&client, &one, WORLD, 81).await, None);
    assert_eq!(fetch(&client, &one, OTHER, 80).await, None);
    assert_eq!(fetch(&client, &one, HOST_TOO, 80).await, None);
    // Its own lists: what is allowed wins, and what neither has may pass.
    assert_eq!(fetch(&client, &two, OTHER, 80).await, host);
    assert_eq!(fetch(&client, &two, OTHER, 81).await, None);
    assert_eq!(fetch(&client, &two, WORLD, 80).await, None);
    let known = Some(two_ip.to_string());
    assert_eq!(fetch(&client, &two, HOST_TOO, 80).await, known);
    // But for the host's end of the way to it, which no list has.
    let hidden = Ipv4Addr::new(169, 254, 0, 1);
    assert_eq!(fetch(&client, &two, hidden, 80).await, None);
    let node = client.node(&two).await.unwrap();
    assert_eq!(node.network.mode, "isolated");
    assert_eq!(node.network.policy_source, "override");
    assert_eq!(node.network.effective, own);
    assert_eq!(node.network.override_, Some(own.clone()));

    // A fork may no more than its source.
    let forked = fork_of(&client, &two).await;
    let forked_ip = check_identity(&client, &forked, "10.78.0.1").await;
    assert_ne!(forked_ip, two_ip);
    let node = client.node(&forked).await.unwrap();
    assert_eq!(node.network.override_, Some(own));
    let known = Some(forked_ip.to_string());
    assert_eq!(fetch(&client, &forked, OTHER, 80).await, host);
    assert_eq!(fetch(&client, &forked, OTHER, 81).await, None);
    assert_eq!(fetch(&client, &forked, WORLD, 80).await, None);
    assert_eq!(fetch(&client, &forked, HOST_TOO, 80).await, known);
    assert_eq!(fetch(&client, &forked, two_ip, 22).await, None);
    until_seen(&outside, forked_ip).await;
    client.delete_node("sbox", &forked).await.unwrap();
    assert!(soon(LIMIT, || outside.devices().len() == 2));

    // The host sees them, nobody else does.
    until_seen(&outside, one_ip).await;
    until_seen(&outside, two_ip).await;
    assert_eq!(fetch(&client, &two, one_ip, 22).await, None);
    check_unseen(&outside, "10.78.0.0/24", one_ip);
    assert_eq!(outside.devices().len(), 2, "{:?}", outside.devices());

    let wrong = r#"{"network":{"allow":["nowhere"]}}"#;
    let refused = daemon.raw().post("/hostgroup/sbox/nodes", wrong).await;
    assert_eq!(refused.status, 400, "{}", refused.text());

    client.suspend(&one).await.unwrap();
    assert!(soon(LIMIT, || outside.devices().len() == 1));
    let restored = daemon.cli(&["vm", "restore", &one]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(fetch(&client, &one, WORLD, 80).await, host);
    assert_eq!(fetch(&client, &one, WORLD, 81).await, None);

    drop(client);
    crash_and_come_back(&mut daemon, &outside);
    daemon.terminate();
    check_clean(&outside);
}

async fn without_privileges() {
    let words = ["setpriv", "--bounding-set=-net_admin", "--"];
    let mut setup = Setup::of([SBOX]);
    setup
        .group
        .push_str("      network: {mode: bridge, gateway: 10.79.0.1/24}\n");
    setup.wrap = words.map(str::to_owned).to_vec();
    let daemon = TestDaemon::start(&setup);
    let query = "/hostgroup/sbox/nodes?wait=agent&timeout=60s";
    let refused = daemon.raw().post(query, "{}").await;
    assert_eq!(refused.status, 501, "{}", refused.text());
    let text = refused.text();
    assert!(text.contains("use `mode: nat`, or run"), "{text}");
    assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    daemon.stop();
}
