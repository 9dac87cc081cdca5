//! Forks of a VM that runs: how long it hears nothing meanwhile, and how soon its fork is there.

use super::plan::Rounds;
use super::{LARGE, create_in, http, median};
use crate::daemon::Daemon;
use crate::text::say;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use slicer_api::ExecRequest;
use slicer_client::Client;
use std::time::{Duration, Instant};

/// Makes the guest use half of its memory for what can't be left out.
const FILL: &str =
    "head -c 512M /dev/urandom > /dev/shm/fill; systemctl is-system-running --wait; true";
/// Requests before a fork.
const BEFORE: u32 = 50;
/// Requests go on for so long after it.
const AFTER: Duration = Duration::from_millis(300);

/// Times in seconds, one of each per fork.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Samples {
    /// The longest request to the parent while it is forked, of those that follow one another.
    pub(crate) longest: Vec<f64>,
    /// The longest just before.
    pub(crate) longest_before: Vec<f64>,
    /// How long the parent was paused, as the answer says.
    pub(crate) paused: Vec<f64>,
    /// From the request until the fork is ready.
    pub(crate) ready: Vec<f64>,
}

/// Measures forks of a VM of 1 GiB; none when the daemon has no such thing.
pub(crate) async fn measure(
    rounds: Rounds,
    daemon: &Daemon,
    client: &Client,
) -> Result<Option<Samples>> {
    say("Fork: a VM that runs, of 1 GiB");
    let vm = create_in(LARGE, client).await?;
    let fill = ExecRequest {
        cmd: FILL.to_owned(),
        shell: Some("/bin/sh".to_owned()),
        uid: 0,
        gid: 0,
        ..ExecRequest::default()
    };
    let filled = client.exec_buffered(&vm, &fill).await?;
    ensure!(filled.exit_code == 0, "{filled:?}");
    let mut samples = Samples::default();
    for _ in rounds.run() {
        let mut longest_before = 0.0;
        for _ in 0..BEFORE {
            longest_before = f64::max(longest_before, request(client, &vm).await?);
        }
        let path = format!("/vm/{vm}/fork?wait=agent");
        let socket = daemon.socket();
        let fork = tokio::spawn(async move {
            let start = Instant::now();
            let answer = http::ask(&socket, "POST", &path, "{}").await;
            answer.map(|answer| (answer, start.elapsed().as_secs_f64()))
        });
        let mut longest = 0.0;
        while !fork.is_finished() {
            longest = f64::max(longest, request(client, &vm).await?);
        }
        let ((status, body), ready) = fork.await??;
        if status == 404 || status == 405 || status == 501 {
            client.delete_node(LARGE, &vm).await?;
            return Ok(None);
        }
        ensure!(status == 200, "the fork was answered by {status}: {body}");
        let after = Instant::now();
        while after.elapsed() < AFTER {
            longest = f64::max(longest, request(client, &vm).await?);
        }
        let answer: serde_json::Value = serde_json::from_str(&body)?;
        let nanos = answer["paused"].as_f64().context("it says no pause")?;
        let child = answer["vms"][0]["hostname"].as_str();
        client
            .delete_node(LARGE, child.context("it names no VM")?)
            .await?;
        samples.longest_before.push(longest_before);
        samples.longest.push(longest);
        samples.paused.push(nanos / 1e9);
        samples.ready.push(ready);
    }
    client.delete_node(LARGE, &vm).await?;
    Ok(Some(samples))
}

/// How long a request to the agent takes, also one that it does not answer in time.
async fn request(client: &Client, vm: &str) -> Result<f64> {
    let start = Instant::now();
    match client.health(vm).await {
        // It asks the agent for no longer than a second.
        Err(e) if e.status() != Some(503) => Err(e.into()),
        _ => Ok(start.elapsed().as_secs_f64()),
    }
}

impl Samples {
    /// How long it takes, for people.
    pub(crate) fn story(&self) -> String {
        let ms = |times: &[f64]| 1e3 * median(times);
        format!(
            "a fork of a running VM of 1 GiB is ready after {:.0} ms; its parent is paused for {:.0} ms, \
             and answers within {:.0} ms at most meanwhile, {:.0} ms before",
            ms(&self.ready),
            ms(&self.paused),
            ms(&self.longest),
            ms(&self.longest_before),
        )
    }
}
