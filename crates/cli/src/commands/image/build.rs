//! `slicer image build`.

use super::arch::Arch;
use crate::error::CliError;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Make the default guest image and its kernel, as OCI layouts; asks no daemon
///
/// Debian's packages are installed by mmdebstrap, from the archive that this machine's apt uses: it
/// needs Linux, and Debian on it. DIR/ARCH/image is the image, DIR/ARCH/kernel the kernel and its
/// modules; what is up to date is left alone. For several architectures, DIR/image is the image of
/// all of them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer image build
  slicer image build --arch amd64 --arch arm64
  slicer image push oci:guest/image registry.example.com/me/sandbox:1")]
pub(crate) struct Build {
    /// Architecture of the guests; may be repeated [default: this machine's]
    #[arg(long, value_name = "ARCH")]
    arch: Vec<Arch>,
    /// What is in the image
    #[arg(long, value_enum, default_value_t = Recipe::Default)]
    recipe: Recipe,
    /// Make the kernel alone, which runs none of the guest's programs
    #[arg(long, conflicts_with = "recipe")]
    kernel_only: bool,
    /// Directory of the layouts
    #[arg(long, short, value_name = "DIR", default_value = "guest")]
    output: PathBuf,
    /// Build even when nothing has changed
    #[arg(long)]
    force: bool,
    /// Print what was built as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Recipe {
    /// What every sandbox needs
    Default,
    /// That and Docker
    Docker,
}

impl Build {
    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_async, reason = "as it is on Linux")]
    pub(crate) async fn run(self) -> Result<u8, CliError> {
        let _ = (self.arch, self.recipe, self.kernel_only, self.output);
        let _ = (self.force, self.json);
        Err(CliError::OnlyOnLinux("slicer image build"))
    }

    #[cfg(target_os = "linux")]
    pub(crate) async fn run(self) -> Result<u8, CliError> {
        linux::run(self).await
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Arch, Build, Recipe};
    use crate::error::CliError;
    use crate::output;
    use slicer_recipe::{Made, Order, RecipeError, Stop};
    use std::path::{Path, PathBuf};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};
    use tokio::sync::oneshot;

    /// How long an interrupted build may take to clear up.
    const CLEARING_UP: Duration = Duration::from_secs(30);

    /// What was built for an architecture.
    struct Built {
        arch: slicer_recipe::Arch,
        /// Unless it is the kernel alone that was asked for.
        image: Option<Made>,
        kernel: Made,
    }

    /// What is there in the end.
    struct Done {
        built: Vec<Built>,
        /// The layout of all architectures, if there are several.
        combined: Option<PathBuf>,
    }

    pub(super) async fn run(order: Build) -> Result<u8, CliError> {
        let as_json = order.json;
        let stop = Stop::default();
        let (tell, told) = oneshot::channel();
        let worker = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                // Nobody listens after an interrupt.
                let _ = tell.send(build(&order, &stop));
            })
        };
        let worker = Worker(stop, worker);
        let done = told.await.unwrap_or(Err(RecipeError::Stopped))?;
        drop(worker);
        let text = if as_json {
            output::json(&json(&done))?
        } else {
            text(&done)
        };
        output::print(&text).await?;
        Ok(0)
    }

    /// The thread that builds. An interrupt drops it: what it runs is ended, and what it made
    /// removed.
    struct Worker(Stop, JoinHandle<()>);

    impl Drop for Worker {
        fn drop(&mut self) {
            self.0.stop();
            let begun = Instant::now();
            while !self.1.is_finished() && begun.elapsed() < CLEARING_UP {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn build(order: &Build, stop: &Stop) -> Result<Done, RecipeError> {
        let mut archs: Vec<slicer_recipe::Arch> = Vec::new();
        for arch in &order.arch {
            let arch = match arch {
                Arch::Amd64 => slicer_recipe::Arch::Amd64,
                Arch::Arm64 => slicer_recipe::Arch::Arm64,
            };
            if !archs.contains(&arch) {
                archs.push(arch);
            }
        }
        if archs.is_empty() {
            archs.push(slicer_recipe::Arch::host());
        }
        let recipe = match order.recipe {
            Recipe::Default => slicer_recipe::Recipe::Default,
            Recipe::Docker => slicer_recipe::Recipe::Docker,
        };
        let mut built = Vec::new();
        for arch in archs {
            let out = order.output.join(arch.to_string());
            let one = Order {
                arch,
                recipe,
                out: &out,
                force: order.force,
                say: &output::progress,
                stop,
            };
            let (image, kernel) = if order.kernel_only {
                (None, slicer_recipe::build_kernel(&one)?)
            } else {
                let both = slicer_recipe::build(&one)?;
                (Some(both.image), both.kernel)
            };
            built.push(Built {
                arch,
                image,
                kernel,
            });
        }
        let images: Vec<_> = built.iter().filter_map(|b| b.image.clone()).collect();
        let combined = if images.len() > 1 {
            Some(slicer_recipe::combine(recipe, &images, &order.output)?)
        } else {
            None
        };
        Ok(Done { built, combined })
    }

    fn text(done: &Done) -> String {
        let line = |what: &str, path: &Path| format!("{what}: oci:{}:latest\n", path.display());
        let built = done.built.iter().flat_map(
            |Built {
                 arch,
                 image,
                 kernel,
             }| {
                let image = image.as_ref();
                let image = image.map(|made| line(&format!("Image for {arch}"), &made.path));
                let kernel = line(&format!("Kernel for {arch}"), &kernel.path);
                image.into_iter().chain([kernel])
            },
        );
        let combined = done.combined.iter();
        built
            .chain(combined.map(|path| line("Image for all of them", path)))
            .collect()
    }

    fn json(done: &Done) -> serde_json::Value {
        let layout = |made: &Made| {
            serde_json::json!({
                "path": made.path.display().to_string(),
                "built": made.is_new,
            })
        };
        let built = done.built.iter().map(|built| {
            serde_json::json!({
                "arch": built.arch.to_string(),
                "image": built.image.as_ref().map(layout),
                "kernel": layout(&built.kernel),
            })
        });
        let first = done.built.first().and_then(|built| built.image.as_ref());
        let first = first.map(|made| &made.path);
        let image = done.combined.as_ref().or(first);
        serde_json::json!({
            "layouts": built.collect::<Vec<_>>(),
            // What there is to publish.
            "image": image.map(|path| path.display().to_string()),
        })
    }
}
