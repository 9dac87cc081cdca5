//! Images from a registry, down to a VM.

use crate::lifecycle::launch;
use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::CreateNode;
use slicer_testkit::{Registry, Setup, TestDaemon, bin_dir};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("images": a_vm_from_a_registry)
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
    for file in ["sbox-base.img", "sbox-base.img.json"] {
        fs::remove_file(daemon.dir().join(file)).unwrap();
    }
    daemon.launch();
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &vm, "hostname").await, vm);
    assert_eq!(daemon.log().matches("pulling ").count(), pulls);
    assert!(daemon.log().contains("base built"));
    drop(client);
    daemon.stop();
}
