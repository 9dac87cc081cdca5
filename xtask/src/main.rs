//! What make calls.
#![forbid(unsafe_code)]

mod image;

use clap::Parser;

/// Build and measurement tasks of the project.
#[derive(Parser)]
#[command(name = "xtask")]
enum Task {
    /// Build the default guest image and its kernel.
    Image(image::Args),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Image(args) => image::run(&args),
    }
}
