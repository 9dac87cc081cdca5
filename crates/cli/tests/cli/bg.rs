//! `slicer vm bg`: what is sent, what is shown, exit codes, broken connections.

use crate::run;
use crate::support::{FakeDaemon, json, reply};

const ID: &str = "ex_00000000000000ff";
const STAMP: &str = r#""timestamp":"2026-01-02T03:04:05Z","exit_code":0"#;

fn data(id: u64, kind: &str, payload: &str) -> String {
    format!(
        r#"{{"id":{id},{STAMP},"type":"{kind}","{kind}":"{payload}","data":"{payload}","encoding":"base64"}}"#
    ) + "\n"
}

fn exit(id: u64, code: i32) -> String {
    format!(
        r#"{{"id":{id},"timestamp":"2026-01-02T03:04:05Z","type":"exit","pid":7,"ended_at":"2026-01-02T03:04:05Z","exit_code":{code}}}"#
    ) + "\n"
}

/// A daemon with one background command, whose log breaks off in its middle.
fn daemon() -> FakeDaemon {
    FakeDaemon::start(|request| async move {
        let target = request.uri().to_string();
        let path = request.uri().path();
        match (request.method().as_str(), path.rsplit('/').next()) {
            ("POST", Some("exec")) => json(
                201,
                format!(
                    r#"{{"exec_id":"{ID}","pid":7,"started_at":"2026-01-02T03:04:05Z","ring_bytes":4194304}}"#
                ),
            ),
            ("GET", Some("logs")) if target.ends_with("from_id=0") => reply(
                200,
                "application/x-ndjson",
                format!("{{\"id\":1,{STAMP},\"type\":\"started\",\"pid\":7}}\n")
                    + &data(2, "stdout", "aGkK"),
            ),
            ("GET", Some("logs")) if target.ends_with("from_id=3") => reply(
                200,
                "application/x-ndjson",
                format!(
                    "{{\"id\":4,{STAMP},\"type\":\"gap\",\"dropped_frames\":2,\"dropped_bytes\":9,\"message\":\"too slow\"}}\n"
                ) + &data(5, "stderr", "b29wcwo=")
                    + &exit(6, 3),
            ),
            ("GET", Some("wait-exit")) => json(
                200,
                format!(r#"{{"exec_id":"{ID}","running":false,"exit_code":4,"timed_out":false}}"#),
            ),
            ("POST", Some("kill")) => json(
                200,
                format!(r#"{{"exec_id":"{ID}","pid":7,"running":true,"signal_sent":"TERM"}}"#),
            ),
            ("DELETE", _) => json(
                410,
                format!(r#"{{"error":"exec {ID} was removed","code":"gone"}}"#),
            ),
            ("GET", Some("exec")) => json(
                200,
                format!(
                    r#"[{{"exec_id":"{ID}","pid":7,"command":"sleep","args":["600"],"cwd":"/","uid":1000,"started_at":"2026-01-02T03:04:05Z","running":true,"bytes_written":12,"bytes_dropped":0,"next_id":2,"ring_bytes":1048576}}]"#
                ),
            ),
            _ => json(500, r#"{"error":"unexpected"}"#),
        }
    })
}

#[test]
fn a_command_is_started_and_its_id_printed() {
    let daemon = daemon();
    let words = [
        "bg",
        "exec",
        "sbox-1",
        "--ring-bytes",
        "4M",
        "--",
        "sleep",
        "600",
    ];
    let done = run(&daemon, &words);
    assert_eq!(
        (done.code, &*done.stdout),
        (0, &*format!("exec_id={ID} pid=7 ring_bytes=4194304\n")),
        "{}",
        done.stderr
    );
    assert_eq!(
        daemon.lines(),
        ["POST /vm/sbox-1/exec?cmd=sleep&args=600&background=true&stdio=base64&ring_bytes=4194304"]
    );
    let done = run(&daemon, &["bg", "exec", "sbox-1", "two words"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("--shell"), "{}", done.stderr);
}

#[test]
fn a_log_goes_on_where_its_connection_broke() {
    let daemon = daemon();
    let done = run(&daemon, &["vm", "bg", "exec", "sbox-1", "--follow", "x"]);
    assert_eq!((done.code, &*done.stdout), (3, "hi\n"), "{}", done.stderr);
    let notes: Vec<&str> = done.stderr.lines().collect();
    assert!(notes[0].contains(ID), "{notes:?}");
    assert_eq!(notes[1], "Note: 9 bytes are missing here: too slow");
    assert_eq!(notes[2], "oops");
    let lines = daemon.lines();
    assert!(
        lines[1].ends_with("/logs?follow=true&from_id=0"),
        "{lines:?}"
    );
    assert!(
        lines[2].ends_with("/logs?follow=true&from_id=3"),
        "{lines:?}"
    );
    // A look at what is there ends with it.
    let done = run(&daemon, &["bg", "logs", "sbox-1", ID]);
    assert_eq!((done.code, &*done.stdout), (0, "hi\n"));
}

#[test]
fn the_others_say_what_happened() {
    let daemon = daemon();
    let done = run(&daemon, &["bg", "wait", "sbox-1", ID]);
    assert_eq!(done.code, 4);
    assert!(daemon.lines()[0].ends_with("/wait-exit?timeout=600"));
    let done = run(
        &daemon,
        &["bg", "kill", "sbox-1", ID, "--signal", "sigterm"],
    );
    assert_eq!(done.code, 0);
    assert!(done.stdout.contains(r#""signal_sent": "TERM""#));
    let done = run(&daemon, &["bg", "remove", "sbox-1", ID]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("410"), "{}", done.stderr);
    let done = run(&daemon, &["bg", "list", "sbox-1"]);
    let row: Vec<&str> = done
        .stdout
        .lines()
        .nth(2)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        row,
        [
            ID,
            "7",
            "running",
            "-",
            "2026-01-02T03:04:05Z",
            "12",
            "sleep",
            "600"
        ]
    );
}
