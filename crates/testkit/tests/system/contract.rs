//! The API against its own description, by schemathesis (<https://schemathesis.readthedocs.io>).
//!
//! It makes requests of the description, right ones and wrong ones, and looks whether the answers
//! are described: statuses, types, schemas. No request may be more than the server can take, and
//! none that the description forbids may be taken.

use crate::tests;
use libtest_mimic::Trial;
use serde_json::Value;
use slicer_api::{CommitRequest, CreateNode, Endpoint, NodeStatus, ShutdownAction, Wait};
use slicer_client::Client;
use slicer_daemon::Daemon;
use slicer_daemon::config::{Config, Host};
use slicer_testkit::{
    FakeHypervisor, Group, LIMIT, SBOX, Setup, TestDaemon, free_port, image_layout, kernel_layout,
    wait_until,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("contract": names_nobody_has_and_a_running_vm, vms_that_come_and_go)
}

const TOKEN: &str = "sesame";
/// What is looked at in every answer, besides its status.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_schema_conformance,response_headers_conformance,negative_data_rejection,\
    missing_required_header,unsupported_method,ignored_auth";
/// Requests for each operation, besides those for each of its parameters. The same every time.
const EXAMPLES: &str = "25";
const SEED: &str = "1";
/// Longer than any request may take.
const REQUEST_SECS: &str = "20";
/// Longer than a pass takes.
const PASS: Duration = Duration::from_mins(5);

/// The API of a daemon on TCP.
fn on_tcp(groups: impl IntoIterator<Item = Group>) -> (Setup, String) {
    let port = free_port();
    let mut setup = Setup::of(groups);
    setup.api =
        format!("    bind_address: 127.0.0.1\n    port: {port}\n    auth:\n      token: {TOKEN}\n");
    (setup, format!("http://127.0.0.1:{port}"))
}

/// For names that schemathesis makes up. The daemon's end would be the pass's.
const MADE_UP: &str = r#"
cache.enabled = false

[[operations]]
include-operation-id = "shutDownDaemon"
enabled = false
"#;

/// Operations by method and path as described, with the statuses they were answered with.
type Answered = BTreeMap<String, BTreeSet<u64>>;

/// Has schemathesis ask what this configuration says, and be content with the answers.
async fn pass(url: &str, config: &str) -> Answered {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/schemathesis");
    assert!(
        tool.join("schemathesis").exists(),
        "{} is missing: run `make schemathesis`",
        tool.display()
    );
    let dir = tempfile::tempdir().unwrap();
    let (config_file, report) = (dir.path().join("st.toml"), dir.path().join("report.har"));
    fs::write(&config_file, config).unwrap();
    let (output, log) = log(dir.path());
    let mut run = Command::new("python3")
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(config_file)
        .args(["run", &format!("{url}/openapi.json"), "--no-color"])
        .args(["-H", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", EXAMPLES, "--seed", SEED])
        .args(["--generation-database", "none", "--continue-on-failure"])
        // Its threads get in each other's way under Python 3.11.
        .args(["--workers", "1", "--request-timeout", REQUEST_SECS])
        .args(["--report", "har", "--output-sanitize", "false"])
        .arg("--report-har-path")
        .arg(&report)
        .env("PYTHONPATH", tool)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("no_proxy", "*")
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run python3: {e}"));
    let status = tokio::time::timeout(PASS, run.wait()).await;
    let said = fs::read_to_string(log).unwrap();
    let status = status.unwrap_or_else(|_| panic!("schemathesis does not end:\n{said}"));
    let status = status.unwrap();
    assert!(status.success(), "schemathesis ({status}) says:\n{said}");
    answered(&report)
}

fn log(dir: &Path) -> (fs::File, PathBuf) {
    let path = dir.join("log");
    (fs::File::create(&path).unwrap(), path)
}

/// Reads what schemathesis has recorded, in the form of HAR 1.2.
fn answered(report: &Path) -> Answered {
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let mut answered = Answered::new();
    for entry in report["log"]["entries"].as_array().unwrap() {
        let request = &entry["request"];
        let url = request["url"].as_str().unwrap();
        // Behind the scheme and the host.
        let path = url.splitn(4, '/').nth(3).unwrap();
        let path = path.split('?').next().unwrap();
        let operation = format!("{} /{path}", request["method"].as_str().unwrap());
        let status = entry["response"]["status"].as_u64().unwrap();
        answered.entry(operation).or_default().insert(status);
    }
    answered
}

/// What has never succeeded says nothing about the server.
fn succeeded(answered: &Answered, operations: &[&str]) {
    for operation in operations {
        let statuses = answered.get(*operation);
        let succeeded = statuses.is_some_and(|s| s.iter().any(|s| (200..300).contains(s)));
        assert!(succeeded, "{operation}: {statuses:?}");
    }
}

async fn names_nobody_has_and_a_running_vm() {
    let (mut setup, url) = on_tcp([SBOX]);
    // Names that are made up lead to registries: to none outside of here.
    let nowhere = "http://127.0.0.1:9".to_owned();
    setup.env = vec![("HTTPS_PROXY", nowhere.clone()), ("HTTP_PROXY", nowhere)];
    let daemon = TestDaemon::start(&setup);
    let made_up = pass(&url, MADE_UP).await;
    assert!(made_up.len() > 40, "{made_up:?}");
    succeeded(&made_up, &["GET /nodes", "GET /info", "GET /metrics"]);

    let launch = ["vm", "launch", "sbox", "--wait", "--ram-mb", "256"];
    daemon.cli(&launch).await.text();
    let raw = daemon.raw();
    let known = r#"{"name":"known","data":"eA=="}"#;
    assert_eq!(raw.post("/secrets", known).await.status, 201);
    let background = async |command: &str| {
        let target = format!("/vm/sbox-1/exec?background=true&{command}");
        let answer = raw.post(&target, "").await.json();
        answer["exec_id"].as_str().unwrap().to_owned()
    };
    let (running, ended, reaped) = (
        background("cmd=sleep&args=1000").await,
        background("cmd=echo&args=done").await,
        background("cmd=true").await,
    );
    for id in [&ended, &reaped] {
        let wait = format!("/vm/sbox-1/exec/{id}/wait-exit");
        assert_eq!(raw.get(&wait).await.json()["running"], false);
    }
    let config = include_str!("contract/running.toml")
        .replace("RUNNING", &running)
        .replace("ENDED", &ended)
        .replace("REAPED", &reaped);
    let answered = pass(&url, &config).await;
    let described = raw.get("/openapi.json").await.json();
    let paths = described["paths"].as_object().unwrap().iter();
    let all = paths.flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(move |m| format!("{} {path}", m.to_uppercase()))
    });
    // The rest is what schemathesis itself reads, needs an upgrade or an image, or is in the other
    // pass.
    let left_out = [
        "GET /openapi.json",
        "POST /daemon/shutdown",
        "DELETE /images",
        "POST /images/import",
        "GET /disks/{vm}/export",
        "POST /disks/{vm}/reset",
        "GET /vm/{vm}/shell",
        "GET /vm/{vm}/forward",
        "POST /hostgroup/{group}/nodes",
        "DELETE /hostgroup/{group}/nodes/{vm}",
        "POST /vm/{vm}/shutdown",
        "POST /vm/{vm}/pause",
        "POST /vm/{vm}/suspend",
        "POST /vm/{vm}/restore",
        "POST /vm/{vm}/relaunch",
        "POST /vm/{vm}/commit",
        "DELETE /vm/commits/{id}",
        "DELETE /templates/{id}",
        "POST /vm/{vm}/fork",
        "POST /vm/commits/{id}/fork",
    ];
    let asked: Vec<String> = all
        .filter(|operation| !left_out.contains(&operation.as_str()))
        .map(|operation| {
            let id = match operation.as_str() {
                "DELETE /vm/{vm}/exec/{id}" => &reaped,
                "POST /vm/{vm}/exec/{id}/kill" => &running,
                _ => &ended,
            };
            operation
                .replace("{vm}", "sbox-1")
                .replace("{group}", "sbox")
                .replace("{name}", "known")
                .replace("{id}", id)
        })
        .collect();
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    succeeded(&answered, &asked);
    // It has come through all that.
    let alive = daemon.cli(&["vm", "exec", "sbox-1", "--", "echo", "alive"]);
    assert_eq!(alive.await.text(), "alive\n");
    daemon.stop();
}

async fn vms_that_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let layout = |name: &str, write: fn(&Path) -> String| {
        let layout = dir.path().join(name);
        fs::create_dir(&layout).unwrap();
        write(&layout)
    };
    let (mut setup, url) = on_tcp([SBOX]);
    let kernel = layout("kernel-image", kernel_layout);
    setup.more = format!("  kernel_image: {kernel:?}\n");
    let yaml = setup.yaml(&layout("image", image_layout));
    let (config, _) = Config::parse(&yaml, "test.yaml", &Host::current()).unwrap();
    let hypervisor = FakeHypervisor::new();
    let daemon = Daemon::start(&config, dir.path(), |_| Ok(hypervisor));
    let daemon = daemon.await.unwrap();
    let client = Client::new(Endpoint::Unix(dir.path().join("slicer.sock")), None, "test");
    let client = client.unwrap();
    for _ in 0..6 {
        let request = CreateNode {
            persistent: true,
            ..CreateNode::default()
        };
        let made = client.create_node("sbox", &request, Some(Wait::Agent), Some(LIMIT));
        made.await.unwrap();
    }
    // Something to launch again, to commit, to reset, and commits to fork and to remove.
    for vm in ["sbox-3", "sbox-4", "sbox-5", "sbox-6"] {
        let asked = client.shutdown(vm, ShutdownAction::Shutdown).await;
        asked.unwrap();
        wait_until(&format!("{vm} is off"), LIMIT, async || {
            client.node(vm).await.unwrap().node.status == NodeStatus::Stopped
        })
        .await;
    }
    let commit = async |vm: &str| {
        let made = client.commit(vm, &CommitRequest::default()).await;
        made.unwrap().commit_id
    };
    let (kept, removed) = (commit("sbox-4").await, commit("sbox-5").await);
    client.delete_node("sbox", "sbox-5").await.unwrap();
    let config = include_str!("contract/lifecycle.toml")
        .replace("KEPT", &kept)
        .replace("REMOVED", &removed);
    let answered = pass(&url, &config).await;
    succeeded(
        &answered,
        &[
            "POST /hostgroup/sbox/nodes",
            "DELETE /hostgroup/sbox/nodes/sbox-1",
            "POST /vm/sbox-1/pause",
            "POST /vm/sbox-1/resume",
            "POST /vm/sbox-1/shutdown",
            "POST /vm/sbox-3/relaunch",
            "POST /vm/sbox-4/commit",
            "POST /disks/sbox-6/reset",
            "GET /vm/commits",
            &format!("POST /vm/commits/{kept}/fork"),
            &format!("DELETE /vm/commits/{removed}"),
        ],
    );
    daemon.stop(false, pending()).await;
}
