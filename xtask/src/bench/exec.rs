//! Commands in a guest, over REST and with the command line.

use super::median;
use super::plan::Rounds;
use crate::text::say;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use slicer_api::ExecRequest;
use slicer_client::Client;
use std::process::Stdio;
use std::time::Instant;
use tokio::process::Command;

/// Rounds after which the guest's own spawn is measured anew.
const BLOCK: u32 = 50;
/// Processes the guest spawns to measure one.
const SPAWNS: u32 = 200;

/// Times in seconds, one of each per round.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// A buffered exec of `/bin/true` over REST.
    pub(crate) exec: Vec<f64>,
    /// `GET /vm/{h}/health`: the same way to the agent and back, on a stream of its own.
    pub(crate) health: Vec<f64>,
    /// What a shell in the guest needs to spawn `/bin/true` and wait for it.
    pub(crate) spawn: Vec<f64>,
}

impl Samples {
    /// What an exec can't be faster than.
    pub(crate) fn floor(&self) -> Vec<f64> {
        sums(&self.health, &self.spawn)
    }

    /// Where an exec's time goes, for people.
    pub(crate) fn story(&self) -> String {
        format!(
            "exec {:.2} ms; health round trip {:.2} ms, spawn in the guest {:.2} ms",
            1e3 * median(&self.exec),
            1e3 * median(&self.health),
            1e3 * median(&self.spawn),
        )
    }
}

/// Measures rounds of each.
pub(crate) async fn measure(rounds: Rounds, client: &Client, vm: &str) -> Result<Samples> {
    say("Exec");
    let mut samples = Samples::default();
    let mut spawn = 0.0;
    for round in rounds.run() {
        if round % BLOCK == 0 {
            spawn = spawn_in_guest(client, vm).await?;
        }
        samples.spawn.push(spawn);
        for exec in [round % 2 == 0, round % 2 != 0] {
            let start = Instant::now();
            if exec {
                run_true(client, vm).await?;
                samples.exec.push(start.elapsed().as_secs_f64());
            } else {
                client.health(vm).await?;
                samples.health.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(samples)
}

/// A buffered exec of `/bin/true` over REST.
pub(super) async fn run_true(client: &Client, vm: &str) -> Result<()> {
    let request = ExecRequest {
        cmd: "/bin/true".to_owned(),
        ..ExecRequest::default()
    };
    let done = client.exec_buffered(vm, &request).await?;
    ensure!(
        done.exit_code == 0,
        "/bin/true ended with {}",
        done.exit_code
    );
    Ok(())
}

/// Seconds a spawn takes in the guest, by the guest's own clock.
pub(super) async fn spawn_in_guest(client: &Client, vm: &str) -> Result<f64> {
    let script = format!(
        "list=$(seq {SPAWNS}); start=$(date +%s%N); for i in $list; do /bin/true; done; \
         end=$(date +%s%N); echo $((end - start))"
    );
    let request = ExecRequest {
        cmd: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script],
        ..ExecRequest::default()
    };
    let done = client.exec_buffered(vm, &request).await?;
    let nanos: f64 = done
        .stdout
        .trim()
        .parse()
        .with_context(|| format!("the guest timed nothing: {}", done.stderr.trim()))?;
    Ok(nanos / 1e9 / f64::from(SPAWNS))
}

/// Times in seconds, one of each per round.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CliSamples {
    /// `slicer vm exec --shell "" VM -- /bin/true`, from its start to its end.
    pub(crate) cli: Vec<f64>,
    /// A buffered exec over REST.
    pub(crate) rest: Vec<f64>,
    /// `slicer version`, from its start to its end.
    pub(crate) version: Vec<f64>,
}

impl CliSamples {
    /// What the command line can't be faster than.
    pub(crate) fn floor(&self) -> Vec<f64> {
        sums(&self.rest, &self.version)
    }

    /// Where its time goes, for people.
    pub(crate) fn story(&self) -> String {
        format!(
            "slicer vm exec {:.2} ms; REST exec {:.2} ms, slicer version {:.2} ms",
            1e3 * median(&self.cli),
            1e3 * median(&self.rest),
            1e3 * median(&self.version),
        )
    }
}

/// Measures rounds of each. `slicer` makes a command of `slicer`'s arguments.
pub(crate) async fn measure_cli(
    rounds: Rounds,
    client: &Client,
    vm: &str,
    slicer: impl Fn(&[&str]) -> Command,
) -> Result<CliSamples> {
    say("CLI");
    let exec = ["vm", "exec", "--shell", "", vm, "--", "/bin/true"];
    let mut samples = CliSamples::default();
    for round in rounds.run() {
        let start = Instant::now();
        run_true(client, vm).await?;
        samples.rest.push(start.elapsed().as_secs_f64());
        for cli in [round % 2 == 0, round % 2 != 0] {
            let args: &[&str] = if cli { &exec } else { &["version"] };
            let mut command = slicer(args);
            let start = Instant::now();
            let status = command.stdout(Stdio::null()).status().await;
            let took = start.elapsed().as_secs_f64();
            let status = status.context("cannot run slicer")?;
            ensure!(
                status.success(),
                "slicer {} ended with {status}",
                args.join(" ")
            );
            if cli {
                &mut samples.cli
            } else {
                &mut samples.version
            }
            .push(took);
        }
    }
    Ok(samples)
}

fn sums(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
