//! The guest's agent: `/init` of every VM's initramfs, and the HTTP server on the guest channel.
//!
//! One static binary in three roles. As PID 1 of the initramfs it finds and mounts the root disk
//! and hands over to the image's init ([`init`]). Just before that it leaves a supervisor behind
//! ([`supervise`]), which keeps a worker alive ([`worker`]): the worker serves HTTP on every stream
//! the host opens on the guest channel. `serve --unix PATH` is that server alone, on a socket
//! instead of a virtio port, touching nothing of the system it runs on.
#![deny(unsafe_code)]

mod cp;
mod entrypoint;
mod error;
mod exec;
mod forward;
mod fresh;
mod fs;
mod grow;
mod http;
mod identity;
mod init;
mod log;
mod modprobe;
mod modules;
mod net;
mod port;
mod power;
mod ready;
mod reclaim;
mod renew;
mod requests;
mod rosetta;
mod secrets;
mod server;
mod settle;
mod shares;
mod sshd;
mod stats;
mod supervise;
mod sys;
mod trim;
mod units;
mod upgrade;
mod userdata;
mod users;
mod vsock;
mod watch;
mod worker;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: slicer-agent serve --unix PATH\n       \
                     slicer-agent upload check|finalise|abort …\n       \
                     slicer-agent secrets sync\n       \
                     slicer-agent modprobe MODULE…\n       \
                     slicer-agent version\n";

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    // The kernel passes on whatever of its command line it does not know, so as /init the
    // arguments mean nothing.
    if rustix::process::getpid().is_init() && program == OsStr::new("/init") {
        return init::run();
    }
    let args: Vec<OsString> = args.collect();
    if program == OsStr::new(modprobe::NAME) {
        return load_modules(&args);
    }
    let words: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
    match words.as_slice() {
        [word, kind] if *word == "supervise" => match init::GuestInit::from_word(kind) {
            Some(kind) => supervise::run(kind),
            None => usage(),
        },
        [word, flag, path] if *word == "serve" && *flag == "--unix" => {
            worker::serve_socket(Path::new(path))
        }
        [word, _, ..] if *word == "modprobe" => load_modules(&args[1..]),
        [word] if *word == "entrypoint" => entrypoint::keep(),
        [word, rest @ ..] if *word == "upload" => match cp::upload::run(rest) {
            Ok(text) => {
                say(&mut std::io::stdout(), &text);
                ExitCode::SUCCESS
            }
            Err(e) => failed(&e),
        },
        [word, what] if *word == "secrets" && *what == "sync" => {
            match requests::sync_secrets(&requests::socket()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => failed(&why),
            }
        }
        [word] if *word == "version" || *word == "--version" => {
            say(
                &mut std::io::stdout(),
                concat!("slicer-agent ", env!("CARGO_PKG_VERSION"), "\n"),
            );
            ExitCode::SUCCESS
        }
        _ => usage(),
    }
}

/// Loads modules. The kernel calls us as `modprobe -q -- NAME`; no option means anything to us.
fn load_modules(args: &[OsString]) -> ExitCode {
    let names: Vec<_> = args
        .iter()
        .map(|arg| arg.to_string_lossy())
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    match modprobe::run(&names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

fn failed(why: &str) -> ExitCode {
    say(&mut std::io::stderr(), &format!("Error: {why}\n"));
    ExitCode::FAILURE
}

fn usage() -> ExitCode {
    say(&mut std::io::stderr(), USAGE);
    ExitCode::from(2)
}

/// Writes, and if nobody reads, so be it.
fn say(to: &mut impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}
