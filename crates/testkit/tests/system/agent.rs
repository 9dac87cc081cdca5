//! An agent that somebody in the guest kills: a new one takes over, and is told all it must know.

use crate::lifecycle::launch;
use crate::tests;
use crate::tour::{says, sh};
use libtest_mimic::Trial;
use slicer_api::{CreateNode, ExecRequest, Health};
use slicer_client::Client;
use slicer_testkit::{BOOT, LIMIT, Setup, TestDaemon, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("agent": killed_and_back)
}

/// Runs a script as root that kills the agent it runs under, and waits until another one answers.
pub(crate) async fn kill(client: &Client, vm: &str, script: &str) {
    // When it began, in the time of its guest; how old it is says nothing of a young one.
    let begun = |h: &Health| h.system_uptime - h.agent_uptime;
    let before = begun(&client.health(vm).await.unwrap());
    let request = ExecRequest {
        cmd: script.to_owned(),
        shell: Some("/bin/sh".to_owned()),
        uid: 0,
        ..ExecRequest::default()
    };
    let broken = tokio::time::timeout(LIMIT, client.exec_buffered(vm, &request)).await;
    assert!(broken.unwrap().is_err());
    wait_until("another agent answers", BOOT, async || {
        let now = client.health(vm).await;
        // A supervisor pauses for longer than this before it starts another.
        now.is_ok_and(|h| begun(&h) > before + 20_000_000)
    })
    .await;
}

async fn killed_and_back() {
    let daemon = TestDaemon::start(&Setup::sandboxes());
    let client = daemon.client();
    let secret = ["secret", "create", "key", "--from-literal", "sesame"];
    assert_eq!(daemon.cli(&secret).await.code, 0);
    let vm = launch(&client, &CreateNode::default()).await;
    let reserve = "systemctl is-active slicer-supervisor";
    wait_until("a supervisor is in reserve", BOOT, async || {
        sh(&client, &vm, reserve).await.stdout.trim() == "active"
    })
    .await;

    secrets_on_demand(&daemon, &client, &vm).await;
    // First the worker, which its supervisor starts anew; then both, which systemd does.
    for (round, script) in ["kill -9 $PPID", "kill -9 $(ps -o ppid= $PPID) $PPID"]
        .into_iter()
        .enumerate()
    {
        let seconds = format!("60{round}");
        let line = format!("echo begun; exec sleep {seconds}");
        let args = ["vm", "exec", &vm, "--", &line];
        let (running, ()) = tokio::join!(daemon.cli(&args), async {
            let ps = format!("pgrep -fx 'sleep {seconds}'");
            wait_until("the command runs", LIMIT, async || {
                sh(&client, &vm, &ps).await.exit_code == 0
            })
            .await;
            kill(&client, &vm, script).await;
        });
        assert_eq!(running.code, 1, "{running:?}");
        assert_eq!(running.stdout, b"begun\n");
        assert!(running.stderr.contains("broke off"), "{running:?}");
        // Nobody could have found it again.
        let ps = format!("pgrep -fx 'sleep {seconds}'");
        assert_ne!(sh(&client, &vm, &ps).await.exit_code, 0);
        assert_eq!(says(&client, &vm, "hostname").await, vm);
        let health = client.health(&vm).await.unwrap();
        assert!(health.userdata_ran, "{health:?}");
        let log = daemon.log();
        let told = log.matches("its agent started anew").count();
        assert_eq!(told, round + 1, "{log}");
    }

    // Changes arrive in the new one.
    let update = ["secret", "update", "key", "--from-literal", "changed"];
    assert_eq!(daemon.cli(&update).await.code, 0);
    wait_until("the change has arrived", LIMIT, async || {
        says(&client, &vm, "sudo cat /run/slicer/secrets/key").await == "changed"
    })
    .await;
    // And it can end as it should.
    let shutdown = daemon.cli(&["vm", "shutdown", &vm]).await;
    assert_eq!(shutdown.code, 0, "{shutdown:?}");
    wait_until("the VM is gone", BOOT, async || {
        client.node(&vm).await.is_err()
    })
    .await;
    assert!(!daemon.log().contains("pressing the button"));
    drop(client);
    daemon.stop();
}

async fn secrets_on_demand(daemon: &TestDaemon, client: &Client, vm: &str) {
    // Put there by hand, which the daemon isn't told.
    let file = daemon.dir().join(".secrets/by-hand");
    std::fs::write(&file, "open").unwrap();
    let refused = sh(client, vm, "slicer-agent secrets sync").await;
    assert_eq!(refused.exit_code, 1);
    assert!(refused.stderr.contains("sudo"), "{refused:?}");
    says(client, vm, "sudo slicer-agent secrets sync").await;
    let read = "sudo cat /run/slicer/secrets/by-hand";
    assert_eq!(says(client, vm, read).await, "open");
    std::fs::remove_file(&file).unwrap();
    let script = "sudo slicer-agent secrets sync && ls /run/slicer/secrets";
    assert_eq!(says(client, vm, script).await, "key");
}
