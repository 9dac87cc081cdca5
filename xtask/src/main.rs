//! What make calls.
#![forbid(unsafe_code)]

mod bench;
mod daemon;
mod demo;
mod dist;
mod image;
mod mac;
mod sbom;
mod text;

use anyhow::{Context, Result};
use clap::Parser;
use std::path::{Path, PathBuf};

/// Build and measurement tasks of the project.
#[derive(Parser)]
#[command(name = "xtask")]
enum Task {
    /// Build a guest image and its kernel.
    Image(image::Args),
    /// Build everything, then boot a sandbox, use it and delete it.
    Demo,
    /// Make what is published of what was built.
    Dist(dist::Args),
    /// Measure launch, exec and the idle daemon against what the machine allows.
    Bench(bench::Args),
    /// Make docs/benchmarks.md and its chart again, of results that are kept.
    Page(bench::PageArgs),
    /// Pull an image and make its base, which the benchmark times.
    #[command(hide = true)]
    Base(bench::BaseArgs),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Image(args) => image::run(&args),
        Task::Demo => demo::run(),
        Task::Dist(args) => dist::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Page(args) => bench::render(&args),
        Task::Base(args) => bench::base(&args),
    }
}

/// The root of the workspace.
fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask is not in a workspace")
}

/// Where `make build` puts the programs: the daemon finds the default image relative to itself.
fn programs() -> Result<PathBuf> {
    Ok(workspace()?.join("target/release"))
}
