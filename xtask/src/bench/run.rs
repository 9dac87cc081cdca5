//! One run: part after part, each with its own time, and none that fails takes the others with it.

use super::bed::Bed;
use super::floor::Floor;
use super::host::{self, Before};
use super::plan::{Args, Part, Plan};
use super::report::{Outcome, PartTime, Skipped};
use super::{
    COLD, GROUP, LARGE, MINIMAL, bars, configuration, connect, create, exec, fork, forward, idle,
    image, launch, many, memory, minimal, page, pool, shares, start, suspend, template, transfer,
    tree,
};
use crate::daemon::{self, Daemon, unless_interrupted};
use crate::text::say;
use crate::{programs, workspace};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use slicer_client::Client;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Lines of the daemon's log that are shown with a failure.
const LOG_LINES: usize = 20;

/// Every sample that was measured.
#[derive(Default, Serialize)]
pub(crate) struct Raw {
    pub(crate) launch: Option<launch::Samples>,
    pub(crate) minimal: Option<minimal::Samples>,
    pub(crate) template: Option<template::Samples>,
    pub(crate) fork: Option<fork::Samples>,
    pub(crate) pool: Option<pool::Samples>,
    pub(crate) many: Option<many::Samples>,
    pub(crate) suspend: Option<suspend::Samples>,
    pub(crate) start: Option<start::Samples>,
    pub(crate) shares: Option<shares::Samples>,
    pub(crate) image: Option<image::Samples>,
    pub(crate) idle: Option<idle::Samples>,
    pub(crate) exec: Option<exec::Samples>,
    pub(crate) cli: Option<exec::CliSamples>,
    pub(crate) transfer: Option<transfer::Samples>,
    pub(crate) tree: Option<tree::Samples>,
    pub(crate) forward: Option<forward::Samples>,
    pub(crate) connect: Option<connect::Samples>,
    pub(crate) memory: Option<memory::Samples>,
}

impl Raw {
    /// Where time and memory go, for people.
    fn story(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.launch.iter().flat_map(launch::Samples::story));
        lines.extend(self.minimal.iter().map(minimal::Samples::story));
        lines.extend(self.template.iter().flat_map(template::Samples::story));
        lines.extend(self.fork.iter().map(fork::Samples::story));
        lines.extend(self.pool.iter().map(pool::Samples::story));
        lines.extend(self.many.iter().flat_map(many::Samples::story));
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
    let before = Before::look();
    let dir = tempfile::Builder::new()
        .prefix("slicer-bench-")
        .tempdir()
        .context("cannot make a temporary directory for the daemon")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut run = Run::new(args.plan(), dir.path())?;
    let done = runtime.block_on(unless_interrupted(run.all()));
    let floor = Floor::of(dir.path());
    let complete = before.complete(floor.ok().as_ref(), run.raw.launch.as_ref());
    dir.close()
        .context("cannot remove the daemon's directory")?;
    // What was measured before something failed took its time, too.
    if run.parts.is_empty() {
        return done;
    }
    let outcome = Outcome {
        environment: complete,
        bars: bars::of(&run.raw),
        medians: run.raw.story(),
        skipped: run.skipped,
        parts: run.parts,
    };
    outcome.show();
    let results = workspace()?.join("bench/results");
    let whole = run.plan.is_whole() && done.is_ok();
    let kept = if whole {
        results
    } else {
        results.join("parts")
    };
    let file = outcome.write(&run.plan, &run.raw, &kept)?;
    say(&format!("\nEvery sample is in {}", file.display()));
    if whole {
        page::write(&file)?;
    }
    done?;
    ensure!(run.failed == 0, "{} parts failed", run.failed);
    Ok(())
}

/// A run under way.
pub(crate) struct Run {
    plan: Plan,
    dir: PathBuf,
    /// The image of all VMs.
    layout: PathBuf,
    raw: Raw,
    parts: Vec<PartTime>,
    skipped: Vec<Skipped>,
    failed: u32,
    /// The daemon can launch from templates.
    has_templates: bool,
}

/// How a VM of the group comes to be ready.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Launches {
    /// It is booted.
    Booted,
    /// It was booted ahead.
    Pooled,
    /// It begins as a template.
    Cloned,
    /// It is booted, and so are larger ones.
    Large,
    /// It is booted, and so are those of an image without an init.
    Minimal,
}

/// A part under way.
#[derive(Clone, Copy)]
struct Lap {
    part: Part,
    start: Instant,
    load: f64,
}

impl Run {
    fn new(plan: Plan, dir: &Path) -> Result<Self> {
        let layout = workspace()?
            .join("target/guest")
            .join(slicer_api::go_arch(std::env::consts::ARCH))
            .join("image");
        Ok(Self {
            plan,
            dir: dir.to_owned(),
            layout,
            raw: Raw::default(),
            parts: Vec::new(),
            skipped: Vec::new(),
            failed: 0,
            has_templates: false,
        })
    }

    /// Measures all that is asked for.
    async fn all(&mut self) -> Result<()> {
        let floor = self.prepare().await?;
        self.launches(&floor).await?;
        self.disks(&floor).await?;
        self.small().await?;
        self.in_bed().await
    }

    /// Has a daemon prepare the image, and the boot files for what is made by hand.
    async fn prepare(&mut self) -> Result<Floor> {
        say("Preparing the image, with a first launch");
        // A daemon that knows templates is told where not to use them.
        self.has_templates = true;
        self.configure(Launches::Booted)?;
        if let Err(e) = self.with_daemon(async |_, _| Ok(())).await {
            let log = daemon::log(&self.dir).join("\n");
            ensure!(log.contains("warm: unknown key"), e);
            self.has_templates = false;
            self.configure(Launches::Booted)?;
        }
        self.with_daemon(async |_, client| {
            let vm = create(client).await?;
            Ok(client.delete_node(GROUP, &vm).await.map(drop)?)
        })
        .await?;
        Floor::of(&self.dir)
    }

    async fn launches(&mut self, floor: &Floor) -> Result<()> {
        if let Some(lap) = self.begin(Part::Launch) {
            let pairs = self.plan.launch;
            let got = self.with_daemon(async |_, c| launch::measure(pairs, c, floor).await);
            let got = got.await;
            self.raw.launch = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Minimal) {
            let got = self.minimal(floor).await;
            self.raw.minimal = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Template) {
            let got = template::measure(self, floor).await;
            self.raw.template = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Fork) {
            let got = self.fork().await;
            self.raw.fork = self.end(lap, got).flatten();
            if self.raw.fork.is_none() && self.failed == 0 {
                self.skip("a fork of a running VM", "this daemon can't do it");
            }
        }
        if let Some(lap) = self.begin(Part::Pool) {
            let got = self.pool().await;
            self.raw.pool = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Many) {
            let plan = self.plan.clone();
            let got = self.with_daemon(async |d, c| many::measure(&plan, d, c, floor).await);
            let got = got.await;
            self.raw.many = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Suspend) {
            let pairs = self.plan.suspend;
            let got = self.with_daemon(async |_, c| suspend::measure(pairs, c, floor).await);
            let got = got.await;
            self.raw.suspend = self.end(lap, got);
        }
        Ok(())
    }

    async fn minimal(&self, floor: &Floor) -> Result<minimal::Samples> {
        self.configure(Launches::Minimal)?;
        let pairs = self.plan.minimal;
        let got = self.with_daemon(async |_, c| minimal::measure(pairs, c, floor).await);
        let got = got.await;
        self.configure(Launches::Booted)?;
        got
    }

    async fn fork(&self) -> Result<Option<fork::Samples>> {
        self.configure(Launches::Large)?;
        let rounds = self.plan.fork;
        let got = self.with_daemon(async |d, c| fork::measure(rounds, d, c).await);
        let got = got.await;
        self.configure(Launches::Booted)?;
        got
    }

    async fn pool(&self) -> Result<pool::Samples> {
        self.configure(Launches::Pooled)?;
        let pairs = self.plan.pool;
        let got = self.with_daemon(async |d, c| pool::measure(pairs, d, c).await);
        let got = got.await;
        self.configure(Launches::Booted)?;
        got
    }

    async fn disks(&mut self, floor: &Floor) -> Result<()> {
        if let Some(lap) = self.begin(Part::Start) {
            let got = start::measure(self.plan.start, &self.dir).await;
            self.raw.start = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Shares) {
            let file = self.dir.join("slicer-mac.yaml");
            let got = shares::measure(self.plan.shares, &file, floor).await;
            self.configure(Launches::Booted)?;
            self.raw.shares = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Image) {
            let (bases, disks) = (self.plan.image, self.plan.clones);
            let got = image::measure(&self.layout, &self.dir, bases, disks).await;
            self.raw.image = self.end(lap, got);
        }
        Ok(())
    }

    /// Measures what is small, in daemons that have unpacked nothing: what users' daemons are on all
    /// days but the first.
    async fn small(&mut self) -> Result<()> {
        if let Some(lap) = self.begin(Part::Idle) {
            let seconds = self.plan.idle_seconds;
            let got = self.with_daemon(async |d, c| idle::measure(seconds, d, c).await);
            let got = got.await;
            self.raw.idle = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Exec) {
            let (rest, by_command) = (self.plan.exec, self.plan.cli);
            let got = self.with_daemon(async |daemon, client| {
                let vm = create(client).await?;
                let exec = exec::measure(rest, client, &vm).await?;
                let program = programs()?.join("slicer");
                let slicer = |args: &[&str]| daemon.cli(&program, args);
                let cli = exec::measure_cli(by_command, client, &vm, slicer).await?;
                client.delete_node(GROUP, &vm).await?;
                Ok((exec, cli, idle::rss(daemon.pid())?))
            });
            let got = got.await;
            if let Some((exec, cli, rss)) = self.end(lap, got) {
                self.raw.exec = Some(exec);
                self.raw.cli = Some(cli);
                if let Some(idle) = &mut self.raw.idle {
                    idle.rss_after_work = rss;
                }
            }
        }
        Ok(())
    }

    /// Measures what needs more ways into the guest than the product's.
    async fn in_bed(&mut self) -> Result<()> {
        let parts = [
            Part::Connect,
            Part::Forward,
            Part::Transfer,
            Part::Tree,
            Part::Memory,
        ];
        if !parts.iter().any(|part| self.plan.wants(*part)) {
            return Ok(());
        }
        let mut bed = match Bed::start(&self.dir).await {
            Ok(bed) => bed,
            Err(e) => {
                self.failed += 1;
                say(&format!("The VM for copies and forwards FAILED: {e:#}"));
                self.skip(
                    "copies, forwards, connections",
                    &format!("it failed: {e:#}"),
                );
                return Ok(());
            }
        };
        let plan = self.plan.clone();
        if let Some(lap) = self.begin(Part::Connect) {
            let got = connect::measure(&mut bed, plan.connect, plan.stuck).await;
            self.raw.connect = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Forward) {
            let bytes = plan.transfer_bytes;
            let got = forward::measure(&mut bed, bytes, plan.forward, plan.echo).await;
            self.raw.forward = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Transfer) {
            let (bytes, notes) = (plan.transfer_bytes, plan.transfer_notes);
            let got = transfer::measure(&mut bed, bytes, plan.transfer, notes).await;
            self.raw.transfer = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Tree) {
            let got = tree::measure(&bed, plan.tree_files, plan.tree).await;
            self.raw.tree = self.end(lap, got);
        }
        if let Some(lap) = self.begin(Part::Memory) {
            let got = memory::measure(&bed, plan.memory_bytes).await;
            self.raw.memory = self.end(lap, got);
        }
        bed.stop().await
    }

    fn begin(&self, part: Part) -> Option<Lap> {
        self.plan.wants(part).then(|| Lap {
            part,
            start: Instant::now(),
            load: host::load(),
        })
    }

    fn end<T>(&mut self, lap: Lap, got: Result<T>) -> Option<T> {
        let part = lap.part.name();
        self.parts.push(PartTime {
            part: part.clone(),
            seconds: lap.start.elapsed().as_secs_f64(),
            load_before: lap.load,
            load_after: host::load(),
        });
        match got {
            Ok(samples) => Some(samples),
            Err(e) => {
                self.failed += 1;
                say(&format!("{part} FAILED: {e:#}"));
                say("The daemon's last lines:");
                let log = daemon::log(&self.dir);
                for line in &log[log.len().saturating_sub(LOG_LINES)..] {
                    say(&format!("    {line}"));
                }
                self.skip(&part, &format!("it failed: {e:#}"));
                None
            }
        }
    }

    /// Says what is not measured, and why.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        self.skipped.push(Skipped {
            what: what.to_owned(),
            why: why.to_owned(),
        });
    }

    /// How much is measured.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Writes the daemon's configuration.
    pub(crate) fn configure(&self, launches: Launches) -> Result<()> {
        let warm = |warm: bool| {
            if self.has_templates {
                format!("      warm: {warm}\n")
            } else {
                String::new()
            }
        };
        let pool = "      warm_pool: 1\n";
        let groups = match launches {
            Launches::Booted => vec![(GROUP, warm(false))],
            Launches::Pooled => vec![(GROUP, warm(true) + pool), (COLD, warm(false))],
            Launches::Large => vec![(GROUP, warm(false)), (LARGE, warm(false))],
            Launches::Minimal => {
                let layout = self.layout.with_file_name("minimal");
                let image = format!("      image: \"oci:{}:latest\"\n", layout.display());
                vec![(GROUP, warm(false)), (MINIMAL, warm(false) + &image)]
            }
            Launches::Cloned => vec![(GROUP, warm(true)), (COLD, warm(false))],
        };
        let file = self.dir.join("slicer-mac.yaml");
        fs::write(&file, configuration(&self.layout, &groups))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Whether the daemon can launch from templates.
    pub(crate) fn has_templates(&self) -> bool {
        self.has_templates
    }

    /// The daemon's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Does something with a daemon, which is stopped after it.
    pub(crate) async fn with_daemon<T>(
        &self,
        work: impl AsyncFnOnce(&Daemon, &Client) -> Result<T>,
    ) -> Result<T> {
        let daemon = Daemon::start(&programs()?.join("slicer-mac"), &self.dir).await?;
        let client = daemon.client()?;
        let done = work(&daemon, &client).await;
        let stopped = daemon.stop(done.is_err()).await;
        match (done, stopped) {
            (Ok(done), Ok(())) => Ok(done),
            (Err(e), _) => Err(e),
            (_, Err(e)) => bail!("{e:#}"),
        }
    }
}
