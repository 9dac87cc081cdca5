//! Background exec, spoken to the real binary.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Host, Lines, alive, body_json, exec_target, until, within};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A query that runs a shell script.
fn sh(script: &str) -> String {
    let script: String = form_urlencoded::byte_serialize(script.as_bytes()).collect();
    format!("cmd=/bin/sh&args=-c&args={script}")
}

async fn launch(host: &Host, query: &str) -> Value {
    let target = exec_target(&format!("background=true&{query}"));
    let answer = host.send("POST", &target, "").await;
    assert_eq!(answer.status(), 201);
    body_json(answer).await
}

async fn get(host: &Host, method: &str, target: &str, body: &str) -> (u16, Value) {
    let answer = host.send(method, target, body.to_owned()).await;
    (answer.status().as_u16(), body_json(answer).await)
}

fn id(exec: &Value) -> &str {
    exec["exec_id"].as_str().unwrap()
}

async fn logs(host: &Host, id: &str, query: &str) -> Lines {
    let target = format!("/exec/{id}/logs?{query}");
    let answer = host.send("GET", &target, "").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    Lines::new(answer)
}

async fn wait_exit(host: &Host, id: &str, timeout: u32) -> Value {
    let target = format!("/exec/{id}/wait-exit?timeout={timeout}");
    let (status, body) = get(host, "GET", &target, "").await;
    assert_eq!(status, 200);
    body
}

fn ids(frames: &[Value]) -> Vec<u64> {
    frames.iter().map(|f| f["id"].as_u64().unwrap()).collect()
}

fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().filter_map(|f| f["type"].as_str()).collect()
}

#[tokio::test]
async fn a_command_lives_from_launch_to_removal() {
    let host = Host::start().await;
    let exec = launch(
        &host,
        &format!(
            "stdio=base64&cwd=/tmp&{}",
            sh("echo out; echo err >&2; exit 3")
        ),
    )
    .await;
    let id = id(&exec);
    assert!(id.starts_with("ex_"), "{exec}");
    assert_eq!(exec["ring_bytes"], 1 << 20);
    assert!(exec["pid"].is_u64() && exec["started_at"].is_string());

    let ended = wait_exit(&host, id, 30).await;
    assert_eq!(
        (&ended["running"], &ended["exit_code"], &ended["timed_out"]),
        (&json!(false), &json!(3), &json!(false))
    );
    assert!(ended["ended_at"].is_string());

    let frames = logs(&host, id, "").await.all().await;
    let kinds = kinds(&frames);
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("started", "exit"));
    assert_eq!(ids(&frames), (1..=frames.len() as u64).collect::<Vec<_>>());
    for (stream, text) in [("stdout", "out\n"), ("stderr", "err\n")] {
        let frame = frames.iter().find(|f| f["type"] == stream).unwrap();
        assert_eq!(frame["encoding"], "base64");
        assert_eq!(frame["data"], frame[stream]);
        assert_eq!(frame["data"], STANDARD.encode(text));
    }
    assert_eq!(frames.last().unwrap()["exit_code"], 3);
    assert_eq!(frames.last().unwrap()["pid"], exec["pid"]);

    let (status, info) = get(&host, "GET", &format!("/exec/{id}"), "").await;
    assert_eq!(status, 200);
    assert_eq!(
        (&info["command"], &info["cwd"]),
        (&json!("/bin/sh"), &json!("/tmp"))
    );
    assert_eq!(info["args"][0], "-c");
    assert_eq!(
        (&info["running"], &info["exit_code"]),
        (&json!(false), &json!(3))
    );
    assert_eq!(
        (&info["bytes_written"], &info["bytes_dropped"]),
        (&json!(8), &json!(0))
    );
    assert_eq!(info["next_id"], frames.len() + 1);
    assert_eq!(info["uid"], rustix::process::getuid().as_raw());
    let (_, list) = get(&host, "GET", "/exec", "").await;
    assert_eq!(list, json!([info]));

    // A kill of what has ended is no error, and does nothing.
    let (status, killed) = get(&host, "POST", &format!("/exec/{id}/kill"), "").await;
    assert_eq!((status, &killed["running"]), (200, &json!(false)));

    let (status, reaped) = get(&host, "DELETE", &format!("/exec/{id}"), "").await;
    assert_eq!(
        (status, reaped),
        (200, json!({"exec_id": id, "reaped": true}))
    );
    for (method, path) in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/logs"),
        ("GET", "/wait-exit"),
        ("POST", "/kill"),
    ] {
        let (status, body) = get(&host, method, &format!("/exec/{id}{path}"), "").await;
        assert_eq!(
            (status, &body["code"]),
            (410, &json!("gone")),
            "{method} {path}"
        );
    }
    assert_eq!(get(&host, "GET", "/exec", "").await.1, json!([]));
}

#[tokio::test]
async fn what_is_wrong_is_an_http_error() {
    let host = Host::start().await;
    let exec = launch(&host, "cmd=sleep&args=600").await;
    let id = id(&exec);
    let info = get(&host, "GET", &format!("/exec/{id}"), "").await.1;
    assert_eq!(
        (&info["running"], &info["args"]),
        (&json!(true), &json!(["600"]))
    );
    assert_eq!((info.get("exit_code"), info.get("ended_at")), (None, None));
    for (method, target, body, status) in [
        ("POST", "/exec?background=true&cmd=no-such-program", "", 400),
        ("POST", "/exec?background=true&cmd=x&stdin=true", "", 400),
        ("POST", "/exec?background=true&cmd=x&buffered=true", "", 400),
        ("POST", "/exec?background=true&cmd=x&cwd=/no/such", "", 400),
        (
            "POST",
            "/exec?background=true&cmd=true&ring_bytes=268435457",
            "",
            503,
        ),
        // The other one has a part of it.
        (
            "POST",
            "/exec?background=true&cmd=true&ring_bytes=268435456",
            "",
            503,
        ),
        ("GET", "/exec/ex_0000000000000000", "", 404),
        ("GET", "/exec/nonsense/logs", "", 404),
        ("GET", &format!("/exec/{id}/nonsense"), "", 404),
        ("PUT", &format!("/exec/{id}"), "", 405),
        ("GET", &format!("/exec/{id}/kill"), "", 405),
        ("POST", &format!("/exec/{id}/logs"), "", 405),
        (
            "POST",
            &format!("/exec/{id}/kill"),
            r#"{"signal":"STOP"}"#,
            400,
        ),
        ("GET", &format!("/exec/{id}/logs?from_id=x"), "", 400),
        ("GET", &format!("/exec/{id}/wait-exit?timeout=1s"), "", 400),
        ("DELETE", &format!("/exec/{id}"), "", 409),
    ] {
        let (code, body) = get(&host, method, target, body).await;
        assert_eq!(code, status, "{method} {target} {body}");
        assert!(body["error"].is_string(), "{body}");
    }
    let start = Instant::now();
    let waited = wait_exit(&host, id, 1).await;
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert_eq!(
        (&waited["running"], &waited["timed_out"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(
        (waited.get("exit_code"), waited.get("ended_at")),
        (None, None)
    );
    // The agent takes its commands along.
    let pid = u32::try_from(exec["pid"].as_u64().unwrap()).unwrap();
    assert!(alive(pid));
    assert!(host.leave().await.success());
    until("the command's end", || !alive(pid)).await;
}

#[tokio::test]
async fn signals_reach_the_group_and_the_stubborn_are_killed() {
    let host = Host::start().await;
    for (script, body, code, signal) in [
        ("sleep 600 & wait", "", 143, "TERM"),
        ("sleep 600 & wait", r#"{"signal":"sigint"}"#, 130, "INT"),
        (
            "exec sleep 600",
            r#"{"signal":"KILL","grace_ms":0}"#,
            137,
            "KILL",
        ),
        (
            "trap '' TERM; echo ready; while :; do sleep 1; done",
            r#"{"grace_ms":200}"#,
            137,
            "KILL",
        ),
    ] {
        let exec = launch(&host, &sh(&format!("echo up; {script}"))).await;
        let id = id(&exec);
        let mut follower = logs(&host, id, "follow=true").await;
        let wanted = if script.contains("ready") {
            "ready"
        } else {
            "up"
        };
        loop {
            let frame = follower.next().await.unwrap();
            if frame["stdout"].as_str().is_some_and(|t| t.contains(wanted)) {
                break;
            }
        }
        let (status, killed) = get(&host, "POST", &format!("/exec/{id}/kill"), body).await;
        assert_eq!((status, &killed["pid"]), (200, &exec["pid"]));
        let asked = if body.contains("KILL") {
            "KILL"
        } else if body.contains("int") {
            "INT"
        } else {
            "TERM"
        };
        assert_eq!(killed["signal_sent"], asked);
        let exit = follower.all().await.pop().unwrap();
        assert_eq!(
            (&exit["exit_code"], &exit["signal"]),
            (&json!(code), &json!(signal)),
            "{script}"
        );
        assert_eq!(wait_exit(&host, id, 5).await["exit_code"], code);
    }
}

#[tokio::test]
async fn a_child_that_outlives_its_leader_is_killed_in_the_end() {
    let host = Host::start().await;
    let script = "(trap '' TERM; echo child; exec >/dev/null 2>&1; while :; do sleep 1; done) & echo $!; wait";
    let exec = launch(&host, &sh(script)).await;
    let mut follower = logs(&host, id(&exec), "follow=true").await;
    let mut text = String::new();
    while !(text.contains("child") && text.chars().any(|c| c.is_ascii_digit())) {
        let frame = follower.next().await.unwrap();
        text.push_str(frame["stdout"].as_str().unwrap_or_default());
    }
    let child: u32 = text.lines().find_map(|l| l.parse().ok()).unwrap();
    let target = format!("/exec/{}/kill", id(&exec));
    get(&host, "POST", &target, r#"{"grace_ms":300}"#).await;
    assert_eq!(follower.all().await.pop().unwrap()["type"], "exit");
    until("the child's end", || !alive(child)).await;
}

#[tokio::test]
async fn every_follower_has_its_own_place_and_a_client_may_come_back() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let script = format!(
        "echo one; echo two; while [ ! -e {} ]; do sleep 0.02; done; echo three",
        gate.display()
    );
    let exec = launch(&host, &sh(&script)).await;
    let id = id(&exec);
    let mut first = logs(&host, id, "follow=true").await;
    let mut seen = Vec::new();
    while !seen
        .iter()
        .any(|f: &Value| f["stdout"].as_str().is_some_and(|t| t.contains("two")))
    {
        seen.push(first.next().await.unwrap());
    }
    // This client leaves; the command goes on.
    drop(first);
    let next = seen.last().unwrap()["id"].as_u64().unwrap() + 1;
    let again = logs(&host, id, &format!("follow=true&from_id={next}")).await;
    let all = logs(&host, id, "follow=true").await;
    // One that only looks gets what is there, and its end.
    let look = logs(&host, id, "follow=false").await.all().await;
    assert_eq!(look, seen);
    std::fs::write(&gate, "").unwrap();
    let (again, all) = tokio::join!(again.all(), all.all());
    seen.extend(again);
    assert_eq!(seen, all);
    assert_eq!(kinds(&all).last(), Some(&"exit"));
    let text: String = all.iter().filter_map(|f| f["data"].as_str()).collect();
    assert_eq!(text, "one\ntwo\nthree\n");
    // Beyond the end there is nothing to wait for.
    let beyond = within(logs(&host, id, "follow=true&from_id=1000").await.all()).await;
    assert_eq!(beyond, Vec::<Value>::new());
}

#[tokio::test]
async fn a_full_ring_drops_the_oldest_and_says_so() {
    let host = Host::start().await;
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let exec = launch(
        &host,
        &format!("ring_bytes=16384&stdio=base64&{}", sh(script)),
    )
    .await;
    let id = id(&exec);
    assert_eq!(exec["ring_bytes"], 16384);
    assert_eq!(wait_exit(&host, id, 60).await["exit_code"], 0);
    let info = get(&host, "GET", &format!("/exec/{id}"), "").await.1;
    let written: usize = (0..20000).map(|i| format!("line {i}\n").len()).sum();
    assert_eq!(info["bytes_written"], written);
    let frames = logs(&host, id, "").await.all().await;
    let gap = &frames[0];
    assert_eq!(gap["type"], "gap");
    assert_eq!(gap["dropped_bytes"], info["bytes_dropped"]);
    assert_eq!(gap["dropped_frames"], gap["id"]);
    assert!(gap["message"].is_string() && gap["exit_code"] == 0);
    let first = gap["id"].as_u64().unwrap();
    let last = first + frames.len() as u64;
    assert_eq!(ids(&frames), (first..last).collect::<Vec<_>>());
    assert_eq!(info["next_id"], last);
    let mut rest = Vec::new();
    for frame in &frames {
        if let Some(data) = frame["data"].as_str() {
            rest.extend(STANDARD.decode(data).unwrap());
        }
    }
    assert_eq!(
        rest.len() as u64,
        written as u64 - info["bytes_dropped"].as_u64().unwrap()
    );
    assert!(rest.len() <= 16384 && rest.ends_with(b"line 19999\n"));
}

#[tokio::test]
async fn a_stuck_follower_holds_nothing_back_and_learns_what_it_missed() {
    const SIZE: u64 = 64 << 20;
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; exec head -c {SIZE} /dev/zero",
        gate.display()
    );
    let exec = launch(&host, &format!("stdio=base64&{}", sh(&script))).await;
    let id = id(&exec);
    let mut stuck = logs(&host, id, "follow=true").await;
    assert_eq!(stuck.next().await.unwrap()["type"], "started");
    std::fs::write(&gate, "").unwrap();
    assert_eq!(wait_exit(&host, id, 60).await["exit_code"], 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.agent_pid())).unwrap();
    let resident = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: usize = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 32 << 10, "{kib} KiB for a ring of one MiB");
    let (mut got, mut missed, mut last) = (0, 0, 1);
    for frame in stuck.all().await {
        let id = frame["id"].as_u64().unwrap();
        assert!(id > last, "{frame}");
        last = id;
        missed += frame["dropped_bytes"].as_u64().unwrap_or(0);
        if let Some(data) = frame["data"].as_str() {
            got += STANDARD.decode(data).unwrap().len() as u64;
        }
    }
    assert!(missed > 0);
    assert_eq!(got + missed, SIZE);
}
