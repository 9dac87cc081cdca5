//! The real ssh, led into VMs by `slicer ssh-config`.

use crate::tests;
use crate::tour::{Tour, sh};
use libtest_mimic::Trial;
use slicer_testkit::{CliOutput, bin_dir, run_command};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio::process::Command;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("ssh", tour; to_a_vm)
}

/// A key pair of its own in this directory; returns the public one.
pub(crate) async fn key_pair(dir: &Path) -> String {
    let mut command = Command::new("ssh-keygen");
    let file = dir.join("key");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]);
    let made = run_command(
        {
            command.arg(&file);
            command
        },
        None,
    )
    .await;
    assert_eq!(made.code, 0, "{made:?}");
    let public = fs::read_to_string(file.with_extension("pub")).unwrap();
    public.trim().to_owned()
}

/// Runs `ssh` or a program that calls it with the configuration and key in `dir`, and no other.
async fn by(program: &str, dir: &Path, args: &[&str]) -> CliOutput {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", dir)
        // Where no daemon is.
        .current_dir("/")
        .arg("-F")
        .arg(dir.join(".ssh/config"))
        .arg("-i")
        .arg(dir.join("key"))
        .args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
        .args(args);
    run_command(command, None).await
}

async fn to_a_vm(tour: &Tour) {
    let home = tempfile::tempdir().unwrap();
    let key = key_pair(home.path()).await;
    // Not waited for: it is ssh that waits.
    let line = "vm launch sbox --name by-ssh --json --ssh-key";
    let args: Vec<&str> = line.split(' ').chain([&*key]).collect();
    let launched = tour.daemon().cli(&args).await.json();
    let vm = launched["hostname"].as_str().unwrap();

    // As a user has it who installs it twice, beside a configuration of his own.
    let ssh = home.path().join(".ssh");
    fs::create_dir(&ssh).unwrap();
    fs::write(ssh.join("config"), "Host *\n  User nobody\n").unwrap();
    for _ in 0..2 {
        let mut command = Command::new(bin_dir().join("slicer"));
        command
            .env_clear()
            .env("HOME", home.path())
            .env("SLICER_URL", tour.daemon().dir().join("slicer.sock"))
            .args(["ssh-config", "--install"]);
        let installed = run_command(command, None).await;
        assert!(
            installed.text().contains("leads to slicer-N, sbox-N"),
            "{installed:?}"
        );
    }
    let config = fs::read_to_string(ssh.join("config")).unwrap();
    assert_eq!(config.matches("Include").count(), 1, "{config}");
    let mode = fs::metadata(home.path().join("key")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    let hello = by("ssh", home.path(), &[vm, "whoami; hostname"]).await;
    assert_eq!(hello.text(), format!("ubuntu\n{vm}\n"));
    assert_eq!(hello.stderr, "");
    let named = by("ssh", home.path(), &["by-ssh.slicer", "exit 7"]).await;
    assert_eq!(named.code, 7, "{named:?}");

    // Large enough that both directions flow at length.
    let big: Vec<u8> = (0..3 << 20)
        .map(|n: u32| (n >> 7).to_le_bytes()[0])
        .collect();
    let file = home.path().join("big");
    fs::write(&file, &big).unwrap();
    let there = format!("{vm}:big");
    let back = home.path().join("back");
    for args in [
        ["-q", file.to_str().unwrap(), &there],
        ["-q", &there, back.to_str().unwrap()],
    ] {
        let copied = by("scp", home.path(), &args).await;
        assert_eq!(copied.code, 0, "{copied:?}");
    }
    assert!(fs::read(&back).unwrap() == big, "it came back changed");

    // A guest in which nobody listens, long after its boot.
    let stop = "sudo systemctl stop ssh.socket; sudo systemctl stop ssh.service; \
                while ss -Hlnt 'sport = :22' | grep -q .; do sleep 0.1; done; \
                until [ \"$(cut -d. -f1 /proc/uptime)\" -ge 60 ]; do sleep 1; done";
    let stopped = sh(&tour.client(), vm, stop).await;
    assert_eq!(stopped.exit_code, 0, "{stopped:?}");
    let refused = by("ssh", home.path(), &[vm, "true"]).await;
    assert_eq!(refused.code, 255);
    assert!(
        refused.stderr.contains("no SSH server runs in it"),
        "{refused:?}"
    );
    let unknown = by("ssh", home.path(), &["sbox-999", "true"]).await;
    assert!(unknown.stderr.contains("not found"), "{unknown:?}");
    tour.client().delete_node("sbox", vm).await.unwrap();
}
