//! `slicer vm shell` on a real terminal, in a real VM.

use crate::tests;
use crate::tour::{Tour, VM};
use libtest_mimic::Trial;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use slicer_testkit::{BOOT, bin_dir};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("shell", tour; a_session, leaving, without_a_terminal)
}

/// A terminal with `slicer vm shell` on it.
struct Terminal {
    master: File,
    /// The end the command is on, to look at its modes.
    command_end: File,
    child: Child,
    output: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn open(tour: &Tour, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let command_end = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let master = File::from(master);
        let end = || command_end.try_clone().unwrap();
        // With a terminal of its own, so that the kernel tells it of new sizes.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(bin_dir().join("slicer"))
            .arg("--url")
            .arg(tour.daemon().dir().join("slicer.sock"))
            .args(["vm", "shell"])
            .args(args)
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let (sender, output) = channel();
        let mut reader = master.try_clone().unwrap();
        // Ends with the terminal.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let this = Self {
            master,
            command_end,
            child,
            output,
            shown: String::new(),
        };
        this.resize(100, 30);
        this
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until this is shown, and forgets what was before its end.
    fn shows(&mut self, text: &str) {
        let until = Instant::now() + BOOT;
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(e) => panic!("{text:?} is not shown ({e}): {:?}", self.shown),
            }
        }
    }

    /// Types a line; the quotes in what it prints keep its echo from being taken for its output.
    fn line(&mut self, text: &str) {
        self.send(&format!("{text}\r"));
    }

    /// Whether keys pass as they are.
    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.command_end).unwrap();
        !modes
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    }

    fn end(mut self) -> i32 {
        let mut status = None;
        slicer_testkit::soon(BOOT, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.expect("it goes on");
        assert!(!self.is_raw(), "the terminal is not as it was");
        status.code().unwrap()
    }
}

async fn a_session(tour: &Tour) {
    let mut t = Terminal::open(tour, &["--bootstrap", "echo boot'strap'ped", VM]);
    t.shows("bootstrapped\r\n");
    assert!(t.is_raw());
    t.line("stty size; id -un; echo $TERM; tty; pwd");
    t.shows("30 100\r\n");
    t.shows("ubuntu\r\n");
    t.shows("xterm-256color\r\n");
    t.shows("/dev/pts/");
    t.shows("/home/ubuntu\r\n");
    // A program of the whole screen, told of its new size.
    t.line("seq 1 500 | less");
    t.shows("29\r\n");
    t.send("G");
    t.shows("500\r\n");
    t.resize(120, 40);
    t.send("gq");
    t.line("stty size; echo siz'ed'");
    t.shows("40 120\r\n");
    t.shows("sized\r\n");
    t.line("vi -u NONE /tmp/shell.txt");
    t.shows("[New File]");
    t.send("ihello from vi\u{1b}:wq\r");
    t.shows("written");
    t.line("cat /tmp/shell.txt");
    t.shows("hello from vi\r\n");
    // Signals of the keyboard are for what runs in the VM.
    t.line("sh -c 'echo beg\"\"un; exec sleep 1000'");
    t.shows("begun\r\n");
    t.send("\u{3}");
    t.shows("^C");
    t.line("exit 7");
    assert_eq!(t.end(), 7);
}

async fn leaving(tour: &Tour) {
    let mut t = Terminal::open(
        tour,
        &["--uid", "0", "--cwd", "/etc", "--shell", "/bin/sh", VM],
    );
    t.line("pwd; echo pid'=' $$ .");
    t.shows("/etc\r\n");
    t.shows("pid= ");
    t.shows(" .\r\n");
    t.send("\u{1d}");
    assert_eq!(t.end(), 0);
    let gone = "! pgrep -u 0 -x sh";
    slicer_testkit::wait_until("the shell is gone", BOOT, async || {
        tour.sh(gone).await.exit_code == 0
    })
    .await;
    let t = Terminal::open(tour, &["nobody"]);
    assert_eq!(t.end(), 1);
}

async fn without_a_terminal(tour: &Tour) {
    let input = Some(b"echo typ''ed; exit 3\n".to_vec());
    let done = tour.daemon().cli_with(&["shell", VM], input).await;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.code, 3, "{text} {}", done.stderr);
    assert!(text.contains("typed\r\n"), "{text}");
}
