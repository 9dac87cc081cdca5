//! Guests of images that were not made for VMs: without an init, without glibc, or with all that
//! layers can have in them.

use crate::agent;
use crate::lifecycle::{check_disk, launch, names, ready};
use crate::tests;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, ExecBuffered, ExecRequest, NodeStatus};
use slicer_client::Client;
use slicer_testkit::{
    BOOT, Image, LIMIT, Setup, TestDaemon, debian_tool, minimal_layout, wait_until,
};
use std::fs;
use std::path::Path;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("foreign": debian_without_an_init, busybox_alone, a_layer_of_everything)
}

/// A tar archive that is being made.
pub(crate) struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(&mut self, kind: tar::EntryType, path: &str, mode: u32, link: &str, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        let done = if link.is_empty() {
            self.0.append_data(&mut header, path, data)
        } else {
            self.0.append_link(&mut header, path, link)
        };
        done.unwrap();
    }

    pub(crate) fn dir(&mut self, path: &str, mode: u32) {
        self.entry(tar::EntryType::Directory, path, mode, "", b"");
    }

    fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entry(tar::EntryType::Regular, path, mode, "", data);
    }

    /// A file with extended attributes, as Docker and others write them.
    fn with_attributes(&mut self, path: &str, mode: u32, attributes: &[(&str, &[u8])]) {
        let attributes: Vec<_> = attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
            .collect();
        let pax = attributes.iter().map(|(name, value)| (&**name, *value));
        self.0.append_pax_extensions(pax).unwrap();
        self.file(path, mode, b"#!/bin/sh\n");
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A root whose only program is BusyBox.
pub(crate) fn busybox() -> Vec<u8> {
    busybox_of(&debian_tool("bin/busybox"))
}

/// Likewise, of this program.
pub(crate) fn busybox_of(program: &Path) -> Vec<u8> {
    let mut root = Archive::new();
    let program = fs::read(program).unwrap();
    for dir in ["bin", "etc", "root"] {
        root.dir(dir, 0o755);
    }
    root.file("bin/busybox", 0o755, &program);
    for name in [
        "sh", "cat", "echo", "hostname", "id", "ls", "stat", "modprobe", "ps", "sleep", "nslookup",
        "ip", "date", "cut", "grep", "kill", "touch", "wc", "tr", "mount", "env", "true", "mkdir",
        "readlink", "lsmod", "awk", "sync", "fstrim", "dd", "rm", "find", "umount", "test",
        "uname",
    ] {
        root.entry(
            tar::EntryType::Symlink,
            &format!("bin/{name}"),
            0o777,
            "busybox",
            b"",
        );
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1001:1001::/home/ada:/bin/bash\n";
    root.file("etc/passwd", 0o644, passwd.as_bytes());
    root.file("etc/group", 0o644, b"root:x:0:\nada:x:1001:\n");
    root.done()
}

/// What a command line of sh gives, as the default user or as root.
pub(crate) async fn run(client: &Client, vm: &str, root: bool, script: &str) -> ExecBuffered {
    let mut request = ExecRequest {
        cmd: script.to_owned(),
        // What clients ask for whose users didn't choose.
        shell: Some("/bin/bash".to_owned()),
        ..ExecRequest::default()
    };
    if root {
        request.uid = 0;
    }
    let done = client.exec_buffered(vm, &request);
    tokio::time::timeout(BOOT, done).await.unwrap().unwrap()
}

pub(crate) async fn says_as(client: &Client, vm: &str, root: bool, script: &str) -> String {
    let done = run(client, vm, root, script).await;
    assert_eq!(done.exit_code, 0, "{script}: {done:?}");
    done.stdout.trim_end().to_owned()
}

pub(crate) async fn root(client: &Client, vm: &str, script: &str) -> String {
    says_as(client, vm, true, script).await
}

pub(crate) fn start(image: String) -> TestDaemon {
    let mut setup = Setup::sandboxes();
    setup.image = Some(image);
    TestDaemon::start(&setup)
}

pub(crate) async fn persistent(client: &Client) -> String {
    let request = CreateNode {
        persistent: true,
        ..CreateNode::default()
    };
    launch(client, &request).await
}

/// All that a VM can do whatever its image: `user` is its default user.
pub(crate) async fn does_everything(daemon: &TestDaemon, client: &Client, vm: &str, user: &str) {
    assert_eq!(root(client, vm, "id -u").await, "0");
    assert_eq!(says_as(client, vm, false, "id -un").await, user);
    assert_eq!(root(client, vm, "cat /proc/sys/kernel/hostname").await, vm);
    assert_eq!(root(client, vm, "cat /etc/hostname").await, vm);
    network(client, vm).await;
    mounts(client, vm).await;
    zombies(client, vm).await;
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let guest: u64 = root(client, vm, "date +%s").await.parse().unwrap();
    assert!(guest.abs_diff(host.unwrap().as_secs()) < 30, "{guest}");
    assert_eq!(root(client, vm, "date +%Z").await, "UTC");
    programs(daemon, vm, user).await;
    modules(client, vm).await;
}

async fn network(client: &Client, vm: &str) {
    let ip = client.node(vm).await.unwrap().node.ip;
    let addresses = root(client, vm, "cat /proc/net/fib_trie").await;
    assert!(addresses.contains(&format!("-- {ip}\n")), "{addresses}");
    // The default route: destination 0, and flags "up" and "gateway".
    let routes = root(client, vm, "cat /proc/net/route").await;
    let default = routes.lines().find(|l| l.contains("\t00000000\t")).unwrap();
    assert_eq!(default.split('\t').nth(3), Some("0003"), "{routes}");
    let resolvers = root(client, vm, "cat /etc/resolv.conf").await;
    assert!(resolvers.contains("nameserver 8.8.8.8"), "{resolvers}");
    let hosts = root(client, vm, "cat /etc/hosts").await;
    assert!(hosts.contains(&format!("127.0.1.1 {vm}")), "{hosts}");
}

async fn mounts(client: &Client, vm: &str) {
    let mounts = root(client, vm, "cat /proc/mounts").await;
    for (place, kind) in [
        ("/", "ext4"),
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "devtmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/run", "tmpfs"),
        ("/tmp", "tmpfs"),
        ("/sys/fs/cgroup", "cgroup2"),
        ("/lib/modules", "ext4"),
    ] {
        let there = mounts.lines().any(|line| {
            let mut words = line.split(' ').skip(1);
            let at = words.next().unwrap_or_default();
            let is = at == place || (place == "/lib/modules" && at == "/usr/lib/modules");
            is && words.next() == Some(kind)
        });
        assert!(there, "no {kind} on {place}:\n{mounts}");
    }
    for place in ["/tmp", "/dev/shm"] {
        let script = format!("touch {place}/mine && rm {place}/mine");
        says_as(client, vm, false, &script).await;
    }
    says_as(
        client,
        vm,
        false,
        "echo x > /dev/null; : < /dev/fd/0 && ls /dev/stdout",
    )
    .await;
}

/// The orphans of a command are reaped by PID 1.
async fn zombies(client: &Client, vm: &str) {
    root(
        client,
        vm,
        "for i in 1 2 3 4 5; do (true & true &) ; done; (sleep 1 & ) ; true",
    )
    .await;
    wait_until("no zombie is left", LIMIT, async || {
        let script = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true";
        root(client, vm, script).await == "0"
    })
    .await;
    let first = root(client, vm, "cat /proc/1/comm").await;
    assert!(["slicer-agent", "init"].contains(&&*first), "{first}");
}

/// The command's own ways into a VM.
async fn programs(daemon: &TestDaemon, vm: &str, user: &str) {
    let exec = daemon.cli(&["vm", "exec", vm, "--", "id", "-un"]).await;
    assert_eq!((exec.text().trim(), exec.code), (user, 0), "{exec:?}");
    let typed = Some(b"echo shell-$((6 * 7)); exit\n".to_vec());
    let shell = daemon.cli_with(&["vm", "shell", vm], typed).await;
    assert!(shell.text().contains("shell-42"), "{shell:?}");
    let file = daemon.dir().join("copied");
    fs::write(&file, "across").unwrap();
    let name = file.to_str().unwrap();
    let there = daemon
        .cli(&["vm", "cp", name, &format!("{vm}:/tmp/copied")])
        .await;
    assert_eq!(there.code, 0, "{there:?}");
    let listed = daemon
        .raw()
        .get(&format!("/vm/{vm}/fs/readdir?path=/tmp"))
        .await;
    assert!(listed.text().contains("\"copied\""), "{}", listed.text());
    fs::remove_file(&file).unwrap();
    let back = daemon
        .cli(&["vm", "cp", &format!("{vm}:/tmp/copied"), name])
        .await;
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "across");
    let query = "cmd=/bin/sh&args=-c&args=echo%20behind&background=true";
    let begun = daemon
        .raw()
        .post(&format!("/vm/{vm}/exec?{query}"), "")
        .await;
    assert_eq!(begun.status, 201, "{}", begun.text());
    let id = begun.json()["exec_id"].as_str().unwrap().to_owned();
    let log = daemon
        .raw()
        .get(&format!("/vm/{vm}/exec/{id}/logs?follow=true"))
        .await;
    assert!(log.text().contains("behind"), "{}", log.text());
}

/// What Docker and K3s need of the kernel is there.
async fn modules(client: &Client, vm: &str) {
    let names = "overlay br_netfilter bridge veth nf_tables ip_tables iptable_nat nf_conntrack \
                 xt_conntrack xt_MASQUERADE vxlan";
    root(
        client,
        vm,
        &format!("for m in {names}; do slicer-agent modprobe $m || exit 1; done"),
    )
    .await;
    let loaded = root(client, vm, "cut -d' ' -f1 /proc/modules").await;
    for name in names.split_whitespace() {
        assert!(loaded.lines().any(|l| l == name), "{name}: {loaded}");
    }
    let missing = run(client, vm, true, "slicer-agent modprobe no_such_module").await;
    assert_ne!(missing.exit_code, 0);
    assert!(missing.stderr.contains("no_such_module"), "{missing:?}");
    // The kernel asks for modules itself: this one by the alias of a file system's name.
    let script = "mkdir -p /run/f && mount -t fuse -o fd=0,rootmode=040000,user_id=0,group_id=0 \
                  none /run/f </dev/null 2>/dev/null; grep -q fuse /proc/filesystems";
    root(client, vm, script).await;
}

/// Kills the agent's worker, and waits for the one that its supervisor starts.
pub(crate) async fn kill_worker(client: &Client, vm: &str) {
    agent::kill(client, vm, "kill -9 $PPID").await;
}

/// A persistent VM goes down clean when asked, and comes back as it was.
pub(crate) async fn goes_and_comes_back(daemon: &TestDaemon, client: &Client, vm: &str) {
    says_as(client, vm, false, "echo precious > ~/kept").await;
    kill_worker(client, vm).await;
    let asked = daemon.cli(&["vm", "shutdown", vm]).await;
    assert_eq!(asked.code, 0, "{asked:?}");
    let off = (vm.to_owned(), NodeStatus::Stopped);
    wait_until("it is off", BOOT, async || {
        names(client).await.contains(&off)
    })
    .await;
    assert!(
        !daemon.log().contains("pressing the button"),
        "{}",
        daemon.log()
    );
    assert!(
        !daemon.log().contains("switching it off"),
        "{}",
        daemon.log()
    );
    check_disk(&daemon.dir().join(format!("{vm}.img")));
    let again = daemon.cli(&["vm", "relaunch", vm]).await;
    assert_eq!(again.code, 0, "{again:?}");
    ready(client, vm).await;
    assert_eq!(says_as(client, vm, false, "cat ~/kept").await, "precious");
}

async fn debian_without_an_init() {
    let daemon = start(format!("oci:{}:latest", minimal_layout().display()));
    let client = daemon.client();
    let vm = persistent(&client).await;
    root(&client, &vm, "test ! -e /sbin/init").await;
    does_everything(&daemon, &client, &vm, "debian").await;
    assert_eq!(
        root(&client, &vm, "getent hosts $(hostname) | cut -d' ' -f1").await,
        "127.0.1.1"
    );
    assert_eq!(
        says_as(&client, &vm, false, "echo $BASH").await,
        "/bin/bash"
    );
    goes_and_comes_back(&daemon, &client, &vm).await;
    drop(client);
    daemon.stop();
}

async fn busybox_alone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(Image::default().layer(busybox()).write(dir.path()));
    let client = daemon.client();
    let vm = persistent(&client).await;
    root(&client, &vm, "test ! -e /bin/bash && test ! -e /lib64").await;
    // Nobody is 1000; the home isn't there, and the shell neither.
    root(
        &client,
        &vm,
        "mkdir -p /home/ada && chown ada:ada /home/ada 2>/dev/null || \
         /bin/busybox chown ada:ada /home/ada",
    )
    .await;
    does_everything(&daemon, &client, &vm, "ada").await;
    root(&client, &vm, "modprobe xfs && lsmod | grep -q ^xfs").await;
    goes_and_comes_back(&daemon, &client, &vm).await;
    drop(client);
    daemon.stop();
}

/// Files in the layer of everything.
const MANY: usize = 100_000;

/// `cap_net_raw+ep` as the kernel keeps it: a vfs_cap_data of revision 2.
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn everything(dir: &Path) -> String {
    let mut low = Archive::new();
    for path in ["t", "t/opaque", "t/gone-dir", "t/replaced", "t/many"] {
        low.dir(path, 0o755);
    }
    for path in [
        "t/opaque/old",
        "t/gone-dir/file",
        "t/gone",
        "t/replaced/file",
        "t/kept",
    ] {
        low.file(path, 0o644, b"low");
    }
    low.file("t/one", 0o640, b"linked");
    low.entry(tar::EntryType::Link, "t/two", 0o640, "t/one", b"");
    low.entry(tar::EntryType::Link, "t/three", 0o640, "t/one", b"");
    low.file("t/setuid", 0o4755, b"#!/bin/sh\n");
    low.file("t/setgid", 0o2755, b"#!/bin/sh\n");
    low.dir("t/sticky", 0o1777);
    low.with_attributes("t/capable", 0o755, &[("security.capability", &NET_RAW)]);
    low.with_attributes(
        "t/noted",
        0o644,
        &[("user.note", b"hello"), ("user.b", b"\0\xff")],
    );
    for n in 0..MANY {
        low.file(&format!("t/many/{}/{n}", n % 100), 0o644, b"");
    }
    let mut high = Archive::new();
    high.file("t/.wh.gone", 0o644, b"");
    high.file("t/.wh.gone-dir", 0o644, b"");
    high.file("t/opaque/.wh..wh..opq", 0o644, b"");
    high.file("t/opaque/new", 0o644, b"high");
    high.file("t/replaced", 0o600, b"a file now");
    // One name of three: the others stay one file.
    high.file("t/three", 0o644, b"alone");
    Image::from_layout(&minimal_layout())
        .layer(low.done())
        .layer(high.done())
        .write(dir)
}

async fn a_layer_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(everything(dir.path()));
    let client = daemon.client();
    let vm = persistent(&client).await;
    let says = async |script: &str| root(&client, &vm, script).await;
    let gone = "test ! -e /t/gone && test ! -e /t/gone-dir && test ! -e /t/opaque/old";
    says(gone).await;
    assert_eq!(says("find /t -name '.wh.*'").await, "");
    assert_eq!(
        says("cat /t/opaque/new /t/kept /t/replaced").await,
        "highlowa file now"
    );
    assert_eq!(
        says("stat -c %h:%a /t/one /t/two /t/three").await,
        "2:640\n2:640\n1:644"
    );
    let inodes = says("stat -c %i /t/one /t/two").await;
    let (one, two) = inodes.split_once('\n').unwrap();
    assert_eq!(one, two);
    assert_eq!(
        says("stat -c %a /t/setuid /t/setgid /t/sticky").await,
        "4755\n2755\n1777"
    );
    assert_eq!(says("getcap /t/capable").await, "/t/capable cap_net_raw=ep");
    assert_eq!(
        says("getfattr --only-values -n user.note /t/noted").await,
        "hello"
    );
    assert!(
        says("getfattr -e hex -n user.b /t/noted")
            .await
            .contains("user.b=0x00ff")
    );
    assert_eq!(says("find /t/many -type f | wc -l").await, MANY.to_string());
    // A program with a capability of its own, and one that is root's, as the default user.
    says("cp /bin/cat /t/reader && chmod 4755 /t/reader").await;
    says_as(&client, &vm, false, "/t/reader /etc/shadow > /dev/null").await;
    goes_and_comes_back(&daemon, &client, &vm).await;
    drop(client);
    daemon.stop();
}
