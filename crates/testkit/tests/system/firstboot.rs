//! What a VM is given for its first boot: secrets and userdata.

use crate::lifecycle::{launch, ready};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, ShutdownAction, Wait};
use slicer_client::Client;
use slicer_testkit::{BOOT, LIMIT, Setup, TestDaemon, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("firstboot": secrets_and_userdata, userdata_runs_once, userdata_that_fails)
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

async fn userdata_that_fails() {
    let daemon = TestDaemon::start(&Setup::sandboxes());
    let line = [
        "vm",
        "launch",
        "sbox",
        "--userdata",
        "echo oops >&2; exit 7",
        "--wait-userdata",
        "--json",
    ];
    let made = daemon.cli(&line).await;
    let vm = made.json()["hostname"].as_str().unwrap().to_owned();
    let client = daemon.client();
    let health = client.health(&vm).await.unwrap();
    assert_eq!(health.userdata_exit_code, Some(7));
    assert_eq!(
        says(&client, &vm, "sudo cat /var/log/slicer-userdata.log").await,
        "oops"
    );
    drop(client);
    daemon.stop();
}
