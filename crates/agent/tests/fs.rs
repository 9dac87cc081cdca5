//! The file system's endpoints, spoken to the real binary.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use common::Host;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::{ffi::OsStr, fs};

async fn call(host: &Host, method: &str, target: &str, body: &str) -> (u16, Value) {
    let answer = host.send(method, target, body.to_owned()).await;
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (status, body)
}

fn query(path: &Path) -> String {
    let text: String = form_urlencoded::byte_serialize(path.as_os_str().as_bytes()).collect();
    format!("path={text}")
}

#[tokio::test]
async fn directories_and_entries_are_told_as_they_are() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("b.txt"), "hello").unwrap();
    fs::set_permissions(dir.path().join("b.txt"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    symlink("/no/such", dir.path().join("c")).unwrap();
    fs::write(dir.path().join(OsStr::from_bytes(b"d\xff")), "").unwrap();
    let (status, list) = call(
        &host,
        "GET",
        &format!("/fs/readdir?{}", query(dir.path())),
        "",
    )
    .await;
    assert_eq!(status, 200);
    let brief: Vec<Value> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|e| json!([e["name"], e["type"]]))
        .collect();
    assert_eq!(
        brief,
        [
            json!(["a", "directory"]),
            json!(["b.txt", "file"]),
            json!(["c", "symlink"]),
            json!(["d\u{fffd}", "file"]),
        ]
    );
    assert_eq!(
        (&list[1]["size"], &list[1]["mode"]),
        (&json!(5), &json!("0640"))
    );
    assert!(list[1]["mtime"].as_str().unwrap().ends_with('Z'));
    for (name, kind) in [("b.txt", "file"), ("c", "symlink"), ("a", "directory")] {
        let target = format!("/fs/stat?{}", query(&dir.path().join(name)));
        let (status, entry) = call(&host, "GET", &target, "").await;
        assert_eq!(status, 200, "{name}");
        assert_eq!(
            (&entry["name"], &entry["type"]),
            (&json!(name), &json!(kind))
        );
    }
}

#[tokio::test]
async fn directories_are_made_and_things_removed() {
    let host = Host::start().await;
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name);
    let make = |name: &str, rest: &str| {
        let text = serde_json::to_string(&path(name)).unwrap();
        let body = format!(r#"{{"path":{text}{rest}}}"#);
        let host = &host;
        async move { call(host, "POST", "/fs/mkdir", &body).await.0 }
    };
    assert_eq!(make("a", "").await, 200);
    assert_eq!(make("a", "").await, 409);
    assert_eq!(make("a", r#","recursive":true"#).await, 200);
    assert_eq!(make("x/y/z", "").await, 404);
    assert_eq!(
        make("x/y/z", r#","recursive":true,"mode":"0700""#).await,
        200
    );
    assert_eq!(make("m", r#","mode":"rwx""#).await, 400);
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("a"), mode("x/y"), mode("x/y/z")),
        (0o755, 0o755, 0o700)
    );
    fs::write(path("f"), "").unwrap();
    assert_eq!(make("f/below", r#","recursive":true"#).await, 400);

    symlink(path("x"), path("link")).unwrap();
    let remove = |name: &str, recursive: bool| {
        let target = format!("/fs/remove?{}&recursive={recursive}", query(&path(name)));
        let host = &host;
        async move { call(host, "DELETE", &target, "").await.0 }
    };
    assert_eq!(remove("x", false).await, 400);
    // The link goes, what it leads to stays.
    assert_eq!(remove("link/", true).await, 200);
    assert!(path("x/y/z").exists() && fs::symlink_metadata(path("link")).is_err());
    assert_eq!(remove("x", true).await, 200);
    assert_eq!(remove("f", false).await, 200);
    assert_eq!(remove("f", false).await, 404);
    assert_eq!(remove("a", false).await, 200);
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_wrong_is_an_http_error() {
    let host = Host::start().await;
    for (method, target, body, status) in [
        ("GET", "/fs/readdir", "", 400),
        ("GET", "/fs/readdir?path=/no/such", "", 404),
        ("GET", "/fs/readdir?path=/etc/passwd", "", 400),
        ("GET", "/fs/stat?path=/no/such", "", 404),
        ("GET", "/fs/stat?path=/etc/passwd/x", "", 404),
        ("GET", "/fs/stat?path=a%00b", "", 400),
        ("POST", "/fs/mkdir", "", 400),
        ("POST", "/fs/mkdir", r#"{"recursive":true}"#, 400),
        ("DELETE", "/fs/remove?path=/&recursive=true", "", 400),
        ("DELETE", "/fs/remove?path=/tmp/..&recursive=true", "", 400),
        (
            "DELETE",
            "/fs/remove?path=/proc/self/root/&recursive=false",
            "",
            403,
        ),
        ("DELETE", "/fs/remove?path=/no/such", "", 404),
        ("POST", "/fs/stat?path=/", "", 405),
        ("GET", "/fs/mkdir", "", 405),
        ("GET", "/fs/remove?path=/x", "", 405),
        ("GET", "/fs/nonsense", "", 404),
    ] {
        let (code, body) = call(&host, method, target, body).await;
        assert_eq!(code, status, "{method} {target} {body}");
        assert!(body["error"].is_string(), "{body}");
    }
}
