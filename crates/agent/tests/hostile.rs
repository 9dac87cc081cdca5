//! Names, bodies and frames nobody well-behaved sends, to the real binary.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use common::{Host, body_json, until, within};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use slicer_api::ShellFrame;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

fn encoded(path: &Path) -> String {
    form_urlencoded::byte_serialize(path.as_os_str().as_bytes()).collect()
}

/// A copy as whoever runs the tests.
fn cp(path: &Path, query: &str) -> String {
    let uid = rustix::process::getuid().as_raw();
    format!("/cp?uid={uid}&path={}&{query}", encoded(path))
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

async fn status(host: &Host, method: &str, target: &str, body: String) -> u16 {
    let answer = host.send(method, target, body).await;
    let status = answer.status().as_u16();
    if status >= 400 {
        let error = body_json(answer).await["error"].clone();
        let error = error.as_str().unwrap();
        // What was sent is quoted, but not at any length.
        assert!(
            error.len() < 9000,
            "{method} {:.80}: {} bytes",
            target,
            error.len()
        );
    }
    status
}

#[tokio::test]
async fn names_too_long_or_with_a_nul_are_refused() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (path, what) in [
        (at(&"n".repeat(300)), "a name of 300 bytes"),
        (at(&"n".repeat(4096)), "a name of 4 KiB"),
        (at(&"d/".repeat(2100)), "a path of 4 KiB"),
        (at("a\0b"), "a NUL"),
    ] {
        let query = format!("path={}", encoded(&path));
        let body = serde_json::json!({ "path": path, "recursive": true }).to_string();
        for (method, target, body) in [
            ("POST", cp(&path, "mode=binary"), "x".to_owned()),
            ("POST", cp(&path, "mode=tar"), "\0".repeat(1024)),
            ("GET", cp(&path, "mode=binary"), String::new()),
            ("GET", format!("/fs/readdir?{query}"), String::new()),
            ("GET", format!("/fs/stat?{query}"), String::new()),
            ("POST", "/fs/mkdir".to_owned(), body),
            (
                "DELETE",
                format!("/fs/remove?{query}&recursive=true"),
                String::new(),
            ),
            (
                "GET",
                format!("/fs/watch?paths={}", encoded(&path)),
                String::new(),
            ),
        ] {
            let status = status(&host, method, &target, body).await;
            assert_eq!(status, 400, "{what}: {method} {target:.40}");
        }
    }
    // Whatever was made on the way has a name that could be had.
    for name in names(dir.path()) {
        assert!(
            name.len() <= 255 && !name.as_bytes().starts_with(b".slicer"),
            "{name:?}"
        );
    }
}

#[tokio::test]
async fn dots_mean_what_they_mean_to_the_system() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    let dotted = dir.path().join("a/../b");
    assert_eq!(
        status(&host, "POST", &cp(&dotted, ""), "x".into()).await,
        200
    );
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"x");
    let climbing = PathBuf::from(format!("/{}etc/hostname", "../".repeat(100)));
    let stat = format!("/fs/stat?path={}", encoded(&climbing));
    assert_eq!(status(&host, "GET", &stat, String::new()).await, 200);
    for name in ["a/..", "a/.", ".."] {
        let target = format!(
            "/fs/remove?path={}&recursive=true",
            encoded(&dir.path().join(name))
        );
        let got = status(&host, "DELETE", &target, String::new()).await;
        assert!(got == 400 || name == "a/.", "{name}: {got}");
    }
    assert!(dir.path().join("b").exists());
    assert_eq!(
        status(&host, "POST", &cp(&dir.path().join("b/.."), ""), "x".into()).await,
        400
    );
}

#[tokio::test]
async fn names_need_not_be_text() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let query = format!(
        "paths={}&patterns=*name&events=create&max_events=1&debounce=10ms",
        encoded(dir.path())
    );
    let answer = host.send("GET", &format!("/fs/watch?{query}"), "").await;
    assert_eq!(answer.status(), 200);
    let name = OsStr::from_bytes(b"\xff\xfe name");
    let file = dir.path().join(name);
    assert_eq!(
        status(&host, "POST", &cp(&file, ""), "bytes".into()).await,
        200
    );
    assert_eq!(names(dir.path()), [name]);
    assert_eq!(fs::read(&file).unwrap(), b"bytes");
    let answer_out = host
        .send(
            "GET",
            &cp(&file, "mode=cp-v1-binary&copy_semantics=cp-v1"),
            "",
        )
        .await;
    let told = answer_out.headers()["x-slicer-source-name-base64"].clone();
    assert_eq!(told, "__4gbmFtZQ");
    let body = within(answer_out.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(&*body, b"bytes");
    let list = format!("/fs/readdir?path={}", encoded(dir.path()));
    let list = body_json(host.send("GET", &list, "").await).await;
    assert_eq!(list[0]["name"], "\u{fffd}\u{fffd} name");
    let events = within(answer.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    let events = String::from_utf8(events.to_vec()).unwrap();
    assert!(events.contains("\u{fffd}\u{fffd} name\""), "{events}");
}

#[tokio::test]
async fn chunks_that_lie_leave_nothing() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for (query, body, answered) in [
        // It says more than it has, and ends.
        ("mode=binary", "100\r\nshort", false),
        ("mode=binary", "5\r\nwhole\r\n", false),
        ("mode=binary", "ffffffffffffffff\r\nx", false),
        ("mode=binary", "fffffffffffffffff\r\nx", true),
        ("mode=binary", "-5\r\nwhole\r\n0\r\n\r\n", true),
        ("mode=binary", "x\r\n", true),
        ("mode=tar", "200\r\nshort", false),
    ] {
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: agent\r\ntransfer-encoding: chunked\r\n\r\n{body}",
            cp(&file, query)
        );
        let answer = host.raw(head.as_bytes()).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(!answer.starts_with("HTTP/1.1 200"), "{body:?}: {answer}");
        assert!(
            !answered || answer.starts_with("HTTP/1.1 400"),
            "{body:?}: {answer}"
        );
        let dir = dir.path();
        until("nothing is left", || {
            // A tree's own directory may be there, and is empty.
            fs::remove_dir(dir.join("file")).ok();
            names(dir).is_empty()
        })
        .await;
    }
}

/// A session of two pieces in `dir`, and its manifest.
fn session(dir: &Path, pieces: [&[u8]; 2]) -> (PathBuf, PathBuf) {
    let session = dir.join(format!(".slicer-upload-{}", "cd".repeat(16)));
    fs::create_dir_all(session.join("chunks")).unwrap();
    let chunks: Vec<_> = (0..2)
        .map(|index| {
            let piece = [b'0' + u8::try_from(index).unwrap(); 1000];
            let path = session.join(slicer_api::chunk_path(index));
            fs::write(path, pieces[index]).unwrap();
            let sum: Vec<String> = Sha256::digest(piece)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            serde_json::json!({ "index": index, "size": 1000, "sha256": sum.concat() })
        })
        .collect();
    let manifest = serde_json::json!({
        "version": 2, "mode": "binary", "destination": dir.join("whole"),
        "uid": 4_294_967_295u32, "gid": 4_294_967_295u32, "size": 2000,
        "copy_semantics": "cp-v1", "source_name": "x", "source_type": "file", "chunks": chunks,
    });
    let path = session.join("manifest.json");
    fs::write(&path, manifest.to_string()).unwrap();
    (session, path)
}

#[test]
fn pieces_that_are_cut_off_are_not_put_together() {
    let (first, second) = ([b'0'; 1000], [b'1'; 1000]);
    let dir = tempfile::tempdir().unwrap();
    let finalise = |manifest: &Path| {
        let uid = rustix::process::getuid().as_raw().to_string();
        let gid = rustix::process::getgid().as_raw().to_string();
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_slicer-agent"))
            .args([
                "upload",
                "finalise",
                "--uid",
                &uid,
                "--gid",
                &gid,
                "--manifest",
            ])
            .arg(manifest)
            .output()
            .unwrap();
        (
            done.status.success(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    for (pieces, damage, part) in [
        ([&first[..], &second[..500]], "", "chunk 1 has 500 bytes"),
        ([&first[..], &b""[..]], "", "chunk 1 has 0 bytes"),
        (
            [&[b'0'; 1001][..], &second[..]],
            "",
            "chunk 0 has 1001 bytes",
        ),
        (
            [&second[..], &second[..]],
            "",
            "chunk 0 has the wrong SHA-256",
        ),
        ([&first[..], &second[..]], "missing", "No such file"),
        ([&first[..], &second[..]], "link", "is no file"),
        ([&first[..], &second[..]], "manifest", "invalid manifest"),
        ([&first[..], &second[..]], "", ""),
    ] {
        let (session, manifest) = session(dir.path(), pieces);
        let second = session.join(slicer_api::chunk_path(1));
        match damage {
            "missing" => fs::remove_file(second).unwrap(),
            "link" => {
                fs::remove_file(&second).unwrap();
                std::os::unix::fs::symlink("/etc/hostname", second).unwrap();
            }
            "manifest" => {
                let text = fs::read(&manifest).unwrap();
                fs::write(&manifest, &text[..text.len() - 1]).unwrap();
            }
            _ => {}
        }
        let (good, error) = finalise(&manifest);
        assert!(
            good == part.is_empty() && error.contains(part),
            "{part}: {error}"
        );
        let whole = dir.path().join("whole");
        assert_eq!(whole.exists(), good, "{part}");
        let _ = fs::remove_dir_all(session);
        // Nothing unfinished is beside it either.
        assert_eq!(names(dir.path()).len(), usize::from(good), "{part}");
    }
}

/// How many files the agent has open.
fn open_files(host: &Host) -> usize {
    fs::read_dir(format!("/proc/{}/fd", host.agent_pid()))
        .unwrap()
        .count()
}

#[tokio::test]
async fn a_client_that_leaves_a_download_is_forgotten() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("tree/large");
    fs::create_dir(dir.path().join("tree")).unwrap();
    fs::File::create(&large).unwrap().set_len(1 << 30).unwrap();
    let before = open_files(&host);
    for target in [cp(&large, ""), cp(&dir.path().join("tree"), "mode=tar")] {
        let mut answer = host.send("GET", &target, "").await.into_body();
        within(answer.frame()).await.unwrap().unwrap();
        assert!(open_files(&host) > before);
        drop(answer);
        until("its files are closed", || open_files(&host) <= before).await;
    }
}

#[tokio::test]
async fn a_websockets_frame_with_a_lying_length_ends_the_shell() {
    let host = Host::start().await;
    let headers = [
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let (_, io) = host
        .upgrade("/shell?shell=/bin/sh", "websocket", &headers)
        .await;
    let mut io = io.unwrap();
    // A binary message of nearly 2^63 bytes, masked with zeroes.
    let frame = b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0";
    within(io.write_all(frame)).await.unwrap();
    within(io.write_all(&ShellFrame::Heartbeat.encode()))
        .await
        .unwrap();
    let mut rest = Vec::new();
    // Broken off, however that looks.
    let _ = within(io.read_to_end(&mut rest)).await;
    // Whole for the next.
    let mut socket = host.websocket("/shell?shell=/bin/sh", &[]).await;
    let first = within(socket.next()).await.unwrap().unwrap();
    assert!(matches!(first, Message::Binary(_)), "{first:?}");
}

#[tokio::test]
async fn a_forward_into_a_black_hole_is_given_up() {
    let host = Host::start().await;
    // A listener whose queue is full lets nobody in, and says nothing.
    let hole = tokio::net::TcpSocket::new_v4().unwrap();
    hole.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let hole = hole.listen(1).unwrap();
    let at = hole.local_addr().unwrap();
    let mut waiting = Vec::new();
    loop {
        let queued = tokio::net::TcpStream::connect(at);
        match tokio::time::timeout(Duration::from_millis(300), queued).await {
            Ok(stream) => waiting.push(stream.unwrap()),
            Err(_) => break,
        }
        assert!(waiting.len() < 100, "the queue does not fill");
    }
    let begun = Instant::now();
    let target = at.to_string();
    let (answer, _) = host
        .upgrade("/forward", "tcp", &[("X-Inlets-Upstream", &target)])
        .await;
    assert_eq!(answer.status(), 502);
    // Clients wait for 10 s.
    assert!(
        begun.elapsed() < Duration::from_millis(9500),
        "{:?}",
        begun.elapsed()
    );
    let error = body_json(answer).await["error"].to_string();
    assert!(error.contains("timed out"), "{error}");
}
