//! Sleep of the host, as a logind on a real bus tells of it. The VMs are agents on this host.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use slicer_api::NodeStatus::{Running, Stopped, Suspended};
use slicer_api::{CreateNode, Endpoint, NodeStatus, Wait};
use slicer_client::{Client, NodeFilter};
use slicer_daemon::Daemon;
use slicer_daemon::config::{Config, Host};
use slicer_daemon::power::{PowerError, PowerEvent, PowerSource, logind};
use slicer_testkit::{
    Bus, FakeHypervisor, Group, LIMIT, Lock, Logind, SBOX, Setup, image_layout, kernel_layout,
    wait_until,
};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long the logind of these tests has the host's sleep held up.
const DELAY: Duration = Duration::from_mins(1);

fn lock(mode: &str) -> Lock {
    Lock {
        what: "sleep".into(),
        who: "slicer".into(),
        mode: mode.into(),
    }
}

async fn locks(logind: &Logind, modes: &[&str]) {
    let mut wanted: Vec<Lock> = modes.iter().map(|m| lock(m)).collect();
    wanted.sort_by(|a, b| a.mode.cmp(&b.mode));
    wait_until(&format!("the locks are {modes:?}"), LIMIT, async || {
        let mut locks = logind.locks();
        locks.sort_by(|a, b| a.mode.cmp(&b.mode));
        locks == wanted
    })
    .await;
}

async fn next(source: &mut PowerSource) -> Option<PowerEvent> {
    let next = source.events.next();
    tokio::time::timeout(LIMIT, next).await.unwrap()
}

#[tokio::test]
async fn logind_waits_until_the_delay_is_dropped() {
    let mut logind = Logind::start(DELAY);
    let mut source = logind::connect(Some(&logind.address())).await.unwrap();
    locks(&logind, &["delay"]).await;
    for _ in 0..2 {
        let before = Instant::now();
        logind.sleep();
        let Some(PowerEvent::AboutToSleep { delay, deadline }) = next(&mut source).await else {
            panic!("not what it said");
        };
        let left = deadline - before;
        assert!(left > DELAY / 2 && left < DELAY, "{left:?} of {DELAY:?}");
        assert_eq!(logind.locks(), [lock("delay")]);
        drop(delay);
        locks(&logind, &[]).await;
        logind.wake();
        let woke = next(&mut source).await;
        assert!(matches!(woke, Some(PowerEvent::WokeUp)));
        assert_eq!(logind.locks(), [lock("delay")]);
    }
    let hold = source.inhibitor.inhibit().await.unwrap();
    locks(&logind, &["block", "delay"]).await;
    drop(hold);
    // The bus has it for a moment longer.
    locks(&logind, &["delay"]).await;
    logind.end_bus();
    assert!(next(&mut source).await.is_none());
    assert!(source.inhibitor.inhibit().await.is_err());
}

#[tokio::test]
async fn a_host_without_logind_is_none_that_sleeps() {
    let bus = Bus::start();
    for address in ["unix:path=/nonexistent", &bus.address()] {
        let refused = logind::connect(Some(address)).await;
        let Err(PowerError::Unreachable(why)) = refused else {
            panic!("{address} has a logind");
        };
        assert!(!why.is_empty());
    }
}

/// A daemon with a group of each action and one VM in each.
struct Place {
    dir: tempfile::TempDir,
    daemon: Daemon,
    client: Client,
}

const ACTIONS: [&str; 4] = ["none", "prevent", "shutdown", "suspend"];

impl Place {
    async fn new(logind: &Logind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = |name: &str, write: fn(&Path) -> String| {
            let layout = dir.path().join(name);
            fs::create_dir(&layout).unwrap();
            write(&layout)
        };
        let mut setup = Setup::of(ACTIONS.map(|action| Group {
            name: action,
            sleep_action: action,
            ..SBOX
        }));
        let kernel = layout("kernel-image", kernel_layout);
        setup.more = format!("  kernel_image: {kernel:?}\n");
        let yaml = setup.yaml(&layout("image", image_layout));
        let (config, warnings) = Config::parse(&yaml, "test.yaml", &Host::current()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let hypervisor = FakeHypervisor::new();
        let daemon = Daemon::start(&config, dir.path(), |_| Ok(hypervisor));
        let mut daemon = daemon.await.unwrap();
        let bus = logind.address();
        daemon.heed_sleep(async move { logind::connect(Some(&bus)).await });
        let endpoint = Endpoint::Unix(dir.path().join("slicer.sock"));
        let client = Client::new(endpoint, None, "test").unwrap();
        Self {
            dir,
            daemon,
            client,
        }
    }

    async fn launch(&self, group: &str, persistent: bool) -> String {
        let request = CreateNode {
            persistent,
            ..CreateNode::default()
        };
        let made = self
            .client
            .create_node(group, &request, Some(Wait::Agent), Some(LIMIT));
        made.await.unwrap().hostname
    }

    async fn nodes(&self) -> Vec<(String, NodeStatus)> {
        let nodes = self.client.nodes(&NodeFilter::default()).await.unwrap();
        nodes.into_iter().map(|n| (n.hostname, n.status)).collect()
    }
}

#[tokio::test]
async fn vms_get_what_their_groups_ask_for() {
    let logind = Logind::start(DELAY);
    let place = Place::new(&logind).await;
    locks(&logind, &["delay"]).await;
    for action in ACTIONS {
        place.launch(action, false).await;
    }
    place.launch("shutdown", true).await;
    // Whoever suspended this has it stay so.
    let own = place.launch("suspend", false).await;
    place.client.suspend(&own).await.unwrap();
    locks(&logind, &["block", "delay"]).await;

    logind.sleep();
    locks(&logind, &["block"]).await;
    let asleep = [
        ("none-1", Running),
        ("prevent-1", Running),
        ("shutdown-2", Stopped),
        ("suspend-1", Suspended),
        ("suspend-2", Suspended),
    ]
    .map(|(name, status)| (name.to_owned(), status));
    assert_eq!(place.nodes().await, asleep);
    // For a daemon that comes after one that died meanwhile.
    let is_restored_at_start = |vm: &str| {
        let dir = place.dir.path().join(".slicer/suspended").join(vm);
        let note = fs::read(dir.join("saved.json")).unwrap();
        let note: serde_json::Value = serde_json::from_slice(&note).unwrap();
        note["restore_at_start"].as_bool().unwrap()
    };
    assert!(is_restored_at_start("suspend-1"));
    assert!(!is_restored_at_start("suspend-2"));

    logind.wake();
    locks(&logind, &["block", "delay"]).await;
    wait_until("it is restored", LIMIT, async || {
        place.client.health("suspend-1").await.is_ok()
    })
    .await;
    let mut awake = asleep;
    awake[3].1 = Running;
    assert_eq!(place.nodes().await, awake);

    place
        .client
        .delete_node("prevent", "prevent-1")
        .await
        .unwrap();
    locks(&logind, &["delay"]).await;
    place.daemon.stop(false, std::future::pending()).await;
    locks(&logind, &[]).await;
}
