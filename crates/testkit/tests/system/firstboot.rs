//! What a VM is given for its first boot: secrets and userdata.

use crate::lifecycle::{launch, ready};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, ShutdownAction, Wait};
use slicer_client::Client;
use slicer_testkit::{BOOT, LIMIT, Setup, TestDaemon, wait_until};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("firstboot": secrets_and_userdata, userdata_runs_once, userdata_that_fails_and_imported_keys)
}

async fn with_userdata(client: &Client, node: CreateNode) -> String {
    let made = client.create_node("sbox", &node, Some(Wait::Userdata), Some(BOOT));
    made.await.unwrap().hostname
}

async fn secrets_and_userdata() {
    let daemon = TestDaemon::start(&Setup::sandboxes());
    let client = daemon.client();
    let cli = async |args: &[&str], stdin: &str| {
        let stdin = Some(stdin.as_bytes().to_vec());
        let done = daemon.cli_with(args, stdin).await;
        done.text().to_owned()
    };
    let create = ["secret", "create", "key"];
    assert_eq!(cli(&create, "sesame\n").await, "Secret created: key\n");
    let args = [
        "secret",
        "create",
        "other",
        "--from-literal",
        "open",
        "--permissions",
        "0444",
    ];
    cli(&args, "").await;
    let again = daemon.cli_with(&create, Some(b"x".to_vec())).await;
    assert!(
        again.code == 1 && again.stderr.contains("exists"),
        "{again:?}"
    );
    assert_eq!(
        cli(&["secret", "list"], "").await,
        "NAME\n----\nkey\nother\n"
    );

    let script = "cp /run/slicer/secrets/key ~/key; id -u > ~/uid; echo $TARGET_USER > ~/user; \
                  systemctl is-system-running > ~/system; echo the script was here";
    let all = CreateNode {
        userdata: script.into(),
        ..CreateNode::default()
    };
    let one = CreateNode {
        secrets: Some(vec!["other".into()]),
        ..CreateNode::default()
    };
    let (all, one) = tokio::join!(with_userdata(&client, all), launch(&client, &one));
    let health = client.health(&all).await.unwrap();
    assert!(
        health.userdata_ran && health.userdata_exit_code == Some(0),
        "{health:?}"
    );
    let found = says(&client, &all, "sudo sh -c 'cd; cat key uid user system'").await;
    assert_eq!(found, "sesame\n0\nubuntu\nrunning");
    let logs = client.logs(&all, Some(0)).await.unwrap();
    assert!(
        logs.content.contains("the script was here"),
        "{}",
        logs.content
    );
    let form = says(
        &client,
        &all,
        "sudo stat -c '%n %a %U:%G' /run/slicer/secrets/*",
    )
    .await;
    assert_eq!(
        form,
        "/run/slicer/secrets/key 600 root:root\n/run/slicer/secrets/other 444 root:root"
    );
    assert_eq!(says(&client, &one, "ls /run/slicer/secrets").await, "other");
    assert_eq!(
        says(&client, &one, "cat /run/slicer/secrets/other").await,
        "open"
    );

    // Changes arrive in VMs that run, where they are granted.
    let update = ["secret", "update", "other", "--from-literal", "changed"];
    cli(&update, "").await;
    cli(&["secret", "remove", "key"], "").await;
    for (vm, left) in [(&all, "other"), (&one, "other")] {
        wait_until("the change has arrived", LIMIT, async || {
            says(&client, vm, "cat /run/slicer/secrets/other").await == "changed"
                && says(&client, vm, "ls /run/slicer/secrets").await == left
        })
        .await;
    }
    let missing = ["vm", "launch", "sbox", "--secret", "nope"];
    let refused = daemon.cli(&missing).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("nope"),
        "{refused:?}"
    );
    drop(client);
    daemon.stop();
}

async fn userdata_runs_once() {
    let mut setup = Setup::sandboxes();
    setup.group =
        "      userdata: |\n        #!/bin/bash\n        date +%s%N >> /root/ran\n".into();
    let daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    let node = CreateNode {
        persistent: true,
        ..CreateNode::default()
    };
    let vm = with_userdata(&client, node).await;
    let ran = says(&client, &vm, "sudo cat /root/ran").await;
    client
        .shutdown(&vm, ShutdownAction::Shutdown)
        .await
        .unwrap();
    client.relaunch(&vm).await.unwrap();
    ready(&client, &vm).await;
    let health = client.health(&vm).await.unwrap();
    assert!(
        health.userdata_ran && health.userdata_exit_code == Some(0),
        "{health:?}"
    );
    assert_eq!(says(&client, &vm, "sudo cat /root/ran").await, ran);
    drop(client);
    daemon.stop();
}

/// The certificate and key of 127.0.0.1, with nothing above it.
const CERTIFICATE: &str = "[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = github.test
[extensions]
basicConstraints = CA:FALSE
subjectAltName = IP:127.0.0.1
";

/// A web server with TLS for the directory it is started in, which prints its port.
const HTTPS_SERVER: &str = "
import http.server, ssl
server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('cert.pem', 'key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
";

/// A GitHub on this host that knows the keys of a user called alex.
fn github(dir: &Path, keys: &str) -> (std::process::Child, String) {
    std::fs::write(dir.join("alex.keys"), keys).unwrap();
    std::fs::write(dir.join("req.conf"), CERTIFICATE).unwrap();
    let args = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                -config req.conf -keyout key.pem -out cert.pem";
    let made = Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut server = Command::new("python3")
        .args(["-c", HTTPS_SERVER])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut port = String::new();
    let output = server.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut port).unwrap();
    (server, format!("https://127.0.0.1:{}", port.trim()))
}

async fn userdata_that_fails_and_imported_keys() {
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKfJ alex";
    let dir = tempfile::tempdir().unwrap();
    let (mut server, url) = github(dir.path(), &format!("{KEY}\n"));
    let mut setup = Setup::sandboxes();
    let trusted = dir.path().join("cert.pem").to_str().unwrap().to_owned();
    setup.env = vec![("SLICER_GITHUB_URL", url), ("SSL_CERT_FILE", trusted)];
    let daemon = TestDaemon::start(&setup);
    let unknown = ["vm", "launch", "sbox", "--import-user", "nobody"];
    let refused = daemon.cli(&unknown).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("no GitHub user nobody"),
        "{refused:?}"
    );
    let line = [
        "vm",
        "launch",
        "sbox",
        "--import-user",
        "alex",
        "--userdata",
        "echo oops >&2; exit 7",
        "--wait-userdata",
        "--json",
    ];
    let made = daemon.cli(&line).await;
    server.kill().unwrap();
    server.wait().unwrap();
    let vm = made.json()["hostname"].as_str().unwrap().to_owned();
    let client = daemon.client();
    assert_eq!(says(&client, &vm, "cat ~/.ssh/authorized_keys").await, KEY);
    let form = says(&client, &vm, "stat -c '%n %a %U' .ssh .ssh/*").await;
    assert_eq!(
        form,
        ".ssh 700 ubuntu\n.ssh/authorized_keys 600 ubuntu\n.ssh/github_keys_imported 600 ubuntu"
    );
    let health = client.health(&vm).await.unwrap();
    assert_eq!(health.userdata_exit_code, Some(7));
    assert_eq!(
        says(&client, &vm, "sudo cat /var/log/slicer-userdata.log").await,
        "oops"
    );
    drop(client);
    daemon.stop();
}
