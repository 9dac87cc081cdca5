//! Copies out of VMs that break off, lie, or are left.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

mod support;

use slicer_api::{CopyMode, CopyOut, Endpoint, ExecRequest};
use slicer_client::{Client, ClientError, CopyError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::FakeDaemon;
use tokio::sync::Notify;

fn client(daemon: &FakeDaemon) -> Client {
    Client::new(Endpoint::Unix(daemon.socket()), None, "test").unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// An archive of one file of ten bytes, as tar(1) begins it.
fn header() -> Vec<u8> {
    header_of(b"00000000012")
}

/// The same of a file of so many bytes, in octal.
fn header_of(size: &[u8; 11]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[0] = b'f';
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(size);
    header[156] = b'0';
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[tokio::test]
async fn a_guest_that_breaks_off_or_lies_leaves_nothing() {
    let half_a_file = [&header()[..], b"hal"].concat();
    let chunked = |body: &[u8]| {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let size = format!("{:x}\r\n", body.len());
        [head, size.as_bytes(), body, b"\r\n"].concat()
    };
    for (mode, answer) in [
        (
            CopyMode::Binary,
            b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nshort".to_vec(),
        ),
        (CopyMode::Binary, chunked(b"no end")),
        (
            CopyMode::Binary,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\nshort".to_vec(),
        ),
        (
            CopyMode::Binary,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nx".to_vec(),
        ),
        (CopyMode::Tar, chunked(&half_a_file)),
        (
            CopyMode::Tar,
            [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &half_a_file].concat(),
        ),
    ] {
        let text = String::from_utf8_lossy(&answer).into_owned();
        let daemon = FakeDaemon::raw(answer.leak());
        let dir = tempfile::tempdir().unwrap();
        let copy = CopyOut::new(mode, "/x");
        let to = dir.path().join("to");
        let copied = client(&daemon)
            .copy_out("sbox-1", &copy, &to, None, Arc::new(|_, _| {}))
            .await;
        assert!(copied.is_err(), "{text}");
        let left = names(dir.path());
        // A tree's own directory was made, and is empty.
        let expected: &[&str] = if mode == CopyMode::Tar { &["to"] } else { &[] };
        assert_eq!(left, expected, "{text}");
        if mode == CopyMode::Tar {
            assert_eq!(names(&to), [""; 0], "{text}");
        }
    }
}

#[tokio::test]
async fn a_copy_that_is_left_leaves_nothing() {
    for mode in [CopyMode::Binary, CopyMode::Tar] {
        // Half of 2 MiB, which is more than waits in memory.
        let half = [header_of(b"00010000000"), vec![b'h'; 1 << 20]].concat();
        let daemon = FakeDaemon::start(move |_| {
            let (sender, mut reply) = support::streamed();
            let text = String::from_utf8(half.clone()).unwrap();
            sender.send(text).unwrap();
            reply.headers_mut().clear();
            async move {
                // As long as its reader is there.
                tokio::spawn(async move { sender.closed().await });
                reply
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let (client, to) = (client(&daemon), dir.path().join("to"));
        let arrived = Arc::new(Notify::new());
        let told = arrived.clone();
        let copy = CopyOut::new(mode, "/x");
        let copying = client.copy_out(
            "sbox-1",
            &copy,
            &to,
            None,
            Arc::new(move |_, _| told.notify_one()),
        );
        let left = async {
            arrived.notified().await;
            // It is on its way under some other name.
            while !unfinished(dir.path()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            copied = copying => panic!("{copied:?}"),
            done = tokio::time::timeout(Duration::from_secs(10), left) => done.unwrap(),
        }
        assert!(!unfinished(dir.path()), "{mode:?}");
        assert!(!to.is_file(), "{mode:?}");
    }
}

fn unfinished(dir: &Path) -> bool {
    names(dir).iter().any(|name| {
        let below = dir.join(name);
        name.starts_with(".slicer-") || below.is_dir() && unfinished(&below)
    })
}

#[tokio::test]
async fn a_hostile_name_is_no_name() {
    for name in ["Li4vdXA", "Li4", "L2V0Yw", "YQBi", "!"] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx-slicer-source-type: file\r\n\
             x-slicer-source-name-base64: {name}\r\n\r\nx"
        );
        let daemon = FakeDaemon::raw(answer.leak().as_bytes());
        let dir = tempfile::tempdir().unwrap();
        let copy = CopyOut::new(CopyMode::V1Recursive, "/x");
        let copied = client(&daemon)
            .copy_out("sbox-1", &copy, dir.path(), None, Arc::new(|_, _| {}))
            .await;
        assert!(matches!(copied, Err(CopyError::Answer { .. })), "{name}");
        assert_eq!(names(dir.path()), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn frames_that_lie_are_errors() {
    let endless = [
        &b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n"[..],
        &vec![b' '; 20 << 20],
    ]
    .concat();
    for (answer, too_large) in [
        (endless, true),
        (b"HTTP/1.1 200 OK\r\n\r\n{\"timestamp\":\n".to_vec(), false),
        (b"HTTP/1.1 200 OK\r\n\r\n[]\n".to_vec(), false),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe\n".to_vec(), false),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"timestamp\":".to_vec(),
            false,
        ),
    ] {
        let daemon = FakeDaemon::raw(answer.leak());
        let client = client(&daemon);
        let request = ExecRequest {
            cmd: "true".to_owned(),
            ..ExecRequest::default()
        };
        let mut stream = client.exec("sbox-1", &request, None).await.unwrap();
        let e = stream.next_frame().await.unwrap().unwrap_err();
        let large = matches!(e, ClientError::TooLarge { .. });
        assert_eq!(large, too_large, "{e}");
    }
}
