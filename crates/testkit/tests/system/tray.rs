//! The menu in the bar, in a real panel, by mouse and keyboard, with a real daemon and VM.

use crate::tests;
use crate::tour::says;
use libtest_mimic::Trial;
use slicer_api::{CreateNode, NodeStatus};
use slicer_testkit::{
    BOOT, Desktop, LIMIT, MenuEntry, Setup, TestDaemon, bin_dir, soon, wait_until,
};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(crate) fn trials() -> Vec<Trial> {
    tests!("tray": a_session_by_the_menu)
}

/// A file on the VM's disk that a shell of the tray writes.
const NOTE: &str = "/home/ubuntu/from-tray";

async fn menu(desktop: &Desktop) -> Vec<MenuEntry> {
    desktop.menu().await.unwrap_or_default()
}

async fn first_line(desktop: &Desktop) -> String {
    let menu = menu(desktop).await;
    menu.first().map(|e| e.label.clone()).unwrap_or_default()
}

/// Waits until the menu's first line begins like this, and gives it back.
async fn until_line(desktop: &Desktop, begins: &str) -> String {
    let mut line = String::new();
    wait_until(&format!("the menu says {begins}"), BOOT, async || {
        line = first_line(desktop).await;
        line.starts_with(begins)
    })
    .await;
    line
}

async fn until_entry(desktop: &Desktop, what: &str, is: impl Fn(&MenuEntry) -> bool) {
    wait_until(&format!("the menu has {what}"), LIMIT, async || {
        menu(desktop).await.iter().any(&is)
    })
    .await;
}

/// A program that says yes to whatever it is asked, and notes what that was.
fn yes_man(bin: &Path) {
    fs::create_dir(bin).unwrap();
    let program = bin.join("zenity");
    let script = "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$(dirname \"$0\")/asked\"\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

async fn a_session_by_the_menu() {
    let desktop = Desktop::start().await;
    let place = tempfile::tempdir().unwrap();
    let (url, home) = (place.path().join("slicer.sock"), place.path().join("home"));
    let bin = place.path().join("bin");
    yes_man(&bin);
    fs::create_dir(&home).unwrap();
    let mut tray = desktop.spawn(&bin_dir().join("slicer-tray"), |command| {
        command
            .args(["--terminal", "xterm", "--url"])
            .arg(&url)
            .env("HOME", &home)
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    });

    // There is no daemon; once there is one, that is seen.
    until_line(&desktop, "No daemon at ").await;
    let daemon = TestDaemon::start_at(place.path(), &Setup::full());
    let client = daemon.client();
    let early = until_line(&desktop, "slicer-1 running · Up ").await;
    wait_until("the line is live", LIMIT, async || {
        let line = first_line(&desktop).await;
        line.starts_with("slicer-1 running · Up ") && line != early
    })
    .await;
    let shown = menu(&desktop).await;
    for begins in [
        "IP: 192.168.64.2",
        "Load (1m 5m 15m): ",
        "Memory: ",
        "Disk: ",
        "Net: RX ",
    ] {
        let found = shown.iter().find(|e| e.label.starts_with(begins));
        assert!(found.is_some_and(|e| !e.enabled), "{begins}: {shown:#?}");
    }

    // A sandbox comes, and goes by its entry.
    let request = CreateNode::default();
    let made = client.create_node("sbox", &request, None, None).await;
    let sandbox = made.unwrap().hostname;
    until_entry(&desktop, "the sandbox", |e| {
        e.label == "Sandboxes: 1" && e.entries[0].label == sandbox
    })
    .await;
    desktop.choose(&["Sandboxes: 1", &sandbox, "Delete"]).await;
    wait_until("the sandbox is deleted", LIMIT, async || {
        let seen = client.node(&sandbox).await;
        seen.is_err_and(|e| e.is_not_found())
    })
    .await;
    until_entry(&desktop, "no sandbox", |e| e.label == "Sandboxes: 0").await;

    // A terminal opens whose shell is in the VM.
    desktop.choose(&["Launch shell"]).await;
    wait_until("the terminal is open", LIMIT, async || {
        !desktop.windows_of("XTerm").await.is_empty()
    })
    .await;
    wait_until("the terminal has a shell in the VM", LIMIT, async || {
        says(&client, "slicer-1", "ls /dev/pts").await.contains('0')
    })
    .await;
    // The keyboard is for the window below the mouse.
    desktop.xdotool(&["mousemove", "100", "100"]).await;
    let line = format!("hostname > {NOTE}.new; mv {NOTE}.new {NOTE}; exit\n");
    desktop.xdotool(&["type", &line]).await;
    let note = format!("cat {NOTE} 2>/dev/null || true");
    wait_until("the shell has written", LIMIT, async || {
        says(&client, "slicer-1", &note).await == "slicer-1"
    })
    .await;
    wait_until("the terminal is closed", LIMIT, async || {
        desktop.windows_of("XTerm").await.is_empty()
    })
    .await;

    // Off by the menu, and on again with a fresh disk.
    desktop.choose(&["Shut Down VM"]).await;
    until_line(&desktop, "slicer-1 stopped").await;
    let status = client.node("slicer-1").await.unwrap().node.status;
    assert_eq!(status, NodeStatus::Stopped);
    desktop.choose(&["Reset VM Disk…"]).await;
    until_line(&desktop, "slicer-1 running · Up ").await;
    let asked = fs::read_to_string(bin.join("asked")).unwrap();
    assert!(
        asked.contains("--title=Reset the disk of slicer-1?\n"),
        "{asked}"
    );
    assert_eq!(says(&client, "slicer-1", &note).await, "");

    // Docker is forwarded as long as its entry is checked.
    let socket = home.join(".slicer/docker.sock");
    let forwarded = |on| move |e: &MenuEntry| e.label == "Docker forward" && e.checked == Some(on);
    until_entry(&desktop, "no Docker", forwarded(false)).await;
    desktop.choose(&["Docker forward"]).await;
    until_entry(&desktop, "Docker", forwarded(true)).await;
    UnixStream::connect(&socket).unwrap();

    // A menu that changes while keys are pressed in it may lose them: then a user chooses again.
    let mut ended = None;
    for _ in 0..3 {
        desktop.choose(&["Quit"]).await;
        soon(LIMIT / 3, || {
            ended = tray.try_wait().unwrap();
            ended.is_some()
        });
        if ended.is_some() {
            break;
        }
    }
    let said = desktop.log("slicer-tray");
    assert!(ended.is_some_and(|s| s.success()), "{ended:?}: {said}");
    assert!(!socket.exists());
    assert_eq!(desktop.menu().await, None);
    daemon.stop();
}
