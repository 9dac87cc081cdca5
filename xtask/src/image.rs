//! `cargo xtask image`: a guest image and its kernel, as two OCI layouts.

use anyhow::Result;
use slicer_recipe::{Arch, Order, Recipe, Stop};
use std::io::Write as _;
use std::path::PathBuf;

/// What `cargo xtask image` takes.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Architecture of the guest [default: this machine's]
    #[arg(long, value_enum)]
    arch: Option<ArchArg>,
    /// Directory of the results [default: target/guest/ARCH]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Build even when nothing has changed
    #[arg(long)]
    force: bool,
    /// What the image is for
    #[arg(long, value_enum, default_value_t)]
    recipe: RecipeArg,
    /// Build the kernel alone
    #[arg(long)]
    kernel: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ArchArg {
    Amd64,
    Arm64,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum RecipeArg {
    #[default]
    Default,
    Docker,
    Minimal,
}

/// Builds what is missing or out of date.
pub(crate) fn run(args: &Args) -> Result<()> {
    let arch = match args.arch {
        None => Arch::host(),
        Some(ArchArg::Amd64) => Arch::Amd64,
        Some(ArchArg::Arm64) => Arch::Arm64,
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => crate::workspace()?
            .join("target/guest")
            .join(arch.to_string()),
    };
    let order = Order {
        arch,
        recipe: match args.recipe {
            RecipeArg::Default => Recipe::Default,
            RecipeArg::Docker => Recipe::Docker,
            RecipeArg::Minimal => Recipe::Minimal,
        },
        out: &out,
        force: args.force,
        // When nobody can be told, that is no reason to stop.
        say: &|line| {
            let _ = writeln!(std::io::stderr(), "{line}");
        },
        stop: &Stop::default(),
    };
    if args.kernel {
        slicer_recipe::build_kernel(&order)?;
    } else {
        slicer_recipe::build(&order)?;
    }
    Ok(())
}
