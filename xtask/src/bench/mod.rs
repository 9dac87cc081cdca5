//! `cargo xtask bench`: what slicer adds to what the machine allows.
//!
//! Seconds say little about a program that boots kernels on whatever machine it is given, so
//! nearly all that is judged here is a ratio, of the product to a floor made by hand, measured in
//! interleaved pairs so that both see the same machine. `bench/README.md` explains each.

mod exec;
mod floor;
mod idle;
mod launch;
mod report;
mod stats;

use crate::daemon::{self, Daemon, unless_interrupted};
use crate::text::say;
use crate::{programs, workspace};
use anyhow::{Context, Result, ensure};
use report::{Bar, Environment, Report};
use serde::Serialize;
use slicer_api::{CreateNode, Wait};
use slicer_client::Client;
use stats::{Estimate, median};
use std::fs;
use std::path::Path;

/// The group all VMs here are of, and what they get.
const GROUP: &str = "sbox";
const VCPUS: u32 = 1;
const RAM_MB: u32 = 512;
const DISK_SIZE: &str = "15G";

/// Lines of the daemon's log that are shown with a failure.
const LOG_LINES: usize = 20;

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pairs of launches, of the product and by hand
    #[arg(long, env = "BENCH_PAIRS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Five pairs and less of everything else: a look, not a measurement
    #[arg(long)]
    quick: bool,
}

/// How much of everything is measured.
#[derive(Debug, Clone, Copy, Serialize)]
struct Plan {
    launch_pairs: u32,
    exec_rounds: u32,
    cli_rounds: u32,
    idle_seconds: u64,
}

impl Args {
    fn plan(&self) -> Plan {
        if self.quick {
            Plan {
                launch_pairs: self.pairs.min(5),
                exec_rounds: 200,
                cli_rounds: 20,
                idle_seconds: 30,
            }
        } else {
            Plan {
                launch_pairs: self.pairs,
                exec_rounds: 400,
                cli_rounds: 60,
                idle_seconds: 30,
            }
        }
    }
}

/// Everything that was measured, as it is written down.
#[derive(Serialize)]
struct Raw {
    launch: launch::Samples,
    idle: idle::Samples,
    exec: exec::Samples,
    cli: exec::CliSamples,
}

/// Runs the benchmark.
pub(crate) fn run(args: &Args) -> Result<()> {
    for program in ["slicer", "slicer-mac"] {
        let path = programs()?.join(program);
        ensure!(
            path.exists(),
            "there is no {}: run `make build`",
            path.display()
        );
    }
    let plan = args.plan();
    let environment = Environment::look();
    let dir = tempfile::Builder::new()
        .prefix("slicer-bench-")
        .tempdir()
        .context("cannot make a temporary directory for the daemon")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let measured = runtime.block_on(unless_interrupted(measure(plan, dir.path())));
    if measured.is_err() {
        say("The daemon's last lines:");
        let log = daemon::log(dir.path());
        for line in &log[log.len().saturating_sub(LOG_LINES)..] {
            say(&format!("    {line}"));
        }
    }
    let (accelerator, raw) = measured?;
    dir.close()
        .context("cannot remove the daemon's directory")?;
    let report = Report {
        bars: bars(&raw),
        environment: environment.complete(accelerator, &raw.launch),
        plan,
        raw,
    };
    report.show();
    let file = report.write(&workspace()?.join("bench/results"))?;
    say(&format!("\nEvery sample is in {}", file.display()));
    Ok(())
}

async fn measure(plan: Plan, dir: &Path) -> Result<(String, Raw)> {
    let programs = programs()?;
    let layout = workspace()?
        .join("target/guest")
        .join(slicer_api::go_arch(std::env::consts::ARCH))
        .join("image");
    let file = dir.join("slicer-mac.yaml");
    fs::write(&file, configuration(&layout))
        .with_context(|| format!("cannot write {}", file.display()))?;

    let daemon = Daemon::start(&programs.join("slicer-mac"), dir).await?;
    let client = daemon.client()?;
    say("Preparing the image, with a first launch");
    let vm = create(&client).await?;
    client.delete_node(GROUP, &vm).await?;
    let floor = floor::Floor::of(dir)?;
    let launch = launch::measure(plan.launch_pairs, &client, &floor).await?;
    daemon.stop(false).await?;

    // A daemon that has unpacked nothing: what users' daemons are on all days but the first.
    let daemon = Daemon::start(&programs.join("slicer-mac"), dir).await?;
    let client = daemon.client()?;
    let (mut idle, vm) = idle::measure(plan.idle_seconds, &daemon, &client).await?;
    let exec = exec::measure(plan.exec_rounds, &client, &vm).await?;
    let cli = exec::measure_cli(plan.cli_rounds, &client, &vm, |args| {
        daemon.cli(&programs.join("slicer"), args)
    })
    .await?;
    client.delete_node(GROUP, &vm).await?;
    idle.rss_after_work = idle::rss(daemon.pid())?;
    daemon.stop(false).await?;
    let raw = Raw {
        launch,
        idle,
        exec,
        cli,
    };
    Ok((floor.accelerator, raw))
}

fn configuration(layout: &Path) -> String {
    format!(
        "config:
  host_groups:
    - name: {GROUP}
      count: 0
      vcpu: {VCPUS}
      ram_mb: {RAM_MB}
      storage_size: {DISK_SIZE}
      network:
        mode: nat
        gateway: 192.168.64.1/24
  image: \"oci:{}:latest\"
  hypervisor: qemu
  api:
    socket: \"./slicer.sock\"
",
        layout.display()
    )
}

/// Launches a VM and waits until it is ready.
async fn create(client: &Client) -> Result<String> {
    let node = CreateNode::default();
    let created = client
        .create_node(GROUP, &node, Some(Wait::Agent), None)
        .await?;
    Ok(created.hostname)
}

/// What is judged.
fn bars(raw: &Raw) -> Vec<Bar> {
    let (launch, exec, cli, idle) = (&raw.launch, &raw.exec, &raw.cli, &raw.idle);
    vec![
        Bar::ratio(
            "launch",
            "POST …/nodes?wait=agent / QEMU by hand until ready",
            Estimate::of_ratios(&launch.product, &launch.floor_ready),
            1.10,
        ),
        Bar::ratio(
            "ready",
            "POST …/nodes?wait=agent / bare kernel until its init runs",
            Estimate::of_ratios(&launch.product, &launch.bare),
            2.2,
        ),
        Bar::ratio(
            "exec",
            "REST exec of /bin/true / (health round trip + spawn in the guest)",
            Estimate::of_ratios(&exec.exec, &exec.floor()),
            2.0,
        ),
        Bar::ratio(
            "CLI exec",
            "slicer vm exec / (REST exec + slicer version)",
            Estimate::of_ratios(&cli.cli, &cli.floor()),
            1.3,
        ),
        Bar::limit(
            "memory",
            "RSS of slicer-mac without a VM, MiB",
            idle.rss_none,
            25.0,
        ),
        Bar::limit(
            "memory, used",
            "the same after all launches and execs here, MiB",
            idle.rss_after_work,
            25.0,
        ),
        Bar::limit(
            "memory, VM",
            "RSS of slicer-mac per further VM, MiB",
            idle.rss_per_vm(),
            10.0,
        ),
        Bar::limit(
            "CPU",
            "of slicer-mac with one idle VM, % of a core",
            idle.cpu_percent(),
            0.2,
        ),
    ]
}
