//! What terminals run: scripts of a POSIX shell around the command `slicer`.

use crate::quote;
use crate::terminal::System;
use slicer_api::Endpoint;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Where the command may be besides `PATH`, of which an app that a desktop starts has a short one.
const PLACES: [&str; 2] = ["/usr/local/bin", "/opt/homebrew/bin"];

/// Holds a window open in which something is to be read.
const HOLD: &str = "printf '\\nPress Enter to close. '; read -r _";

/// The command `slicer`: the one beside this program, or that of the path.
pub(crate) fn find_slicer(
    own: Option<&Path>,
    path: Option<&OsStr>,
    home: Option<&Path>,
) -> Option<PathBuf> {
    let beside = own.and_then(Path::parent).map(Path::to_owned);
    let listed = path.map(|p| std::env::split_paths(p).collect::<Vec<_>>());
    let places = PLACES.iter().map(PathBuf::from);
    beside
        .into_iter()
        .chain(listed.into_iter().flatten())
        .chain(places)
        .chain(home.map(|h| h.join(".local/bin")))
        .map(|dir| dir.join("slicer"))
        .find(|file| file.is_file())
}

/// The command `slicer`, and the daemon it shall talk to.
#[derive(Debug, Clone)]
pub(crate) struct Slicer {
    pub(crate) program: PathBuf,
    pub(crate) endpoint: Endpoint,
}

impl Slicer {
    fn line(&self, args: &[&str]) -> String {
        let (program, url) = (self.program.to_string_lossy(), self.endpoint.to_string());
        let first = [&*program, "--url", &*url];
        quote::sh_line(first.into_iter().chain(args.iter().copied()))
    }

    /// A shell in a VM. Why there is none stays to be read.
    pub(crate) fn shell(&self, vm: &str) -> String {
        let line = self.line(&["vm", "shell", vm]);
        format!("{line} || {{ {HOLD}; }}")
    }

    /// All that the serial console of a VM said.
    pub(crate) fn log(&self, vm: &str) -> String {
        let line = self.line(&["vm", "logs", vm, "--lines", "0"]);
        format!("{line}; {HOLD}")
    }
}

/// A shell of the host whose `docker` works with the Docker behind this socket.
pub(crate) fn docker_shell(socket: &Path, vm: &str, system: System) -> String {
    let host = format!("unix://{}", socket.display());
    let said = format!("Docker here is that of {vm}: DOCKER_HOST={host}");
    // A Mac's terminals start login shells, which is where the path comes from.
    let login = match system {
        System::Mac => " -l",
        System::Linux => "",
    };
    format!(
        "export DOCKER_HOST={}; echo {}; exec \"${{SHELL:-/bin/sh}}\"{login}",
        quote::sh(&host),
        quote::sh(&said)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn slicer(program: &str) -> Slicer {
        Slicer {
            program: program.into(),
            endpoint: Endpoint::Unix("/home/a b/slicer.sock".into()),
        }
    }

    #[test]
    fn a_shell_is_opened_by_the_command_with_the_daemon_named() {
        assert_eq!(
            slicer("/opt/slicer").shell("sbox-1"),
            "/opt/slicer --url '/home/a b/slicer.sock' vm shell sbox-1 || { printf '\\nPress \
             Enter to close. '; read -r _; }"
        );
    }

    #[test]
    fn scripts_run_as_they_are_meant_to() {
        let run = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("SHELL", "/usr/bin/env");
            let output = command.stdin(std::process::Stdio::null()).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let said = run(&slicer("/bin/echo").log("sbox-1"));
        assert_eq!(
            said,
            "--url /home/a b/slicer.sock vm logs sbox-1 --lines 0\n\nPress Enter to close. "
        );
        assert_eq!(run(&slicer("/bin/true").shell("sbox-1")), "");
        assert_eq!(
            run(&slicer("/bin/false").shell("sbox-1")),
            "\nPress Enter to close. "
        );
        let socket = Path::new("/home/o'neil/.slicer/docker.sock");
        let said = run(&docker_shell(socket, "slicer-1", System::Linux));
        assert!(
            said.contains("\nDOCKER_HOST=unix:///home/o'neil/.slicer/docker.sock\n"),
            "{said}"
        );
        assert!(said.starts_with("Docker here is that of slicer-1: "));
        assert!(docker_shell(socket, "slicer-1", System::Mac).ends_with(" -l"));
    }

    #[test]
    fn the_command_beside_this_program_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let place = dir.path().join(name);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("slicer"), "").unwrap();
            place
        };
        let (own, listed, home) = (place("own"), place("listed"), place("home/.local/bin"));
        let none = dir.path().join("none");
        let paths = std::env::join_paths([&none, &listed]).unwrap();
        let find = |own: &Path| {
            let home = dir.path().join("home");
            find_slicer(Some(&own.join("slicer-tray")), Some(&paths), Some(&home))
        };
        assert_eq!(find(&own), Some(own.join("slicer")));
        assert_eq!(find(&none), Some(listed.join("slicer")));
        std::fs::remove_file(listed.join("slicer")).unwrap();
        if !PLACES.iter().any(|p| Path::new(p).join("slicer").is_file()) {
            assert_eq!(find(&none), Some(home.join("slicer")));
        }
    }
}
