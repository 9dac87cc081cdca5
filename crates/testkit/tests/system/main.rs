//! The programs users get, with real VMs.
//!
//! `tour` holds one daemon, set up as the README says, with one sandbox; tests that only need a VM
//! share it and leave it as it was. Tests that stop daemons or fill disks have their own.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

mod agent;
mod arm64;
mod background;
mod check;
mod commits;
mod contract;
mod cp;
mod crash;
mod disks;
mod docker;
mod entrypoint;
mod exec;
mod faults;
mod firstboot;
mod foreign;
mod forward;
mod fs;
mod guest;
mod images;
mod install;
mod lifecycle;
mod limits;
mod listen;
mod live;
mod many;
mod memory;
mod network;
mod pool;
mod power;
mod reclaim;
mod service;
mod shares;
mod shell;
mod sleep;
mod ssh;
mod stats;
mod suspend;
mod template;
mod tour;
mod tray;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::sync::Arc;
use tour::Tour;

/// More VMs than this at once are slower than fewer, under software emulation.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(THREADS);
    let tour = Arc::new(Tour::default());
    // First what has the longest to wait, last what disturbs.
    let trials = [
        docker::trials(),
        reclaim::trials(),
        tour::trials(&tour),
        check::trials(),
        contract::trials(),
        exec::trials(&tour),
        background::trials(&tour),
        fs::trials(&tour),
        guest::trials(&tour),
        limits::trials(&tour),
        stats::trials(&tour),
        shell::trials(&tour),
        cp::trials(&tour),
        memory::trials(&tour),
        forward::trials(&tour),
        ssh::trials(&tour),
        agent::trials(),
        lifecycle::trials(),
        crash::trials(),
        commits::trials(),
        firstboot::trials(),
        foreign::trials(),
        arm64::trials(),
        entrypoint::trials(),
        disks::trials(),
        images::trials(),
        install::trials(),
        listen::trials(),
        pool::trials(),
        power::trials(),
        service::trials(),
        shares::trials(),
        suspend::trials(),
        tray::trials(),
        sleep::trials(),
        template::trials(),
        live::trials(),
        faults::trials(),
        network::trials(),
        many::trials(),
    ];
    let conclusion = libtest_mimic::run(&args, trials.into_iter().flatten().collect());
    drop(tour);
    conclusion.exit_code()
}

/// A test that needs nothing.
fn trial<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
        Ok(())
    })
}

/// A test on the shared daemon.
fn on_tour(tour: &Arc<Tour>, name: &str, test: impl AsyncFnOnce(&Tour) + Send + 'static) -> Trial {
    let tour = tour.clone();
    trial(name, move || async move { test(&tour).await })
}

/// The tests of a module by their functions' names.
macro_rules! tests {
    ($module:literal: $($test:ident),+ $(,)?) => {
        vec![$(crate::trial(concat!($module, "::", stringify!($test)), $test)),+]
    };
    ($module:literal, $tour:expr; $($test:ident),+ $(,)?) => {
        vec![$(crate::on_tour($tour, concat!($module, "::", stringify!($test)), $test)),+]
    };
}
use tests;
