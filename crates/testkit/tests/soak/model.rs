//! What must be there, and what can be done next.

use fastrand::Rng;
use slicer_api::NodeStatus;
use std::collections::{BTreeMap, BTreeSet};

/// VMs that run at once: more are slower than fewer, under emulation.
const MOST_MACHINES: usize = 3;
const MOST_VMS: usize = 6;
const MOST_COMMITS: usize = 3;

/// What becomes of a VM that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is the configuration's: kept, and launched with the daemon.
    Configured,
    /// It is kept.
    Kept,
    /// It is gone.
    Ephemeral,
}

/// A VM as it must be.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) status: NodeStatus,
    /// Files on its disk, which were synced.
    pub(crate) files: BTreeMap<String, String>,
    /// What is in its memory alone.
    pub(crate) note: Option<String>,
    /// The commit it was forked from.
    pub(crate) parent: Option<u32>,
    /// The commits that its disk may lie over.
    pub(crate) commits: BTreeSet<u32>,
}

impl Vm {
    pub(crate) fn new(name: String, kind: Kind) -> Self {
        Self {
            name,
            kind,
            status: NodeStatus::Running,
            files: BTreeMap::new(),
            note: None,
            parent: None,
            commits: BTreeSet::new(),
        }
    }

    /// Whether a hypervisor runs it.
    pub(crate) fn has_machine(&self) -> bool {
        matches!(self.status, NodeStatus::Running | NodeStatus::Paused)
    }

    /// As it is without its machine: gone, unless it is kept.
    pub(crate) fn off(self) -> Option<Self> {
        if self.kind == Kind::Ephemeral {
            return None;
        }
        Some(Self {
            status: NodeStatus::Stopped,
            note: None,
            ..self
        })
    }
}

/// A commit as it must be.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) id: String,
    /// The VM it is of.
    pub(crate) source: u32,
    pub(crate) files: BTreeMap<String, String>,
    /// The commits that its disk may lie over.
    pub(crate) commits: BTreeSet<u32>,
}

/// One thing to do. VMs and commits go by number, so that what is chosen depends on no name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Create(Kind),
    Fork(u32, Kind),
    Uncommit(u32),
    /// A VM that goes on from where this one is.
    ForkLive(u32),
    /// All templates are removed.
    Untemplate,
    Vm(u32, Action),
    /// The daemon is ended by SIGTERM and started anew.
    Restart,
    /// It is ended by SIGKILL and started anew.
    Crash,
}

/// One thing to do to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Look at what it has, and write more.
    Use,
    /// A file in, and out again.
    Copy,
    /// Ask for what can't be now.
    Refuse,
    Pause,
    Resume,
    Suspend,
    Restore,
    Shutdown,
    Relaunch,
    Delete,
    Commit,
    /// SIGKILL to its QEMU.
    Kill,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) vms: BTreeMap<u32, Vm>,
    pub(crate) commits: BTreeMap<u32, Commit>,
    next: u32,
}

impl Model {
    /// The configuration's VM alone.
    pub(crate) fn new() -> Self {
        let vm = Vm::new("slicer-1".to_owned(), Kind::Configured);
        Self {
            vms: [(0, vm)].into(),
            commits: BTreeMap::new(),
            next: 1,
        }
    }

    /// How many hypervisors run.
    pub(crate) fn machines(&self) -> usize {
        self.vms.values().filter(|vm| vm.has_machine()).count()
    }

    pub(crate) fn describe(&self, step: &Step) -> String {
        match step {
            Step::Vm(id, action) => {
                let vm = &self.vms[id];
                format!("{action:?} {} ({:?}, {})", vm.name, vm.kind, vm.status)
            }
            Step::ForkLive(id) => format!("ForkLive {}", self.vms[id].name),
            step => format!("{step:?}"),
        }
    }

    /// A number for a VM or commit to come.
    pub(crate) fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Whether a commit can be removed; none if that is up to how the host's file system shares blocks.
    pub(crate) fn is_free(&self, id: u32) -> Option<bool> {
        let source = self.commits[&id].source;
        let vms = || self.vms.values();
        if self.vms.contains_key(&source) || vms().any(|vm| vm.parent == Some(id)) {
            return Some(false);
        }
        let below = vms().any(|vm| vm.commits.contains(&id))
            || self.commits.values().any(|c| c.commits.contains(&id));
        (!below).then_some(true)
    }

    /// What to do next: something to the daemon, if it may end, or to one VM or two at once.
    pub(crate) fn choose(&self, may_end: bool, rng: &mut Rng) -> Vec<Step> {
        match rng.u32(..10) {
            _ if !may_end => {}
            0 => return vec![Step::Restart],
            1 | 2 => return vec![Step::Crash],
            _ => {}
        }
        let mut steps: Vec<Step> = Vec::new();
        let mut machines = self.machines();
        for _ in 0..rng.usize(1..=2) {
            let mut can = self.possible(machines);
            can.retain(|step| !steps.iter().any(|s| excludes(s, step)));
            if can.is_empty() {
                break;
            }
            let step = can.swap_remove(rng.usize(..can.len()));
            machines += usize::from(starts_a_machine(&step));
            steps.push(step);
        }
        steps
    }

    /// All that can be done, the more often the likelier.
    fn possible(&self, machines: usize) -> Vec<Step> {
        use Action::{
            Commit, Copy, Delete, Kill, Pause, Refuse, Relaunch, Restore, Resume, Shutdown,
            Suspend, Use,
        };
        let mut can = Vec::new();
        let room = machines < MOST_MACHINES;
        if room && self.vms.len() < MOST_VMS {
            for kind in [Kind::Kept, Kind::Ephemeral] {
                can.push(Step::Create(kind));
                can.extend(self.commits.keys().map(|id| Step::Fork(*id, kind)));
            }
            // The disk of one that is never removed would lie over a snapshot's for good.
            let running = self
                .vms
                .iter()
                .filter(|(_, vm)| vm.status == NodeStatus::Running && vm.kind != Kind::Configured);
            can.extend(running.map(|(id, _)| Step::ForkLive(*id)));
            can.push(Step::Untemplate);
        }
        can.extend(self.commits.keys().map(|id| Step::Uncommit(*id)));
        for (id, vm) in &self.vms {
            let mut actions = match vm.status {
                NodeStatus::Running => {
                    vec![Use, Use, Use, Copy, Pause, Suspend, Shutdown, Kill, Refuse]
                }
                NodeStatus::Paused => vec![Resume, Resume, Suspend, Kill, Refuse],
                NodeStatus::Suspended if room => vec![Restore, Restore, Shutdown, Refuse],
                NodeStatus::Stopped if room => vec![Relaunch, Relaunch, Refuse],
                _ => vec![Refuse],
            };
            if vm.kind != Kind::Configured {
                actions.push(Delete);
                if vm.status == NodeStatus::Stopped && self.commits.len() < MOST_COMMITS {
                    actions.extend([Commit; 3]);
                }
            }
            can.extend(actions.into_iter().map(|action| Step::Vm(*id, action)));
        }
        can
    }
}

fn starts_a_machine(step: &Step) -> bool {
    matches!(
        step,
        Step::Create(_)
            | Step::Fork(..)
            | Step::ForkLive(_)
            | Step::Vm(_, Action::Restore | Action::Relaunch)
    )
}

/// Whether two steps can't be done at the same time, for what came of it would depend on who was
/// first.
fn excludes(a: &Step, b: &Step) -> bool {
    match (a, b) {
        (Step::Vm(a, _) | Step::ForkLive(a), Step::Vm(b, _) | Step::ForkLive(b)) => a == b,
        (Step::Uncommit(_), _) | (_, Step::Uncommit(_)) => true,
        _ => false,
    }
}
