//! Docker in a VM, used from this host: by Docker's own command, through the socket that the
//! daemon forwards.

use crate::tests;
use hyper::Method;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use slicer_api::Endpoint;
use slicer_testkit::{
    BOOT, CliOutput, Group, LIMIT, RawClient, SLICER, Setup, TestDaemon, docker_image, run_command,
    wait_until,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("docker": from_this_host)
}

/// Where Docker's socket is on this host, below the daemon's directory.
const SOCKET: &str = "docker.sock";

/// The only program of the image: gives back its input once that has ended, or as many bytes as it
/// is told to.
const PROBE: &str = r#"
use std::io::{Read, Write};

fn main() {
    let mut bytes = Vec::new();
    if let Some(count) = std::env::args().nth(1) {
        let count: u32 = count.parse().unwrap();
        bytes.extend((0..count).map(|i| (i % 251) as u8));
    } else {
        std::io::stdin().read_to_end(&mut bytes).unwrap();
    }
    std::io::stdout().write_all(&bytes).unwrap();
    eprintln!("{} bytes", bytes.len());
    std::process::exit(7);
}
"#;

/// Docker's command on this host. It finds the daemon by the context that is selected.
struct Docker<'a> {
    program: PathBuf,
    home: &'a Path,
}

impl Docker<'_> {
    /// The command comes out of the VM, from Debian's package: nothing needs to be installed here.
    /// It runs here all the same, for the image is of this host's release.
    async fn of(daemon: &TestDaemon) -> Docker<'_> {
        let home = daemon.dir();
        let program = match std::env::var_os("SLICER_DOCKER").filter(|p| !p.is_empty()) {
            Some(program) => program.into(),
            None => {
                let args = ["vm", "cp", "slicer-1:/usr/bin/docker", "./docker"];
                daemon.cli(&args).await.text();
                home.join("docker")
            }
        };
        Docker { program, home }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // The builder of old: the new one is a plugin that Debian's package lacks.
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.home)
            .env("DOCKER_BUILDKIT", "0")
            .current_dir(self.home);
        command
    }

    async fn try_run(&self, args: &[&str], stdin: Option<Vec<u8>>) -> CliOutput {
        run_command(self.command(args), stdin).await
    }

    /// What a command that succeeds prints, without the last line's end.
    async fn run(&self, args: &[&str]) -> String {
        self.try_run(args, None).await.text().trim_end().to_owned()
    }
}

/// One test, because the VM takes its time to boot, and everything else is quick.
async fn from_this_host() {
    let mut setup = Setup::of([Group {
        vcpu: 2,
        ram_mb: 1024,
        ..SLICER
    }]);
    setup.image = Some(docker_image());
    setup.group = format!("      forwards:\n        - ./{SOCKET}:/var/run/docker.sock\n");
    let daemon = TestDaemon::start(&setup);
    daemon.cli(&["vm", "ready", "slicer-1"]).await.text();
    let docker = Docker::of(&daemon).await;

    found_by_the_context(&daemon, &docker).await;
    built(&docker).await;
    output_is_intact(&docker).await;
    events(&daemon, &docker).await;
    attached_by_hand(&daemon).await;
    after_a_restart_of_docker(&daemon, &docker).await;
    daemon.stop();
}

async fn found_by_the_context(daemon: &TestDaemon, docker: &Docker<'_>) {
    let host = format!("unix://{}", daemon.dir().join(SOCKET).display());
    let made = daemon
        .cli(&["docker", "context", "--no-use", "--json"])
        .await
        .json();
    assert_eq!(
        (&made["name"], &made["host"]),
        (&"slicer".into(), &json!(host))
    );
    let version = ["version", "--format", "{{.Server.Version}} {{.Server.Os}}"];
    let named = [&["--context", "slicer"][..], &version].concat();
    // The guest lets users in before Docker is up.
    wait_until("Docker answers", BOOT, async || {
        docker.try_run(&named, None).await.code == 0
    })
    .await;
    let unselected = docker.try_run(&version, None).await;
    assert_ne!(unselected.code, 0, "{unselected:?}");

    let made = daemon.cli(&["docker", "context"]).await;
    assert!(made.text().contains("is selected"), "{made:?}");
    let told = docker.run(&version).await;
    assert!(told.ends_with(" linux"), "{told}");
    let list = [
        "context",
        "ls",
        "--format",
        "{{.Name}} {{.Current}} {{.DockerEndpoint}}",
    ];
    let list = docker.run(&list).await;
    assert!(list.contains(&format!("slicer true {host}")), "{list}");
    let driver = docker.run(&["info", "--format", "{{.Driver}}"]).await;
    assert_eq!(driver, "overlay2");
}

/// An image of nothing but a static program, made here and built there.
async fn built(docker: &Docker<'_>) {
    let dir = docker.home.join("build");
    fs::create_dir(&dir).unwrap();
    let source = docker.home.join("probe.rs");
    fs::write(&source, PROBE).unwrap();
    let compiled = std::process::Command::new("rustc")
        .args(["-O", "-C", "target-feature=+crt-static"])
        .args(["-C", "relocation-model=static", "-C", "strip=symbols"])
        .args(["--edition", "2024", "-o"])
        .args([&dir.join("probe"), &source])
        // The toolchain is this workspace's.
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(compiled.unwrap().success());
    let recipe = "FROM scratch\nCOPY probe /probe\nENTRYPOINT [\"/probe\"]\n";
    fs::write(dir.join("Dockerfile"), recipe).unwrap();
    let id = docker.run(&["build", "-q", "-t", "probe", "build"]).await;
    assert!(id.starts_with("sha256:"), "{id}");
}

async fn output_is_intact(docker: &Docker<'_>) {
    // The end of the input must reach the program and leave its output alone.
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(1 << 20)
    .collect();
    let args = ["run", "--rm", "-i", "probe"];
    let done = docker.try_run(&args, Some(noise.clone())).await;
    assert_eq!((done.code, &*done.stderr), (7, "1048576 bytes\n"));
    assert!(
        done.stdout == noise,
        "{} bytes came back",
        done.stdout.len()
    );

    let done = docker
        .try_run(&["run", "--rm", "probe", "3000000"], None)
        .await;
    assert_eq!((done.code, &*done.stderr), (7, "3000000 bytes\n"));
    let expected: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    assert!(done.stdout == expected, "{} bytes came", done.stdout.len());
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// Events of the time since `since`, as Docker's command prints them, in its own words.
fn events_since(since: &str) -> [&str; 7] {
    let format = "{{.Action}} {{.Actor.Attributes.name}}";
    [
        "events",
        "--since",
        since,
        "--filter",
        "container=seen",
        "--format",
        format,
    ]
}

async fn events(daemon: &TestDaemon, docker: &Docker<'_>) {
    let since = now().to_string();
    let mut watching = docker.command(&events_since(&since));
    let mut watching = watching
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    docker.run(&["create", "--name", "seen", "probe"]).await;
    let line = tokio::time::timeout(LIMIT, lines.next_line())
        .await
        .unwrap();
    assert_eq!(line.unwrap().as_deref(), Some("create seen"));
    watching.kill().await.unwrap();

    // The server ends the answer, and nobody else.
    let until = (now() + 1).to_string();
    let told = [&events_since(&since)[..], &["--until", &until]].concat();
    let told = docker.run(&told).await;
    assert_eq!(told, "create seen");

    // A watcher who has no more to say is a watcher who leaves, to Docker: it ends the answer.
    let (mut stream, head) = request(daemon, "GET /events HTTP/1.1\r\nHost: docker\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
    ended.unwrap().unwrap();
}

/// Sends a request; what comes back is its answer's head, and the stream behind it.
async fn request(daemon: &TestDaemon, text: &str) -> (UnixStream, String) {
    let socket = daemon.dir().join(SOCKET);
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(LIMIT, read).await.unwrap();
    (stream, String::from_utf8(head).unwrap())
}

/// A container on one connection that both ends take over, closed in one direction first.
async fn attached_by_hand(daemon: &TestDaemon) {
    let api = RawClient::new(Endpoint::Unix(daemon.dir().join(SOCKET)));
    let post = async |target: &str, body: Value| {
        let json = [("content-type", "application/json")];
        let answer = api.send_with(Method::POST, target, &json, body.to_string());
        let answer = answer.await;
        assert!(answer.status.is_success(), "{answer:?}");
        answer.body
    };
    let made = post(
        "/containers/create",
        json!({"Image": "probe", "OpenStdin": true, "StdinOnce": true, "AttachStdin": true}),
    );
    let made: Value = serde_json::from_slice(&made.await).unwrap();
    let id = made["Id"].as_str().unwrap();
    let attach = format!(
        "POST /containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n\
         Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    );
    let (mut stream, head) = request(daemon, &attach).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    post(&format!("/containers/{id}/start"), json!({})).await;
    stream.write_all(b"half a conversation").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    ended.unwrap().unwrap();
    let (stdout, stderr) = (frames(&answer, 1), frames(&answer, 2));
    assert_eq!((&*stdout, &*stderr), ("half a conversation", "19 bytes\n"));
}

/// What a stream of Docker's frames has of one of the program's streams: each frame begins with
/// the stream's number, three zeros and its length in four bytes.
fn frames(mut bytes: &[u8], stream: u8) -> String {
    let mut text = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(8) {
        let length = u32::from_be_bytes(head[4..].try_into().unwrap());
        let (data, rest) = rest.split_at(length.try_into().unwrap());
        if head[0] == stream {
            text.extend_from_slice(data);
        }
        bytes = rest;
    }
    String::from_utf8(text).unwrap()
}

/// The forward outlives what it leads to.
async fn after_a_restart_of_docker(daemon: &TestDaemon, docker: &Docker<'_>) {
    let id = docker.run(&["info", "--format", "{{.ID}}"]).await;
    let args = [
        "vm",
        "exec",
        "--uid",
        "0",
        "slicer-1",
        "--",
        "systemctl",
        "restart",
        "docker",
    ];
    daemon.cli(&args).await.text();
    let again = docker.run(&["info", "--format", "{{.ID}}"]).await;
    assert_eq!(again, id);
    let kept = docker
        .run(&["ps", "-a", "--format", "{{.Image}} {{.Names}}"])
        .await;
    assert!(kept.contains("probe seen"), "{kept}");
}
