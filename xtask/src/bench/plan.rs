//! How much of everything is measured, and for how long at most.

use serde::Serialize;
use std::time::{Duration, Instant};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pairs, at most, of whatever is measured in pairs: of the product and of its floor
    #[arg(long, env = "BENCH_PAIRS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// A few of each: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Only these parts; no report is written of them
    #[arg(long, env = "BENCH_ONLY", value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Give each part so many times its time
    #[arg(long, env = "BENCH_TIME", default_value_t = 1.0)]
    time: f64,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Launches
    Launch,
    /// Launches of an image without an init
    Minimal,
    /// Launches from templates, and the same by hand
    Template,
    /// Forks of a VM that runs
    Fork,
    /// Launches of what was booted ahead
    Pool,
    /// Many VMs at once: their launch, their memory, their CPU time
    Many,
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

impl Part {
    /// Its name, as `--only` takes it.
    pub(crate) fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// So many times, unless the time is over before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Rounds {
    /// This often and no more.
    most: u32,
    /// This often, however long it takes.
    least: u32,
    /// After this time, no further.
    seconds: f64,
}

impl Rounds {
    const fn new(most: u32, least: u32, seconds: f64) -> Self {
        Self {
            most,
            least,
            seconds,
        }
    }

    /// Numbers each round, from 0. The time begins with the first.
    pub(crate) fn run(self) -> impl Iterator<Item = u32> {
        let mut end = None;
        let within = move |round: &u32| {
            let time = Duration::from_secs_f64(self.seconds);
            let end = *end.get_or_insert_with(|| Instant::now() + time);
            *round < self.least || Instant::now() < end
        };
        (0..self.most).take_while(within)
    }
}

/// How much of everything is measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    #[serde(skip)]
    only: Vec<Part>,
    pub(crate) quick: bool,
    pub(crate) launch: Rounds,
    pub(crate) minimal: Rounds,
    pub(crate) template: Rounds,
    /// Launches from a template whose spread is looked at.
    pub(crate) template_launches: Rounds,
    /// Launches from a template in which the first exec is looked at.
    pub(crate) template_execs: Rounds,
    /// Launches of many at once from a template.
    pub(crate) template_bursts: Rounds,
    /// VMs of that.
    pub(crate) template_burst: u32,
    pub(crate) fork: Rounds,
    pub(crate) pool: Rounds,
    pub(crate) many: Rounds,
    /// VMs of that.
    pub(crate) many_vms: u32,
    pub(crate) many_idle_seconds: u64,
    pub(crate) suspend: Rounds,
    pub(crate) start: Rounds,
    pub(crate) shares: Rounds,
    pub(crate) image: Rounds,
    pub(crate) clones: Rounds,
    pub(crate) exec: Rounds,
    pub(crate) cli: Rounds,
    pub(crate) idle_seconds: u64,
    pub(crate) transfer: Rounds,
    pub(crate) transfer_bytes: u64,
    /// Of the transfers, those that are compared with more than the floor.
    pub(crate) transfer_notes: u32,
    pub(crate) tree: Rounds,
    pub(crate) tree_files: u32,
    pub(crate) forward: Rounds,
    pub(crate) echo: Rounds,
    pub(crate) connect: Rounds,
    pub(crate) stuck: Rounds,
    pub(crate) memory_bytes: u64,
}

impl Args {
    fn choose<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// What these ask for. On two processors that emulate their guests it takes some 20 minutes.
    pub(crate) fn plan(&self) -> Plan {
        let (pairs, time) = (self.pairs, self.time);
        let rounds = |most: u32, least: u32, seconds: f64| {
            if self.quick {
                Rounds::new(most.min(3), 1, 0.2 * seconds * time)
            } else {
                Rounds::new(most, least, seconds * time)
            }
        };
        Plan {
            only: self.only.clone(),
            quick: self.quick,
            launch: rounds(pairs, 5, 40.0),
            minimal: rounds(pairs, 5, 25.0),
            template: rounds(pairs, 5, 20.0),
            template_launches: rounds(50, 50, 40.0),
            template_execs: rounds(10, 5, 10.0),
            template_bursts: rounds(4, 2, 20.0),
            template_burst: self.choose(20, 4),
            fork: rounds(10, 5, 20.0),
            pool: rounds(pairs, 3, 50.0),
            many: rounds(5, 2, 45.0),
            many_vms: self.choose(8, 3),
            many_idle_seconds: self.choose(12, 5),
            suspend: rounds(pairs, 5, 40.0),
            start: rounds(20, 5, 10.0),
            shares: rounds(pairs, 5, 25.0),
            // One by hand takes ten times as long as ours.
            image: rounds(pairs, 3, 35.0),
            clones: rounds(pairs, 5, 20.0),
            exec: Rounds::new(self.choose(400, 100), 100, 20.0 * time),
            cli: Rounds::new(self.choose(60, 10), 10, 15.0 * time),
            idle_seconds: self.choose(15, 10),
            transfer: rounds(pairs, 4, 40.0),
            transfer_bytes: self.choose(256 << 20, 64 << 20),
            transfer_notes: self.choose(2, 1),
            tree: rounds(pairs, 3, 30.0),
            tree_files: self.choose(5000, 1000),
            forward: rounds(pairs, 5, 20.0),
            echo: rounds(20, 5, 15.0),
            connect: rounds(pairs, 5, 20.0),
            stuck: rounds(8, 4, 20.0),
            memory_bytes: self.choose(1 << 30, 256 << 20),
        }
    }
}

impl Plan {
    /// Whether a part is asked for.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// Whether it is a measurement of everything, of which a report can be made.
    pub(crate) fn is_whole(&self) -> bool {
        self.only.is_empty() && !self.quick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_end_with_their_number_or_their_time() {
        assert_eq!(Rounds::new(7, 2, 60.0).run().count(), 7);
        assert_eq!(Rounds::new(7, 2, 0.0).run().count(), 2);
        assert_eq!(Rounds::new(1, 2, 0.0).run().count(), 1);
        let mut rounds = Rounds::new(7, 1, 0.05).run();
        assert_eq!(rounds.next(), Some(0));
        assert_eq!(rounds.next(), Some(1));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(rounds.next(), None);
    }
}
