//! Commands in a guest, in all their forms, through daemon, channel and agent.

use crate::tests;
use crate::tour::{Tour, VM};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Trial;
use sha2::{Digest, Sha256};
use slicer_api::{ExecFrame, ExecRequest, FrameType, Stdio};
use slicer_client::{ExecStream, output_bytes};
use slicer_testkit::{BOOT, LIMIT, wait_until};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("exec", tour;
        streams_in_order, output_comes_as_it_is_written, buffered, text_keeps_characters_whole,
        stdin_and_stdout_at_once, environment_and_directory, users, shells, exit_codes_and_signals,
        what_cannot_start, a_client_that_leaves_takes_the_command_along,
        an_interrupted_cli_takes_the_command_along, large_output_is_intact,
        large_input_is_intact, many_at_once, a_background_child_does_not_hold_the_stream,
        bad_requests, commands_run_at_the_usual_priority,
    )
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest {
        cmd: script.to_owned(),
        shell: Some("/bin/bash".to_owned()),
        stdio: Stdio::Base64,
        ..ExecRequest::default()
    }
}

async fn frames(mut stream: ExecStream) -> Vec<ExecFrame> {
    let mut frames = Vec::new();
    while let Some(frame) = next(&mut stream).await {
        frames.push(frame);
    }
    frames
}

async fn next(stream: &mut ExecStream) -> Option<ExecFrame> {
    let frame = tokio::time::timeout(BOOT, stream.next_frame()).await;
    frame.expect("no frame came").map(Result::unwrap)
}

fn bytes(frames: Vec<ExecFrame>) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for f in frames {
        out.extend(output_bytes(f.stdout.unwrap_or_default(), f.encoding).unwrap());
        err.extend(output_bytes(f.stderr.unwrap_or_default(), f.encoding).unwrap());
    }
    (out, err)
}

async fn commands_run_at_the_usual_priority(tour: &Tour) {
    // Niceness and policy, of proc_pid_stat(5), of the command and of the worker that started it.
    let script = "cut -d' ' -f19,41 /proc/self/stat; cut -d' ' -f19,41 /proc/$PPID/stat";
    let stream = tour.client().exec(VM, &shell(script), None).await.unwrap();
    let (out, _) = bytes(frames(stream).await);
    assert_eq!(String::from_utf8_lossy(&out), "0 0\n-10 3\n");
}

async fn streams_in_order(tour: &Tour) {
    let script = "for i in 1 2 3; do echo out$i; echo err$i >&2; sleep 0.2; done; exit 7";
    let stream = tour.client().exec(VM, &shell(script), None).await.unwrap();
    let frames = frames(stream).await;
    let kinds: Vec<_> = frames.iter().map(|f| f.kind.unwrap()).collect();
    assert_eq!(kinds.first(), Some(&FrameType::Started));
    assert_eq!(kinds.last(), Some(&FrameType::Exit));
    let middle = &kinds[1..kinds.len() - 1];
    assert!(
        middle
            .iter()
            .all(|k| matches!(k, FrameType::Stdout | FrameType::Stderr)),
        "{kinds:?}"
    );
    let (first, last) = (&frames[0], &frames[frames.len() - 1]);
    assert!(first.pid.is_some() && first.pid == last.pid);
    assert!(first.started_at.is_some() && last.ended_at >= first.started_at);
    assert_eq!(last.exit_code, 7);
    assert!(frames[..frames.len() - 1].iter().all(|f| f.exit_code == 0));
    assert!(frames.windows(2).all(|w| w[0].timestamp <= w[1].timestamp));
    let (out, err) = bytes(frames);
    assert_eq!(out, b"out1\nout2\nout3\n");
    assert_eq!(err, b"err1\nerr2\nerr3\n");
}

async fn output_comes_as_it_is_written(tour: &Tour) {
    let script = "echo first; until [ -e /tmp/go ]; do sleep 0.1; done; echo second; rm /tmp/go";
    let mut stream = tour.client().exec(VM, &shell(script), None).await.unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap().kind,
        Some(FrameType::Started)
    );
    let frame = next(&mut stream).await.unwrap();
    assert_eq!(STANDARD.decode(frame.stdout.unwrap()).unwrap(), b"first\n");
    tour.says("touch /tmp/go").await;
    assert_eq!(bytes(frames(stream).await).0, b"second\n");
}

async fn buffered(tour: &Tour) {
    let answer = tour
        .exec("cmd=echo+a%3B+echo+b+%3E%262%3B+exit+3&shell=/bin/bash&buffered=true")
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    let json = answer.json();
    assert_eq!(
        (&json["stdout"], &json["stderr"]),
        (&"a\n".into(), &"b\n".into())
    );
    assert_eq!(json["exit_code"], 3);
    assert!(json.get("encoding").is_none());
    assert!(json["pid"].is_u64() && json["started_at"].is_string());

    let json = tour
        .exec("cmd=echo&args=hi&buffered=true&stdio=base64")
        .await
        .json();
    assert_eq!(json["encoding"], "base64");
    assert_eq!(json["stdout"], STANDARD.encode("hi\n"));
}

async fn text_keeps_characters_whole(tour: &Tour) {
    // Two halves of a character, written apart, and a byte that is none.
    let script = r"printf '\xc3'; sleep 0.3; printf '\xa9\xff|'";
    let request = ExecRequest {
        stdio: Stdio::Text,
        ..shell(script)
    };
    let stream = tour.client().exec(VM, &request, None).await.unwrap();
    let text: String = frames(stream)
        .await
        .into_iter()
        .filter_map(|f| f.stdout)
        .collect();
    assert_eq!(text, "é\u{fffd}|");
}

async fn stdin_and_stdout_at_once(tour: &Tour) {
    let (mut keyboard, stdin) = tokio::io::duplex(1024);
    let stream = tour
        .client()
        .exec(VM, &shell("cat"), Some(Box::new(stdin)))
        .await;
    let mut stream = stream.unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap().kind,
        Some(FrameType::Started)
    );
    for word in ["one\n", "two\n"] {
        keyboard.write_all(word.as_bytes()).await.unwrap();
        let frame = next(&mut stream).await.unwrap();
        assert_eq!(
            STANDARD.decode(frame.stdout.unwrap()).unwrap(),
            word.as_bytes()
        );
    }
    drop(keyboard);
    let last = next(&mut stream).await.unwrap();
    assert_eq!((last.kind, last.exit_code), (Some(FrameType::Exit), 0));

    // A command that doesn't want it all ends all the same.
    let (mut keyboard, stdin) = tokio::io::duplex(1024);
    let stream = tour
        .client()
        .exec(VM, &shell("head -n1"), Some(Box::new(stdin)))
        .await;
    keyboard.write_all(b"line\nmore\n").await.unwrap();
    let frames = frames(stream.unwrap()).await;
    assert_eq!(frames.last().unwrap().exit_code, 0);
    assert_eq!(bytes(frames).0, b"line\n");

    // Without stdin there is none, rather than one that stays open.
    let none = tour.exec("cmd=cat&buffered=true").await.json();
    assert_eq!(
        (&none["stdout"], &none["exit_code"]),
        (&"".into(), &0.into())
    );
}

async fn environment_and_directory(tour: &Tour) {
    let request = ExecRequest {
        env: vec!["A=b=c d".into(), "EMPTY=".into()],
        ..shell("echo \"$A|$EMPTY|$HOME|$USER|$LOGNAME|$SHELL|$PWD\"; echo $PATH")
    };
    let done = tour.client().exec_buffered(VM, &request).await.unwrap();
    let text = String::from_utf8(output_bytes(done.stdout, done.encoding).unwrap()).unwrap();
    let (first, path) = text.split_once('\n').unwrap();
    assert_eq!(
        first,
        "b=c d||/home/ubuntu|ubuntu|ubuntu|/bin/bash|/home/ubuntu"
    );
    for dir in [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ] {
        assert!(
            path.trim().split(':').any(|d| d == dir),
            "{dir} is not in {path}"
        );
    }
    tour.says("mkdir -p ~/work").await;
    for (cwd, real) in [
        ("/etc", "/etc"),
        ("~", "/home/ubuntu"),
        ("~/work", "/home/ubuntu/work"),
    ] {
        let query = format!("cmd=pwd&buffered=true&cwd={cwd}");
        assert_eq!(
            tour.exec(&query).await.json()["stdout"],
            format!("{real}\n")
        );
    }
    let json = tour.exec("cmd=pwd&buffered=true&cwd=/nowhere").await.json();
    assert_eq!(json["exit_code"], 1, "{json}");
    assert!(
        json["error"].as_str().unwrap().contains("/nowhere"),
        "{json}"
    );
    let text = tour
        .cli(&format!("vm exec --env X=y --cwd /tmp {VM} echo $X $PWD"))
        .await;
    assert_eq!(text.text(), "y /tmp\n");
}

async fn users(tour: &Tour) {
    for (query, expected) in [
        ("", "uid=1000(ubuntu) gid=1000(ubuntu)"),
        (
            "&uid=4294967295&gid=4294967295",
            "uid=1000(ubuntu) gid=1000(ubuntu)",
        ),
        ("&uid=0&gid=0", "uid=0(root) gid=0(root) groups=0(root)"),
        ("&uid=0", "uid=0(root) gid=0(root)"),
        ("&gid=4", "uid=1000(ubuntu) gid=4(adm)"),
    ] {
        let json = tour
            .exec(&format!("cmd=id&buffered=true{query}"))
            .await
            .json();
        let said = json["stdout"].as_str().unwrap();
        assert!(said.starts_with(expected), "{query}: {json}");
    }
    let stranger = tour
        .exec("cmd=id&buffered=true&uid=12345&gid=12345")
        .await
        .json();
    assert_eq!(stranger["exit_code"], 1, "{stranger}");
    assert!(stranger["error"].as_str().unwrap().contains("12345"));
    let groups = tour.says("id -nG").await;
    assert!(groups.contains("sudo"), "{groups}");
    let home = tour
        .exec("cmd=echo+~+$HOME+$PWD&shell=/bin/bash&buffered=true&uid=0&gid=0")
        .await;
    assert_eq!(home.json()["stdout"], "/root /root /root\n");
}

async fn shells(tour: &Tour) {
    let json = tour
        .exec("cmd=/bin/sh&args=-c&args=exit+7&buffered=true")
        .await
        .json();
    assert_eq!(json["exit_code"], 7);
    let json = tour
        .exec("cmd=echo&args=a++b&args=$HOME&buffered=true")
        .await
        .json();
    assert_eq!(json["stdout"], "a  b $HOME\n");
    let json = tour
        .exec("cmd=echo+$0&shell=/bin/sh&buffered=true")
        .await
        .json();
    assert!(json["stdout"].as_str().unwrap().contains("sh"), "{json}");
    let words = [
        "vm", "exec", "--shell", "", VM, "--", "echo", "a  b", "$HOME",
    ];
    assert_eq!(tour.daemon().cli(&words).await.text(), "a  b $HOME\n");
    assert_eq!(
        tour.cli(&format!("vm exec {VM} echo $HOME")).await.text(),
        "/home/ubuntu\n"
    );
}

async fn exit_codes_and_signals(tour: &Tour) {
    for code in [0, 1, 42, 255] {
        let done = tour.cli(&format!("vm exec {VM} exit {code}")).await;
        assert_eq!(done.code, code);
    }
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11)] {
        let query = format!("cmd=/bin/sh&args=-c&args=kill+-{signal}+$$&buffered=true");
        let json = tour.exec(&query).await.json();
        assert_eq!(json["exit_code"], 128 + number, "{json}");
        assert_eq!(json["signal"], signal, "{json}");
    }
}

async fn what_cannot_start(tour: &Tour) {
    tour.says("echo nothing > /tmp/plain; chmod 644 /tmp/plain")
        .await;
    for (cmd, code) in [
        ("no-such-program", 127),
        ("/no/such/program", 127),
        ("/tmp/plain", 126),
    ] {
        let answer = tour.exec(&format!("cmd={cmd}")).await;
        assert_eq!(answer.status, 200);
        let lines: Vec<serde_json::Value> = answer
            .text()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(
            (&lines[0]["type"], &lines[0]["exit_code"]),
            (&"exit".into(), &code.into())
        );
        assert!(
            lines[0]["error"].as_str().unwrap().contains(cmd),
            "{lines:?}"
        );
        let words = ["vm", "exec", "--shell", "", VM, cmd];
        let done = tour.daemon().cli(&words).await;
        assert_eq!(done.code, code);
        assert!(done.stderr.contains(cmd), "{done:?}");
    }
    assert_eq!(
        tour.cli(&format!("vm exec {VM} no-such-program"))
            .await
            .code,
        127
    );
}

async fn gone_in_guest(tour: &Tour, pattern: &str) {
    wait_until(&format!("{pattern} is gone"), LIMIT, async || {
        tour.sh(&format!("pgrep -f '^{pattern}'")).await.exit_code == 1
    })
    .await;
}

async fn a_client_that_leaves_takes_the_command_along(tour: &Tour) {
    let client = tour.client();
    let script = "sleep 9871 & sleep 9872";
    let mut stream = client.exec(VM, &shell(script), None).await.unwrap();
    next(&mut stream).await.unwrap();
    wait_until("both run", LIMIT, async || {
        tour.sh("pgrep -f '^sleep 987'")
            .await
            .stdout
            .lines()
            .count()
            == 2
    })
    .await;
    drop(stream);
    drop(client);
    gone_in_guest(tour, "sleep 987").await;
}

async fn an_interrupted_cli_takes_the_command_along(tour: &Tour) {
    let program = slicer_testkit::bin_dir().join("slicer");
    let socket = tour.daemon().dir().join("slicer.sock");
    let mut child = tokio::process::Command::new(program)
        .args(["vm", "exec", VM, "--", "sleep", "9881"])
        .env("SLICER_URL", socket)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    wait_until("it runs", LIMIT, async || {
        tour.sh("pgrep -f '^sleep 9881'").await.exit_code == 0
    })
    .await;
    slicer_testkit::send_signal(child.id().unwrap(), slicer_testkit::Signal::INT);
    let status = tokio::time::timeout(LIMIT, child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(130));
    gone_in_guest(tour, "sleep 9881").await;
}

fn checksum(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: Vec<String> = hash.iter().map(|b| format!("{b:02x}")).collect();
    hex.concat()
}

async fn large_output_is_intact(tour: &Tour) {
    let size = 64 << 20;
    let script = format!("head -c {size} /dev/urandom > /tmp/large && sha256sum < /tmp/large");
    let sum = tour.says(&script).await;
    let args = ["vm", "exec", VM, "--", "cat", "/tmp/large"];
    let done = tour.daemon().cli(&args).await;
    assert_eq!((done.code, done.stdout.len()), (0, size), "{}", done.stderr);
    assert_eq!(checksum(&done.stdout), sum.split(' ').next().unwrap());
    tour.says("rm /tmp/large").await;
}

async fn large_input_is_intact(tour: &Tour) {
    let mut bytes = vec![0; 8 << 20];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for chunk in bytes.chunks_mut(8) {
        // xorshift64: bytes of every value, without order.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    let sum = checksum(&bytes);
    let args = ["vm", "exec", VM, "--", "sha256sum"];
    let done = tour.daemon().cli_with(&args, Some(bytes)).await;
    assert_eq!(done.text(), format!("{sum}  -\n"));
}

async fn many_at_once(tour: &Tour) {
    let client = tour.client();
    let mut running = tokio::task::JoinSet::new();
    for i in 0..40 {
        let client = client.clone();
        running.spawn(async move {
            let done = client
                .exec_buffered(VM, &shell(&format!("sleep 1; echo {i}")))
                .await;
            let done = done.unwrap();
            assert_eq!(
                output_bytes(done.stdout, done.encoding).unwrap(),
                format!("{i}\n").as_bytes()
            );
        });
    }
    while let Some(done) = tokio::time::timeout(BOOT, running.join_next())
        .await
        .unwrap()
    {
        done.unwrap();
    }
}

async fn a_background_child_does_not_hold_the_stream(tour: &Tour) {
    let done = async {
        let request = shell("sleep 60 & echo started");
        let stream = tour.client().exec(VM, &request, None).await.unwrap();
        frames(stream).await
    };
    let frames = tokio::time::timeout(Duration::from_secs(45), done)
        .await
        .unwrap();
    assert_eq!(frames.last().unwrap().exit_code, 0);
    assert_eq!(bytes(frames).0, b"started\n");
    tour.says("pkill -f '^sleep 60$'; true").await;
}

async fn bad_requests(tour: &Tour) {
    for query in [
        "",
        "cmd=",
        "args=x",
        "cmd=x&uid=me",
        "cmd=x&stdio=hex",
        "cmd=x&env=NOVALUE",
        "cmd=x&stdin=true&buffered=true",
        "cmd=a%00b",
    ] {
        let answer = tour.exec(query).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        assert!(answer.json()["error"].is_string(), "{query}");
    }
    let target = format!("/vm/{VM}/exec?cmd=x");
    let answer = tour.raw().send(hyper::Method::PUT, &target, "").await;
    assert_eq!(answer.status, 405);
    let answer = tour.raw().post("/vm/sbox-99/exec?cmd=x", "").await;
    assert_eq!(answer.status, 404);
}
