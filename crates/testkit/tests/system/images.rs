//! Images from a registry, down to a VM.

use crate::lifecycle::{check_disk, launch};
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::CreateNode;
use slicer_testkit::{BOOT, Group, Registry, SBOX, Setup, TestDaemon, bin_dir, wait_until};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("images": a_vm_from_a_registry, groups_share_the_base_of_an_archive)
}

/// The layout of the default image.
pub(crate) fn default_layout() -> PathBuf {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    bin_dir().join("../guest").join(arch).join("image")
}

/// A program that gives out credentials, see docker-credential-helpers.
const HELPER: &str = "#!/bin/sh
read -r server
[ \"$1\" = get ] || exit 1
echo '{\"ServerURL\":\"'$server'\",\"Username\":\"alex\",\"Secret\":\"sesame\"}'
";

async fn a_vm_from_a_registry() {
    let registry = Registry::start(Some(("alex", "sesame"))).await;
    registry
        .push_layout("slicer/guest:1", &default_layout())
        .await;
    let home = tempfile::tempdir().unwrap();
    let helper = home.path().join("docker-credential-test");
    fs::write(&helper, HELPER).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = home.path().join("config.json");
    fs::write(&config, "{}").unwrap();

    let mut setup = Setup::sandboxes();
    setup.image = Some(registry.name("slicer/guest:1"));
    setup.more.push_str("  insecure_registry: true\n");
    let path = std::env::var("PATH").unwrap();
    setup.env = vec![
        ("DOCKER_CONFIG", home.path().to_str().unwrap().to_owned()),
        ("PATH", format!("{}:{path}", home.path().display())),
    ];
    let mut daemon = TestDaemon::start(&setup);
    let line = ["vm", "launch", "sbox", "--wait", "--cpus", "1"];
    let stranger = daemon.cli(&line).await;
    assert_eq!(stranger.code, 1);
    assert!(
        stranger.stderr.contains("docker login 127.0.0.1:"),
        "{stranger:?}"
    );

    let server = registry.name("");
    let server = server.trim_end_matches('/');
    let helpers = format!("{{\"credHelpers\": {{\"{server}\": \"test\"}}}}");
    fs::write(&config, helpers).unwrap();
    let made = daemon.cli(&["vm", "launch", "sbox", "--json"]).await;
    assert_eq!(made.code, 0, "{made:?}");
    let vm = made.json()["hostname"].as_str().unwrap().to_owned();
    slicer_testkit::wait_until("the image is there", slicer_testkit::BOOT, async || {
        daemon.log().contains(&format!("{vm}: launched in"))
    })
    .await;
    assert_eq!(daemon.log().matches("pulled ").count(), 1);
    let pulls = daemon.log().matches("pulling ").count();
    daemon.terminate();

    // All else comes from the cache, without the registry.
    drop(registry);
    fs::remove_dir_all(daemon.dir().join(".slicer/bases")).unwrap();
    fs::remove_file(daemon.dir().join("sbox-base.img")).unwrap();
    daemon.launch();
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &vm, "hostname").await, vm);
    assert_eq!(daemon.log().matches("pulling ").count(), pulls);
    assert!(daemon.log().contains("base built"));
    drop(client);
    daemon.stop();
}

async fn groups_share_the_base_of_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("guest.tar");
    let packed = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(default_layout())
        .arg(".")
        .status();
    assert!(packed.unwrap().success());
    let mut setup = Setup::of([SBOX, Group { name: "ci", ..SBOX }]);
    setup.image = Some(format!("oci-archive:{}:latest", archive.display()));
    let mut daemon = TestDaemon::start(&setup);
    daemon.terminate();
    // As a daemon finds it that has never built anything.
    fs::remove_dir_all(daemon.dir().join(".slicer/bases")).unwrap();
    for group in ["sbox", "ci"] {
        fs::remove_file(daemon.dir().join(format!("{group}-base.img"))).unwrap();
    }
    let before = daemon.log().len();
    daemon.launch();
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &vm, "hostname").await, vm);
    let request = CreateNode::default();
    let other = client.create_node("ci", &request, None, None).await;
    let other = other.unwrap().hostname;
    let ready = async || {
        let log = daemon.log();
        let last = &log[before..];
        ["sbox", "ci"]
            .iter()
            .all(|g| last.contains(&format!("group {g}: image ready")))
    };
    wait_until("both groups are ready", BOOT, ready).await;
    client.delete_node("ci", &other).await.unwrap();
    assert_eq!(daemon.log().matches("base built").count(), 1);
    let base = |daemon: &TestDaemon, group: &str| {
        let file = daemon.dir().join(format!("{group}-base.img"));
        fs::metadata(file).unwrap().ino()
    };
    let built = base(&daemon, "sbox");
    assert_eq!(base(&daemon, "ci"), built);
    check_disk(&daemon.dir().join("ci-base.img"));
    drop(client);

    // The next one, after the end nobody prepares for, does nothing but clone.
    daemon.crash();
    daemon.launch();
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &vm, "hostname").await, vm);
    assert_eq!(daemon.log().matches("base built").count(), 1);
    assert_eq!(base(&daemon, "sbox"), built);
    drop(client);
    daemon.stop();
}
