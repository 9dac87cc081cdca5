//! The watch on files, spoken to the real binary.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use common::{Host, body_json, within};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The events of a watch as they come.
struct Events {
    body: Incoming,
    buffer: String,
}

impl Events {
    async fn open(host: &Host, query: &str) -> Self {
        let answer = host.send("GET", &format!("/fs/watch?{query}"), "").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        Self {
            body: answer.into_body(),
            buffer: String::new(),
        }
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                let lines: Vec<&str> = block.lines().collect();
                assert_eq!(lines.len(), 4, "{block:?}");
                let event: Value =
                    serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
                assert_eq!(lines[0], format!("id: {}", event["id"]));
                assert_eq!((lines[1], lines[3]), ("event: watch", ""));
                return Some(event);
            }
            let frame = within(self.body.frame()).await?;
            let data = frame.unwrap().into_data().unwrap();
            self.buffer.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    async fn rest(mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

fn paths(dir: &Path) -> String {
    let text: String = form_urlencoded::byte_serialize(dir.to_str().unwrap().as_bytes()).collect();
    format!("paths={text}")
}

fn brief(event: &Value, dir: &Path) -> (String, String) {
    let path = Path::new(event["path"].as_str().unwrap());
    let path = path.strip_prefix(dir).unwrap().display().to_string();
    (event["type"].as_str().unwrap().to_owned(), path)
}

#[tokio::test]
async fn what_happens_is_told_once_in_order_and_with_sizes() {
    let host = Host::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut events =
        Events::open(&host, &format!("{}&events=all&recursive=true", paths(dir))).await;
    let file = dir.join("a.bin");
    for _ in 0..3 {
        fs::write(&file, vec![0; 1000]).unwrap();
    }
    let created = events.next().await.unwrap();
    assert_eq!(brief(&created, dir), ("create".into(), "a.bin".into()));
    assert_eq!(
        (&created["id"], &created["size"], &created["isDir"]),
        (&json!(1), &json!(1000), &json!(false))
    );
    assert!(created["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(created.get("message"), None);
    let written = events.next().await.unwrap();
    assert_eq!(brief(&written, dir), ("write".into(), "a.bin".into()));

    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/early"), "x").unwrap();
    let event = events.next().await.unwrap();
    assert_eq!(brief(&event, dir), ("create".into(), "sub".into()));
    assert_eq!(event["isDir"], true);
    let event = events.next().await.unwrap();
    assert_eq!(brief(&event, dir), ("create".into(), "sub/early".into()));

    fs::rename(&file, dir.join("b.bin")).unwrap();
    fs::remove_file(dir.join("b.bin")).unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&("remove".to_owned(), "b.bin".to_owned())) {
        let event = events.next().await.unwrap();
        if event["type"] == "remove" {
            assert_eq!(event["size"], 0);
        }
        seen.push(brief(&event, dir));
    }
    assert!(
        seen.contains(&("rename".into(), "a.bin".into())),
        "{seen:?}"
    );
    assert!(
        seen.contains(&("create".into(), "b.bin".into())),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_watch_ends_when_it_has_what_was_asked_for() {
    let host = Host::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let base = format!("{}&debounce=10ms", paths(dir));
    let filtered = Events::open(
        &host,
        &format!("{base}&patterns=*.rs&events=create&max_events=2"),
    )
    .await;
    let one = Events::open(&host, &format!("{base}&one_shot=true&events=remove")).await;
    for name in ["x.o", "y.rs", "z.rs", "w.rs"] {
        fs::write(dir.join(name), "1").unwrap();
    }
    fs::remove_file(dir.join("x.o")).unwrap();
    fs::remove_file(dir.join("y.rs")).unwrap();
    let names: Vec<_> = filtered
        .rest()
        .await
        .iter()
        .map(|e| brief(e, dir))
        .collect();
    assert_eq!(
        names,
        [
            ("create".to_owned(), "y.rs".to_owned()),
            ("create".to_owned(), "z.rs".to_owned())
        ]
    );
    let one = one.rest().await;
    assert_eq!(one.len(), 1);
    assert_eq!(brief(&one[0], dir), ("remove".into(), "x.o".into()));

    let start = Instant::now();
    let timed = Events::open(&host, &format!("{base}&timeout=300ms")).await;
    assert_eq!(timed.rest().await, Vec::<Value>::new());
    assert!(start.elapsed() >= Duration::from_millis(290));

    // Not what is below, unless asked for; and no more than there is.
    fs::create_dir(dir.join("sub")).unwrap();
    let gone = Events::open(&host, &base).await;
    fs::write(dir.join("sub/file"), "1").unwrap();
    fs::remove_dir_all(dir).unwrap();
    let events = gone.rest().await;
    assert_eq!(events.last().unwrap()["path"], dir.to_str().unwrap());
    assert!(
        events
            .iter()
            .all(|e| !e["path"].as_str().unwrap().ends_with("sub/file"))
    );
}

#[tokio::test]
async fn too_much_at_once_is_told_and_not_kept() {
    let host = Host::start().await;
    let temp = tempfile::tempdir().unwrap();
    let query = format!(
        "{}&debounce=5s&events=create&max_events=1",
        paths(temp.path())
    );
    let events = Events::open(&host, &query).await;
    for n in 0..40_000 {
        fs::File::create(temp.path().join(n.to_string())).unwrap();
    }
    let events = events.rest().await;
    assert_eq!(events[0]["type"], "overflow");
    assert!(events[0]["message"].as_str().unwrap().contains("look"));
}

#[tokio::test]
async fn what_is_wrong_is_an_http_error() {
    let host = Host::start().await;
    for (method, target, status) in [
        ("GET", "/fs/watch", 400),
        ("GET", "/fs/watch?paths=/no/such", 404),
        ("GET", "/fs/watch?paths=/&events=explode", 400),
        ("GET", "/fs/watch?paths=/&debounce=fast", 400),
        ("GET", "/fs/watch?paths=/&max_events=0", 400),
        ("GET", "/fs/watch?paths=/&uid=4000000000", 400),
        ("POST", "/fs/watch?paths=/", 405),
    ] {
        let answer = host.send(method, target, "").await;
        assert_eq!(answer.status(), status, "{method} {target}");
        assert!(body_json(answer).await["error"].is_string());
    }
}
