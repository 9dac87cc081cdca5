//! The `slicer` command: reads the command line, calls the daemon, prints.
#![forbid(unsafe_code)]

mod args;
mod bundle;
mod commands;
mod connection;
mod error;
mod output;
mod runtime;
mod stdin;
mod table;
mod terminal;
mod transfer;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    ExitCode::from(commands::run(cli).unwrap_or_else(|e| e.report()))
}
