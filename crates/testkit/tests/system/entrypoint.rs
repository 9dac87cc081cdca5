//! What an image says is to be run: `ENTRYPOINT` and `CMD`, for VMs launched with it.

use crate::foreign::{Archive, busybox, kill_worker, root, start};
use crate::images::default_layout;
use crate::lifecycle::{names, ready, sandbox};
use crate::tests;
use libtest_mimic::Trial;
use serde_json::json;
use slicer_api::{EntrypointState, NodeStatus};
use slicer_client::Client;
use slicer_testkit::{BOOT, Image, LIMIT, Setup, TestDaemon, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("entrypoint": runs_once_a_boot, under_systemd, an_image_without_one)
}

const LOG: &str = "cat /var/log/slicer/entrypoint.log";

async fn state(client: &Client, vm: &str) -> Option<EntrypointState> {
    client.health(vm).await.ok()?.entrypoint
}

/// Waits until the log has this line so many times.
async fn logged(client: &Client, vm: &str, line: &str, times: usize) {
    wait_until(&format!("{line:?} is logged"), LIMIT, async || {
        // The file is made when the entrypoint is begun.
        let log = root(client, vm, &format!("{LOG} 2>&1 || true")).await;
        log.lines().filter(|l| *l == line).count() == times
    })
    .await;
}

async fn runs_once_a_boot() {
    let mut more = Archive::new();
    more.dir("srv", 0o755);
    let script = "echo $GREETING as $(id -u):$(id -g) in $(pwd); echo careful >&2; \
                  while test ! -e /tmp/stop; do sleep 1; done; exit 7";
    let dir = tempfile::tempdir().unwrap();
    let image = Image::default()
        .layer(busybox())
        .layer(more.done())
        .config(json!({
            "Entrypoint": ["sh", "-c"], "Cmd": [script],
            "Env": ["PATH=/nowhere:/bin", "GREETING=hello  there"],
            "WorkingDir": "/srv", "User": "ada",
        }));
    let daemon = start(image.write(dir.path()));
    let client = daemon.client();
    let (plain, added) = tokio::join!(
        sandbox(&client),
        daemon.cli(&[
            "vm",
            "add",
            "sbox",
            "--entrypoint",
            "--persistent",
            "--wait",
            "--json"
        ])
    );
    let vm = added.json()["hostname"].as_str().unwrap().to_owned();
    let line = "hello there as 1001:1001 in /srv";
    logged(&client, &vm, line, 1).await;
    logged(&client, &vm, "careful", 1).await;
    let before = state(&client, &vm).await.unwrap();
    assert!(before.running && before.exit_code.is_none(), "{before:?}");
    // It is no matter of the agent's worker.
    kill_worker(&client, &vm).await;
    assert_eq!(state(&client, &vm).await.as_ref(), Some(&before));
    root(&client, &vm, "touch /tmp/stop").await;
    wait_until("it has ended", LIMIT, async || {
        state(&client, &vm).await.is_some_and(|s| !s.running)
    })
    .await;
    let after = state(&client, &vm).await.unwrap();
    assert_eq!((after.pid, after.exit_code), (before.pid, Some(7)));
    // Nor is it run again in this boot.
    kill_worker(&client, &vm).await;
    assert_eq!(state(&client, &vm).await.as_ref(), Some(&after));
    logged(&client, &vm, line, 1).await;

    assert_eq!(daemon.cli(&["vm", "shutdown", &vm]).await.code, 0);
    let off = (vm.clone(), NodeStatus::Stopped);
    wait_until("it is off", BOOT, async || {
        names(&client).await.contains(&off)
    })
    .await;
    assert_eq!(daemon.cli(&["vm", "relaunch", &vm]).await.code, 0);
    ready(&client, &vm).await;
    logged(&client, &vm, line, 2).await;
    assert!(state(&client, &vm).await.unwrap().running);
    let health = daemon.cli(&["vm", "health", &vm, "--json"]).await;
    assert!(health.text().contains("\"entrypoint\""), "{health:?}");

    // Who didn't ask for it has none of it.
    assert_eq!(state(&client, &plain).await, None);
    root(&client, &plain, "test ! -e /var/log/slicer").await;
    drop(client);
    daemon.stop();
}

async fn under_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::from_layout(&default_layout()).config(json!({
        "Cmd": ["/bin/sh", "-c", "id -un; exec sleep infinity"], "User": "ubuntu",
    }));
    let mut setup = Setup::sandboxes();
    setup.image = Some(image.write(dir.path()));
    setup.group.push_str("      entrypoint: true\n");
    let daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    let vm = sandbox(&client).await;
    logged(&client, &vm, "ubuntu", 1).await;
    let before = state(&client, &vm).await.unwrap();
    assert!(before.running, "{before:?}");
    kill_worker(&client, &vm).await;
    assert_eq!(state(&client, &vm).await, Some(before));
    assert_eq!(daemon.cli(&["vm", "shutdown", &vm]).await.code, 0);
    wait_until("the VM is gone", BOOT, async || {
        client.node(&vm).await.is_err()
    })
    .await;
    let log = daemon.log();
    assert!(
        !log.contains("pressing the button") && !log.contains("switching it off"),
        "{log}"
    );
    // The request has the last word.
    let without = daemon
        .cli(&[
            "vm",
            "add",
            "sbox",
            "--entrypoint=false",
            "--wait",
            "--json",
        ])
        .await;
    let vm = without.json()["hostname"].as_str().unwrap().to_owned();
    assert_eq!(state(&client, &vm).await, None);
    drop(client);
    daemon.stop();
}

async fn an_image_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(Image::default().layer(busybox()).write(dir.path()));
    let refused = daemon
        .cli(&["vm", "add", "sbox", "--entrypoint", "--wait"])
        .await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("neither ENTRYPOINT nor CMD"),
        "{refused:?}"
    );
    assert!(!daemon.has_files_of("sbox-1"), "{:?}", daemon.files());
    daemon.stop();
}
