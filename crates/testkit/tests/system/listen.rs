//! Listeners, and what keeps a daemon from starting.

use crate::lifecycle::{names, sandbox};
use crate::tests;
use crate::tour::says;
use hyper::Method;
use libtest_mimic::Trial;
use slicer_api::Endpoint;
use slicer_testkit::{BOOT, RawClient, SBOX, Setup, TestDaemon, free_port, run_daemon, soon};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("listen": tcp_asks_for_the_token, a_generated_token, a_second_daemon, daemons_of_two_directories, a_port_in_use,
        configurations_that_cannot_be, an_image_that_is_not_there, a_full_disk,
        an_end_asked_for)
}

fn tcp(port: u16) -> RawClient {
    RawClient::new(Endpoint::Http {
        authority: format!("127.0.0.1:{port}"),
    })
}

async fn tcp_asks_for_the_token() {
    let port = free_port();
    let mut setup = Setup::sandboxes();
    setup.api =
        format!("    bind_address: 127.0.0.1\n    port: {port}\n    auth:\n      token: sesame\n");
    let daemon = TestDaemon::start(&setup);
    let raw = tcp(port);
    let with = async |value: &str| {
        let headers = [("authorization", value)];
        raw.send_with(Method::GET, "/nodes", &headers, "")
            .await
            .status
            .as_u16()
    };
    assert_eq!(raw.get("/nodes").await.status, 401);
    assert_eq!(raw.get("/metrics").await.status, 401);
    assert_eq!(raw.post("/hostgroup/sbox/nodes", "{}").await.status, 401);
    for wrong in [
        "Bearer ",
        "Bearer sesam",
        "Bearer sesamee",
        "Basic sesame",
        "sesame",
    ] {
        assert_eq!(with(wrong).await, 401, "{wrong}");
    }
    assert_eq!(with("Bearer sesame").await, 200);
    assert_eq!(raw.get("/healthz").await.status, 200);
    let head = raw.send(Method::HEAD, "/healthz", "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    // The socket needs none, and minds none.
    for value in ["Bearer ", "Bearer wrong"] {
        let answer = daemon
            .raw()
            .send_with(Method::GET, "/nodes", &[("authorization", value)], "")
            .await;
        assert_eq!(answer.status, 200);
    }
    let url = format!("http://127.0.0.1:{port}");
    let refused = daemon.cli(&["--url", &url, "vm", "list"]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("--token"), "{refused:?}");
    daemon
        .cli(&["--url", &url, "--token", "sesame", "vm", "list"])
        .await
        .text();
    assert!(!daemon.log().contains("sesame"), "the token is in the log");
    daemon.stop();
}

async fn a_generated_token() {
    let port = free_port();
    let mut setup = Setup::sandboxes();
    setup.api = format!("    port: {port}\n");
    let mut daemon = TestDaemon::start(&setup);
    let file = daemon.dir().join(".slicer/auth/token");
    let token = fs::read_to_string(&file).unwrap();
    assert!(token.trim().len() >= 32, "{token}");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.dir().join(".slicer")), 0o700);
    assert_eq!(mode(&daemon.dir().join("slicer.sock")), 0o600);
    let url = format!("http://127.0.0.1:{port}");
    let args = [
        "--url",
        &url,
        "--token-file",
        file.to_str().unwrap(),
        "info",
    ];
    daemon.cli(&args).await.text();
    daemon.terminate();
    daemon.launch();
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        token,
        "a restart changes the token"
    );
    daemon.stop();
}

async fn a_second_daemon() {
    let mut daemon = TestDaemon::start(&Setup::sandboxes());
    let second = run_daemon(daemon.dir(), &["up"]);
    assert_eq!(second.code, Some(1));
    let pid = daemon.pid().to_string();
    assert!(
        second.stderr.contains(&pid) && second.stderr.contains("already runs"),
        "{second:?}"
    );
    daemon.client().healthz().await.unwrap();
    // A socket left by a daemon that crashed is in nobody's way.
    daemon.crash();
    let socket = daemon.dir().join("slicer.sock");
    assert!(
        fs::symlink_metadata(&socket)
            .unwrap()
            .file_type()
            .is_socket()
    );
    daemon.launch();
    daemon.client().healthz().await.unwrap();
    daemon.terminate();
    // Something else of that name is not removed.
    fs::write(&socket, "mine").unwrap();
    let refused = run_daemon(daemon.dir(), &["up"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("slicer.sock"), "{refused:?}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "mine");
}

async fn daemons_of_two_directories() {
    let (mut one, other) = (
        TestDaemon::start(&Setup::sandboxes()),
        TestDaemon::start(&Setup::sandboxes()),
    );
    // Each has its own sandbox of the same name and address.
    let clients = [one.client(), other.client()];
    let (a, b) = tokio::join!(sandbox(&clients[0]), sandbox(&clients[1]));
    assert_eq!((&*a, &*b), ("sbox-1", "sbox-1"));
    for (client, mark) in clients.iter().zip(["one", "other"]) {
        says(client, "sbox-1", &format!("echo {mark} > ~/mark")).await;
    }
    for (client, mark) in clients.iter().zip(["one", "other"]) {
        assert_eq!(says(client, "sbox-1", "cat ~/mark").await, mark);
        assert_eq!(names(client).await.len(), 1);
    }
    // Neither cleans up after the other.
    one.crash();
    one.launch();
    assert_eq!(names(&one.client()).await, []);
    assert_eq!(says(&clients[1], "sbox-1", "cat ~/mark").await, "other");
    drop(clients);
    one.stop();
    other.stop();
}

async fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::sandboxes();
    setup.api = format!("    port: {port}\n");
    fs::write(dir.path().join("slicer-mac.yaml"), setup.yaml("oci:/none")).unwrap();
    let refused = run_daemon(dir.path(), &["up"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(&port.to_string()), "{refused:?}");
    assert!(!dir.path().join("slicer.sock").exists());
}

async fn configurations_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let missing = run_daemon(dir.path(), &["up"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("slicer-mac.yaml"), "{missing:?}");
    let file = dir.path().join("slicer-mac.yaml");
    for (text, parts) in [
        ("config: 7\n", &["slicer-mac.yaml:1:9"][..]),
        (
            "config:\n  host_groups:\n    - name: a\n      vcpu: many\n",
            &["slicer-mac.yaml:4:", "vcpu"],
        ),
        ("config: [\n", &["slicer-mac.yaml:"]),
        ("", &["slicer-mac.yaml"]),
        ("\u{1}", &["slicer-mac.yaml"]),
    ] {
        fs::write(&file, text).unwrap();
        let refused = run_daemon(dir.path(), &["up"]);
        assert_eq!(refused.code, Some(1), "{text:?}: {refused:?}");
        for part in parts {
            assert!(refused.stderr.contains(part), "{text:?}: {refused:?}");
        }
    }
    assert_eq!(run_daemon(dir.path(), &["up", "a", "b"]).code, Some(2));
}

async fn an_image_that_is_not_there() {
    let mut setup = Setup::sandboxes();
    setup.image = Some("oci:/no/such/layout:latest".to_owned());
    let daemon = TestDaemon::start(&setup);
    let answer = daemon
        .raw()
        .post("/hostgroup/sbox/nodes?wait=agent", "{}")
        .await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(
        answer.text().contains("/no/such/layout"),
        "{}",
        answer.text()
    );
    assert_eq!(
        daemon.raw().get("/nodes").await.json(),
        serde_json::json!([])
    );
    assert!(!daemon.has_files_of("sbox-1"), "{:?}", daemon.files());
    daemon.stop();
}

/// A small file system in memory, for as long as this lives.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// None where this user can't mount.
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=0700"),
            "tmpfs",
        ]);
        let mounted = mount
            .arg(dir.path())
            .output()
            .is_ok_and(|o| o.status.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmount = || {
            let done = Command::new("umount").arg(self.0.path()).output();
            done.is_ok_and(|o| o.status.success())
        };
        soon(Duration::from_secs(10), unmount);
    }
}

async fn a_full_disk() {
    let Some(disk) = Tmpfs::new("4m") else {
        // Only root may mount.
        return;
    };
    let daemon = TestDaemon::start_at(disk.0.path(), &Setup::of([SBOX]));
    let full = disk.0.path().join("ballast");
    let fill = Command::new("fallocate")
        .args(["-l", "4m"])
        .arg(&full)
        .output()
        .unwrap();
    if !fill.status.success() {
        // All that is left, then.
        let zeros = fs::File::open("/dev/zero").unwrap();
        let copied = std::io::copy(&mut { zeros }, &mut fs::File::create(&full).unwrap());
        assert!(copied.is_err(), "the disk does not fill");
    }
    // A disk that is kept is a copy of the base; it does not fit by far.
    for body in [r#"{"persistent":true}"#, "{}"] {
        let answer = daemon.raw().post("/hostgroup/sbox/nodes", body).await;
        assert_eq!(answer.status, 507, "{body}: {}", answer.text());
        assert!(
            answer.text().contains("free some space"),
            "{}",
            answer.text()
        );
        assert_eq!(
            daemon.raw().get("/nodes").await.json(),
            serde_json::json!([])
        );
        assert!(!daemon.has_files_of("sbox-1"), "{:?}", daemon.files());
        assert_eq!(
            fs::read_dir(disk.0.path().join(".slicer/vms"))
                .unwrap()
                .count(),
            0
        );
    }
    fs::remove_file(full).unwrap();
    let answer = daemon
        .raw()
        .post("/hostgroup/sbox/nodes", r#"{"persistent":true}"#)
        .await;
    assert_eq!(answer.status, 507, "{}", answer.text());
    assert!(!daemon.has_files_of("sbox-1"), "{:?}", daemon.files());
    let unfinished = daemon
        .files()
        .into_iter()
        .filter(|f| f.contains("tmp"))
        .count();
    assert_eq!(unfinished, 0, "{:?}", daemon.files());
    // What fits is launched as ever.
    let answer = daemon.raw().post("/hostgroup/sbox/nodes", "{}").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    daemon.stop();
}

async fn an_end_asked_for() {
    let port = free_port();
    let mut setup = Setup::sandboxes();
    setup.api =
        format!("    bind_address: 127.0.0.1\n    port: {port}\n    auth:\n      token: sesame\n");
    let mut daemon = TestDaemon::start(&setup);
    let made = daemon.raw().post("/hostgroup/sbox/nodes", "{}").await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(tcp(port).post("/daemon/shutdown", "").await.status, 401);
    assert_eq!(daemon.raw().get("/daemon/shutdown").await.status, 405);
    let asked = daemon.raw().post("/daemon/shutdown", "").await;
    assert_eq!((asked.status.as_u16(), asked.body.len()), (202, 0));
    let status = daemon.wait_exit(BOOT);
    assert!(status.success(), "the daemon ended with {status}");
    assert!(
        daemon.processes().is_empty(),
        "processes survived the daemon"
    );
    assert!(!daemon.has_files_of("sbox-1"), "{:?}", daemon.files());
}
