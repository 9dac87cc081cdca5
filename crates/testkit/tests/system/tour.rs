//! The README's tour, word for word, and the daemon that other tests share.

use crate::{on_tour, tests};
use libtest_mimic::Trial;
use serde_json::Value;
use slicer_api::{ExecBuffered, ExecRequest};
use slicer_client::Client;
use slicer_testkit::{Answer, BOOT, CliOutput, RawClient, TestDaemon, wait_until};
use std::sync::{Arc, OnceLock};

/// The sandbox everybody may use and nobody may stop.
pub(crate) const VM: &str = "sbox-1";

/// The shared daemon, started by the first who needs it.
#[derive(Default)]
pub(crate) struct Tour {
    daemon: OnceLock<TestDaemon>,
}

impl Tour {
    pub(crate) fn daemon(&self) -> &TestDaemon {
        self.daemon.get_or_init(|| {
            let daemon = TestDaemon::start_printed();
            let work = std::thread::scope(|scope| scope.spawn(|| launch(&daemon)).join());
            if let Err(panic) = work {
                std::panic::resume_unwind(panic);
            }
            daemon
        })
    }

    pub(crate) fn client(&self) -> Client {
        self.daemon().client()
    }

    pub(crate) fn raw(&self) -> RawClient {
        self.daemon().raw()
    }

    pub(crate) async fn cli(&self, line: &str) -> CliOutput {
        let words: Vec<&str> = line.split(' ').collect();
        self.daemon().cli(&words).await
    }

    /// Runs a script as the default user.
    pub(crate) async fn sh(&self, script: &str) -> ExecBuffered {
        sh(&self.client(), VM, script).await
    }

    /// What a script of the default user prints, when it succeeds.
    pub(crate) async fn says(&self, script: &str) -> String {
        says(&self.client(), VM, script).await
    }

    /// The answer to an exec request with this query.
    pub(crate) async fn exec(&self, query: &str) -> Answer {
        self.raw().post(&format!("/vm/{VM}/exec?{query}"), "").await
    }
}

/// Runs a script in a VM as its default user.
pub(crate) async fn sh(client: &Client, vm: &str, script: &str) -> ExecBuffered {
    let request = ExecRequest {
        cmd: script.to_owned(),
        shell: Some("/bin/bash".to_owned()),
        ..ExecRequest::default()
    };
    let done = client.exec_buffered(vm, &request);
    tokio::time::timeout(BOOT, done).await.unwrap().unwrap()
}

/// What a script prints, without the last line's end, when it succeeds.
pub(crate) async fn says(client: &Client, vm: &str, script: &str) -> String {
    let done = sh(client, vm, script).await;
    assert_eq!(done.exit_code, 0, "{script}: {done:?}");
    done.stdout.trim_end().to_owned()
}

fn launch(daemon: &TestDaemon) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let launched = daemon
            .cli(&["vm", "launch", "sbox", "--wait", "--tag", "role=shared"])
            .await;
        assert!(
            launched.text().contains("Hostname: sbox-1\n"),
            "{launched:?}"
        );
    });
}

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    let mut trials = tests!("tour", tour; every_command_of_the_tour, slicer_1_is_kept, logs, info);
    trials.push(on_tour(tour, "tour::metrics_count", metrics_count));
    trials
}

async fn every_command_of_the_tour(tour: &Tour) {
    let launched = tour.cli("vm launch sbox --wait").await;
    let text = launched.text();
    let field = |label: &str| {
        let line = text.lines().find_map(|l| l.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label} in {text}"))
            .trim()
            .to_owned()
    };
    assert_eq!(text.lines().next(), Some("VM created"));
    let vm = field("Hostname:");
    assert!(vm.starts_with("sbox-") && vm != VM, "{vm}");
    assert_eq!(field("Group:"), "sbox");
    assert_eq!(field("Persistent:"), "false");

    let uname = tour.cli(&format!("vm exec {vm} -- uname -a")).await;
    assert!(
        uname.text().starts_with(&format!("Linux {vm} ")),
        "{uname:?}"
    );

    let args = ["vm", "exec", &vm, "--", "tr", "a-z", "A-Z"];
    let upper = tour
        .daemon()
        .cli_with(&args, Some(b"hello\n".to_vec()))
        .await;
    assert_eq!(upper.text(), "HELLO\n");

    let list = tour.cli("vm list").await;
    let rows: Vec<Vec<&str>> = list
        .text()
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][0], "HOSTNAME");
    assert!(rows[1][0].starts_with("----"));
    let names: Vec<&str> = rows[2..].iter().map(|r| r[0]).collect();
    assert!(names.starts_with(&["slicer-1", VM]), "{names:?}");
    let row = rows.iter().find(|r| r[0] == vm).unwrap();
    assert!(row.contains(&"Running"), "{row:?}");
    assert!(row.contains(&field("IP:").as_str()), "{row:?}");

    tour.cli(&format!("vm logs {vm}")).await.text();
    tour.cli(&format!("vm pause {vm}")).await.text();
    let list = tour.cli("vm list --json").await.json();
    let status = |list: &Value| {
        let found = list
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["hostname"] == *vm);
        found.unwrap()["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(status(&list), "Paused");
    tour.cli(&format!("vm resume {vm}")).await.text();
    assert_eq!(status(&tour.cli("vm list --json").await.json()), "Running");
    tour.cli(&format!("vm exec {vm} -- true")).await.text();

    let deleted = tour.cli(&format!("vm delete {vm}")).await;
    assert_eq!(deleted.text(), format!("VM deleted: {vm}\n"));
    assert!(!tour.cli("vm list").await.text().contains(&format!("{vm} ")));
    assert!(
        !tour.daemon().has_files_of(&vm),
        "{:?}",
        tour.daemon().files()
    );
    assert_eq!(tour.daemon().process_of(&vm), None);
}

async fn slicer_1_is_kept(tour: &Tour) {
    tour.cli("vm ready slicer-1 --timeout 3m").await.text();
    let detail = tour.client().node("slicer-1").await.unwrap();
    assert_eq!(detail.node.status.to_string(), "Running");
    assert!(detail.node.persistent);
    assert_eq!(detail.node.ip, "192.168.64.2");

    let refused = tour.cli("vm delete slicer-1").await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("protected"), "{refused:?}");
    let answer = tour
        .raw()
        .send(
            hyper::Method::DELETE,
            "/hostgroup/slicer/nodes/slicer-1",
            "",
        )
        .await;
    assert_eq!(answer.status, 403);
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains("slicer-1")
    );

    let health = tour.client().health("slicer-1").await.unwrap();
    assert_eq!(health.hostname, "slicer-1");
    assert!(health.agent_uptime > 0 && health.system_uptime >= health.agent_uptime);
    assert!(health.userdata_ran);
    let table = tour.cli("vm health slicer-1").await;
    assert!(table.text().lines().count() == 3, "{table:?}");
}

async fn logs(tour: &Tour) {
    wait_until("the console says something", BOOT, async || {
        !tour
            .client()
            .logs(VM, Some(0))
            .await
            .unwrap()
            .content
            .is_empty()
    })
    .await;
    let all = tour.client().logs(VM, Some(0)).await.unwrap();
    let some = tour.client().logs(VM, Some(1)).await.unwrap();
    assert_eq!((some.hostname.as_str(), some.lines), (VM, 1));
    assert!(some.content.lines().count() <= 1);
    assert!(all.content.contains(some.content.trim()));
    assert_eq!(
        tour.raw()
            .get(&format!("/vm/{VM}/logs?lines=-1"))
            .await
            .status,
        400
    );
    assert_eq!(
        tour.raw()
            .get(&format!("/vm/{VM}/logs?lines=x"))
            .await
            .status,
        400
    );
}

async fn info(tour: &Tour) {
    let info = tour.client().info().await.unwrap();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.platform, "linux");
    assert!(["amd64", "arm64"].contains(&info.arch.as_str()));
    assert!(tour.cli("info").await.text().contains(&info.version));
    let groups = tour.client().host_groups().await.unwrap();
    let groups: Vec<_> = groups.iter().map(|g| (g.name.as_str(), g.count)).collect();
    assert_eq!(groups, [("slicer", 1), ("sbox", 0)]);
    let table = tour.cli("vm group").await;
    assert!(table.text().contains("slicer") && table.text().contains("sbox"));
    let healthz = tour.raw().get("/healthz").await;
    assert_eq!(
        (healthz.status.as_u16(), healthz.text().trim()),
        (200, "OK")
    );
    let api = tour.raw().get("/openapi.json").await.json();
    assert!(api["paths"]["/vm/{vm}/exec"]["post"].is_object(), "{api}");
}

async fn metrics_count(tour: &Tour) {
    let metrics = tour.raw().get("/metrics").await;
    assert_eq!(metrics.status, 200);
    for name in [
        "slicer_vm_launch_total",
        "slicer_vm_running",
        "slicer_vm_gpu_count",
        "slicer_api_requests_total",
        "slicer_api_request_duration_seconds",
        "slicer_system_load_avg_1",
        "slicer_system_load_avg_5",
        "slicer_system_load_avg_15",
        "slicer_system_memory_total_bytes",
        "slicer_system_memory_available_bytes",
        "slicer_system_open_files",
        "slicer_system_open_connections",
    ] {
        assert!(metrics.text().contains(name), "{name} is missing");
    }
}
