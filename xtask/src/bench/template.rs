//! Launches from a template, the product's and by hand: what a VM costs that need not boot.

use super::exec::run_true;
use super::floor::{Floor, HandClone, Template};
use super::plan::Plan;
use super::process::{descendants, total_pss};
use super::run::{Launches, Run};
use super::stats::quantile;
use super::{COLD, GROUP, create, create_in, median};
use crate::daemon::{self, Daemon};
use crate::text::say;
use anyhow::{Result, ensure};
use serde::Serialize;
use slicer_client::Client;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long guests go on before their memory is looked at.
const CLONES_SETTLE: Duration = Duration::from_secs(5);
/// The same of those that have just booted.
const BOOTED_SETTLE: Duration = Duration::from_secs(10);
/// How long the product may take to make its template.
const MAKE_TIME: Duration = Duration::from_mins(3);
/// What it says when it has.
const MADE: &str = "made a template in";
/// VMs that are booted at once.
const FEW: u32 = 4;
/// Execs in a clone: the first, and some later ones.
const EXECS: usize = 6;

/// Times in seconds, memory in MiB.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// A clone by hand, from the start of QEMU until the agent's first byte. One per pair.
    pub(crate) by_hand: Vec<f64>,
    /// How many clones are made at once.
    pub(crate) burst: u32,
    /// That many by hand, until the last has answered. One per pair.
    pub(crate) by_hand_burst: Vec<f64>,
    /// The memory (PSS) of that many clones by hand, which idle.
    pub(crate) by_hand_pss: f64,
    /// The product's; none when it has no templates.
    pub(crate) product: Option<Product>,
}

/// What the product does of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Product {
    /// A launch from a template, from the request until the VM is ready. One per pair.
    pub(crate) warm: Vec<f64>,
    /// A launch that boots. One per pair.
    pub(crate) cold: Vec<f64>,
    /// Launches from a template one after another.
    pub(crate) row: Vec<f64>,
    /// Many launches from a template at once, until the last is ready. One per pair.
    pub(crate) burst: Vec<f64>,
    /// The first exec of a clone. One per launch.
    pub(crate) first_exec: Vec<f64>,
    /// The median of later ones in the same.
    pub(crate) later_exec: Vec<f64>,
    /// Memory (PSS) of as many idle VMs as at once, of clones and of booted ones.
    pub(crate) idle: [f64; 2],
    /// The same after a command in each.
    pub(crate) used: [f64; 2],
}

/// Measures all of it.
pub(crate) async fn measure(run: &mut Run, floor: &Floor) -> Result<Samples> {
    say("Template: clones of a VM that has booted");
    let template = floor.template().await?;
    let plan = run.plan().clone();
    let mut samples = Samples {
        burst: plan.template_burst,
        ..Samples::default()
    };
    if run.has_templates() {
        run.configure(Launches::Cloned)?;
        let dir = run.dir().to_owned();
        let both = run.with_daemon(async |d, c| {
            let product = beside(&plan, &dir, d, c, &template, &mut samples).await?;
            Ok(product)
        });
        let both = both.await;
        run.configure(Launches::Booted)?;
        samples.product = Some(both?);
    } else {
        run.skip(
            "launches from templates",
            "this daemon has none: its configuration knows no `warm`",
        );
        for pair in plan.template.run() {
            by_hand(pair, &template, &mut samples).await?;
        }
        burst_by_hand(&template, &mut samples).await?;
    }
    template.remove()?;
    Ok(samples)
}

/// Measures the product's and those by hand, in alternating order.
async fn beside(
    plan: &Plan,
    dir: &Path,
    daemon: &Daemon,
    client: &Client,
    template: &Template,
    samples: &mut Samples,
) -> Result<Product> {
    let mut product = Product::default();
    // What only the first launch of a group has to do.
    let vm = create_in(COLD, client).await?;
    client.delete_node(COLD, &vm).await?;
    made(dir).await?;
    for pair in plan.template.run() {
        for ours in [pair % 2 == 0, pair % 2 != 0] {
            if ours {
                product.warm.push(launch(GROUP, client).await?);
                product.cold.push(launch(COLD, client).await?);
            } else {
                by_hand(pair, template, samples).await?;
            }
        }
    }
    for _ in plan.template_launches.run() {
        product.row.push(launch(GROUP, client).await?);
    }
    for _ in plan.template_execs.run() {
        let vm = create(client).await?;
        let (first, later) = execs(client, &vm).await?;
        product.first_exec.push(first);
        product.later_exec.push(later);
        client.delete_node(GROUP, &vm).await?;
    }
    for pair in plan.template_bursts.run() {
        for ours in [pair % 2 == 0, pair % 2 != 0] {
            if ours {
                let (took, vms) = many(GROUP, plan.template_burst, client).await?;
                product.burst.push(took);
                if pair == 0 {
                    let seen = memory(CLONES_SETTLE, daemon, client, &vms).await?;
                    (product.idle[0], product.used[0]) = seen;
                }
                delete(GROUP, vms, client).await?;
            } else {
                burst_by_hand(template, samples).await?;
            }
        }
    }
    let mut vms = Vec::new();
    while vms.len() < usize::try_from(plan.template_burst)? {
        // Of more that boot at once on few processors, some give up.
        vms.extend(many(COLD, FEW, client).await?.1);
    }
    (product.idle[1], product.used[1]) = memory(BOOTED_SETTLE, daemon, client, &vms).await?;
    delete(COLD, vms, client).await?;
    let log = daemon::log(dir);
    let boots =
        |line: &&String| line.contains(&format!("{GROUP}-")) && line.contains(": launched in");
    let booted = log.iter().filter(boots).count();
    ensure!(
        booted == 0,
        "{booted} VMs were booted that were to begin as a template"
    );
    Ok(product)
}

/// How long the first exec in a VM takes, and later ones do.
pub(super) async fn execs(client: &Client, vm: &str) -> Result<(f64, f64)> {
    let mut times = Vec::new();
    for _ in 0..EXECS {
        let start = Instant::now();
        run_true(client, vm).await?;
        times.push(start.elapsed().as_secs_f64());
    }
    let first = times.remove(0);
    Ok((first, median(&times)))
}

/// Waits until the product has its template.
async fn made(dir: &Path) -> Result<()> {
    let start = Instant::now();
    while !daemon::log(dir).iter().any(|line| line.contains(MADE)) {
        ensure!(start.elapsed() < MAKE_TIME, "the daemon makes no template");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// How long a launch takes until the VM is ready, which is then deleted.
async fn launch(group: &str, client: &Client) -> Result<f64> {
    let start = Instant::now();
    let vm = create_in(group, client).await?;
    let took = start.elapsed().as_secs_f64();
    client.delete_node(group, &vm).await?;
    Ok(took)
}

/// So many launches at once, and how long until all VMs are ready.
async fn many(group: &'static str, n: u32, client: &Client) -> Result<(f64, Vec<String>)> {
    let start = Instant::now();
    let mut launches = JoinSet::new();
    for _ in 0..n {
        let client = client.clone();
        launches.spawn(async move { create_in(group, &client).await });
    }
    let mut vms = Vec::new();
    while let Some(vm) = launches.join_next().await {
        vms.push(vm??);
    }
    Ok((start.elapsed().as_secs_f64(), vms))
}

async fn delete(group: &str, vms: Vec<String>, client: &Client) -> Result<()> {
    for vm in vms {
        client.delete_node(group, &vm).await?;
    }
    Ok(())
}

/// The memory of all that the daemon has started, when it is idle and after a command in each VM.
async fn memory(
    settle: Duration,
    daemon: &Daemon,
    client: &Client,
    vms: &[String],
) -> Result<(f64, f64)> {
    tokio::time::sleep(settle).await;
    let idle = total_pss(&descendants(daemon.pid())?)?;
    for vm in vms {
        run_true(client, vm).await?;
    }
    Ok((idle, total_pss(&descendants(daemon.pid())?)?))
}

async fn by_hand(n: u32, template: &Template, samples: &mut Samples) -> Result<()> {
    let clone = template.start(template.clone_disk(n).await?).await?;
    samples.by_hand.push(clone.first_byte);
    clone.end().await
}

/// Many clones by hand at once. Their disks are made before the clock starts.
async fn burst_by_hand(template: &Template, samples: &mut Samples) -> Result<()> {
    let mut disks = Vec::new();
    for n in 0..samples.burst {
        disks.push(template.clone_disk(n).await?);
    }
    let start = Instant::now();
    let mut starts = JoinSet::new();
    for disk in disks {
        let template = template.clone();
        starts.spawn(async move { template.start(disk).await });
    }
    let mut clones = Vec::new();
    while let Some(clone) = starts.join_next().await {
        clones.push(clone??);
    }
    samples.by_hand_burst.push(start.elapsed().as_secs_f64());
    if samples.by_hand_burst.len() == 1 {
        tokio::time::sleep(CLONES_SETTLE).await;
        let pids: Vec<i32> = clones.iter().filter_map(HandClone::pid).collect();
        samples.by_hand_pss = total_pss(&pids)?;
    }
    for clone in clones {
        clone.end().await?;
    }
    Ok(())
}

impl Product {
    /// The slowest twentieth of launches, over the median.
    pub(crate) fn spread(&self) -> f64 {
        quantile(&self.row, 0.95) / median(&self.row).max(f64::EPSILON)
    }
}

impl Samples {
    /// How long it takes, for people.
    pub(crate) fn story(&self) -> Vec<String> {
        let ms = |times: &[f64]| 1e3 * median(times);
        let mut lines = vec![format!(
            "a clone of a booted VM by hand {:.0} ms until its first byte, {} at once {:.2} s; these take \
             {:.0} MiB",
            ms(&self.by_hand),
            self.burst,
            median(&self.by_hand_burst),
            self.by_hand_pss,
        )];
        if let Some(p) = &self.product {
            lines.push(format!(
                "a launch from a template {:.0} ms, one that boots {:.2} s; {} at once {:.2} s",
                ms(&p.warm),
                median(&p.cold),
                self.burst,
                median(&p.burst)
            ));
            lines.push(format!(
                "the first exec of a clone {:.1} ms, a later one {:.1} ms",
                ms(&p.first_exec),
                ms(&p.later_exec)
            ));
            lines.push(format!(
                "{} idle clones {:.0} MiB, after a command in each {:.0} MiB; booted VMs {:.0} and {:.0} \
                 MiB",
                self.burst, p.idle[0], p.used[0], p.idle[1], p.used[1]
            ));
        }
        lines
    }
}
