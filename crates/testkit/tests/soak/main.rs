//! A daemon and its VMs under all that users do to them, at random.
//!
//! `MINUTES` says how long, one unless given, and `SEED` which steps: the same seed has the same steps.
//! After each, what the daemon says and what is on the host is held against a model of what must be
//! there; from time to time all is put to rest, and nothing may be left over.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed helper fails the test, and steps are printed as they are done"
)]

mod host;
mod model;
mod steps;

use fastrand::Rng;
use host::Use;
use libtest_mimic::{Arguments, Trial};
use model::{Kind, Model, Step};
use slicer_testkit::{Group, Setup, TestDaemon, minimal_layout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long, unless it is said.
const MINUTES: f64 = 1.0;
/// After so many steps all is put to rest, and nothing may be left over.
const ROUND: u32 = 100;
/// In so many of them, the first, the daemon may be ended: what it leaks shows only in one that has
/// lived for a while.
const ENDS: u32 = 20;

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let trial = Trial::test("soak", || {
        let number = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let minutes = number("MINUTES").map_or(MINUTES, |text| text.parse().unwrap());
        let seed = number("SEED").map_or_else(|| fastrand::u32(..), |text| text.parse().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(soak(seed, Duration::from_secs_f64(minutes * 60.0)));
        Ok(())
    });
    libtest_mimic::run(&args, vec![trial]).exit_code()
}

/// Small VMs of an image without an init, which boot in seconds under emulation.
fn setup() -> Setup {
    let group = |name, count| Group {
        name,
        count,
        vcpu: 1,
        ram_mb: 256,
        sleep_action: "none",
    };
    Setup {
        warm: true,
        image: Some(format!("oci:{}:latest", minimal_layout().display())),
        ..Setup::of([group("slicer", 1), group("sbox", 0)])
    }
}

async fn soak(seed: u32, time: Duration) {
    eprintln!("soak: SEED={seed}, {} s", time.as_secs());
    let mut rng = Rng::with_seed(seed.into());
    let mut daemon = TestDaemon::start(&setup());
    let mut model = Model::new();
    steps::settle(&model, &daemon).await;
    // A start removes what this image has no use for.
    daemon.terminate();
    steps::start(&mut model, &mut daemon).await;
    // What is loaded and opened at the first use isn't leaked.
    let first = Step::Create(Kind::Kept);
    steps::run(&mut model, &daemon, &[first], &mut rng).await;
    steps::rest(&mut model, &daemon).await;
    let before = Use::of(&daemon);

    let started = Instant::now();
    let mut count: u32 = 0;
    while started.elapsed() < time {
        let chosen = model.choose(count % ROUND < ENDS, &mut rng);
        count += 1;
        let what: Vec<String> = chosen.iter().map(|step| model.describe(step)).collect();
        let at = started.elapsed().as_secs();
        eprintln!("soak: {at} s, {count}: {}", what.join(" | "));
        match chosen[..] {
            [Step::Restart] => {
                daemon.terminate();
                steps::start(&mut model, &mut daemon).await;
            }
            [Step::Crash] => {
                daemon.crash();
                host::ended(&daemon);
                steps::start(&mut model, &mut daemon).await;
            }
            _ => steps::run(&mut model, &daemon, &chosen, &mut rng).await,
        }
        host::holds(&model, &daemon).await;
        if count.is_multiple_of(ROUND) {
            eprintln!("soak: at rest");
            steps::rest(&mut model, &daemon).await;
            host::holds(&model, &daemon).await;
            before.is_all(&daemon);
        }
    }
    eprintln!("soak: {count} steps in {} s", started.elapsed().as_secs());
    steps::rest(&mut model, &daemon).await;
    host::holds(&model, &daemon).await;
    before.is_all(&daemon);
    daemon.stop();
}
