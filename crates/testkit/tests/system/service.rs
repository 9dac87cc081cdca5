//! The daemon as a service of systemd's: the real program and the real systemd, in a VM of ours.

use crate::lifecycle::launch;
use crate::tests;
use crate::tour::sh;
use libtest_mimic::Trial;
use serde_json::Value;
use slicer_api::{CreateNode, ExecBuffered};
use slicer_client::Client;
use slicer_testkit::{BOOT, Setup, TestDaemon, bin_dir, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("service": from_install_to_uninstall)
}

/// Where it is installed: a name with all that a unit must escape.
const DIR: &str = r#"/home/ubuntu/a b & 50% $HOME "q" \x"#;

/// The guest as its user sees it, in [`DIR`].
struct Guest {
    client: Client,
    vm: String,
}

impl Guest {
    async fn sh(&self, script: &str) -> ExecBuffered {
        let script = format!("mkdir -p '{DIR}' && cd '{DIR}' && {script}");
        sh(&self.client, &self.vm, &script).await
    }

    /// What a script prints that succeeds.
    async fn says(&self, script: &str) -> String {
        let done = self.sh(script).await;
        assert_eq!(done.exit_code, 0, "{script}: {done:?}");
        done.stdout
    }

    /// What a script complains of that fails.
    async fn fails(&self, script: &str) -> String {
        let done = self.sh(script).await;
        assert_eq!(done.exit_code, 1, "{script}: {done:?}");
        done.stderr
    }

    /// The exit code of `service status daemon`, and what it says.
    async fn status(&self) -> (i32, Value) {
        let done = self.sh("./slicer-mac service status daemon --json").await;
        let status = serde_json::from_str(&done.stdout);
        (
            done.exit_code,
            status.unwrap_or_else(|e| panic!("{e}: {done:?}")),
        )
    }

    /// The process of the daemon, which must run.
    async fn pid(&self) -> u64 {
        let (code, status) = self.status().await;
        assert_eq!((code, &status["running"]), (0, &true.into()), "{status}");
        status["pid"].as_u64().unwrap()
    }

    async fn answers(&self) -> bool {
        let info = "curl -fsS --unix-socket slicer.sock http://slicer/info";
        let done = self.sh(info).await;
        done.exit_code == 0 && done.stdout.contains(env!("CARGO_PKG_VERSION"))
    }
}

async fn from_install_to_uninstall() {
    let daemon = TestDaemon::start(&Setup::sandboxes());
    let client = daemon.client();
    let vm = launch(&client, &CreateNode::default()).await;
    let program = bin_dir().join("slicer-mac");
    let to = format!("{vm}:slicer-mac");
    let copy = ["cp", program.to_str().unwrap(), &to];
    assert_eq!(daemon.cli(&copy).await.code, 0);
    let guest = Guest { client, vm };

    refusals(&guest).await;
    let pid = installing(&guest).await;
    let pid = managing(&guest, pid).await;
    updating(&guest, pid).await;

    let said = guest.says("\"$HOME/new/slicer-mac\" uninstall").await;
    assert!(said.contains("daemon: removed;"), "{said}");
    let left = guest
        .says("find ~/.config/systemd -name '*slicer*'; pgrep -x slicer-mac; ls slicer-mac.yaml")
        .await;
    assert_eq!(left, "slicer-mac.yaml\n");
    let (code, status) = guest.status().await;
    assert_eq!((code, &status["installed"]), (3, &false.into()), "{status}");
    let again = guest.says("./slicer-mac uninstall").await;
    assert_eq!(again, "tray: not installed\ndaemon: not installed\n");
    daemon.stop();
}

/// What can't work is told, and nothing is done.
async fn refusals(guest: &Guest) {
    let said = guest
        .fails("mv ~/slicer-mac . && ./slicer-mac install")
        .await;
    assert!(
        said.contains("`slicer-mac new > slicer-mac.yaml`"),
        "{said}"
    );
    // No image is fetched for VMs that nobody launches.
    guest
        .says("./slicer-mac new --image oci:/nonexistent:latest | sed 's/count: 1/count: 0/' > slicer-mac.yaml")
        .await;
    let said = guest.fails("sudo ./slicer-mac install").await;
    assert!(said.contains("without sudo"), "{said}");
    let said = guest.fails("./slicer-mac install").await;
    assert!(
        said.contains("sudo loginctl enable-linger ubuntu"),
        "{said}"
    );

    // What asks logind needs the bus, which comes after users are let in.
    wait_until("the guest has booted", BOOT, async || {
        let state = guest.sh("systemctl is-system-running").await.stdout;
        ["running", "degraded"].contains(&state.trim())
    })
    .await;
    guest.says("sudo loginctl enable-linger ubuntu").await;
    let manager = "XDG_RUNTIME_DIR=/run/user/1000 systemctl --user is-system-running";
    wait_until("the user's systemd runs", BOOT, async || {
        guest.sh(manager).await.stdout.trim() == "running"
    })
    .await;
    // As Debian does at every boot, for those in the journal's group to read it.
    guest
        .says("sudo systemd-tmpfiles --create --prefix=/run/log/journal")
        .await;
    let said = guest.fails("./slicer-mac service start daemon").await;
    assert!(said.contains("run `slicer-mac install`"), "{said}");

    // There is no QEMU: the daemon itself says so.
    let said = guest.fails("./slicer-mac install").await;
    assert!(
        said.contains("the daemon does not start: qemu-system-") && said.contains("install QEMU"),
        "{said}"
    );
    // systemd tries it again and again, until it is told not to.
    guest.says("./slicer-mac service stop daemon").await;
    assert_eq!(guest.status().await.0, 3);
}

/// Installs the daemon, and gives its process.
async fn installing(guest: &Guest) -> u64 {
    // For the daemon to find on the user's own path; it is run for VMs only.
    guest
        .says("mkdir ~/qemu && install -m 755 /dev/null ~/qemu/qemu-system-$(uname -m)")
        .await;
    let said = guest
        .says("PATH=$PATH:$HOME/qemu ./slicer-mac install")
        .await;
    assert!(said.starts_with("daemon: updated, running (pid "), "{said}");
    assert!(said.contains("tray: not installed"), "{said}");
    assert!(said.contains("slicer-mac service logs daemon"), "{said}");
    assert!(guest.answers().await);
    let pid = guest.pid().await;
    let (_, status) = guest.status().await;
    assert_eq!(status["directory"], DIR);
    let said = guest
        .says("PATH=$PATH:$HOME/qemu ./slicer-mac install")
        .await;
    let already = format!("daemon: installed already, running (pid {pid})");
    assert!(said.starts_with(&already), "{said}");
    pid
}

/// Stops, starts and kills it, and gives its last process.
async fn managing(guest: &Guest, pid: u64) -> u64 {
    let said = guest.says("./slicer-mac service stop daemon").await;
    assert_eq!(said, "daemon: stopped\n");
    assert!(!guest.answers().await);
    let (code, status) = guest.status().await;
    assert_eq!((code, &status["state"]), (3, &"dead".into()), "{status}");
    let said = guest.says("./slicer-mac service start daemon").await;
    assert!(said.starts_with("daemon: started, running (pid "), "{said}");
    assert!(guest.answers().await);
    let second = guest.pid().await;
    assert_ne!(second, pid);

    guest.says(&format!("kill -9 {second}")).await;
    wait_until("systemd has started another", BOOT, async || {
        guest.answers().await
    })
    .await;
    let third = guest.pid().await;
    assert_ne!(third, second);
    let log = guest.says("./slicer-mac service logs daemon").await;
    assert!(log.contains("serving the API"), "{log}");
    assert!(log.contains("code=killed, status=9/KILL"), "{log}");
    // It goes on, until somebody has seen enough.
    let follow = "timeout 60 ./slicer-mac service logs daemon -n 1 -f | head -n 1";
    assert_eq!(guest.says(follow).await.lines().count(), 1);

    // Who asks it to end by the API means it.
    let end = "curl -fsS -X POST --unix-socket slicer.sock http://slicer/daemon/shutdown";
    guest.says(end).await;
    wait_until("it has ended for good", BOOT, async || {
        guest.status().await.1["state"] == "dead"
    })
    .await;
    guest.says("./slicer-mac service start daemon").await;
    guest.pid().await
}

/// Moves the program and installs it again, with something beside it that is to be the tray.
async fn updating(guest: &Guest, pid: u64) {
    let tray = "mkdir ~/new && cp slicer-mac ~/new/ && cp /bin/true ~/new/slicer-tray";
    guest.says(tray).await;
    let said = guest
        .says("PATH=$PATH:$HOME/qemu \"$HOME/new/slicer-mac\" install")
        .await;
    assert!(said.contains("daemon: updated, running (pid "), "{said}");
    assert!(
        said.contains("tray: installed, starts with your desktop"),
        "{said}"
    );
    let new = guest.pid().await;
    assert_ne!(new, pid);
    let exe = guest.says(&format!("readlink /proc/{new}/exe")).await;
    assert_eq!(exe, "/home/ubuntu/new/slicer-mac\n");
    let said = guest.sh("./slicer-mac service status").await;
    assert_eq!(said.exit_code, 3, "{said:?}");
    assert!(said.stdout.contains("tray: not running (dead)"), "{said:?}");
    let said = guest
        .says("PATH=$PATH:$HOME/qemu \"$HOME/new/slicer-mac\" install --no-tray")
        .await;
    assert!(said.contains("tray: removed"), "{said}");
    assert_eq!(guest.pid().await, new);
}
