//! An interactive shell, spoken to the real binary.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use common::{Host, alive, body_json, until, within};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use slicer_api::{MAX_SHELL_MESSAGE, ShellFrame};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// A client of a shell.
struct Session {
    socket: WebSocketStream<TokioIo<Upgraded>>,
    shown: String,
}

/// The shell of whoever runs the tests.
fn target(query: &str) -> String {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    format!("/shell?uid={}&gid={}&{query}", uid.as_raw(), gid.as_raw())
}

impl Session {
    async fn start(host: &Host, query: &str) -> Self {
        Self {
            socket: host.websocket(&target(query), &[]).await,
            shown: String::new(),
        }
    }

    async fn send(&mut self, frame: ShellFrame<'_>) {
        let message = Message::Binary(frame.encode().into());
        within(self.socket.send(message)).await.unwrap();
    }

    async fn line(&mut self, text: &str) {
        self.send(ShellFrame::Data(format!("{text}\r").as_bytes()))
            .await;
    }

    /// The next message's bytes; `None` when the server closes.
    async fn next(&mut self) -> Option<Vec<u8>> {
        match within(self.socket.next()).await? {
            Ok(Message::Binary(bytes)) => {
                assert!(bytes.len() <= MAX_SHELL_MESSAGE, "{}", bytes.len());
                Some(bytes.to_vec())
            }
            Ok(Message::Close(frame)) => {
                assert_eq!(frame.unwrap().code, CloseCode::Normal);
                None
            }
            other => panic!("{other:?}"),
        }
    }

    /// Reads until this is shown.
    async fn shows(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let message = self.next().await.expect("it ends too early");
            match ShellFrame::decode(&message) {
                // Each by itself, as browsers do.
                Some(ShellFrame::Data(data)) => {
                    self.shown.push_str(std::str::from_utf8(data).unwrap());
                }
                other => panic!("{other:?} before {text:?} in {:?}", self.shown),
            }
        }
    }

    /// Reads to the end, which the shell comes to by itself.
    async fn end(mut self) -> (Option<u32>, String) {
        let mut code = None;
        while let Some(message) = self.next().await {
            match ShellFrame::decode(&message) {
                Some(ShellFrame::Data(data)) => self.shown.push_str(&String::from_utf8_lossy(data)),
                Some(ShellFrame::SessionClose(ended)) => code = ended,
                other => panic!("{other:?}"),
            }
        }
        (code, self.shown)
    }
}

#[tokio::test]
async fn a_shell_is_on_a_terminal_of_the_clients_size() {
    let host = Host::start().await;
    let mut shell = Session::start(&host, "shell=/bin/sh&cwd=/tmp").await;
    shell.line("stty size; pwd; echo TERM=$TERM").await;
    shell.shows("24 80\r\n").await;
    shell.shows("/tmp\r\n").await;
    shell.shows("TERM=xterm-256color\r\n").await;
    shell
        .send(ShellFrame::WindowSize {
            columns: 120,
            rows: 40,
        })
        .await;
    shell.line("stty size; tty; exit 3").await;
    shell.shows("40 120\r\n").await;
    shell.shows("/dev/pts/").await;
    let (code, _) = shell.end().await;
    assert_eq!(code, Some(3));
}

#[tokio::test]
async fn control_keys_are_signals_and_a_killed_shell_says_so() {
    let host = Host::start().await;
    let mut shell = Session::start(&host, "shell=/bin/sh").await;
    // The quotes are not in what is shown, so it isn't the echo of what was typed.
    shell
        .line("sh -c 'echo beg\"\"un; exec sleep 1000'; echo end\"\"ed: $?")
        .await;
    shell.shows("begun\r\n").await;
    shell.send(ShellFrame::Data(b"\x03")).await;
    shell.shows("^C").await;
    shell.line("echo ag\"\"ain").await;
    shell.shows("again\r\n").await;
    shell.line("kill -KILL $$").await;
    assert_eq!(shell.end().await.0, Some(137));
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let host = Host::start().await;
    let mut shell = Session::start(&host, "shell=/bin/sh").await;
    // Characters of three bytes, which no read's end respects.
    shell
        .line("stty -echo; i=0; while [ $i -lt 20000 ]; do echo €€€€€€€; i=$((i+1)); done; exit")
        .await;
    shell.shows("€\r\n").await;
    let mut count = 0;
    while let Some(message) = shell.next().await {
        if let Some(ShellFrame::Data(data)) = ShellFrame::decode(&message) {
            shell.shown.push_str(std::str::from_utf8(data).unwrap());
        }
        count += 1;
    }
    assert_eq!(
        shell.shown.matches("€€€€€€€\r\n").count(),
        20_000,
        "{count}"
    );
}

#[tokio::test]
async fn what_is_no_text_is_shown_too() {
    let host = Host::start().await;
    let mut shell = Session::start(&host, "shell=/bin/sh").await;
    shell.line("printf '\\342\\202'; sleep 100").await;
    loop {
        let message = shell.next().await.unwrap();
        if let Some(ShellFrame::Data(data)) = ShellFrame::decode(&message)
            && data.ends_with(b"\xe2\x82")
        {
            break;
        }
    }
}

#[tokio::test]
async fn heartbeats_are_answered_and_nonsense_is_ignored() {
    let host = Host::start().await;
    let mut shell = Session::start(&host, "shell=/bin/sh").await;
    for message in [
        Message::Binary(vec![1, 255, 255, 255, 255, b'x'].into()),
        Message::Binary(vec![99, 0, 0, 0, 0].into()),
        Message::Binary(vec![].into()),
        Message::Text("exit".into()),
    ] {
        within(shell.socket.send(message)).await.unwrap();
    }
    shell.send(ShellFrame::Heartbeat).await;
    loop {
        let message = shell.next().await.unwrap();
        if ShellFrame::decode(&message) == Some(ShellFrame::Heartbeat) {
            break;
        }
    }
    shell.line("exit").await;
    assert_eq!(shell.end().await.0, Some(0));
}

#[tokio::test]
async fn a_shell_ends_with_its_client() {
    let host = Host::start().await;
    for politely in [true, false] {
        let mut shell = Session::start(&host, "shell=/bin/sh").await;
        // What is in the foreground ends, too.
        shell
            .line("sh -c 'echo pids: $$ $PPID .\"\".; exec sleep 1000'")
            .await;
        shell.shows(" ..\r\n").await;
        let line = shell
            .shown
            .lines()
            .find(|l| l.contains("pids: ") && !l.contains('$'));
        let pids: Vec<u32> = line
            .unwrap()
            .split(' ')
            .filter_map(|w| w.parse().ok())
            .collect();
        assert_eq!(pids.len(), 2, "{}", shell.shown);
        if politely {
            shell.send(ShellFrame::Shutdown).await;
            // Up to a close that is no error.
            while shell.next().await.is_some() {}
        }
        drop(shell);
        until("the shell's end", || !pids.iter().any(|p| alive(*p))).await;
    }
}

#[tokio::test]
async fn a_job_in_the_background_holds_no_session() {
    let host = Host::start().await;
    let mut shell = Session::start(&host, "shell=/bin/sh").await;
    shell
        .line("trap '' HUP; sleep 1000 & echo pid: $! ; exit 7")
        .await;
    let (code, shown) = shell.end().await;
    assert_eq!(code, Some(7), "{shown}");
    let mut lines = shown.lines();
    let line = lines.find(|l| l.contains("pid: ") && !l.contains('$'));
    let pid = line.unwrap().split(' ').find_map(|w| w.parse().ok());
    let pid = pid.unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn what_is_wrong_is_told_before_the_session() {
    let nameless = Host::start_nameless().await;
    let (answer, _) = nameless.upgrade(&target(""), "websocket", &[]).await;
    assert_eq!(answer.status(), 503);
    let host = Host::start().await;
    let version = ("sec-websocket-version", "13");
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    for (query, headers, part) in [
        ("shell=/no/such/shell", &[version, key][..], "not found"),
        ("uid=me", &[version, key], "uid"),
        ("uid=4000000000", &[version, key], "4000000000"),
        ("cwd=/no/such/dir", &[version, key], "no such file"),
        ("cwd=/tmp/../etc", &[version, key], ".."),
        ("", &[key], "version"),
        ("", &[version], "key"),
    ] {
        let (answer, _) = host.upgrade(&target(query), "websocket", headers).await;
        assert_eq!(answer.status(), 400, "{query}");
        let error = body_json(answer).await["error"].to_string();
        assert!(error.contains(part), "{query}: {error}");
    }
    let plain = host.send("GET", &target(""), "").await;
    assert_eq!(plain.status(), 400);
    assert_eq!(host.send("POST", "/shell", "").await.status(), 405);
}
