//! A group whose VMs have another architecture than the host, beside one of the host's own.

use crate::foreign::{busybox, busybox_of, does_everything, goes_and_comes_back, root};
use crate::lifecycle::{names, sandbox};
use crate::tests;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, NodeStatus, Wait};
use slicer_machine::Arch;
use slicer_testkit::{BOOT, Image, Setup, TestDaemon, foreign_debian_tool};
use std::fs;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("arm64": beside_the_hosts_own, without_its_image)
}

/// The architecture that this host hasn't got.
fn other() -> Arch {
    match Arch::host().unwrap() {
        Arch::X86_64 => Arch::Aarch64,
        Arch::Aarch64 => Arch::X86_64,
    }
}

fn setup(image: String) -> Setup {
    let mut setup = Setup::sandboxes();
    setup.image = Some(image);
    setup.groups_as_text = format!(
        "    - name: foreign\n      count: 0\n      warm: false\n      vcpu: 1\n      ram_mb: 512\n      arch: {}\n",
        other().go_name()
    );
    setup
}

async fn beside_the_hosts_own() {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (Arch::host().unwrap(), other());
    // One image for both, of which each group takes its own.
    Image::default().layer(busybox()).write(dir.path());
    let program = foreign_debian_tool(other.go_name(), "bin/busybox");
    let image = Image::default()
        .of(other)
        .layer(busybox_of(&program))
        .write(dir.path());
    let mut daemon = TestDaemon::start(&setup(image));
    let client = daemon.client();
    let request = CreateNode {
        persistent: true,
        ..CreateNode::default()
    };
    let (near, far) = tokio::join!(sandbox(&client), async {
        let vm = client.create_node("foreign", &request, Some(Wait::Agent), Some(BOOT));
        vm.await.unwrap()
    });
    assert_eq!(far.arch, other.go_name());
    let far = far.hostname;
    for (vm, arch) in [(&near, own), (&far, other)] {
        assert_eq!(root(&client, vm, "uname -m").await, arch.kernel_name());
        assert_eq!(client.node(vm).await.unwrap().node.arch, arch.go_name());
    }
    let groups = daemon.cli(&["vm", "group", "--json"]).await;
    let groups = groups.json();
    let archs: Vec<_> = groups
        .as_array()
        .unwrap()
        .iter()
        .map(|g| &g["arch"])
        .collect();
    assert_eq!(archs, [own.go_name(), other.go_name()]);

    let home = "mkdir -p /home/ada && /bin/busybox chown ada:ada /home/ada";
    root(&client, &far, home).await;
    does_everything(&daemon, &client, &far, "ada").await;
    sleeps(&daemon, &far).await;
    goes_and_comes_back(&daemon, &client, &far).await;
    drop(client);
    daemon.terminate();
    its_disk_stays_what_it_is(&mut daemon, &far).await;
    daemon.stop();
}

/// Paused and let run on, suspended and restored, it is as it was.
async fn sleeps(daemon: &TestDaemon, vm: &str) {
    let client = daemon.client();
    root(&client, vm, "echo remembered > /dev/shm/note").await;
    for (action, status) in [
        ("pause", NodeStatus::Paused),
        ("resume", NodeStatus::Running),
        ("suspend", NodeStatus::Suspended),
        ("restore", NodeStatus::Running),
    ] {
        let done = daemon.cli(&["vm", action, vm]).await;
        assert_eq!(done.code, 0, "{action}: {done:?}");
        let now = (vm.to_owned(), status);
        assert!(names(&client).await.contains(&now), "{action}: not {now:?}");
    }
    assert_eq!(root(&client, vm, "cat /dev/shm/note").await, "remembered");
}

/// What a VM has on its disk can't be run by another architecture.
async fn its_disk_stays_what_it_is(daemon: &mut TestDaemon, vm: &str) {
    let config = daemon.dir().join("slicer-mac.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let line = format!("      arch: {}\n", other().go_name());
    assert!(text.contains(&line), "{text}");
    fs::write(&config, text.replace(&line, "")).unwrap();
    daemon.launch();
    let answer = daemon.raw().post(&format!("/vm/{vm}/relaunch"), "").await;
    let told = format!("{vm} was made for {}", other().go_name());
    assert!(answer.text().contains(&told), "{}", answer.text());
}

async fn without_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::default().layer(busybox()).write(dir.path());
    let daemon = TestDaemon::start(&setup(image));
    let refused = daemon.cli(&["vm", "launch", "foreign"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    let wanted = format!("not available for linux/{}", other().go_name());
    assert!(refused.stderr.contains(&wanted), "{refused:?}");
    daemon.stop();
}
