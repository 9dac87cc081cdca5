//! What the agent says on the wire, spoken to the real binary.

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{Host, Lines, alive, body_json, exec_target, until, within};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A query that runs a shell script.
fn sh(script: &str) -> String {
    let script: String = form_urlencoded::byte_serialize(script.as_bytes()).collect();
    format!("cmd=/bin/sh&args=-c&args={script}")
}

/// All text of one stream in an exec's frames.
fn text(frames: &[Value], stream: &str) -> String {
    frames.iter().filter_map(|f| f[stream].as_str()).collect()
}

fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().filter_map(|f| f["type"].as_str()).collect()
}

#[tokio::test]
async fn nobody_is_let_in_before_the_guest_knows_who_it_is() {
    let host = Host::start_nameless().await;
    for (method, target) in [("GET", "/health"), ("POST", "/exec?cmd=true")] {
        let answer = host.send(method, target, "").await;
        assert_eq!(answer.status(), 503, "{target}");
        assert_eq!(body_json(answer).await["code"], "unavailable");
    }
    let waiting = host.send("GET", "/health?wait=ready", "");
    let naming = async {
        let body = r#"{"hostname":"sbox-7","clock_unix_nanos":0}"#;
        for _ in 0..2 {
            let answer = host.send("POST", "/identity", body).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(body_json(answer).await, json!({"ready": true}));
        }
    };
    let (answer, ()) = tokio::join!(waiting, naming);
    assert_eq!(answer.status(), 200);
    let health = body_json(answer).await;
    assert_eq!(health["hostname"], "sbox-7");
    assert_eq!(health["agent_version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["userdata_ran"], true);
    for uptime in ["agent_uptime", "system_uptime"] {
        assert!(health[uptime].as_u64().unwrap() > 0, "{uptime}");
    }
    let answer = host.send("HEAD", "/health", "").await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_an_http_error() {
    let host = Host::start().await;
    for (method, target, body, status) in [
        ("GET", "/nothing", "", 404),
        ("POST", "/health", "", 405),
        ("PUT", "/exec?cmd=x", "", 405),
        ("GET", "/identity", "", 405),
        ("GET", "/shutdown", "", 405),
        ("GET", "/health?wait=lunch", "", 400),
        ("POST", "/exec", "", 400),
        ("POST", "/exec?cmd=x&stdio=hex", "", 400),
        ("POST", "/exec?cmd=x&stdin=true&buffered=true", "input", 400),
        ("POST", "/exec?cmd=x&cwd=/tmp/../etc", "", 400),
        ("POST", "/identity", "", 400),
        ("POST", "/identity", "{", 400),
        (
            "POST",
            "/identity",
            r#"{"hostname":"a b","clock_unix_nanos":0}"#,
            400,
        ),
        ("POST", "/shutdown?action=explode", "", 400),
        ("POST", "/shutdown", r#"{"action":"explode"}"#, 400),
    ] {
        let answer = host.send(method, target, body).await;
        assert_eq!(answer.status(), status, "{method} {target} {body}");
        let body = body_json(answer).await;
        assert!(
            body["error"].is_string() && body["code"].is_string(),
            "{body}"
        );
    }
    let answer = host.send("POST", "/identity", vec![b' '; 2 << 20]).await;
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn frames_come_in_order_and_carry_what_they_should() {
    let host = Host::start().await;
    let frames = host.exec(&sh("echo out; echo err >&2; exit 3")).await;
    let kinds = kinds(&frames);
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("started", "exit"));
    assert_eq!(
        kinds
            .iter()
            .filter(|k| **k == "started" || **k == "exit")
            .count(),
        2
    );
    assert_eq!(text(&frames, "stdout"), "out\n");
    assert_eq!(text(&frames, "stderr"), "err\n");
    let (started, exit) = (&frames[0], frames.last().unwrap());
    assert_eq!(started["pid"], exit["pid"]);
    assert!(started["started_at"].is_string() && exit["ended_at"].is_string());
    assert_eq!(exit["exit_code"], 3);
    assert_eq!(exit.get("signal"), None);
    for frame in &frames {
        assert!(
            frame["timestamp"].is_string() && frame["exit_code"].is_i64(),
            "{frame}"
        );
    }
    for frame in &frames[..frames.len() - 1] {
        assert_eq!(frame["exit_code"], 0);
    }
}

#[tokio::test]
async fn any_byte_survives_base64_and_characters_survive_text() {
    let host = Host::start().await;
    let script = r"printf '\377\000a'; printf '\342\202'; sleep 0.2; printf '\254'";
    let frames = host.exec(&format!("stdio=base64&{}", sh(script))).await;
    let mut bytes = Vec::new();
    for frame in frames.iter().filter(|f| f["type"] == "stdout") {
        assert_eq!(frame["encoding"], "base64");
        bytes.extend(STANDARD.decode(frame["stdout"].as_str().unwrap()).unwrap());
    }
    assert_eq!(bytes, b"\xff\0a\xe2\x82\xac");
    let frames = host.exec(&sh(script)).await;
    assert_eq!(text(&frames, "stdout"), "\u{fffd}\0a€");
    assert!(frames.iter().all(|f| f.get("encoding").is_none()));
}

#[tokio::test]
async fn a_buffered_exec_answers_with_one_object() {
    let host = Host::start().await;
    let answer = host
        .exec_buffered(&sh("echo out; echo err >&2; exit 5"))
        .await;
    assert_eq!(answer["stdout"], "out\n");
    assert_eq!(answer["stderr"], "err\n");
    assert_eq!(answer["exit_code"], 5);
    assert!(answer["pid"].is_u64() && answer["started_at"].is_string());
    assert!(answer["ended_at"].is_string());
    assert_eq!(answer.get("encoding"), None);
    let query = format!("stdio=base64&{}", sh("head -c 100000 /dev/zero"));
    let answer = host.exec_buffered(&query).await;
    assert_eq!(answer["encoding"], "base64");
    let stdout = STANDARD.decode(answer["stdout"].as_str().unwrap()).unwrap();
    assert_eq!(stdout, vec![0; 100_000]);
    let query = format!("stdout=false&{}", sh("echo out; echo err >&2"));
    let answer = host.exec_buffered(&query).await;
    assert_eq!(
        (&answer["stdout"], &answer["stderr"]),
        (&json!(""), &json!("err\n"))
    );
}

#[tokio::test]
async fn what_cannot_start_is_a_command_that_failed() {
    let host = Host::start().await;
    for (query, code, error) in [
        (
            "cmd=no-such-program",
            127,
            "exec: \"no-such-program\": not found",
        ),
        ("cmd=/no/such", 127, "exec: \"/no/such\": not found"),
        (
            "cmd=/etc/passwd",
            126,
            "exec: \"/etc/passwd\": permission denied",
        ),
        ("cmd=/etc", 126, "exec: \"/etc\": permission denied"),
        (
            "cmd=true&cwd=/no/such",
            1,
            "chdir /no/such: no such file or directory",
        ),
        (
            "cmd=true&uid=4000000000",
            1,
            "user: unknown userid 4000000000",
        ),
    ] {
        let frames = host.exec(query).await;
        assert_eq!(kinds(&frames), ["exit"], "{query}");
        assert_eq!(frames[0]["exit_code"], code, "{query}");
        assert_eq!(frames[0]["error"], error, "{query}");
        let answer = host.exec_buffered(query).await;
        assert_eq!(
            (&answer["exit_code"], &answer["error"]),
            (&json!(code), &json!(error))
        );
    }
}

#[tokio::test]
async fn environment_directory_and_shell_are_as_asked() {
    let host = Host::start().await;
    let answer = host
        .exec_buffered(&format!("cwd=/tmp&env=A=b%3Dc&env=HOME=/elsewhere&{}", sh("pwd; echo $A $HOME; echo $PATH; umask; ulimit -n >/dev/null; ls /proc/self/fd | wc -l")))
        .await;
    let lines: Vec<&str> = answer["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(lines[..2], ["/tmp", "b=c /elsewhere"]);
    assert!(lines[2].contains("/usr/bin"), "{lines:?}");
    assert_eq!(lines[3], "0022");
    // Standard input, output and error, the directory being listed, and nothing of the agent's.
    assert_eq!(lines[4], "4");
    let answer = host
        .exec_buffered("shell=/bin/sh&cmd=echo+$((6*7))&args=and&args=more")
        .await;
    assert_eq!(answer["stdout"], "42 and more\n");
    // Without a shell, arguments are arguments.
    let answer = host.exec_buffered("cmd=/bin/sh&args=-c&args=exit+7").await;
    assert_eq!(answer["exit_code"], 7);
    let answer = host
        .exec_buffered(&sh("cat; ps -o sid= -p $$ 2>/dev/null || true"))
        .await;
    assert_eq!(answer["exit_code"], 0, "stdin is /dev/null");
}

#[tokio::test]
async fn a_signal_is_told_by_name_and_number() {
    let host = Host::start().await;
    for (name, code) in [("TERM", 143), ("KILL", 137)] {
        let frames = host.exec(&sh(&format!("kill -{name} $$"))).await;
        let exit = frames.last().unwrap();
        assert_eq!(exit["exit_code"], code);
        assert_eq!(exit["signal"], name);
    }
}

#[tokio::test]
async fn output_flows_while_stdin_is_open() {
    let host = Host::start().await;
    let query = exec_target("cmd=cat");
    let query = query.strip_prefix("/exec?").unwrap();
    let (upload, answer) = host.upload(query).await;
    let mut lines = Lines::new(answer);
    assert_eq!(lines.next().await.unwrap()["type"], "started");
    for word in ["one", "two"] {
        upload.send(Bytes::from_static(word.as_bytes())).unwrap();
        assert_eq!(lines.next().await.unwrap()["stdout"], word);
    }
    drop(upload);
    let rest = lines.all().await;
    assert_eq!(kinds(&rest), ["exit"]);
    assert_eq!(rest[0]["exit_code"], 0);
}

#[tokio::test]
async fn a_large_stdin_arrives_whole() {
    let host = Host::start().await;
    let target = format!("{}&stdin=true", exec_target("cmd=wc&args=-c"));
    let answer = host.send("POST", &target, vec![b'x'; 5 << 20]).await;
    let frames = Lines::new(answer).all().await;
    assert_eq!(text(&frames, "stdout").trim(), (5 << 20).to_string());
}

#[tokio::test]
async fn a_command_that_ends_early_ends_the_answer() {
    let host = Host::start().await;
    let query = exec_target("cmd=true");
    let (upload, answer) = host.upload(query.strip_prefix("/exec?").unwrap()).await;
    let frames = Lines::new(answer).all().await;
    assert_eq!(kinds(&frames), ["started", "exit"]);
    drop(upload);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_command_along() {
    let host = Host::start().await;
    // The second never heeds SIGTERM, the third waits for input that never comes, the fourth
    // writes to nobody.
    for (script, stdin) in [
        ("echo $$; sleep 1000 & wait", false),
        ("trap '' TERM; echo $$; while :; do sleep 1; done", false),
        ("echo $$; exec cat >/dev/null", true),
        ("echo $$; exec yes", false),
    ] {
        let target = exec_target(&sh(script));
        let (upload, answer) = if stdin {
            let (upload, answer) = host.upload(target.strip_prefix("/exec?").unwrap()).await;
            (Some(upload), answer)
        } else {
            (None, host.send("POST", &target, "").await)
        };
        let mut lines = Lines::new(answer);
        assert_eq!(lines.next().await.unwrap()["type"], "started");
        let first = lines.next().await.unwrap()["stdout"]
            .as_str()
            .unwrap()
            .to_owned();
        let pid: u32 = first.lines().next().unwrap().parse().unwrap();
        assert!(alive(pid), "{script}");
        drop((lines, upload));
        until("the command's end", || !alive(pid)).await;
    }
}

#[tokio::test]
async fn a_buffered_exec_is_killed_with_its_client_too() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("echo $$ >{}; exec sleep 1000", file.display());
    let target = exec_target(&format!("buffered=true&{}", sh(&script)));
    let answer = host.send("POST", &target, "").await;
    let pid = || {
        std::fs::read_to_string(&file)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    until("the command's start", || pid().is_some()).await;
    drop(answer);
    until("the command's end", || !alive(pid().unwrap())).await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_command_back_and_costs_no_memory() {
    const SIZE: usize = 48 << 20;
    let host = Host::start().await;
    let script = format!("echo $$; exec head -c {SIZE} /dev/zero");
    let target = exec_target(&format!("stdio=base64&{}", sh(&script)));
    let mut lines = Lines::new(host.send("POST", &target, "").await);
    let pid = lines.next().await.unwrap()["pid"].as_u64().unwrap();
    // Stuck is who has written nothing more from one look to the next.
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let line = io
            .lines()
            .find(|l| l.starts_with("wchar:"))
            .map(str::to_owned);
        line.and_then(|l| l.split_whitespace().nth(1)?.parse::<usize>().ok())
    };
    let (mut last, mut same) = (None, 0);
    until("the command being held back", || {
        let now = written();
        same = if now == last && now > Some(0) {
            same + 1
        } else {
            0
        };
        last = now;
        same > 20
    })
    .await;
    assert!(
        last.unwrap() < SIZE / 2,
        "{last:?} of {SIZE} bytes are gone"
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.agent_pid())).unwrap();
    let resident = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: usize = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 32 << 10, "{kib} KiB for an answer nobody reads");
    // Others are served meanwhile.
    assert_eq!(host.exec_buffered("cmd=true").await["exit_code"], 0);
    let mut total = 0;
    for frame in lines.all().await {
        if let Some(data) = frame["stdout"].as_str() {
            total += STANDARD.decode(data).unwrap().len();
        }
    }
    assert_eq!(total, SIZE + format!("{pid}\n").len());
}

#[tokio::test]
async fn somebody_elses_hold_on_a_pipe_does_not_hold_up_the_end() {
    let host = Host::start().await;
    let start = Instant::now();
    let frames = host.exec(&sh("sleep 1000 & echo $!")).await;
    let left: i32 = text(&frames, "stdout").trim().parse().unwrap();
    assert_eq!(frames.last().unwrap()["exit_code"], 0);
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert!(start.elapsed() < Duration::from_secs(10));
    // What a finished command left behind goes on.
    assert!(alive(left.unsigned_abs()));
    let pid = rustix::process::Pid::from_raw(left).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_shutdown_is_answered_and_ends_the_agent() {
    for (target, body) in [
        ("/shutdown", ""),
        ("/shutdown?action=reboot", ""),
        ("/shutdown", r#"{"action":"shutdown"}"#),
    ] {
        let mut host = Host::start().await;
        let answer = host.send("POST", target, body).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(body_json(answer).await, json!({}));
        assert!(host.agent_end().await.success());
    }
}

#[tokio::test]
async fn a_host_that_leaves_ends_the_agent_and_its_commands() {
    let host = Host::start().await;
    let answer = host
        .send("POST", &exec_target("cmd=sleep&args=1000"), "")
        .await;
    let pid = Lines::new(answer).next().await.unwrap()["pid"]
        .as_u64()
        .unwrap();
    assert!(host.leave().await.success());
    assert!(!alive(u32::try_from(pid).unwrap()));
}

#[tokio::test]
async fn many_commands_run_at_once() {
    let host = Host::start().await;
    let query = sh("sleep 0.3; echo done");
    let runs = (0..50).map(|_| host.exec_buffered(&query));
    let answers = within(futures_util::future::join_all(runs)).await;
    assert!(answers.iter().all(|a| a["stdout"] == "done\n"));
}
