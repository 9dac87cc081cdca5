//! Which daemon is asked, what a terminal shows, what needs no daemon.

use crate::support::{FakeDaemon, json};
use crate::{bare, done, run, wait};
use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::process::Command;

#[test]
fn the_daemon_is_found_and_its_absence_explained() {
    let daemon = FakeDaemon::start(|_| async {
        json(
            200,
            r#"{"version":"9.9","git_commit":"c0ffee","platform":"linux","arch":"amd64"}"#,
        )
    });
    let home = tempfile::tempdir().unwrap();
    let done_without = done(
        bare(home.path(), &["info", "--url", "./none.sock"])
            .output()
            .unwrap(),
    );
    assert_eq!((done_without.code, &*done_without.stdout), (1, ""));
    assert_eq!(
        done_without.stderr,
        "Error: no daemon answers at ./none.sock: start one with `slicer-mac up`, or give --url\n"
    );
    // The socket beside us, then the one in the home directory.
    std::os::unix::fs::symlink(daemon.socket(), home.path().join("slicer.sock")).unwrap();
    let found = done(bare(home.path(), &["info"]).output().unwrap());
    assert!(
        found.stdout.contains("Server version: 9.9\n"),
        "{}",
        found.stderr
    );
    assert!(
        found.stdout.ends_with("URL: ./slicer.sock\n"),
        "{}",
        found.stdout
    );
    let mut command = bare(home.path(), &["info", "--json", "--token", "s3cret"]);
    let found = done(command.env("SLICER_USER_AGENT", "me/1").output().unwrap());
    let info: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(info["server"]["platform"], "linux");
    let seen = daemon.seen();
    assert!(!seen[0].headers.contains_key("authorization"));
    assert!(
        seen[0].headers["user-agent"]
            .to_str()
            .unwrap()
            .starts_with("slicer-cli/")
    );
    assert_eq!(seen[1].headers["authorization"], "Bearer s3cret");
    assert_eq!(seen[1].headers["user-agent"], "me/1");
}

#[test]
fn a_refused_token_gets_a_hint() {
    let daemon = FakeDaemon::start(|_| async { json(401, r#"{"error":"missing token"}"#) });
    let done = run(&daemon, &["ls"]);
    assert_eq!(done.code, 1);
    assert_eq!(
        done.stderr,
        "Error: missing token (401 Unauthorized)\n\
         Hint: give the daemon's token with --token, --token-file or SLICER_TOKEN\n"
    );
}

#[test]
fn usage_errors_exit_with_2() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &[][..],
        &["vm"],
        &["nonsense"],
        &["vm", "exec", "sbox-1"],
        &["vm", "add", "--ram-gb", "1", "--ram-mb", "1"],
        &["vm", "add", "--name", "a", "--tag", "name=b"],
        &["vm", "logs", "sbox-1", "--lines", "-1"],
        &["vm", "delete", "a", "g", "--hostgroup", "g"],
    ] {
        let done = done(bare(home.path(), args).output().unwrap());
        assert_eq!((done.code, &*done.stdout), (2, ""), "{args:?}");
        assert!(!done.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn what_needs_no_daemon_asks_none() {
    let home = tempfile::tempdir().unwrap();
    let get = |args: &[&str]| done(bare(home.path(), args).output().unwrap());
    let version = format!("slicer {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(get(&["version"]).stdout, version);
    assert_eq!(get(&["--version"]).stdout, version);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = get(&["completion", shell]).stdout;
        for word in [
            "health",
            "wait-userdata",
            "tag-prefix",
            "token-file",
            "completion",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    for command in ["exec", "add"] {
        assert!(get(&["vm", command, "--help"]).stdout.contains("Examples:"));
    }
}

/// What the command writes to a terminal as its stderr.
fn on_a_terminal(command: &mut Command) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let child = command
        .env("TERM", "xterm")
        .stderr(terminal.try_clone().unwrap())
        .spawn()
        .unwrap();
    assert_eq!(wait(child), 1);
    // Only this process holds the terminal now; what it has is read up to a mark.
    (&terminal).write_all(b"$").unwrap();
    let mut said = Vec::new();
    for byte in BufReader::new(File::from(master)).bytes() {
        match byte.unwrap() {
            b'$' => break,
            byte => said.push(byte),
        }
    }
    String::from_utf8(said).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let home = tempfile::tempdir().unwrap();
    let args = ["ls", "--url", "./none.sock"];
    let said = on_a_terminal(&mut bare(home.path(), &args));
    assert!(
        said.starts_with("\x1b[1;31mError:\x1b[0m no daemon"),
        "{said:?}"
    );
    let said = on_a_terminal(bare(home.path(), &args).env("NO_COLOR", "1"));
    assert!(said.starts_with("Error: no daemon"), "{said:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn up_hands_over_to_the_daemon_beside_it() {
    use crate::SLICER;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    // Links, because a file just written may be "busy" while another test forks.
    let dir = tempfile::tempdir_in(Path::new(SLICER).parent().unwrap()).unwrap();
    let here = dir.path().join("slicer");
    fs::hard_link(SLICER, &here).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(&here);
        command.args(args).current_dir(dir.path());
        done(command.env("PATH", "/nowhere").output().unwrap())
    };
    let missing = run(&["up"]);
    assert_eq!(missing.code, 1);
    assert!(
        missing
            .stderr
            .starts_with("Error: cannot start slicer-mac: "),
        "{}",
        missing.stderr
    );
    // A shell in the daemon's place takes `up` for the script it is to run.
    symlink("/bin/sh", dir.path().join("slicer-mac")).unwrap();
    fs::write(dir.path().join("up"), "echo \"$@\"; exit 9").unwrap();
    let up = run(&["up", "my.yaml", "--suspend-on-shutdown", "-f", "x"]);
    assert_eq!(
        (up.code, &*up.stdout),
        (9, "my.yaml --suspend-on-shutdown -f x\n")
    );
    assert_eq!(run(&["up", "--help"]).stdout, "--help\n");
}
