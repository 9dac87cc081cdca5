//! Connections into a real VM.

use crate::tests;
use crate::tour::{Tour, VM, says, sh};
use libtest_mimic::Trial;
use slicer_testkit::{BOOT, LIMIT, bin_dir, wait_until};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("forward", tour; by_the_command, nowhere, kept_up_by_the_daemon)
}

/// Answers every connection with what was sent on it, once its sender has ended.
const ECHO: &str = r#"
use strict; use IO::Socket::INET; use IO::Socket::UNIX;
my $at = $ARGV[0];
my $s = $at =~ m{^/} ? (unlink($at), IO::Socket::UNIX->new(Local => $at, Listen => 5))[-1]
    : IO::Socket::INET->new(LocalAddr => $at, Listen => 5, ReuseAddr => 1);
$s or die "listen: $!";
while (my $c = $s->accept) { local $/; my $got = <$c>; print $c "got $got"; close $c; }
"#;

/// Starts the echo in a VM as root; it listens when this returns.
async fn echo(tour: &Tour, vm: &str, at: &str) {
    let input = Some(ECHO.as_bytes().to_vec());
    let args = ["vm", "exec", "--uid", "0", vm, "cat > /root/echo.pl"];
    assert_eq!(tour.daemon().cli_with(&args, input).await.code, 0);
    let args = [
        "vm",
        "bg",
        "exec",
        "--uid",
        "0",
        vm,
        "--",
        "perl",
        "/root/echo.pl",
        at,
    ];
    let started = tour.daemon().cli(&args).await;
    assert_eq!(started.code, 0, "{started:?}");
    let filter = if at.starts_with('/') { "-lx" } else { "-lt" };
    let seen = format!("ss -H {filter} | grep -qF '{at}'");
    wait_until("the echo listens", LIMIT, async || {
        sh(&tour.client(), vm, &seen).await.exit_code == 0
    })
    .await;
}

/// A `slicer vm forward` that runs, and what it said it listens on.
async fn forward(tour: &Tour, mappings: &[&str]) -> (Child, Vec<String>) {
    let mut child = Command::new(bin_dir().join("slicer"))
        .arg("--url")
        .arg(tour.daemon().dir().join("slicer.sock"))
        .args(["vm", "forward", VM])
        .args(mappings)
        .current_dir(tour.daemon().dir())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut at = Vec::new();
    for _ in mappings {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
        let line = line.unwrap().unwrap().unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!((words[0], words[2]), ("Forwarding", "->"), "{line}");
        at.push(words[1].to_owned());
    }
    (child, at)
}

/// What comes back for `text`, after which nothing more is sent.
async fn ask(at: &str, text: &str) -> String {
    let exchange = async {
        let mut answer = String::new();
        if at.contains('/') {
            let mut stream = UnixStream::connect(at).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        } else {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        }
        answer
    };
    tokio::time::timeout(BOOT, exchange).await.unwrap()
}

async fn by_the_command(tour: &Tour) {
    echo(tour, VM, "127.0.0.1:7001").await;
    echo(tour, VM, "/run/echo.sock").await;
    let (mut child, at) = forward(
        tour,
        &[
            "0:127.0.0.1:7001",
            "./tcp.sock:localhost:7001",
            "./unix.sock:/run/echo.sock",
            "127.0.0.1:0:/run/echo.sock",
        ],
    )
    .await;
    let long = "x".repeat(1 << 20);
    for at in &at {
        assert_eq!(ask(at, "half-closed").await, "got half-closed", "{at}");
        assert_eq!(ask(at, &long).await.len(), long.len() + 4, "{at}");
    }
    let pid = child.id().unwrap();
    slicer_testkit::send_signal(pid, rustix::process::Signal::TERM);
    let ended = tokio::time::timeout(LIMIT, child.wait()).await.unwrap();
    assert!(ended.unwrap().success());
    for name in ["tcp.sock", "unix.sock"] {
        assert!(!tour.daemon().dir().join(name).exists(), "{name}");
    }
}

async fn nowhere(tour: &Tour) {
    let (mut child, at) = forward(tour, &["0:127.0.0.1:7999"]).await;
    // Closed without a word, and yet the next one is taken.
    for _ in 0..2 {
        assert_eq!(ask(&at[0], "anybody?").await, "");
    }
    child.kill().await.unwrap();
    for (args, code, part) in [
        (&["vm", "forward", VM, "9000"][..], 2, "9000"),
        (&["vm", "forward", "nobody", "0:127.0.0.1:1"], 1, "nobody"),
        (
            &[
                "vm",
                "forward",
                VM,
                "0:127.0.0.1:1",
                "/dev/null/x.sock:/run/x",
            ],
            1,
            "/dev/null/x.sock",
        ),
    ] {
        let refused = tour.daemon().cli(args).await;
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
}

/// The generated configuration makes Docker's socket of slicer-1 and the port of K3s reachable.
async fn kept_up_by_the_daemon(tour: &Tour) {
    let daemon = tour.daemon();
    assert_eq!(tour.cli("vm ready slicer-1").await.code, 0);
    let docker = daemon.dir().join(".slicer/docker.sock");
    let docker = docker.to_str().unwrap();
    // Nothing is there yet, and a caller is told so by the end.
    assert_eq!(ask(docker, "GET /version").await, "");
    echo(tour, "slicer-1", "/run/docker.sock").await;
    assert_eq!(ask(docker, "ping").await, "got ping");
    tls_through_the_daemon(tour).await;
    // Across a restart of the VM.
    assert_eq!(tour.cli("vm shutdown slicer-1").await.code, 0);
    wait_until("slicer-1 is off", BOOT, async || {
        let node = tour.raw().get("/vm/slicer-1").await.json();
        node["status"] == "Stopped"
    })
    .await;
    assert_eq!(ask(docker, "anybody?").await, "");
    assert_eq!(tour.cli("vm relaunch slicer-1").await.code, 0);
    assert_eq!(tour.cli("vm ready slicer-1").await.code, 0);
    echo(tour, "slicer-1", "/run/docker.sock").await;
    assert_eq!(ask(docker, "again").await, "got again");
    assert!(Path::new(docker).exists());
}

/// A TLS server on the port of K3s, asked by curl on the host, which believes it for its
/// certificate alone, as kubectl does with that of a kubeconfig.
async fn tls_through_the_daemon(tour: &Tour) {
    let listens = TcpStream::connect("127.0.0.1:6443").await.is_ok();
    assert!(listens, "nobody on port 6443: {}", tour.daemon().log());
    let client = tour.client();
    for name in ["k3s", "other"] {
        let make = format!(
            "cd /tmp && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -subj /CN={name} -addext subjectAltName=IP:127.0.0.1 -keyout {name}.key \
             -out {name}.pem 2>&1"
        );
        says(&client, "slicer-1", &make).await;
        let from = format!("slicer-1:/tmp/{name}.pem");
        tour.cli(&format!("vm cp {from} ./{name}.pem")).await.text();
    }
    let serve = "openssl s_server -quiet -accept 127.0.0.1:6443 -cert k3s.pem -key k3s.key -www";
    let mut args = vec!["vm", "bg", "exec", "slicer-1", "--cwd", "/tmp", "--"];
    args.extend(serve.split(' '));
    assert_eq!(tour.daemon().cli(&args).await.code, 0);
    let curl = async |trusted: &str| {
        let curl = Command::new("curl")
            .args(["-s", "--noproxy", "*", "--max-time", "20", "--cacert"])
            .arg(tour.daemon().dir().join(trusted))
            .arg("https://127.0.0.1:6443/")
            .output();
        curl.await.unwrap()
    };
    wait_until("curl is answered", BOOT, async || {
        let answer = curl("k3s.pem").await.stdout;
        String::from_utf8_lossy(&answer).contains("s_server")
    })
    .await;
    // CURLE_PEER_FAILED_VERIFICATION
    assert_eq!(curl("other.pem").await.status.code(), Some(60));
}
