//! `slicer vm exec`: streams, exit codes, interrupts.

use crate::support::{FakeDaemon, data, exit, json, node, not_found, reply, started, streamed};
use crate::{LIMIT, SLICER, run, slicer, wait};
use http_body_util::BodyExt as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;

/// Answers every exec with these frames.
fn frames(text: String) -> FakeDaemon {
    FakeDaemon::start(move |_| {
        let text = text.clone();
        async move { reply(200, "application/x-ndjson", text) }
    })
}

#[test]
fn exec_passes_on_both_streams_and_the_exit_code() {
    // "/wAK" is ff 00 0a.
    let daemon =
        frames(started() + &data("stdout", "/wAK") + &data("stderr", "b29wcwo=") + &exit(3));
    let output = slicer(&daemon, &["vm", "exec", "sbox-1", "--uid", "0", "ls", "-l"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, [0xff, 0, b'\n']);
    assert_eq!(output.stderr, b"oops\n");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        daemon.lines(),
        ["POST /vm/sbox-1/exec?cmd=ls+-l&uid=0&shell=%2Fbin%2Fbash&stdio=base64"]
    );
    let short = slicer(&daemon, &["exec", "sbox-1", "x"]).status().unwrap();
    assert_eq!(short.code(), Some(3));
}

#[test]
fn a_command_that_cannot_start_says_why() {
    let daemon = frames(
        r#"{"timestamp":"2026-01-02T03:04:05Z","type":"exit","exit_code":127,"error":"exec: \"x\": not found"}"#
            .to_owned(),
    );
    let done = run(&daemon, &["vm", "exec", "sbox-1", "x"]);
    assert_eq!(done.code, 127);
    assert_eq!(done.stderr, "Error: exec: \"x\": not found\n");
}

#[test]
fn a_stream_that_breaks_is_an_error() {
    let daemon = frames(started() + &data("stdout", "aGkK"));
    let done = run(&daemon, &["vm", "exec", "sbox-1", "x"]);
    assert_eq!((done.code, &*done.stdout), (1, "hi\n"));
    assert!(
        done.stderr
            .starts_with("Error: POST /vm/sbox-1/exec: the stream ended")
    );
}

/// Takes an exec's stdin to its end and answers with its length as exit code.
fn counting() -> FakeDaemon {
    FakeDaemon::start(|request| async move {
        let path = request.uri().path().to_owned();
        match (request.method().as_str(), &*path) {
            ("GET", "/nodes") => json(200, format!("[{}]", node("sbox-1", "[]"))),
            ("GET", "/vm/sbox-1") => {
                let mut detail = node("sbox-1", "[]");
                detail.truncate(detail.len() - 1);
                json(
                    200,
                    detail
                        + r#","storage":"image","image":"i","network":{"mode":"nat","policy_source":"host_group","host_group":{},"effective":{}}}"#,
                )
            }
            ("POST", "/vm/sbox-1/exec") => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let expected: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
                let code = if body == expected {
                    42
                } else {
                    body.len().min(41)
                };
                reply(
                    200,
                    "application/x-ndjson",
                    started() + &exit(i32::try_from(code).unwrap()),
                )
            }
            _ => not_found("x"),
        }
    })
}

#[test]
fn exec_streams_a_file_or_a_pipe_to_stdin() {
    let daemon = counting();
    let path = daemon.dir().join("input");
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    fs::write(&path, &bytes).unwrap();
    let mut command = slicer(&daemon, &["vm", "exec", "builder", "wc"]);
    let status = command.stdin(File::open(&path).unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(42));
    // The name is settled before anything is read.
    assert_eq!(
        daemon.lines(),
        [
            "GET /vm/builder",
            "GET /nodes?tag=name%3Dbuilder",
            "GET /vm/sbox-1",
            "POST /vm/sbox-1/exec?cmd=wc&shell=%2Fbin%2Fbash&stdin=true&stdio=base64",
        ]
    );

    let mut child = slicer(&daemon, &["vm", "exec", "sbox-1", "wc"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&bytes).unwrap();
    drop(pipe);
    assert_eq!(wait(child), 42);

    let empty = slicer(&daemon, &["vm", "exec", "sbox-1", "wc"])
        .status()
        .unwrap();
    assert_eq!(empty.code(), Some(0));
    assert!(!daemon.lines().last().unwrap().contains("stdin"));
}

#[test]
fn a_closed_stdin_is_no_stdin() {
    let daemon = frames(started() + &exit(0));
    let line = format!("exec '{SLICER}' vm exec sbox-1 true <&-");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &line]).env("SLICER_URL", daemon.socket());
    assert_eq!(wait(shell.spawn().unwrap()), 0);
    assert!(!daemon.lines()[0].contains("stdin"));
}

#[test]
fn a_pipe_that_never_ends_does_not_keep_the_command() {
    // The exec's body is left unread, and its answer isn't ended either.
    let daemon = FakeDaemon::start(|request| async move {
        let (frames, answer) = streamed();
        if request.method() == "GET" {
            return json(
                200,
                r#"{"hostname":"sbox-1","status":"Running","storage":"image","image":"i","network":{"mode":"nat","policy_source":"host_group","host_group":{},"effective":{}}}"#,
            );
        }
        frames.send(started() + &exit(5)).unwrap();
        answer
    });
    let mut child = slicer(&daemon, &["vm", "exec", "sbox-1", "true"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pipe = child.stdin.take();
    assert_eq!(wait(child), 5);
    drop(pipe);
}

/// An exec that says "hi" and then lasts until the client is gone, which is reported.
fn endless() -> (FakeDaemon, mpsc::Receiver<()>) {
    let (gone, left) = mpsc::channel();
    let daemon = FakeDaemon::start(move |_| {
        let gone = gone.clone();
        async move {
            let (frames, answer) = streamed();
            frames.send(started() + &data("stdout", "aGkK")).unwrap();
            tokio::spawn(async move {
                frames.closed().await;
                gone.send(()).unwrap();
            });
            answer
        }
    });
    (daemon, left)
}

#[test]
fn an_interrupt_cancels_the_command() {
    let (daemon, left) = endless();
    let mut child = slicer(&daemon, &["vm", "exec", "sbox-1", "sleep", "600"])
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "hi\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(wait(child), 130);
    left.recv_timeout(LIMIT).unwrap();
}

#[test]
fn a_reader_that_leaves_ends_the_command_quietly() {
    let (gone, left) = mpsc::channel();
    let daemon = FakeDaemon::start(move |_| {
        let gone = gone.clone();
        async move {
            let (frames, answer) = streamed();
            tokio::spawn(async move {
                while frames.send(data("stdout", "eQo=")).is_ok() {
                    tokio::task::yield_now().await;
                }
                gone.send(()).unwrap();
            });
            answer
        }
    });
    let mut child = slicer(&daemon, &["vm", "exec", "sbox-1", "yes"])
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "y\n");
    drop(stdout);
    let mut stderr = child.stderr.take().unwrap();
    assert_eq!(wait(child), 141);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    left.recv_timeout(LIMIT).unwrap();
}
