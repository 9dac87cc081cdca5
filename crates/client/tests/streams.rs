//! Logs of background commands and watches against canned wire answers.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

mod support;

use slicer_api::{Endpoint, FrameType, KillRequest, LogsRequest, WatchKind, WatchRequest};
use slicer_client::{Client, ClientError};
use std::time::Duration;
use support::{FakeDaemon, json, reply};

const ID: &str = "ex_00000000000000ff";

fn client(daemon: &FakeDaemon) -> Client {
    Client::new(Endpoint::Unix(daemon.socket()), None, "test/1").unwrap()
}

fn frame(id: u64, rest: &str) -> String {
    format!("{{\"id\":{id},\"timestamp\":\"2026-01-02T03:04:05Z\",\"exit_code\":0,{rest}}}\n")
}

#[tokio::test]
async fn a_watch_is_read_over_comments_to_its_end() {
    let daemon = FakeDaemon::start(|_| async {
        let data = r#"{"id":1,"type":"create","path":"/w/a b","timestamp":"2026-01-02T03:04:05.123Z","size":3,"isDir":false}"#;
        let text = format!(":\n\nid: 1\nevent: watch\ndata: {data}\n\n:\n\n");
        reply(200, "text/event-stream", text)
    });
    let client = client(&daemon);
    let request = WatchRequest {
        paths: vec!["/w".into()],
        timeout: Some(Duration::from_secs(2)),
        ..WatchRequest::default()
    };
    let mut stream = client.watch_files("sbox-1", &request).await.unwrap();
    let event = stream.next_event().await.unwrap().unwrap();
    assert_eq!(
        (event.kind, &*event.path, event.size),
        (WatchKind::Create, "/w/a b", 3)
    );
    assert_eq!(stream.next_event().await.unwrap(), None);
    assert_eq!(
        daemon.lines(),
        ["GET /vm/sbox-1/fs/watch?paths=%2Fw&timeout=2000ms"]
    );
}

#[tokio::test]
async fn a_watch_that_makes_no_sense_is_an_error() {
    let daemon =
        FakeDaemon::start(|_| async { reply(200, "text/event-stream", "data: {\"id\":1}\n\n") });
    let client = client(&daemon);
    let request = WatchRequest {
        paths: vec!["/w".into()],
        ..WatchRequest::default()
    };
    let mut stream = client.watch_files("sbox-1", &request).await.unwrap();
    let error = stream.next_event().await.unwrap_err();
    assert!(matches!(error, ClientError::Decode { .. }), "{error}");
}

#[tokio::test]
async fn a_followed_log_is_taken_up_until_its_exit_frame() {
    let daemon = FakeDaemon::start(|request| async move {
        let from = request.uri().query().unwrap().rsplit('=').next().unwrap();
        let id: u64 = from.parse::<u64>().unwrap().max(1);
        let line = match id {
            1 | 2 => frame(id, r#""type":"stdout","stdout":"x","data":"x""#),
            _ => frame(id, r#""type":"exit""#),
        };
        reply(200, "application/x-ndjson", line)
    });
    let client = client(&daemon);
    let follow = LogsRequest {
        follow: true,
        from_id: 0,
    };
    let mut stream = client.background_logs("sbox-1", ID, follow).await.unwrap();
    for id in 1..=3 {
        let frame = stream.next_frame().await.unwrap().unwrap();
        assert_eq!(frame.id, id);
        assert_eq!(frame.frame.kind == Some(FrameType::Exit), id == 3);
    }
    assert!(stream.next_frame().await.is_none());
    assert_eq!(daemon.lines().len(), 3);
}

#[tokio::test]
async fn what_is_refused_is_not_asked_again() {
    let daemon = FakeDaemon::start(|_| async {
        json(410, r#"{"error":"exec ex_1 was removed","code":"gone"}"#)
    });
    let client = client(&daemon);
    let refused = client
        .background_logs("sbox-1", ID, LogsRequest::default())
        .await;
    assert_eq!(refused.unwrap_err().status(), Some(410));
    let request = KillRequest::default();
    let killed = client.kill_background("sbox-1", ID, &request);
    assert_eq!(killed.await.unwrap_err().status(), Some(410));
    let base = format!("/vm/sbox-1/exec/{ID}");
    assert_eq!(
        daemon.lines(),
        [
            format!("GET {base}/logs?follow=false&from_id=0"),
            format!("POST {base}/kill")
        ]
    );
}
