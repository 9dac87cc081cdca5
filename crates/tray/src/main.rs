//! The app in the menu bar: shows what the VM that is always there does, and offers what one may
//! want of it.
#![forbid(unsafe_code)]

mod action;
mod app;
mod dialog;
mod event;
mod format;
mod icon;
mod jobs;
#[cfg(target_os = "linux")]
mod linux;
mod look;
#[cfg(target_os = "macos")]
mod macos;
mod menu;
mod quote;
mod scripts;
mod state;
mod terminal;
mod tray;

use app::Config;
use clap::Parser;
#[cfg(target_os = "linux")]
use linux::run;
use look::Finder;
#[cfg(target_os = "macos")]
use macos::run;
use std::path::PathBuf;
use std::process::ExitCode;
use terminal::{System, Terminal};

/// A menu in the bar for slicer's VMs: what they do and use; shells, logs, restart, shut down
#[derive(Debug, Parser)]
#[command(name = "slicer-tray", version, after_help = AFTER_HELP)]
struct Args {
    /// Terminal that shells and logs open in: terminal, iterm, ghostty, kitty, alacritty, wezterm,
    /// gnome-terminal, xfce4-terminal, xterm, or a program that takes -e as xterm does
    ///
    /// Otherwise Terminal.app on a Mac; elsewhere what TERMINAL says, or x-terminal-emulator.
    #[arg(long, value_name = "NAME")]
    terminal: Option<String>,
    /// Daemon to talk to: a socket path or http://HOST:PORT
    ///
    /// Otherwise SLICER_URL, ~/slicer-mac/slicer.sock, ./slicer.sock and http://127.0.0.1:8080
    /// are tried in this order. The token is found as the command slicer finds it.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

const AFTER_HELP: &str = "On Linux it needs a desktop that shows StatusNotifierItems, as Xfce and KDE \
do, and GNOME with the extension AppIndicator. There, the right button opens the menu, and the left \
one a shell.";

fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => ExitCode::from(report(&e)),
    }
}

fn start(args: &Args) -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let home = env("HOME").map(PathBuf::from);
    let name = args
        .terminal
        .clone()
        .unwrap_or_else(|| Terminal::default_name(System::HERE, env("TERMINAL").as_deref()));
    let own = std::env::current_exe().ok();
    let path = std::env::var_os("PATH");
    run(Config {
        terminal: Terminal::named(&name, System::HERE)?,
        slicer: scripts::find_slicer(own.as_deref(), path.as_deref(), home.as_deref()),
        finder: Finder {
            url: args.url.clone(),
            home,
        },
    })
}

/// Says why it ends, and gives the exit code for that.
#[expect(clippy::print_stderr, reason = "there is no menu to say it in")]
fn report(e: &anyhow::Error) -> u8 {
    eprintln!("Error: {e:#}");
    1
}
