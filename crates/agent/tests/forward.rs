//! Forwarded connections, through the real binary.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use common::{Host, body_json, within};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

const TARGET: &str = "X-Inlets-Upstream";
const EOF: std::io::ErrorKind = std::io::ErrorKind::UnexpectedEof;

/// Answers one connection: with what it was sent, once its sender has ended.
async fn answer_after_the_end(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    stream.write_all(b"got ").await.unwrap();
    stream.write_all(&text).await.unwrap();
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    (listener, at)
}

#[tokio::test]
async fn a_plain_forward_ends_in_each_direction_by_itself() {
    let host = Host::start().await;
    let (listener, at) = listen().await;
    let server = tokio::spawn(answer_after_the_end(listener));
    let (_, io) = host.upgrade("/forward", "tcp", &[(TARGET, &at)]).await;
    let mut io = io.unwrap();
    within(io.write_all(b"half")).await.unwrap();
    within(io.shutdown()).await.unwrap();
    let mut text = String::new();
    within(io.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "got half");
    server.await.unwrap();
}

#[tokio::test]
async fn unix_sockets_take_much_in_both_directions() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("echo.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut from, mut to) = stream.into_split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    });
    let at = format!("unix:{}", path.display());
    let (_, io) = host.upgrade("/forward", "tcp", &[(TARGET, &at)]).await;
    let (mut from, mut to) = tokio::io::split(io.unwrap());
    let bytes: Vec<u8> = (0..8u32 << 20)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let sent = bytes.clone();
    let sender = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    within(from.read_to_end(&mut back)).await.unwrap();
    assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());
    sender.await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn a_websocket_closes_when_the_target_ends() {
    let host = Host::start().await;
    let (listener, at) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut five = [0; 5];
        stream.read_exact(&mut five).await.unwrap();
        stream.write_all(&five.repeat(40_000)).await.unwrap();
    });
    let mut socket = host.websocket("/forward", &[(TARGET, &at)]).await;
    for piece in ["he", "llo"] {
        let piece = Message::Binary(piece.as_bytes().into());
        within(socket.send(piece)).await.unwrap();
    }
    let mut got = Vec::new();
    let code = loop {
        match within(socket.next()).await.unwrap().unwrap() {
            Message::Binary(bytes) => {
                assert!(bytes.len() <= 64 << 10);
                got.extend_from_slice(&bytes);
            }
            Message::Close(frame) => break frame.unwrap().code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, CloseCode::Normal);
    assert!(got == b"hello".repeat(40_000), "{}", got.len());
}

#[tokio::test]
async fn the_target_sees_a_closed_websocket_as_the_end() {
    let host = Host::start().await;
    let (listener, at) = listen().await;
    let mut socket = host.websocket("/forward", &[(TARGET, &at)]).await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        // Nobody takes it, and yet it is no broken pipe.
        stream.write_all(b"bye").await.unwrap();
        text
    });
    within(socket.send(Message::Binary("all".into())))
        .await
        .unwrap();
    within(socket.close(None)).await.unwrap();
    assert_eq!(within(server).await.unwrap(), "all");
}

#[tokio::test]
async fn a_client_that_closes_is_answered_while_the_target_goes_on() {
    let host = Host::start().await;
    let (listener, at) = listen().await;
    let mut socket = host.websocket("/forward", &[(TARGET, &at)]).await;
    // Neither reads nor ends.
    let _target = within(listener.accept()).await.unwrap();
    within(socket.close(None)).await.unwrap();
    let answer = within(socket.next()).await;
    assert!(matches!(answer, Some(Ok(Message::Close(_)))), "{answer:?}");
}

#[tokio::test]
async fn a_target_that_cannot_be_reached_is_an_error() {
    let host = Host::start().await;
    let (listener, at) = listen().await;
    drop(listener);
    for (target, status, part) in [
        (at.as_str(), 502, "refused"),
        ("unix:/no/such/socket", 502, "/no/such/socket"),
        ("no.such.host.invalid:80", 502, "no.such.host.invalid"),
        ("nonsense", 400, "nonsense"),
        ("host:0", 400, "host:0"),
        ("", 400, ""),
    ] {
        for protocol in ["tcp", "websocket"] {
            let (answer, _) = host
                .upgrade("/forward", protocol, &[(TARGET, target)])
                .await;
            assert_eq!(answer.status(), status, "{target} {protocol}");
            let error = body_json(answer).await["error"].to_string();
            assert!(error.contains(part), "{target}: {error}");
        }
    }
    let (answer, _) = host.upgrade("/forward", "tcp", &[]).await;
    assert_eq!(answer.status(), 400);
    let (answer, _) = host.upgrade("/forward", "h2c", &[(TARGET, &at)]).await;
    assert_eq!(answer.status(), 400);
    let nameless = Host::start_nameless().await;
    let (answer, _) = nameless.upgrade("/forward", "tcp", &[(TARGET, &at)]).await;
    assert_eq!(answer.status(), 503);
}

#[tokio::test]
async fn a_connection_is_ended_by_its_number() {
    let host = Host::start().await;
    let (listener, at) = listen().await;
    let (answer, io) = host.upgrade("/forward", "tcp", &[(TARGET, &at)]).await;
    let number = answer.headers()["x-slicer-forward-number"].clone();
    let number = number.to_str().unwrap();
    let (mut target, _) = listener.accept().await.unwrap();
    let mut io = io.unwrap();
    within(io.shutdown()).await.unwrap();
    assert_eq!(within(target.read_u8()).await.unwrap_err().kind(), EOF);
    for _ in 0..2 {
        // The second time there is nothing to do.
        let target = format!("/forward/{number}");
        let answer = host.send("DELETE", &target, "").await;
        assert_eq!(answer.status(), 200);
    }
    let mut nothing = Vec::new();
    within(io.read_to_end(&mut nothing)).await.unwrap();
    assert_eq!(nothing, b"");
    let gone = async { while target.write_all(b"x").await.is_ok() {} };
    within(gone).await;
    for path in ["/forward/", "/forward/x", "/forward/-1", "/forward/1/2"] {
        assert_eq!(host.send("DELETE", path, "").await.status(), 404, "{path}");
    }
}
