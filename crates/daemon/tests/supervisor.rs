//! VMs from their creation to their end, without VMs: the guests are agents on this host, and fail
//! as they are told to.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use hyper::Method;
use slicer_api::{CreateNode, Endpoint, ExecRequest, Node, NodeStatus, ShutdownAction, Wait};
use slicer_client::{Client, NodeFilter};
use slicer_daemon::Daemon;
use slicer_daemon::config::{Config, Host};
use slicer_testkit::{
    FakeGuest, FakeHypervisor, Group, LIMIT, RawClient, SBOX, SLICER, Setup, image_layout,
    kernel_layout, wait_until,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const NODES: &str = "/hostgroup/sbox/nodes";

/// A working directory with tiny images in it.
struct Place {
    dir: tempfile::TempDir,
    hypervisor: Arc<FakeHypervisor>,
    config: Config,
}

impl Place {
    fn new(groups: impl IntoIterator<Item = Group>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = |name: &str, write: fn(&Path) -> String| {
            let layout = dir.path().join(name);
            fs::create_dir(&layout).unwrap();
            write(&layout)
        };
        let mut setup = Setup::of(groups);
        let kernel = layout("kernel-image", kernel_layout);
        setup.more = format!("  kernel_image: {kernel:?}\n");
        let yaml = setup.yaml(&layout("image", image_layout));
        let (config, _) = Config::parse(&yaml, "test.yaml", &Host::current()).unwrap();
        Self {
            dir,
            hypervisor: FakeHypervisor::new(),
            config,
        }
    }

    fn sandboxes() -> Self {
        Self::new([SBOX])
    }

    async fn start(&self) -> Daemon {
        let hypervisor = self.hypervisor.clone();
        let started = Daemon::start(&self.config, self.dir.path(), |_| Ok(hypervisor)).await;
        started.unwrap()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.dir.path().join("slicer.sock"))
    }

    fn client(&self) -> Client {
        Client::new(self.endpoint(), None, "test").unwrap()
    }

    fn raw(&self) -> RawClient {
        RawClient::new(self.endpoint())
    }

    async fn nodes(&self) -> Vec<Node> {
        self.client().nodes(&NodeFilter::default()).await.unwrap()
    }

    async fn status(&self, vm: &str) -> Option<NodeStatus> {
        let nodes = self.nodes().await;
        nodes.iter().find(|n| n.hostname == vm).map(|n| n.status)
    }

    async fn until(&self, vm: &str, status: Option<NodeStatus>) {
        let what = format!("{vm} is {status:?}");
        wait_until(&what, LIMIT, async || self.status(vm).await == status).await;
    }

    async fn until_launches(&self, n: usize) {
        let what = format!("launch {n} has begun");
        wait_until(&what, LIMIT, async || self.hypervisor.launches() == n).await;
    }

    /// Everything on disk whose name begins with this and is not that of a base.
    fn files(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for dir in ["", "logs", ".slicer/vms", ".slicer/run"] {
            let entries = fs::read_dir(self.dir.path().join(dir)).unwrap();
            let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
            found.extend(names.filter(|n| n.starts_with(prefix) && !n.contains("-base.img")));
        }
        found
    }

    #[track_caller]
    fn nothing_of(&self, vm: &str) {
        assert!(self.files(vm).is_empty(), "{:?}", self.files(vm));
        let running = self.hypervisor.running();
        assert!(!running.iter().any(|r| r == vm), "{running:?}");
    }
}

fn persistent() -> CreateNode {
    CreateNode {
        persistent: true,
        ..CreateNode::default()
    }
}

/// A guest whose launch takes longer than anybody waits.
fn slow() -> FakeGuest {
    FakeGuest {
        launch_time: 10 * LIMIT,
        ..FakeGuest::good()
    }
}

/// A guest whose launch fails.
fn broken() -> FakeGuest {
    FakeGuest {
        launch_error: Some("no such luck".into()),
        ..FakeGuest::good()
    }
}

async fn ready(client: &Client, request: &CreateNode) -> String {
    let made = client.create_node("sbox", request, Some(Wait::Agent), Some(LIMIT));
    made.await.unwrap().hostname
}

/// A stop that may take its time.
async fn stop(daemon: Daemon) {
    daemon.stop(false, std::future::pending()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let mut making = JoinSet::new();
    for _ in 0..50 {
        let client = place.client();
        making.spawn(async move {
            let vm = ready(&client, &CreateNode::default()).await;
            let request = ExecRequest {
                cmd: "echo".into(),
                args: vec![vm.clone()],
                ..ExecRequest::default()
            };
            let said = client.exec_buffered(&vm, &request).await.unwrap();
            assert_eq!(said.stdout, format!("{vm}\n"));
            vm
        });
    }
    let names: BTreeSet<String> = making.join_all().await.into_iter().collect();
    let expected: BTreeSet<String> = (1..=50).map(|n| format!("sbox-{n}")).collect();
    assert_eq!(names, expected);
    let nodes = place.nodes().await;
    let addresses: BTreeSet<&str> = nodes.iter().map(|n| n.ip.as_str()).collect();
    assert_eq!(addresses.len(), 50);

    let mut deleting = JoinSet::new();
    for name in names {
        let client = place.client();
        deleting.spawn(async move { client.delete_node("sbox", &name).await.unwrap() });
    }
    deleting.join_all().await;
    assert!(place.nodes().await.is_empty());
    place.nothing_of("sbox-");
    // Numbers are free again.
    let again = ready(&place.client(), &CreateNode::default()).await;
    assert_eq!(again, "sbox-1");
    stop(daemon).await;
    place.nothing_of("sbox-");
}

#[tokio::test]
async fn one_deleted_while_it_is_launched() {
    let place = Place::sandboxes();
    place.hypervisor.script("sbox-1", slow());
    let daemon = place.start().await;
    let raw = place.raw();
    let making = tokio::spawn(async move { raw.post(NODES, "").await });
    place.until_launches(1).await;
    let deleted = place.client().delete_node("sbox", "sbox-1").await;
    deleted.unwrap();
    let answer = making.await.unwrap();
    assert!(answer.text().contains("deleted"), "{}", answer.text());
    place.nothing_of("sbox-1");
    stop(daemon).await;
}

#[tokio::test]
async fn one_shut_down_while_it_is_launched() {
    let place = Place::sandboxes();
    place.hypervisor.script("sbox-1", slow());
    let daemon = place.start().await;
    let raw = place.raw();
    let making = tokio::spawn(async move { raw.post(NODES, "").await });
    place.until_launches(1).await;
    let client = place.client();
    let asked = client.shutdown("sbox-1", ShutdownAction::Shutdown).await;
    asked.unwrap();
    assert!(!making.await.unwrap().status.is_success());
    place.until("sbox-1", None).await;
    place.nothing_of("sbox-1");
    // Its name is free.
    place.hypervisor.script("sbox-1", FakeGuest::good());
    assert_eq!(ready(&client, &CreateNode::default()).await, "sbox-1");
    stop(daemon).await;
}

#[tokio::test]
async fn tags_change_and_last() {
    let place = Place::new([SLICER, SBOX]);
    let daemon = place.start().await;
    let client = place.client();
    let request = CreateNode {
        tags: vec!["name=db".into(), "a=1".into()],
        ..persistent()
    };
    ready(&client, &request).await;
    let patch = async |vm: &str, body: &str| {
        let target = format!("/vm/{vm}/tags");
        let body = body.to_owned();
        place.raw().send(Method::PATCH, &target, body).await
    };
    let answer = patch("sbox-1", r#"{"add":["b"],"remove":["a=1"]}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let expected = serde_json::json!({"hostname": "sbox-1", "tags": ["name=db", "b"]});
    assert_eq!(answer.json(), expected);
    let listed = place.raw().get("/nodes?tag=b").await.json();
    assert_eq!(listed[0]["tags"], expected["tags"]);
    for (vm, body, status) in [
        ("sbox-1", "{}", 400),
        ("sbox-1", r#"{"remove":["name=db"]}"#, 400),
        ("sbox-1", r#"{"replace":[],"add":[]}"#, 400),
        ("slicer-1", r#"{"add":["name=db"]}"#, 409),
        ("sbox-9", r#"{"add":["x"]}"#, 404),
        ("slicer-1", r#"{"add":["name=home"]}"#, 200),
        ("slicer-1", r#"{"add":["name=other"]}"#, 400),
    ] {
        let answer = patch(vm, body).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text());
    }
    let taken = place.raw().post(NODES, r#"{"tags":["name=home"]}"#).await;
    assert_eq!(taken.status, 409);
    stop(daemon).await;
    let daemon = place.start().await;
    assert_eq!(place.raw().get("/vm/sbox-1/tags").await.json(), expected);
    stop(daemon).await;
}

#[tokio::test]
async fn what_is_forwarded_is_told() {
    let mut place = Place::sandboxes();
    let forwards = ["./d.sock:/var/run/docker.sock", "0:localhost:6443"];
    place.config.host_groups[0].forwards = forwards.map(|f| f.parse().unwrap()).to_vec();
    let daemon = place.start().await;
    let client = place.client();
    let socket = place.dir.path().join("d.sock").display().to_string();
    let (first, second) = (
        ready(&client, &CreateNode::default()).await,
        ready(&client, &CreateNode::default()).await,
    );
    let forwards = async |vm: &str| client.node(vm).await.unwrap().forwards;
    let listens = async |vm: &str| forwards(vm).await.iter().all(|f| f.listening);
    wait_until("all is listened on", LIMIT, async || listens(&first).await).await;
    let told = forwards(&first).await;
    assert_eq!(told[0].listen, socket);
    assert_eq!(told[0].target, "unix:/var/run/docker.sock");
    assert_eq!(told[1].target, "localhost:6443");
    let port = told[1].listen.strip_prefix("127.0.0.1:").unwrap();
    assert_ne!(port.parse::<u16>().unwrap(), 0);
    // Two can't listen at one place: the second has its turn when the first is gone.
    let told = forwards(&second).await;
    assert_eq!((&told[0].listen, told[0].listening), (&socket, false));
    client.delete_node("sbox", &first).await.unwrap();
    wait_until("the second's turn", LIMIT, async || listens(&second).await).await;
    stop(daemon).await;
}

#[tokio::test]
async fn a_launch_that_fails() {
    let place = Place::new([SLICER, SBOX]);
    for vm in ["slicer-1", "sbox-1"] {
        place.hypervisor.script(vm, broken());
    }
    let daemon = place.start().await;
    for body in ["{}", r#"{"persistent":true}"#] {
        let answer = place.raw().post(NODES, body).await;
        assert_eq!(answer.status, 500);
        assert!(answer.text().contains("no such luck"), "{}", answer.text());
        place.nothing_of("sbox-1");
    }
    // What the configuration declares stays in the list, and can be tried again.
    place.until("slicer-1", Some(NodeStatus::Stopped)).await;
    place.hypervisor.script("slicer-1", FakeGuest::good());
    let answer = place.raw().post("/vm/slicer-1/relaunch", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(place.status("slicer-1").await, Some(NodeStatus::Running));
    stop(daemon).await;
}

#[tokio::test]
async fn a_relaunch_that_fails_keeps_the_disk() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let client = place.client();
    let vm = ready(&client, &persistent()).await;
    let asked = client.shutdown(&vm, ShutdownAction::Shutdown).await;
    asked.unwrap();
    place.until(&vm, Some(NodeStatus::Stopped)).await;
    let disk = place.dir.path().join("sbox-1.img");
    fs::write(&disk, "precious").unwrap();
    place.hypervisor.script(&vm, broken());
    let answer = place.raw().post("/vm/sbox-1/relaunch", "").await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(place.status(&vm).await, Some(NodeStatus::Stopped));
    assert_eq!(fs::read_to_string(&disk).unwrap(), "precious");
    stop(daemon).await;
    assert_eq!(fs::read_to_string(&disk).unwrap(), "precious");
}

#[tokio::test]
async fn a_relaunch_waits_for_the_stop_under_way() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let client = place.client();
    let vm = ready(&client, &persistent()).await;
    let answer = place.raw().post("/vm/sbox-1/relaunch", "").await;
    assert_eq!(answer.status, 409);
    let asked = client.shutdown(&vm, ShutdownAction::Shutdown).await;
    asked.unwrap();
    let answer = place.raw().post("/vm/sbox-1/relaunch", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(place.hypervisor.launches(), 2);
    wait_until("it is back", LIMIT, async || {
        client.health(&vm).await.is_ok()
    })
    .await;
    stop(daemon).await;
}

#[tokio::test]
async fn a_guest_that_never_answers() {
    let place = Place::sandboxes();
    place.hypervisor.script("sbox-1", FakeGuest::silent());
    let daemon = place.start().await;
    let target = format!("{NODES}?wait=agent&timeout=300ms");
    let answer = place.raw().post(&target, "").await;
    assert_eq!(answer.status, 408, "{}", answer.text());
    place.nothing_of("sbox-1");
    // Without the wait it is there, and says that it is not ready.
    let answer = place.raw().post(NODES, "").await;
    assert_eq!(answer.status, 201);
    let begun = Instant::now();
    let answer = place.raw().post("/vm/sbox-1/exec?cmd=true", "").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(begun.elapsed() < LIMIT / 4);
    stop(daemon).await;
    place.nothing_of("sbox-1");
}

#[tokio::test]
async fn a_guest_that_crashes() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let fragile = FakeGuest {
        crash_after: Some(Duration::from_millis(300)),
        ..FakeGuest::silent()
    };
    place.hypervisor.script("sbox-1", fragile);
    let target = format!("{NODES}?wait=agent");
    let answer = place.raw().post(&target, "").await;
    assert_eq!(answer.status, 500);
    assert!(answer.text().contains("told to crash"), "{}", answer.text());
    place.nothing_of("sbox-1");

    let answer = place.raw().post(NODES, r#"{"persistent":true}"#).await;
    assert_eq!(answer.status, 201);
    place.until("sbox-1", Some(NodeStatus::Stopped)).await;
    assert!(place.files("sbox-1").contains(&"sbox-1.img".to_owned()));
    stop(daemon).await;
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits() {
    let place = Place::sandboxes();
    let late = FakeGuest {
        boot_time: Some(Duration::from_millis(500)),
        ..FakeGuest::good()
    };
    place.hypervisor.script("sbox-1", late);
    let daemon = place.start().await;
    let client = place.client();
    let waiting = tokio::spawn(async move { ready(&client, &CreateNode::default()).await });
    place.until_launches(1).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    let client = place.client();
    wait_until("it is ready all the same", LIMIT, async || {
        client.health("sbox-1").await.is_ok()
    })
    .await;
    stop(daemon).await;
}

#[tokio::test]
async fn a_daemon_that_stops_makes_no_more() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let client = place.client();
    let vm = ready(&client, &persistent()).await;
    // It has to wake up to power off.
    client.pause(&vm).await.unwrap();
    let stopping = tokio::spawn(stop(daemon));
    let (mut made, request) = (vec![vm], persistent());
    while !stopping.is_finished() {
        let asked = client.create_node("sbox", &request, None, None);
        made.extend(asked.await.map(|vm| vm.hostname));
    }
    stopping.await.unwrap();
    assert!(place.hypervisor.running().is_empty());
    // Those that came before the stop are kept, and no others were made.
    let daemon = place.start().await;
    let nodes = place.nodes().await;
    let known: Vec<&str> = nodes.iter().map(|n| n.hostname.as_str()).collect();
    assert_eq!(known, made);
    stop(daemon).await;
}

/// Runs a daemon that ends as by a crash: nothing of it is asked to finish.
fn crashing(work: impl AsyncFnOnce()) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(work());
    runtime.shutdown_timeout(LIMIT);
}

#[test]
fn a_new_daemon_finds_what_was_acknowledged() {
    let place = Place::new([SLICER, SBOX]);
    place.hypervisor.script("sbox-3", slow());
    crashing(async || {
        let daemon = place.start().await;
        let client = place.client();
        assert_eq!(ready(&client, &CreateNode::default()).await, "sbox-1");
        let request = CreateNode {
            tags: vec!["name=db".into()],
            ..persistent()
        };
        assert_eq!(ready(&client, &request).await, "sbox-2");
        place.until("slicer-1", Some(NodeStatus::Running)).await;
        // Killed in the middle of a launch.
        tokio::spawn(async move { client.create_node("sbox", &persistent(), None, None).await });
        place.until_launches(4).await;
        drop(daemon);
    });
    assert!(place.hypervisor.running().is_empty());
    for disk in ["slicer-1.img", "sbox-2.img"] {
        fs::write(place.dir.path().join(disk), "precious").unwrap();
    }

    crashing(async || {
        let daemon = place.start().await;
        assert_eq!(place.hypervisor.reaped().len(), 4);
        place.nothing_of("sbox-1");
        place.until("slicer-1", Some(NodeStatus::Running)).await;
        assert_eq!(place.status("sbox-2").await, Some(NodeStatus::Stopped));
        let nodes = place.nodes().await;
        let db = nodes.iter().find(|n| n.hostname == "sbox-2").unwrap();
        assert_eq!(db.tags, ["name=db"]);
        let answer = place.raw().post("/vm/sbox-2/relaunch", "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        for disk in ["slicer-1.img", "sbox-2.img"] {
            let text = fs::read_to_string(place.dir.path().join(disk)).unwrap();
            assert_eq!(text, "precious");
        }
        stop(daemon).await;
    });
}

#[tokio::test]
async fn what_nobody_knows_of_is_not_overwritten() {
    let place = Place::sandboxes();
    stop(place.start().await).await;
    let record = place.dir.path().join(".slicer/vms/sbox-1.json");
    let disk = place.dir.path().join("sbox-2.img");
    for file in [&record, &disk] {
        fs::write(file, "damaged").unwrap();
    }
    let daemon = place.start().await;
    let client = place.client();
    assert_eq!(ready(&client, &CreateNode::default()).await, "sbox-3");
    stop(daemon).await;
    for file in [&record, &disk] {
        assert_eq!(fs::read_to_string(file).unwrap(), "damaged");
    }
}

async fn suspend(place: &Place, vm: &str) {
    let answer = place.raw().post(&format!("/vm/{vm}/suspend"), "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    place.until(vm, Some(NodeStatus::Suspended)).await;
    assert!(!place.hypervisor.running().iter().any(|r| r == vm));
}

#[tokio::test]
async fn a_suspended_vm_outlives_daemons_and_is_deleted_like_any_other() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let vm = ready(&place.client(), &CreateNode::default()).await;
    suspend(&place, &vm).await;
    let detail = place.client().node(&vm).await.unwrap();
    assert_eq!(detail.node.status, NodeStatus::Suspended);
    stop(daemon).await;

    let daemon = place.start().await;
    assert_eq!(place.status(&vm).await, Some(NodeStatus::Suspended));
    let answer = place
        .raw()
        .post(&format!("/vm/{vm}/restore?wait=agent"), "")
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "VM restored\n");
    assert_eq!(place.status(&vm).await, Some(NodeStatus::Running));
    suspend(&place, &vm).await;
    place.client().delete_node("sbox", &vm).await.unwrap();
    place.nothing_of(&vm);
    let left = fs::read_dir(place.dir.path().join(".slicer/suspended")).unwrap();
    assert_eq!(left.count(), 0);
    stop(daemon).await;
}

#[tokio::test]
async fn a_state_that_is_refused_is_given_up_and_one_that_cannot_be_taken_up_now_is_kept() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let vm = ready(&place.client(), &persistent()).await;
    suspend(&place, &vm).await;
    let restore = format!("/vm/{vm}/restore?wait=agent");
    place.hypervisor.script(&vm, broken());
    let answer = place.raw().post(&restore, "").await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(
        answer.text().contains("stays suspended: "),
        "{}",
        answer.text()
    );
    assert_eq!(place.status(&vm).await, Some(NodeStatus::Suspended));

    let refused = FakeGuest {
        restore_error: Some("it is from another world".into()),
        ..FakeGuest::good()
    };
    place.hypervisor.script(&vm, refused);
    let answer = place.raw().post(&restore, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(
        answer.text().contains("it is from another world"),
        "{}",
        answer.text()
    );
    assert_eq!(place.status(&vm).await, Some(NodeStatus::Running));
    let answer = place.raw().post(&restore, "").await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    stop(daemon).await;
}

#[tokio::test]
async fn a_restore_that_is_cut_short_loses_nothing_but_what_was_given_up() {
    let place = Place::sandboxes();
    let daemon = place.start().await;
    let throwaway = ready(&place.client(), &CreateNode::default()).await;
    let kept = ready(&place.client(), &persistent()).await;
    let slow = FakeGuest {
        launch_time: Duration::from_hours(1),
        ..FakeGuest::good()
    };
    for vm in [&throwaway, &kept] {
        suspend(&place, vm).await;
        place.hypervisor.script(vm, slow.clone());
    }
    let before = place.hypervisor.launches();
    for vm in [&throwaway, &kept] {
        let (raw, path) = (place.raw(), format!("/vm/{vm}/restore"));
        tokio::spawn(async move { raw.post(&path, "").await });
    }
    place.until_launches(before + 2).await;
    stop(daemon).await;

    let daemon = place.start().await;
    for vm in [&throwaway, &kept] {
        assert_eq!(place.status(vm).await, Some(NodeStatus::Suspended));
    }
    place.hypervisor.script(&throwaway, FakeGuest::good());
    let restore = format!("/vm/{throwaway}/restore?wait=agent");
    assert_eq!(place.raw().post(&restore, "").await.text(), "VM restored\n");

    // Who shuts it down meanwhile has given its state up.
    let (raw, path) = (place.raw(), format!("/vm/{kept}/restore"));
    tokio::spawn(async move { raw.post(&path, "").await });
    place.until_launches(before + 4).await;
    let done = place.raw().post(&format!("/vm/{kept}/shutdown"), "").await;
    assert_eq!(done.status, 200, "{}", done.text());
    place.until(&kept, Some(NodeStatus::Stopped)).await;
    stop(daemon).await;
    let daemon = place.start().await;
    assert_eq!(place.status(&kept).await, Some(NodeStatus::Stopped));
    stop(daemon).await;
}

#[tokio::test]
async fn what_a_stopping_daemon_suspends_the_next_one_restores() {
    let place = Place::new([SLICER, SBOX]);
    let daemon = place.start().await;
    let vm = ready(&place.client(), &CreateNode::default()).await;
    let deadline = Instant::now() + LIMIT;
    while place.client().health("slicer-1").await.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    daemon.stop(true, std::future::pending()).await;
    assert!(place.hypervisor.running().is_empty());

    // A restore shows as a launch of the fake.
    let before = place.hypervisor.launches();
    let daemon = place.start().await;
    place.until_launches(before + 2).await;
    for vm in ["slicer-1", &vm] {
        place.until(vm, Some(NodeStatus::Running)).await;
    }
    stop(daemon).await;
    place.nothing_of(&vm);
}
