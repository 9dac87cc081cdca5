//! Creating, listing, driving and deleting VMs.

use crate::run;
use crate::support::{FakeDaemon, json, node, not_found, reply};
use http_body_util::BodyExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn lists_are_tables_or_json() {
    let daemon = FakeDaemon::start(|_| async {
        json(
            200,
            format!("[{}]", node("sbox-1", r#"["a=b","name=web"]"#)),
        )
    });
    let table = "\
HOSTNAME                  NAME            IP              RAM          CPUS     STATUS     CREATED              TAGS
--------                  ----            --              ---          ----     ------     -------              ----
sbox-1                    web             192.168.64.3    4GiB         2        Running    2026-01-02 03:04:05  a=b
";
    for args in [&["ls"][..], &["list"], &["vm", "l"], &["v", "list", "sbox"]] {
        let done = run(&daemon, args);
        assert_eq!((done.code, &*done.stdout, &*done.stderr), (0, table, ""));
    }
    run(&daemon, &["vm", "ls", "sbox", "--tag-prefix", "a="]);
    assert_eq!(
        daemon.lines().last().unwrap(),
        "GET /hostgroup/sbox/nodes?tag_prefix=a%3D"
    );
    let done = run(&daemon, &["vm", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(list[0]["hostname"], "sbox-1");
    assert_eq!(list[0]["tags"][1], "name=web");
}

const GROUP: &str =
    r#"{"name":"sbox","count":0,"ram_bytes":4294967296,"cpus":2,"gpu_count":0,"arch":"amd64"}"#;

#[test]
fn add_prints_what_scripts_read() {
    let daemon = FakeDaemon::start(|request| async move {
        if request.method() == "GET" {
            return json(200, format!("[{GROUP}]"));
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if body != r#"{"cpus":1,"tags":["name=web"]}"# {
            return json(400, format!("{{\"error\":{body:?}}}"));
        }
        json(
            201,
            r#"{"hostname":"sbox-1","hostgroup":"sbox","ip":"192.168.64.3","created_at":"2026-01-02T03:04:05.6Z","arch":"amd64","persistent":false}"#,
        )
    });
    let args = [
        "vm",
        "add",
        "--cpus",
        "1",
        "-n",
        "web",
        "--wait",
        "--timeout=90s",
    ];
    let done = run(&daemon, &args);
    assert_eq!(
        done.stdout,
        "VM created\n  Hostname: sbox-1\n  Group:    sbox\n  IP:       192.168.64.3\n  \
         Specs:    1 vCPU, 4GB RAM, GPUs: 0\n  Persistent: false\n  Created:  2026-01-02T03:04:05Z\n"
    );
    assert_eq!((done.code, &*done.stderr), (0, ""));
    assert_eq!(
        daemon.lines(),
        [
            "GET /hostgroup",
            "POST /hostgroup/sbox/nodes?wait=agent&timeout=90000ms"
        ]
    );
    let done = run(
        &daemon,
        &["vm", "launch", "sbox", "--cpus=1", "-n", "web", "--json"],
    );
    let created: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(created["hostname"], "sbox-1");
    // The group was named and its size isn't printed, so nothing was asked.
    assert_eq!(daemon.lines()[2..], ["POST /hostgroup/sbox/nodes"]);
}

#[test]
fn add_needs_to_know_the_group() {
    let two = format!("[{GROUP},{}]", GROUP.replace("sbox", "slicer"));
    let daemon = FakeDaemon::start(move |_| {
        let two = two.clone();
        async move { json(200, two) }
    });
    let done = run(&daemon, &["vm", "add"]);
    assert_eq!(done.code, 2);
    assert_eq!(
        done.stderr,
        "Error: the daemon has several host groups: name one of sbox, slicer\n\
         Hint: `slicer vm group` shows what each of them gives a VM\n"
    );
    let done = run(&daemon, &["vm", "group"]);
    assert_eq!(
        done.stdout,
        "NAME    COUNT  RAM   CPUS  ARCH\n\
         ----    -----  ---   ----  ----\n\
         sbox    0      4GiB  2     amd64\n\
         slicer  0      4GiB  2     amd64\n"
    );
    let none = FakeDaemon::start(|_| async { json(200, "[]") });
    assert_eq!(run(&none, &["vm", "add"]).code, 2);
}

#[test]
fn a_wait_that_ran_out_has_its_own_code() {
    let daemon = FakeDaemon::start(|_| async { json(408, r#"{"error":"VM did not answer"}"#) });
    let done = run(&daemon, &["vm", "add", "sbox", "--wait", "--json"]);
    assert_eq!((done.code, &*done.stdout), (124, ""));
    assert_eq!(
        done.stderr,
        "Error: VM did not answer (408 Request Timeout)\n"
    );
}

const HEALTHY: &str = r#"{"hostname":"sbox-1","agent_uptime":53000000000,"agent_version":"0.1.0","system_uptime":54000000000,"userdata_ran":true,"ip":"192.168.64.3"}"#;

#[test]
fn ready_waits_and_gives_up() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let daemon = FakeDaemon::start(move |_| {
        let n = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            match n {
                0 => json(503, r#"{"error":"not yet"}"#),
                1 => json(200, HEALTHY.replace("true", "false")),
                _ => json(200, HEALTHY),
            }
        }
    });
    let args = ["vm", "ready", "sbox-1", "--userdata", "--interval", "1ms"];
    let done = run(&daemon, &args);
    assert_eq!((done.code, &*done.stdout), (0, "VM ready: sbox-1\n"));
    assert_eq!(asked.load(Ordering::Relaxed), 3);

    let daemon = FakeDaemon::start(|_| async { json(503, r#"{"error":"not yet"}"#) });
    let done = run(&daemon, &["vm", "ready", "sbox-1", "--timeout", "300ms"]);
    assert_eq!(done.code, 124);
    assert!(
        done.stderr.starts_with(
            "Error: VM \"sbox-1\" was not ready within 300ms; the last answer was: not yet (503"
        ),
        "{}",
        done.stderr
    );
    let daemon = FakeDaemon::start(|request| async move {
        match request.uri().path() {
            "/nodes" => json(200, "[]"),
            _ => not_found("ghost"),
        }
    });
    assert_eq!(run(&daemon, &["vm", "ready", "ghost"]).code, 1);
}

#[test]
fn health_is_a_table_or_json() {
    let daemon = FakeDaemon::start(|request| async move {
        match request.uri().path() {
            "/nodes" => json(
                200,
                format!(
                    "[{},{},{}]",
                    node("sbox-1", "[]"),
                    node("sbox-2", "[]"),
                    node("sbox-3", "[]").replace("Running", "Paused")
                ),
            ),
            "/vm/sbox-1/health" => json(200, HEALTHY),
            _ => json(503, r#"{"error":"not yet"}"#),
        }
    });
    let head = "HOSTNAME  AGENT UPTIME  SYSTEM UPTIME  AGENT VERSION  USERDATA RAN\n\
                --------  ------------  -------------  -------------  ------------\n\
                sbox-1    53s           54s            0.1.0          1\n";
    assert_eq!(run(&daemon, &["vm", "health", "sbox-1"]).stdout, head);
    let all = run(&daemon, &["vm", "health"]).stdout;
    let dashes = "-             -              -              -\n";
    assert_eq!(all, format!("{head}sbox-2    {dashes}sbox-3    {dashes}"));
    let json = run(&daemon, &["vm", "health", "--json"]).stdout;
    let all: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(all[0]["agent_version"], "0.1.0");
    assert_eq!(all[1]["error"], "not yet (503 Service Unavailable)");
    assert_eq!(all[2]["error"], "VM is Paused");
}

#[test]
fn vms_are_driven_by_hostname_or_friendly_name() {
    let daemon = FakeDaemon::start(|request| async move {
        let line = format!("{} {}", request.method(), request.uri());
        match &*line {
            "GET /nodes?tag=name%3Dweb" => json(200, format!("[{}]", node("sbox-1", "[]"))),
            "GET /nodes?tag=name%3Dghost" => json(200, "[]"),
            "POST /vm/sbox-1/pause"
            | "POST /vm/sbox-1/resume"
            | "POST /vm/sbox-1/suspend"
            | "POST /vm/sbox-1/shutdown" => reply(200, "text/plain", ""),
            "POST /vm/sbox-1/restore?wait=agent&timeout=300000ms" => {
                reply(200, "text/plain", "VM restored\n")
            }
            "POST /vm/sbox-1/restore?wait=agent&timeout=1000ms" => {
                reply(200, "text/plain", "VM sbox-1 was booted: why not\n")
            }
            "POST /vm/sbox-1/relaunch" => json(
                200,
                r#"{"hostname":"sbox-1","hostgroup":"sbox","ip":"192.168.64.3",
                    "created_at":"2026-01-02T03:04:05Z","arch":"amd64","persistent":true}"#,
            ),
            "DELETE /hostgroup/sbox/nodes/sbox-1" => json(
                200,
                r#"{"message":"VM deleted successfully","disk_removed":"true"}"#,
            ),
            "GET /vm/sbox-1/logs?lines=20" | "GET /vm/sbox-1/logs?lines=0" => json(
                200,
                r#"{"hostname":"sbox-1","lines":20,"content":"[ OK ] up"}"#,
            ),
            _ => not_found("ghost"),
        }
    });
    for (args, stdout) in [
        (&["vm", "pause", "sbox-1"][..], "VM paused: sbox-1\n"),
        (&["vm", "pause", "web"], "VM paused: web\n"),
        (&["vm", "resume", "web"], "VM resumed: web\n"),
        (&["vm", "suspend", "web"], "VM suspended: web\n"),
        (&["vm", "restore", "web"], "VM restored: web\n"),
        (&["vm", "restore", "web", "--timeout=1s"], ""),
        (&["vm", "shutdown", "web"], "VM shutting down: web\n"),
        (&["vm", "relaunch", "web"], "VM relaunched: web\n"),
        (&["relaunch", "sbox-1"], "VM relaunched: sbox-1\n"),
        (&["vm", "delete", "web", "sbox"], "VM deleted: web\n"),
        (
            &["vm", "delete", "sbox-1", "--hostgroup=sbox"],
            "VM deleted: sbox-1\n",
        ),
        (&["logs", "web"], "[ OK ] up\n"),
        (&["vm", "logs", "web", "--lines", "0"], "[ OK ] up\n"),
    ] {
        let done = run(&daemon, args);
        assert_eq!(
            (done.code, &*done.stdout),
            (0, stdout),
            "{args:?}: {}",
            done.stderr
        );
    }
    let done = run(&daemon, &["vm", "pause", "ghost"]);
    assert_eq!(done.code, 1);
    assert_eq!(
        done.stderr,
        "Error: VM \"ghost\" not found (404 Not Found)\nHint: `slicer vm list` shows all VMs\n"
    );
}

#[test]
fn delete_looks_the_group_up() {
    let daemon = FakeDaemon::start(|request| async move {
        if request.method() == "DELETE" {
            return json(200, r#"{"message":"ok","disk_removed":"true"}"#);
        }
        json(
            200,
            r#"{"hostname":"sbox-1","hostgroup":"sbox","status":"Running","storage":"image","image":"i","network":{"mode":"nat","policy_source":"host_group","host_group":{},"effective":{}}}"#,
        )
    });
    let done = run(&daemon, &["vm", "delete", "sbox-1", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(answer["disk_removed"], "true");
    assert_eq!(
        daemon.lines(),
        ["GET /vm/sbox-1", "DELETE /hostgroup/sbox/nodes/sbox-1"]
    );
}
