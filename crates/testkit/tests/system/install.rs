//! What `make dist` made: published, installed, run and updated.

use crate::tests;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slicer_image::LayoutDir;
use slicer_registry::{Bundle, Origin};
use slicer_testkit::{CliOutput, Registry, TestDaemon, bin_dir, run_command};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::process::Command;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("install": from_make_dist_to_a_vm, a_mac_gets_its_own, bad_bundles_are_refused,
        the_command_updates_itself)
}

const BUNDLE: &str = "application/vnd.slicer.bundle.v1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

/// A command at home in `home`, which knows the password there is in it.
fn command(program: &Path, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .current_dir(home);
    command
}

async fn slicer(home: &Path, args: &[&str]) -> CliOutput {
    run_command(command(&bin_dir().join("slicer"), home, args), None).await
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

async fn from_make_dist_to_a_vm() {
    let dist = bin_dir().join("../dist/oci").canonicalize();
    let dist = dist.unwrap_or_else(|e| panic!("{e}: run `make dist`"));
    let dist = dist.to_str().unwrap();
    let registry = Registry::start(Some(("alex", "sesame"))).await;
    let name = registry.name("me/slicer:1");
    // Short, for the socket's name.
    let home = tempfile::Builder::new().prefix("si").tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();

    let push = ["image", "push", dist, &name, "--insecure", "--json"];
    let stranger = slicer(&home, &push).await;
    assert_eq!(stranger.code, 1);
    assert!(stranger.stderr.contains("docker login"), "{stranger:?}");
    fs::create_dir(home.join(".docker")).unwrap();
    let server = name.split('/').next().unwrap();
    // alex:sesame
    let login = json!({ "auths": { server: { "auth": "YWxleDpzZXNhbWU=" } } });
    fs::write(home.join(".docker/config.json"), login.to_string()).unwrap();
    let pushed = slicer(&home, &push).await.json();
    assert_eq!(pushed["blobs_present"], 0, "{pushed}");
    let blobs = pushed["blobs_pushed"].as_u64().unwrap();
    let again = slicer(&home, &push).await.json();
    assert_eq!(again["blobs_present"], blobs, "{again}");
    assert_eq!(again["digest"], pushed["digest"]);

    let dir = home.join("slicer-mac");
    let args = ["install", "slicer-mac", "--image", &name, "--insecure"];
    let installed = slicer(&home, &args).await;
    assert!(
        installed.text().contains("./slicer-mac up"),
        "{installed:?}"
    );
    for (file, wanted) in [
        ("slicer", 0o755),
        ("slicer-mac", 0o755),
        ("slicer-tray", 0o755),
        ("enable-rosetta.sh", 0o755),
        ("slicer-mac.yaml", 0o644),
    ] {
        assert_eq!(mode(&dir.join(file)), wanted, "{file}");
    }
    let built = fs::read(bin_dir().join("slicer-mac")).unwrap();
    assert!(fs::read(dir.join("slicer-mac")).unwrap() == built);
    assert!(!dir.join(".slicer-install").exists());

    // The configuration is its user's; all else is as it should be, and put right if it isn't.
    let shipped = fs::read_to_string(dir.join("slicer-mac.yaml")).unwrap();
    let edited = shipped.replacen("count: 1", "count: 0", 1);
    assert_ne!(edited, shipped);
    fs::write(dir.join("slicer-mac.yaml"), &edited).unwrap();
    fs::write(dir.join("enable-rosetta.sh"), "spoilt").unwrap();
    let stale = format!("guest/{}/image/blobs/sha256/{}", arch(), "0".repeat(64));
    fs::write(dir.join(&stale), "of an earlier version").unwrap();
    // From the layout, with no registry.
    let origin = format!("oci:{dist}");
    let to = dir.to_str().unwrap();
    let args = ["install", "slicer-mac", to, "--image", &origin, "--json"];
    let updated = slicer(&home, &args).await;
    assert_eq!(updated.json()["written"], json!(["enable-rosetta.sh"]));
    assert!(updated.stderr.contains("kept your"), "{updated:?}");
    let config = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(config("slicer-mac.yaml"), edited);
    assert_eq!(config("slicer-mac.yaml.new"), shipped);
    assert!(!dir.join(&stale).exists());

    let daemon = TestDaemon::start_installed(&dir);
    let cli = |args: &[&str]| run_command(command(&dir.join("slicer"), &dir, args), None);
    let url = dir.join("slicer.sock");
    let url = url.to_str().unwrap();
    let vm = cli(&["--url", url, "vm", "launch", "sbox", "--wait", "--json"]).await;
    let vm = vm.json()["hostname"].as_str().unwrap().to_owned();
    let said = cli(&["--url", url, "vm", "exec", &vm, "--", "hostname"]).await;
    assert_eq!(said.text().trim(), vm);
    daemon.stop();
}

async fn a_mac_gets_its_own() {
    let layout = bin_dir().join("../dist/oci").canonicalize();
    let layout = layout.unwrap_or_else(|e| panic!("{e}: run `make dist`"));
    let origin = Origin::Layout {
        dir: LayoutDir::new(&layout),
        tag: None,
    };
    let find = |os, arch| Bundle::find(&origin, os, arch, Arc::new(|_| ()));
    let bundle = find("darwin", "arm64").await.unwrap();
    let here = find("linux", arch()).await.unwrap();
    assert_eq!(bundle.version(), here.version());
    assert_ne!(bundle.digest(), here.digest());

    let file = |name: &str| {
        let mut all = bundle.files().iter();
        let file = all.find(|file| file.path() == Path::new(name));
        file.unwrap_or_else(|| panic!("no {name}"))
    };
    let blob = |name: &str| LayoutDir::new(&layout).blob(file(name).blob()).unwrap();
    let entitled = b"<key>com.apple.security.virtualization</key>";
    for (name, wanted) in [
        ("slicer", false),
        ("slicer-mac", true),
        ("slicer-tray", false),
    ] {
        let program = fs::read(blob(name)).unwrap();
        // A Mach-O of 64 bits for ARM64.
        assert_eq!(program[..8], *b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01", "{name}");
        // The signature is last; its entitlements are text.
        let end = &program[program.len().saturating_sub(4096)..];
        let found = end.windows(entitled.len()).any(|part| part == entitled);
        assert_eq!(found, wanted, "{name}");
        assert!(file(name).executable(), "{name}");
    }
    let config = fs::read_to_string(blob("slicer-mac.yaml")).unwrap();
    assert!(config.contains("hypervisor: apple"), "{config}");
    for name in ["slicer.bash", "_slicer", "slicer.fish"] {
        let text = fs::read_to_string(blob(&format!("completions/{name}"))).unwrap();
        assert!(text.contains("relaunch"), "{name}");
    }
}

/// Writes a bundle of these files.
fn bundle(dir: &Path, arch: &str, version: &str, files: &[(&str, &[u8])]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| -> Value {
        let digest = hex(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layers: Vec<Value> = files
        .iter()
        .map(|(title, bytes)| {
            let mut layer = put("application/vnd.slicer.file.v1", bytes);
            layer["annotations"] = json!({
                "org.opencontainers.image.title": title, "slicer.executable": "true",
            });
            layer
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE,
        "config": put("application/vnd.oci.empty.v1+json", b"{}"), "layers": layers,
        "annotations": {"org.opencontainers.image.version": version},
    });
    let mut entry = put(MANIFEST, manifest.to_string().as_bytes());
    entry["platform"] = json!({"os": "linux", "architecture": arch});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    let index = put(INDEX, index.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [index]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let digits: Vec<_> = digest.iter().map(|b| format!("{b:02x}")).collect();
    digits.concat()
}

async fn bad_bundles_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let layout = home.path().join("oci");
    let origin = format!("oci:{}", layout.display());
    let dir = home.path().join("to");
    let install = async || {
        let args = ["install", "slicer-mac", "to", "--image", &origin];
        slicer(home.path(), &args).await
    };
    let make = |arch: &str, files: &[(&str, &[u8])]| {
        let _ = fs::remove_dir_all(&layout);
        bundle(&layout, arch, "1.0.0", files);
    };
    let expect = |done: CliOutput, text: &str| {
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains(text), "{done:?}");
        assert!(done.stdout.is_empty(), "{done:?}");
    };

    make(arch(), &[("slicer", b"old"), ("slicer-mac", b"old")]);
    install().await.text();

    // A blob that is not what its digest says: the old files stay, all of them.
    make(arch(), &[("slicer", b"new"), ("slicer-mac", b"new one")]);
    let blob = layout.join("blobs/sha256").join(hex(b"new one"));
    fs::write(&blob, b"evil ii").unwrap();
    expect(install().await, "damaged");
    for file in ["slicer", "slicer-mac"] {
        assert_eq!(fs::read(dir.join(file)).unwrap(), b"old", "{file}");
    }
    // What was left of that is no obstacle.
    fs::write(&blob, b"new one").unwrap();
    install().await.text();
    assert_eq!(fs::read(dir.join("slicer-mac")).unwrap(), b"new one");

    for title in [
        "../evil",
        "/tmp/evil",
        "a/../../evil",
        ".ssh/authorized_keys",
        "",
    ] {
        make(arch(), &[("slicer", b"new"), (title, b"evil")]);
        expect(install().await, "may not be called");
    }
    assert!(!home.path().join("evil").exists());
    make("riscv64", &[("slicer", b"new")]);
    expect(install().await, "it has: linux/riscv64");
    fs::write(layout.join("index.json"), "{}").unwrap();
    expect(install().await, "not a usable OCI image layout");
    let image = crate::images::default_layout();
    let image = format!("oci:{}", image.display());
    let args = ["install", "slicer-mac", "to", "--image", &image];
    expect(slicer(home.path(), &args).await, "no bundle of slicer's");

    let other = slicer(home.path(), &["install", "kubectl"]).await;
    assert_eq!(other.code, 2);
    assert!(other.stderr.contains("there is: slicer-mac"), "{other:?}");
}

async fn the_command_updates_itself() {
    let home = tempfile::tempdir().unwrap();
    set_mode(home.path(), 0o755);
    let program = home.path().join("bin/slicer");
    fs::create_dir(home.path().join("bin")).unwrap();
    fs::copy(bin_dir().join("slicer"), &program).unwrap();
    set_mode(&program, 0o751);
    let built = fs::read(&program).unwrap();
    // Programs that are another one, and run.
    let other = |end: &str| [&built, end.as_bytes()].concat();
    let layout = |name: &str| -> PathBuf { home.path().join(name) };
    bundle(
        &layout("new"),
        arch(),
        "99.0.0",
        &[("slicer", &other("new"))],
    );
    bundle(
        &layout("old"),
        arch(),
        "0.0.1",
        &[("slicer", &other("old"))],
    );
    let update = async |from: &str, flags: &[&str]| {
        let origin = format!("oci:{}", layout(from).display());
        let args = [&["update", "--json", "--image", &origin], flags].concat();
        run_command(command(&program, home.path(), &args), None).await
    };
    let now = || fs::read(&program).unwrap();

    let checked = update("new", &["--check"]).await.json();
    assert_eq!(checked["available"], true, "{checked}");
    assert_eq!(checked["newest"], "99.0.0", "{checked}");
    assert!(now() == built);

    // Where one may not write, nothing is begun.
    set_mode(&home.path().join("bin"), 0o555);
    let origin = format!("oci:{}", layout("new").display());
    let args = ["update", "--image", &origin];
    let mut start = command(&program, home.path(), &args);
    if rustix::process::geteuid().is_root() {
        start.uid(65534);
    }
    let refused = run_command(start, None).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("sudo slicer update"), "{refused:?}");
    set_mode(&home.path().join("bin"), 0o755);
    assert!(now() == built);

    assert_eq!(update("old", &[]).await.json()["updated"], false);
    assert!(now() == built);
    let updated = update("new", &[]).await.json();
    assert_eq!(updated["updated"], true, "{updated}");
    assert!(now() == other("new"));
    assert_eq!(mode(&program), 0o751);
    // It runs, and can go back if it has to.
    assert_eq!(update("old", &["--force"]).await.json()["updated"], true);
    assert!(now() == other("old"));
    assert_eq!(fs::read_dir(home.path().join("bin")).unwrap().count(), 1);

    let blob = layout("new").join("blobs/sha256").join(hex(&other("new")));
    fs::write(blob, other("bad")).unwrap();
    let damaged = update("new", &[]).await;
    assert_eq!(damaged.code, 1);
    assert!(damaged.stderr.contains("damaged"), "{damaged:?}");
    assert!(now() == other("old"));
}
