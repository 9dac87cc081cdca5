//! The client against canned wire answers.

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

mod support;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use slicer_api::{CreateNode, Endpoint, ExecRequest, FrameType, ShutdownAction, Stdio, Wait};
use slicer_client::{Client, ClientError, NodeFilter, Token, output_bytes};
use std::time::Duration;
use support::{FakeDaemon, data, exit, json, node, not_found, reply, started, streamed};
use tokio::io::AsyncWriteExt as _;

fn client(daemon: &FakeDaemon) -> Client {
    Client::new(Endpoint::Unix(daemon.socket()), None, "test/1").unwrap()
}

fn command(cmd: &str) -> ExecRequest {
    ExecRequest {
        cmd: cmd.to_owned(),
        stdio: Stdio::Base64,
        ..ExecRequest::default()
    }
}

#[tokio::test]
async fn calls_are_what_the_daemon_expects_and_share_a_connection() {
    let daemon = FakeDaemon::start(|request| async move {
        let list = format!("[{}]", node("sbox-1", r#"["name=x"]"#));
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/info") => json(
                200,
                r#"{"version":"1","git_commit":"c","platform":"linux","arch":"amd64","new":1}"#,
            ),
            ("GET", "/hostgroup") => json(200, "null"),
            ("GET", "/nodes" | "/hostgroup/sbox/nodes") => json(200, list),
            ("POST", "/hostgroup/sbox/nodes") => json(
                201,
                r#"{"hostname":"sbox-1","ip":"192.168.64.3","created_at":"2026-01-02T03:04:05Z"}"#,
            ),
            ("DELETE", _) => json(200, r#"{"message":"ok","disk_removed":"true"}"#),
            (_, "/vm/a%2Fb/logs") => json(200, r#"{"hostname":"a/b","lines":7,"content":"x\n"}"#),
            _ => reply(200, "text/plain", "OK"),
        }
    });
    let client = client(&daemon);
    client.healthz().await.unwrap();
    assert_eq!(client.info().await.unwrap().platform, "linux");
    assert_eq!(client.host_groups().await.unwrap(), []);
    let filter = NodeFilter {
        tag: Some("a=b c&d".into()),
        tag_prefix: None,
    };
    assert_eq!(
        client.nodes(&filter).await.unwrap()[0].friendly_name(),
        Some("x")
    );
    let filter = NodeFilter {
        tag: None,
        tag_prefix: Some("a".into()),
    };
    client.group_nodes("sbox", &filter).await.unwrap();
    let timeout = Some(Duration::from_mins(1));
    client
        .create_node("sbox", &CreateNode::default(), Some(Wait::Agent), timeout)
        .await
        .unwrap();
    client.delete_node("sbox", "sbox-1").await.unwrap();
    assert_eq!(client.logs("a/b", Some(7)).await.unwrap().content, "x\n");
    client
        .shutdown("sbox-1", ShutdownAction::Shutdown)
        .await
        .unwrap();
    client.pause("sbox-1").await.unwrap();
    client.resume("sbox-1").await.unwrap();
    assert_eq!(
        daemon.lines(),
        [
            "GET /healthz",
            "GET /info",
            "GET /hostgroup",
            "GET /nodes?tag=a%3Db+c%26d",
            "GET /hostgroup/sbox/nodes?tag_prefix=a",
            "POST /hostgroup/sbox/nodes?wait=agent&timeout=60000ms",
            "DELETE /hostgroup/sbox/nodes/sbox-1",
            "GET /vm/a%2Fb/logs?lines=7",
            "POST /vm/sbox-1/shutdown",
            "POST /vm/sbox-1/pause",
            "POST /vm/sbox-1/resume",
        ]
    );
    let seen = daemon.seen();
    assert!(seen.iter().all(|s| s.connection == 0), "{seen:?}");
    let pause = &seen[9].headers;
    assert_eq!(pause["content-length"], "0");
    assert_eq!(pause["host"], "localhost");
    assert_eq!(pause["user-agent"], "test/1");
    assert!(!pause.contains_key("authorization"));
    assert!(!pause.contains_key("content-type"));
    assert_eq!(seen[8].headers["content-type"], "application/json");
}

#[tokio::test]
async fn a_token_is_sent_when_given() {
    let daemon = FakeDaemon::start(|_| async { json(401, r#"{"error":"wrong token"}"#) });
    let token = Token::new("s3cret", "--token").unwrap();
    let client = Client::new(Endpoint::Unix(daemon.socket()), Some(&token), "t").unwrap();
    let e = client.info().await.unwrap_err();
    assert_eq!(e.to_string(), "wrong token (401 Unauthorized)");
    assert_eq!(daemon.seen()[0].headers["authorization"], "Bearer s3cret");
    assert!(Client::new(Endpoint::Unix("x".into()), None, "a\nb").is_err());
}

#[tokio::test]
async fn tcp_is_served_and_its_host_is_sent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    let client = Client::new(
        Endpoint::Http {
            authority: authority.clone(),
        },
        None,
        "t",
    )
    .unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0u8; 4096];
        let n = tokio::io::AsyncReadExt::read(&mut stream, &mut head)
            .await
            .unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")
            .await
            .unwrap();
        String::from_utf8_lossy(&head[..n]).into_owned()
    };
    let (groups, head) = tokio::join!(client.host_groups(), server);
    assert_eq!(groups.unwrap(), []);
    assert!(head.contains(&format!("host: {authority}\r\n")), "{head}");
}

#[tokio::test]
async fn no_daemon_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let gone = Endpoint::Unix(dir.path().join("none.sock"));
    let client = Client::new(gone, None, "t").unwrap();
    let e = client.healthz().await.unwrap_err().to_string();
    assert!(e.starts_with("no daemon answers at "), "{e}");
    assert!(e.ends_with("start one with `slicer-mac up`, or give --url"));
    let client = Client::new(Endpoint::Unix(dir.path().to_owned()), None, "t").unwrap();
    let e = client.healthz().await.unwrap_err();
    assert!(
        matches!(
            e,
            ClientError::NoDaemon { .. } | ClientError::Connect { .. }
        ),
        "{e}"
    );
}

#[tokio::test]
async fn a_friendly_name_is_looked_up_only_on_404() {
    let daemon = FakeDaemon::start(|request| async move {
        let target = request.uri().to_string();
        match &*target {
            "/vm/sbox-1/pause" => reply(200, "text/plain", ""),
            "/vm/busy/pause" => json(409, r#"{"error":"paused"}"#),
            "/nodes?tag=name%3Dbuilder" => {
                json(200, format!("[{}]", node("sbox-1", r#"["name=builder"]"#)))
            }
            "/nodes?tag=name%3Dtwice" => json(
                200,
                format!("[{},{}]", node("sbox-1", "[]"), node("sbox-2", "[]")),
            ),
            "/nodes?tag=name%3Dnobody" => json(200, "[]"),
            _ => not_found(target.split('/').nth(2).unwrap_or_default()),
        }
    });
    let client = client(&daemon);
    let pause = async |vm: &str| client.with_vm(vm, async |h| client.pause(h).await).await;
    pause("sbox-1").await.unwrap();
    assert_eq!(daemon.lines().len(), 1);
    pause("builder").await.unwrap();
    let e = pause("busy").await.unwrap_err();
    assert_eq!(e.to_string(), "paused (409 Conflict)");
    let e = pause("twice").await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "the name \"twice\" belongs to several VMs (sbox-1, sbox-2): use a hostname"
    );
    let e = pause("nobody").await.unwrap_err();
    assert_eq!(e.to_string(), "VM \"nobody\" not found (404 Not Found)");
}

#[tokio::test]
async fn exec_runs_in_both_directions_at_once() {
    // Answers every line of stdin before the next one is sent.
    let daemon = FakeDaemon::start(|mut request| async move {
        let (frames, reply) = streamed();
        frames.send(started()).unwrap();
        tokio::spawn(async move {
            while let Some(chunk) = request.body_mut().frame().await {
                let text = chunk.unwrap().into_data().unwrap();
                let payload = if text == "ping\n" { "cG9uZwo=" } else { "Pwo=" };
                frames.send(data("stdout", payload)).unwrap();
            }
            frames.send(exit(3)).unwrap();
        });
        reply
    });
    let (mut typed, stdin) = tokio::io::duplex(64);
    let mut stream = client(&daemon)
        .exec("sbox-1", &command("cat"), Some(Box::new(stdin)))
        .await
        .unwrap();
    let first = stream.next_frame().await.unwrap().unwrap();
    assert_eq!(
        (first.kind, first.pid),
        (Some(FrameType::Started), Some(812))
    );
    for _ in 0..3 {
        typed.write_all(b"ping\n").await.unwrap();
        let frame = stream.next_frame().await.unwrap().unwrap();
        let bytes = output_bytes(frame.stdout.unwrap(), frame.encoding).unwrap();
        assert_eq!(bytes, b"pong\n");
    }
    drop(typed);
    let last = stream.next_frame().await.unwrap().unwrap();
    assert_eq!((last.kind, last.exit_code), (Some(FrameType::Exit), 3));
    assert!(stream.next_frame().await.is_none());
    assert_eq!(
        daemon.lines(),
        ["POST /vm/sbox-1/exec?cmd=cat&stdin=true&stdio=base64"]
    );
    assert_eq!(daemon.seen()[0].headers["transfer-encoding"], "chunked");
}

#[tokio::test]
async fn an_exec_ends_though_its_stdin_does_not() {
    let daemon = FakeDaemon::start(|_| async {
        let (frames, reply) = streamed();
        frames.send(started() + &exit(0)).unwrap();
        reply
    });
    let (_typed, stdin) = tokio::io::duplex(64);
    let client = client(&daemon);
    let run = async {
        let mut stream = client
            .exec("sbox-1", &command("true"), Some(Box::new(stdin)))
            .await
            .unwrap();
        let mut kinds = Vec::new();
        while let Some(frame) = stream.next_frame().await {
            kinds.push(frame.unwrap().kind.unwrap());
        }
        kinds
    };
    let kinds = tokio::time::timeout(Duration::from_secs(10), run)
        .await
        .unwrap();
    assert_eq!(kinds, [FrameType::Started, FrameType::Exit]);
}

#[tokio::test]
async fn dropping_the_stream_hangs_up() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let daemon = FakeDaemon::start(move |_| {
        let gone = gone.clone();
        async move {
            let (frames, reply) = streamed();
            frames.send(started()).unwrap();
            tokio::spawn(async move {
                frames.closed().await;
                gone.send(()).unwrap();
            });
            reply
        }
    });
    let mut stream = client(&daemon)
        .exec("sbox-1", &command("sleep"), None)
        .await
        .unwrap();
    stream.next_frame().await.unwrap().unwrap();
    drop(stream);
    tokio::time::timeout(Duration::from_secs(10), left.recv())
        .await
        .unwrap()
        .unwrap();
}

async fn last_error(body: String) -> ClientError {
    let daemon = FakeDaemon::start(move |_| {
        let body = Bytes::from(body.clone());
        async move { reply(200, "application/x-ndjson", body) }
    });
    let mut stream = client(&daemon)
        .exec("sbox-1", &command("x"), None)
        .await
        .unwrap();
    loop {
        match stream.next_frame().await.expect("a stream never just ends") {
            Ok(frame) => assert_ne!(frame.kind, Some(FrameType::Exit)),
            Err(e) => {
                assert!(stream.next_frame().await.is_none());
                return e;
            }
        }
    }
}

#[tokio::test]
async fn broken_streams_are_errors() {
    let e = last_error(started()).await;
    assert!(matches!(e, ClientError::Truncated { .. }), "{e}");
    let e = last_error(started() + "{\"timestamp\":").await;
    assert!(matches!(e, ClientError::Decode { .. }), "{e}");
    let e = last_error(started() + "nonsense\n" + &exit(0)).await;
    assert!(matches!(e, ClientError::Decode { .. }), "{e}");
    let e = last_error("x".repeat(slicer_client::MAX_LINE + 1)).await;
    assert!(matches!(e, ClientError::TooLarge { .. }), "{e}");

    let daemon = FakeDaemon::raw(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"typ\r\nzz\r\n",
    );
    let mut stream = client(&daemon)
        .exec("sbox-1", &command("x"), None)
        .await
        .unwrap();
    let e = stream.next_frame().await.unwrap().unwrap_err();
    assert!(matches!(e, ClientError::BrokenOff { .. }), "{e}");
}

#[tokio::test]
async fn broken_answers_are_errors() {
    for (answer, want) in [
        (
            &b"SSH-2.0-x\r\n\r\n"[..],
            "the connection to the daemon broke",
        ),
        (b"", "the connection to the daemon broke"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",
            "the connection to the daemon broke",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            "makes no sense",
        ),
        (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nsoon",
            "soon (503 Service Unavailable)",
        ),
    ] {
        let daemon = FakeDaemon::raw(answer);
        let e = client(&daemon).info().await.unwrap_err().to_string();
        assert!(e.contains(want), "{e}");
    }
}

#[tokio::test]
async fn a_connection_the_daemon_closed_is_replaced() {
    let daemon = FakeDaemon::raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]");
    let client = client(&daemon);
    for _ in 0..3 {
        assert_eq!(client.host_groups().await.unwrap(), []);
    }
}

#[tokio::test]
async fn buffered_output_is_decoded() {
    let daemon = FakeDaemon::start(|_| async {
        json(
            200,
            r#"{"stdout":"/wA=","stderr":"","encoding":"base64","pid":1,"exit_code":4}"#,
        )
    });
    let done = client(&daemon)
        .exec_buffered("sbox-1", &command("x"))
        .await
        .unwrap();
    assert_eq!(done.exit_code, 4);
    assert_eq!(output_bytes(done.stdout, done.encoding).unwrap(), [0xff, 0]);
    assert!(output_bytes("%".into(), Some(Stdio::Base64)).is_err());
    assert_eq!(
        daemon.lines(),
        ["POST /vm/sbox-1/exec?cmd=x&buffered=true&stdio=base64"]
    );
}
