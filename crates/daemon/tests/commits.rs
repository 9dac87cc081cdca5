//! Commits and forks, without VMs: what is refused, who may delete what, and forks that fail.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use hyper::Method;
use slicer_api::{
    CommitRequest, CreateNode, Endpoint, ForkRequest, ForkWait, NodeStatus, ShutdownAction, Wait,
};
use slicer_client::{Client, CommitFilter, NodeFilter};
use slicer_daemon::Daemon;
use slicer_daemon::config::{Config, Host};
use slicer_testkit::{
    FakeGuest, FakeHypervisor, Group, LIMIT, RawClient, SBOX, SLICER, Setup, image_layout,
    kernel_layout, wait_until,
};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

struct Place {
    dir: tempfile::TempDir,
    hypervisor: Arc<FakeHypervisor>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, write) in [
            ("kernel-image", kernel_layout as fn(&Path) -> String),
            ("image", image_layout),
        ] {
            let layout = dir.path().join(name);
            fs::create_dir(&layout).unwrap();
            write(&layout);
        }
        Self {
            dir,
            hypervisor: FakeHypervisor::new(),
        }
    }

    async fn start(&self, groups: impl IntoIterator<Item = Group>) -> Daemon {
        let layout = |name: &str| format!("oci:{}:latest", self.dir.path().join(name).display());
        let mut setup = Setup::of(groups);
        setup.more = format!("  kernel_image: {:?}\n", layout("kernel-image"));
        let yaml = setup.yaml(&layout("image"));
        let (config, _) = Config::parse(&yaml, "test.yaml", &Host::current()).unwrap();
        let hypervisor = self.hypervisor.clone();
        let started = Daemon::start(&config, self.dir.path(), |_| Ok(hypervisor)).await;
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

    async fn refused(&self, method: Method, target: &str, body: &str, status: u16) -> String {
        let answer = self.raw().send(method, target, body.to_owned()).await;
        let text = answer.text();
        assert_eq!(answer.status, status, "{target} {body}: {text}");
        text
    }

    async fn names(&self) -> Vec<String> {
        let nodes = self.client().nodes(&NodeFilter::default()).await.unwrap();
        nodes.into_iter().map(|n| n.hostname).collect()
    }

    fn commits(&self) -> usize {
        let dir = self.dir.path().join(".slicer/commits");
        fs::read_dir(dir).unwrap().count()
    }
}

async fn launch(client: &Client, persistent: bool) -> String {
    let request = CreateNode {
        persistent,
        ..CreateNode::default()
    };
    let made = client.create_node("sbox", &request, Some(Wait::Agent), Some(LIMIT));
    made.await.unwrap().hostname
}

async fn off(client: &Client, vm: &str) {
    client.shutdown(vm, ShutdownAction::Shutdown).await.unwrap();
    wait_until(&format!("{vm} is off"), LIMIT, async || {
        client.node(vm).await.unwrap().node.status == NodeStatus::Stopped
    })
    .await;
}

/// A stopped VM, and a commit of it.
async fn committed(client: &Client) -> (String, String) {
    let vm = launch(client, true).await;
    // One that is on its way down is waited for.
    client
        .shutdown(&vm, ShutdownAction::Shutdown)
        .await
        .unwrap();
    let made = client.commit(&vm, &CommitRequest::default()).await;
    (vm, made.unwrap().commit_id)
}

async fn stop(daemon: Daemon) {
    daemon.stop(false, std::future::pending()).await;
}

#[tokio::test]
async fn what_cannot_be_committed() {
    let place = Place::new();
    let daemon = place.start([SLICER, SBOX]).await;
    let client = place.client();
    let ephemeral = launch(&client, false).await;
    let kept = launch(&client, true).await;
    let commit = |vm: &str| format!("/vm/{vm}/commit");
    let post = Method::POST;
    place.refused(post.clone(), &commit(&kept), "", 409).await;
    client.pause(&kept).await.unwrap();
    place.refused(post.clone(), &commit(&kept), "", 409).await;
    client.resume(&kept).await.unwrap();
    place
        .refused(post.clone(), &commit(&ephemeral), "", 400)
        .await;
    place
        .refused(post.clone(), &commit("slicer-1"), "", 400)
        .await;
    place
        .refused(post.clone(), &commit("sbox-9"), "", 404)
        .await;
    off(&client, &kept).await;
    let long = "x".repeat(300);
    for body in [
        "[]".to_owned(),
        "{".to_owned(),
        r#"{"tags":[""]}"#.to_owned(),
        r#"{"labels":{"":"x"}}"#.to_owned(),
        r#"{"labels":["x"]}"#.to_owned(),
        format!(r#"{{"tags":["{long}"]}}"#),
        format!(r#"{{"labels":{{"a":"{long}"}}}}"#),
        format!(r#"{{"cache_key":"{long}"}}"#),
    ] {
        place
            .refused(post.clone(), &commit(&kept), &body, 400)
            .await;
    }
    assert_eq!(place.commits(), 0);
    stop(daemon).await;
}

#[tokio::test]
async fn what_is_no_commit() {
    let place = Place::new();
    let daemon = place.start([SBOX]).await;
    let outside = place.dir.path().join(".slicer/x");
    fs::create_dir(&outside).unwrap();
    for id in ["cmt-0", "..%2Fx", "%2e%2e%2Fx", "x%00", "cmt-%2F..", "%5C"] {
        place
            .refused(Method::DELETE, &format!("/vm/commits/{id}"), "", 404)
            .await;
        place
            .refused(Method::POST, &format!("/vm/commits/{id}/fork"), "", 404)
            .await;
    }
    assert!(outside.exists());
    place.refused(Method::POST, "/vm/commits", "", 405).await;
    place
        .refused(Method::GET, "/vm/commits/cmt-0", "", 405)
        .await;
    let answer = place.raw().get("/vm/commits?tag=a&mode=disk").await;
    assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "[]"));
    stop(daemon).await;
}

#[tokio::test]
async fn what_cannot_be_forked() {
    let place = Place::new();
    let daemon = place.start([SBOX]).await;
    let (vm, id) = committed(&place.client()).await;
    let target = format!("/vm/commits/{id}/fork");
    for body in [
        r#"{"fixups":["name"]}"#,
        r#"{"fixups":"hostname"}"#,
        r#"{"tag_mode":"prepend"}"#,
        r#"{"tags":["name=UPPER"]}"#,
        r#"{"secrets":["nobody"]}"#,
        r#"{"vcpu":99}"#,
        r#"{"ram_bytes":1}"#,
        r#"{"network":{"allow":[]}}"#,
        r#"{"network":{"drop":["10.0.0.0/8"]}}"#,
        "[]",
    ] {
        place.refused(Method::POST, &target, body, 400).await;
    }
    for query in ["wait=userdata", "wait=agent&timeout=soon"] {
        place
            .refused(Method::POST, &format!("{target}?{query}"), "", 400)
            .await;
    }
    assert_eq!(place.names().await, [vm]);
    stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_commit_a_key() {
    let place = Place::new();
    let daemon = place.start([SBOX]).await;
    let client = place.client();
    let mut making = JoinSet::new();
    for _ in 0..4 {
        let vm = launch(&client, true).await;
        off(&client, &vm).await;
        let client = client.clone();
        making.spawn(async move {
            let request = CommitRequest {
                cache_key: "deps".into(),
                ..CommitRequest::default()
            };
            client.commit(&vm, &request).await
        });
    }
    let done = making.join_all().await;
    let mut statuses: Vec<_> = done.iter().map(|d| d.as_ref().err()?.status()).collect();
    statuses.sort();
    assert_eq!(statuses, [None, Some(409), Some(409), Some(409)]);
    assert_eq!(place.commits(), 1);
    let filter = CommitFilter {
        cache_key: Some("deps".into()),
        ..CommitFilter::default()
    };
    assert_eq!(client.commits(&filter).await.unwrap().len(), 1);
    stop(daemon).await;
}

#[tokio::test]
async fn forks_live_as_long_as_their_commit() {
    let place = Place::new();
    let daemon = place.start([SBOX]).await;
    let client = place.client();
    let (vm, id) = committed(&client).await;
    let request = ForkRequest::default();
    let forked = client.fork(&id, &request, ForkWait::Agent, Some(LIMIT));
    let forked = forked.await.unwrap();
    let words = (
        &*forked.status,
        &*forked.parent_status,
        &*forked.child_status,
    );
    assert_eq!(words, ("forked", "stopped", "running"));
    assert_eq!((&*forked.hostname, &*forked.mode), ("sbox-2", "disk"));
    let detail = client.node("sbox-2").await.unwrap();
    assert_eq!(detail.parent_commit_id.as_ref(), Some(&id));
    assert_eq!(detail.commit_id, None);
    assert_eq!(
        client.node(&vm).await.unwrap().commit_id.as_ref(),
        Some(&id)
    );
    client.delete_node("sbox", &vm).await.unwrap();
    let throwaway = ForkRequest {
        persistent: Some(false),
        ..ForkRequest::default()
    };
    let none = client
        .fork(&id, &throwaway, ForkWait::None, None)
        .await
        .unwrap();
    let words = (&*none.parent_status, &*none.child_status, &*none.hostname);
    assert_eq!(words, ("deleted", "starting", "sbox-1"));
    assert!(!none.persistent);
    stop(daemon).await;

    // Whose group the configuration no longer has, it is there all the same.
    let daemon = place.start([SLICER]).await;
    let e = client.delete_commit(&id).await.unwrap_err();
    assert!(e.to_string().contains("sbox-2"), "{e}");
    let e = client.fork(&id, &throwaway, ForkWait::None, None).await;
    assert_eq!(e.unwrap_err().status(), Some(409));
    stop(daemon).await;

    let daemon = place.start([SBOX]).await;
    assert_eq!(place.names().await, ["sbox-2"]);
    client.delete_node("sbox", "sbox-2").await.unwrap();
    let deleted = client.delete_commit(&id).await.unwrap();
    assert_eq!(
        (deleted.commit_id, &*deleted.status),
        (id.clone(), "deleted")
    );
    assert_eq!(place.commits(), 0);
    assert!(client.delete_commit(&id).await.unwrap_err().is_not_found());
    stop(daemon).await;
}

#[tokio::test]
async fn forks_that_fail_are_removed() {
    let place = Place::new();
    let daemon = place.start([SBOX]).await;
    let client = place.client();
    let (vm, id) = committed(&client).await;
    let fork = async |wait, guest: FakeGuest, timeout| {
        place.hypervisor.script("sbox-2", guest);
        client
            .fork(&id, &ForkRequest::default(), wait, Some(timeout))
            .await
    };
    let crash = |after| FakeGuest {
        crash_after: Some(after),
        ..FakeGuest::silent()
    };
    let broken = FakeGuest {
        launch_error: Some("no such luck".into()),
        ..FakeGuest::good()
    };
    let short = Duration::from_millis(50);
    for (guest, timeout, status, words) in [
        (broken.clone(), LIMIT, 500, "no such luck"),
        (crash(short), LIMIT, 500, "told to crash"),
        (FakeGuest::silent(), short, 408, "deleted"),
    ] {
        let e = fork(ForkWait::Agent, guest, timeout).await.unwrap_err();
        assert_eq!(e.status(), Some(status), "{e}");
        assert!(e.to_string().contains(words), "{e}");
        assert_eq!(place.names().await, std::slice::from_ref(&vm));
    }
    let e = fork(ForkWait::None, broken, LIMIT).await.unwrap_err();
    assert_eq!(e.status(), Some(500), "{e}");
    let forked = fork(ForkWait::None, crash(short), LIMIT).await.unwrap();
    wait_until("the fork is gone", LIMIT, async || {
        place.names().await == [vm.clone()]
    })
    .await;
    let disk = place.dir.path().join(format!("{}.img", forked.hostname));
    assert!(!disk.exists());

    // One that was stopped before it was ready is somebody's, and can be started again.
    fork(ForkWait::None, FakeGuest::silent(), LIMIT)
        .await
        .unwrap();
    off(&client, "sbox-2").await;
    let e = client.commit("sbox-2", &CommitRequest::default()).await;
    assert_eq!(e.unwrap_err().status(), Some(409));
    place.hypervisor.script("sbox-2", FakeGuest::good());
    client.relaunch("sbox-2").await.unwrap();
    wait_until("sbox-2 is ready", LIMIT, async || {
        client.health("sbox-2").await.is_ok()
    })
    .await;
    off(&client, "sbox-2").await;
    client
        .commit("sbox-2", &CommitRequest::default())
        .await
        .unwrap();
    stop(daemon).await;
}

#[tokio::test]
async fn what_is_reset_begins_anew() {
    let place = Place::new();
    let daemon = place.start([SLICER, SBOX]).await;
    let client = place.client();
    let (vm, commit) = committed(&client).await;
    let fork = ForkRequest::default();
    let fork = client.fork(&commit, &fork, ForkWait::Agent, Some(LIMIT));
    let fork = fork.await.unwrap().hostname;
    let reset = |vm: &str| format!("/disks/{vm}/reset");
    // One that runs, one that must differ from its source, one that isn't there.
    place.refused(Method::POST, &reset(&fork), "", 409).await;
    off(&client, &fork).await;
    let why = place.refused(Method::POST, &reset(&fork), "", 409).await;
    assert!(why.contains("is a fork"), "{why}");
    place.refused(Method::POST, &reset("sbox-9"), "", 404).await;

    let disk = place.dir.path().join(format!("{vm}.img"));
    fs::write(&disk, "what somebody did").unwrap();
    client.reset_disk(&vm).await.unwrap();
    assert!(!disk.exists());
    assert_eq!(client.node(&vm).await.unwrap().commit_id, None);
    // Once more does no harm.
    client.reset_disk(&vm).await.unwrap();
    client.relaunch(&vm).await.unwrap();
    assert_ne!(fs::read(&disk).unwrap(), b"what somebody did");

    // Also of a VM that can't be deleted.
    wait_until("slicer-1 runs", LIMIT, async || {
        client.health("slicer-1").await.is_ok()
    })
    .await;
    off(&client, "slicer-1").await;
    client.reset_disk("slicer-1").await.unwrap();
    client.relaunch("slicer-1").await.unwrap();
    // A guest that has only begun to boot would be waited for until it is overdue.
    daemon.stop(true, std::future::pending()).await;
}
