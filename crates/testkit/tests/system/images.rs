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
    tests!("images": a_vm_from_a_registry, groups_share_the_base_of_an_archive, a_tag_that_moves)
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
    // Base64 of alex:wrong.
    let wrong = format!("{{\"auths\": {{\"{server}\": {{\"auth\": \"YWxleDp3cm9uZw==\"}}}}}}");
    fs::write(&config, wrong).unwrap();
    let refused = daemon
        .cli(&["image", "pull", &registry.name("slicer/guest:1")])
        .await;
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .stderr
            .contains("the user of Docker's configuration"),
        "{refused:?}"
    );
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
    let unknown = registry.name("slicer/guest:2");
    let gone = daemon.cli(&["image", "pull", &unknown]).await;
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains("has no image"), "{gone:?}");
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

    // The next one, after the end nobody prepares for, does nothing but clone, and doesn't need the
    // archive any more.
    daemon.crash();
    fs::remove_file(&archive).unwrap();
    daemon.launch();
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &vm, "hostname").await, vm);
    assert_eq!(daemon.log().matches("base built").count(), 1);
    assert_eq!(base(&daemon, "sbox"), built);
    drop(client);
    daemon.stop();
}

/// A tar archive with this file.
fn file(path: &str, text: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    let mut layer = tar::Builder::new(Vec::new());
    layer
        .append_data(&mut header, path, text.as_bytes())
        .unwrap();
    layer.into_inner().unwrap()
}

async fn a_tag_that_moves() {
    let registry = Registry::start(None).await;
    registry
        .push_layout("slicer/guest:1", &default_layout())
        .await;
    let name = registry.name("slicer/guest:1");
    let mut setup = Setup::sandboxes();
    setup.image = Some(name.clone());
    setup.more.push_str("  insecure_registry: true\n");
    let mut daemon = TestDaemon::start(&setup);
    // The daemon is fetching it by itself, or has: that is one pull.
    daemon.cli(&["image", "pull", &name]).await.text();
    let again = daemon.cli(&["image", "pull", &name]).await;
    assert!(again.text().contains("Image is up to date"), "{again:?}");
    let other = if std::env::consts::ARCH == "aarch64" {
        "amd64"
    } else {
        "arm64"
    };
    let missing = daemon.cli(&["image", "pull", "--arch", other, &name]).await;
    assert_eq!(missing.code, 1, "{missing:?}");
    assert!(missing.stderr.contains(other), "{missing:?}");
    let client = daemon.client();
    let old = launch(&client, &CreateNode::default()).await;
    let listed = client.images().await.unwrap();
    assert_eq!(listed.images.len(), 1, "{listed:?}");
    let image = &listed.images[0];
    assert_eq!(
        (&image.name, &image.host_groups[..]),
        (&name, &["sbox".to_owned()][..])
    );
    // The blobs, and the base beside them.
    assert!(image.disk_bytes > image.size_bytes, "{image:?}");
    assert_eq!(listed.disk_bytes, image.disk_bytes);
    let first = image.digest.clone();
    let is_read = !image.vms.is_empty();
    let refused = daemon.cli(&["image", "remove", &name]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("host group sbox"), "{refused:?}");
    assert_eq!(is_read, refused.stderr.contains(&old), "{refused:?}");

    let newer = tempfile::tempdir().unwrap();
    slicer_testkit::Image::from_layout(&default_layout())
        .layer(file("etc/marker", "newer"))
        .write(newer.path());
    registry.push_layout("slicer/guest:1", newer.path()).await;
    let pulled = daemon.cli(&["image", "pull", &name, "--json"]).await.json();
    assert_eq!(pulled["changed"], true, "{pulled}");
    let new = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &new, "cat /etc/marker").await, "newer");
    let without = says(&client, &old, "ls /etc/marker 2>/dev/null; hostname").await;
    assert_eq!(without, old);
    let listed = client.images().await.unwrap();
    assert_eq!(listed.images.len(), 1);
    assert_ne!(listed.images[0].digest, first);

    // Removed all the same, it takes nothing from those who have it.
    let digits = listed.images[0].digest["sha256:".len()..][..12].to_owned();
    let gone = client.remove_image(&digits, true).await.unwrap();
    assert_eq!(gone.removed, std::slice::from_ref(&name));
    assert!(gone.freed_bytes > 0, "{gone:?}");
    assert_eq!(is_read, gone.kept.iter().any(|k| k.reason.contains(&new)));
    assert_eq!(says(&client, &new, "cat /etc/marker").await, "newer");
    assert_eq!(says(&client, &old, "hostname").await, old);
    let unknown = daemon.cli(&["image", "rm", "nobody/nothing"]).await;
    assert!(unknown.stderr.contains("not found"), "{unknown:?}");

    // What is sent needs no registry.
    drop(registry);
    let layout = newer.path().to_str().unwrap();
    let sent = daemon.cli(&["image", "import", layout, &name]).await;
    assert!(sent.text().contains("Image imported"), "{sent:?}");
    let third = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &third, "cat /etc/marker").await, "newer");
    let other = ["image", "import", layout, "other:1", "--json"];
    let sent = daemon.cli(&other).await.json();
    assert_eq!(sent["name"], "docker.io/library/other:1");
    let nonsense = daemon
        .cli_with(&["image", "import", "-", "x:1"], Some(b"no tar".to_vec()))
        .await;
    assert!(nonsense.stderr.contains("400"), "{nonsense:?}");
    let wiped = client.wipe_images().await.unwrap();
    assert_eq!(wiped.removed, ["docker.io/library/other:1"]);
    let kept = wiped.kept.iter();
    assert!(kept.clone().any(|k| k.name == name), "{wiped:?}");
    let listed = client.images().await.unwrap();
    assert_eq!(
        (listed.images.len(), listed.other_bytes),
        (1, 0),
        "{listed:?}"
    );

    // Neither does the next daemon.
    drop(client);
    daemon.crash();
    daemon.launch();
    let client = daemon.client();
    let last = launch(&client, &CreateNode::default()).await;
    assert_eq!(says(&client, &last, "cat /etc/marker").await, "newer");
    drop(client);
    daemon.stop();
}
