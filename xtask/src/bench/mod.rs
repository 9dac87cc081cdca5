//! `cargo xtask bench`: what slicer adds to what the machine allows.
//!
//! Seconds say little about a program that boots kernels on whatever machine it is given, so
//! nearly all that is judged here is a ratio, of the product to a floor made by hand, measured in
//! interleaved pairs so that both see the same machine. `bench/README.md` explains each.

mod bars;
mod bed;
mod connect;
mod exec;
mod floor;
mod forward;
mod idle;
mod image;
mod launch;
mod memory;
mod pipe;
mod report;
mod shares;
mod start;
mod stats;
mod suspend;
mod transfer;
mod tree;

use crate::daemon::{self, Daemon, unless_interrupted};
use crate::text::say;
use crate::{programs, workspace};
use anyhow::{Context, Result, ensure};
use bed::Bed;
pub(crate) use image::{BaseArgs, base};
use report::{Environment, Report};
use serde::Serialize;
use slicer_api::{CreateNode, Wait};
use slicer_client::Client;
use stats::median;
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
    /// Pairs of whatever is measured in pairs, of the product and of its floor
    #[arg(long, env = "BENCH_PAIRS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Five pairs and less of everything else: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, env = "BENCH_ONLY", value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Launches
    Launch,
    /// VMs to disk and back
    Suspend,
    /// A daemon with many VMs
    Start,
    /// Files in a folder of the host
    Shares,
    /// Images as disks
    Image,
    /// The idle daemon
    Idle,
    /// Commands over REST and by the command line
    Exec,
    /// A large file
    Transfer,
    /// A tree of small files
    Tree,
    /// Forwarded connections
    Forward,
    /// Fresh commands, and one beside a reader that is stuck
    Connect,
    /// Memory while a lot passes
    Memory,
}

/// How much of everything is measured; of what isn't, nothing.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Plan {
    launch_pairs: u32,
    suspend_pairs: u32,
    start_rounds: u32,
    share_pairs: u32,
    image_pairs: u32,
    exec_rounds: u32,
    cli_rounds: u32,
    idle_seconds: u64,
    transfer_pairs: u32,
    transfer_bytes: u64,
    scp_pairs: u32,
    tree_pairs: u32,
    tree_files: u32,
    forward_pairs: u32,
    echo_blocks: u32,
    connect_pairs: u32,
    stuck_blocks: u32,
    memory_bytes: u64,
}

impl Args {
    fn plan(&self) -> Plan {
        let all = if self.quick {
            let pairs = self.pairs.min(5);
            Plan {
                launch_pairs: pairs,
                suspend_pairs: pairs,
                start_rounds: 5,
                share_pairs: pairs,
                image_pairs: pairs.min(3),
                exec_rounds: 200,
                cli_rounds: 20,
                idle_seconds: 30,
                transfer_pairs: pairs,
                transfer_bytes: 64 << 20,
                scp_pairs: 2,
                tree_pairs: pairs.min(3),
                tree_files: 1000,
                forward_pairs: pairs,
                echo_blocks: 5,
                connect_pairs: pairs,
                stuck_blocks: 3,
                memory_bytes: 512 << 20,
            }
        } else {
            Plan {
                launch_pairs: self.pairs,
                suspend_pairs: self.pairs,
                start_rounds: 20,
                share_pairs: self.pairs,
                // One by hand takes ten times as long as ours.
                image_pairs: self.pairs.min(8),
                exec_rounds: 400,
                cli_rounds: 60,
                idle_seconds: 30,
                transfer_pairs: self.pairs,
                transfer_bytes: 256 << 20,
                // An scp takes as long as several of the others.
                scp_pairs: self.pairs.min(8),
                tree_pairs: self.pairs.min(8),
                tree_files: 5000,
                forward_pairs: self.pairs,
                echo_blocks: 20,
                connect_pairs: self.pairs,
                stuck_blocks: 10,
                memory_bytes: 4 << 30,
            }
        };
        let wanted = |part| self.only.is_empty() || self.only.contains(&part);
        let if_wanted = |part, amount| if wanted(part) { amount } else { 0 };
        Plan {
            launch_pairs: if_wanted(Part::Launch, all.launch_pairs),
            suspend_pairs: if_wanted(Part::Suspend, all.suspend_pairs),
            start_rounds: if_wanted(Part::Start, all.start_rounds),
            share_pairs: if_wanted(Part::Shares, all.share_pairs),
            image_pairs: if_wanted(Part::Image, all.image_pairs),
            exec_rounds: if_wanted(Part::Exec, all.exec_rounds),
            cli_rounds: if_wanted(Part::Exec, all.cli_rounds),
            idle_seconds: if wanted(Part::Idle) {
                all.idle_seconds
            } else {
                0
            },
            transfer_pairs: if_wanted(Part::Transfer, all.transfer_pairs),
            tree_pairs: if_wanted(Part::Tree, all.tree_pairs),
            forward_pairs: if_wanted(Part::Forward, all.forward_pairs),
            connect_pairs: if_wanted(Part::Connect, all.connect_pairs),
            memory_bytes: if wanted(Part::Memory) {
                all.memory_bytes
            } else {
                0
            },
            ..all
        }
    }
}

/// Everything that was measured, as it is written down.
#[derive(Default, Serialize)]
struct Raw {
    launch: Option<launch::Samples>,
    suspend: Option<suspend::Samples>,
    start: Option<start::Samples>,
    shares: Option<shares::Samples>,
    image: Option<image::Samples>,
    idle: Option<idle::Samples>,
    exec: Option<exec::Samples>,
    cli: Option<exec::CliSamples>,
    transfer: Option<transfer::Samples>,
    tree: Option<tree::Samples>,
    forward: Option<forward::Samples>,
    connect: Option<connect::Samples>,
    memory: Option<memory::Samples>,
}

impl Raw {
    /// Whether nothing was measured.
    fn is_empty(&self) -> bool {
        self.story().is_empty()
    }

    /// Where time and memory go, for people.
    fn story(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.launch.iter().flat_map(launch::Samples::story));
        lines.extend(self.suspend.iter().flat_map(suspend::Samples::story));
        lines.extend(self.start.iter().map(start::Samples::story));
        lines.extend(self.shares.iter().map(shares::Samples::story));
        lines.extend(self.image.iter().flat_map(image::Samples::story));
        lines.extend(self.exec.iter().map(exec::Samples::story));
        lines.extend(self.cli.iter().map(exec::CliSamples::story));
        lines.extend(self.transfer.iter().flat_map(transfer::Samples::story));
        lines.extend(self.tree.iter().map(tree::Samples::story));
        lines.extend(self.forward.iter().flat_map(forward::Samples::story));
        lines.extend(self.connect.iter().map(connect::Samples::story));
        lines.extend(self.memory.iter().flat_map(memory::Samples::story));
        lines
    }
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
    let mut raw = Raw::default();
    let measured = runtime.block_on(unless_interrupted(measure(plan, dir.path(), &mut raw)));
    if measured.is_err() {
        say("The daemon's last lines:");
        let log = daemon::log(dir.path());
        for line in &log[log.len().saturating_sub(LOG_LINES)..] {
            say(&format!("    {line}"));
        }
    }
    let accelerator = floor::Floor::of(dir.path()).map(|floor| floor.accelerator);
    dir.close()
        .context("cannot remove the daemon's directory")?;
    // What was measured before something failed took its time, too.
    if raw.is_empty() {
        return measured;
    }
    let report = Report {
        bars: bars::of(&raw),
        environment: environment.complete(accelerator.unwrap_or_default(), raw.launch.as_ref()),
        plan,
        raw,
    };
    report.show();
    let file = report.write(&workspace()?.join("bench/results"))?;
    say(&format!("\nEvery sample is in {}", file.display()));
    measured
}

async fn measure(plan: Plan, dir: &Path, raw: &mut Raw) -> Result<()> {
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
    if plan.launch_pairs > 0 {
        raw.launch = Some(launch::measure(plan.launch_pairs, &client, &floor).await?);
    }
    if plan.suspend_pairs > 0 {
        raw.suspend = Some(suspend::measure(plan.suspend_pairs, &client, &floor).await?);
    }
    daemon.stop(false).await?;

    if plan.start_rounds > 0 {
        raw.start = Some(start::measure(plan.start_rounds, dir).await?);
    }
    if plan.share_pairs > 0 {
        raw.shares = Some(shares::measure(plan.share_pairs, &file, &floor).await?);
    }
    if plan.image_pairs > 0 {
        raw.image = Some(image::measure(&layout, dir, plan.image_pairs).await?);
    }
    if plan.idle_seconds > 0 || plan.exec_rounds > 0 {
        measure_small(plan, dir, raw).await?;
    }
    let in_bed = [
        plan.transfer_pairs,
        plan.tree_pairs,
        plan.forward_pairs,
        plan.connect_pairs,
    ];
    if in_bed.iter().any(|pairs| *pairs > 0) || plan.memory_bytes > 0 {
        measure_in_bed(plan, dir, raw).await?;
    }
    Ok(())
}

/// Measures what is small, in a daemon that has unpacked nothing: what users' daemons are on all
/// days but the first.
async fn measure_small(plan: Plan, dir: &Path, raw: &mut Raw) -> Result<()> {
    let programs = programs()?;
    let daemon = Daemon::start(&programs.join("slicer-mac"), dir).await?;
    let client = daemon.client()?;
    let vm = if plan.idle_seconds > 0 {
        let (idle, vm) = idle::measure(plan.idle_seconds, &daemon, &client).await?;
        raw.idle = Some(idle);
        vm
    } else {
        create(&client).await?
    };
    if plan.exec_rounds > 0 {
        raw.exec = Some(exec::measure(plan.exec_rounds, &client, &vm).await?);
        let slicer = |args: &[&str]| daemon.cli(&programs.join("slicer"), args);
        raw.cli = Some(exec::measure_cli(plan.cli_rounds, &client, &vm, slicer).await?);
    }
    client.delete_node(GROUP, &vm).await?;
    if let Some(idle) = &mut raw.idle {
        idle.rss_after_work = idle::rss(daemon.pid())?;
    }
    daemon.stop(false).await
}

/// Measures what needs more ways into the guest than the product's.
async fn measure_in_bed(plan: Plan, dir: &Path, raw: &mut Raw) -> Result<()> {
    let mut bed = Bed::start(dir).await?;
    if plan.connect_pairs > 0 {
        let connect = connect::measure(&bed, plan.connect_pairs, plan.stuck_blocks);
        raw.connect = Some(connect.await?);
    }
    if plan.forward_pairs > 0 {
        let (bytes, pairs) = (plan.transfer_bytes, plan.forward_pairs);
        let forward = forward::measure(&mut bed, bytes, pairs, plan.echo_blocks);
        raw.forward = Some(forward.await?);
    }
    if plan.transfer_pairs > 0 {
        let (bytes, pairs) = (plan.transfer_bytes, plan.transfer_pairs);
        let transfer = transfer::measure(&mut bed, bytes, pairs, plan.scp_pairs);
        raw.transfer = Some(transfer.await?);
    }
    if plan.tree_pairs > 0 {
        let tree = tree::measure(&bed, plan.tree_files, plan.tree_pairs);
        raw.tree = Some(tree.await?);
    }
    if plan.memory_bytes > 0 {
        raw.memory = Some(memory::measure(&bed, plan.memory_bytes).await?);
    }
    bed.stop().await
}

fn configuration(layout: &Path) -> String {
    format!(
        "config:
  host_groups:
    - name: {GROUP}
      count: 0
      warm: false
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
