//! From what is known to what the menu shows.

use crate::action::Action;
use crate::format;
use crate::state::{Daemon, Docker, Sandbox, State, Stats, Vm};
use slicer_api::NodeStatus;
use std::fmt::Write as _;

/// More sandboxes than this are only counted.
const MAX_SANDBOXES: usize = 30;
/// A longer line would make the menu as wide as the screen.
const MAX_LINE: usize = 72;

/// An entry of the menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Something to read.
    Line(String),
    /// Something to click.
    Item {
        action: Action,
        label: String,
        enabled: bool,
    },
    /// Something that is on or off.
    Check {
        action: Action,
        label: String,
        enabled: bool,
        checked: bool,
    },
    /// More entries.
    Submenu {
        label: String,
        entries: Vec<Entry>,
    },
    Separator,
}

impl Entry {
    fn item(action: Action, label: impl Into<String>, enabled: bool) -> Self {
        Self::Item {
            action,
            label: label.into(),
            enabled,
        }
    }

    /// Whether this one can take the place of the other by changing its words and marks.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Line(_), Self::Line(_))
            | (Self::Separator, Self::Separator)
            | (Self::Submenu { .. }, Self::Submenu { .. }) => true,
            (Self::Item { action: a, .. }, Self::Item { action: b, .. })
            | (Self::Check { action: a, .. }, Self::Check { action: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) entries: Vec<Entry>,
    /// The first line, for who points at the icon.
    pub(crate) summary: String,
    /// Whether the VM runs, which the icon tells.
    pub(crate) lit: bool,
}

/// How many entries at the beginning and at the end of two menus are alike; only those in between have
/// to be replaced.
pub(crate) fn alike(old: &[Entry], new: &[Entry]) -> (usize, usize) {
    let count = |pairs: &mut dyn Iterator<Item = (&Entry, &Entry)>| {
        pairs.take_while(|(a, b)| a.is_like(b)).count()
    };
    let first = count(&mut old.iter().zip(new));
    let last = count(&mut old[first..].iter().rev().zip(new[first..].iter().rev()));
    (first, last)
}

impl View {
    pub(crate) fn of(state: &State) -> Self {
        let summary = shorten(&summary(state));
        let mut entries = vec![Entry::Line(summary.clone())];
        if let Some(trouble) = &state.trouble {
            entries.push(Entry::Line(shorten(&format!("⚠ {trouble}"))));
        }
        if let Daemon::Up(fleet) = &state.daemon {
            entries.push(sandboxes(&fleet.sandboxes));
            if let Some(vm) = &fleet.vm {
                entries.extend(usage(vm).into_iter().map(Entry::Line));
            }
        }
        entries.push(Entry::Separator);
        entries.extend(actions(state));
        entries.push(Entry::Separator);
        entries.push(Entry::item(Action::Quit, "Quit", true));
        Self {
            entries,
            summary,
            lit: state
                .vm()
                .is_some_and(|vm| vm.status == NodeStatus::Running),
        }
    }
}

fn summary(state: &State) -> String {
    let fleet = match &state.daemon {
        Daemon::Unknown => return "Looking for the daemon…".to_owned(),
        Daemon::Down(why) => return why.clone(),
        Daemon::Up(fleet) => fleet,
    };
    let Some(vm) = &fleet.vm else {
        return "No VM is configured".to_owned();
    };
    let name = &vm.hostname;
    match (state.busy, vm.status, &vm.stats) {
        (Some(busy), ..) => format!("{name} {busy}…"),
        (None, NodeStatus::Running, Some(stats)) => {
            format!("{name} running · Up {}", format::uptime(stats.uptime))
        }
        // Booting, or on its way off.
        (None, NodeStatus::Running, None) => format!("{name} running · not ready"),
        (None, status, _) => format!("{name} {}", status.to_string().to_lowercase()),
    }
}

fn sandboxes(all: &[Sandbox]) -> Entry {
    let mut entries: Vec<Entry> = all.iter().take(MAX_SANDBOXES).map(sandbox).collect();
    if let Some(more @ 1..) = all.len().checked_sub(MAX_SANDBOXES) {
        entries.push(Entry::Line(format!("and {more} more")));
    }
    Entry::Submenu {
        label: format!("Sandboxes: {}", all.len()),
        entries,
    }
}

fn sandbox(sandbox: &Sandbox) -> Entry {
    let hostname = &sandbox.hostname;
    let mut label = hostname.clone();
    if let Some(name) = &sandbox.name {
        let _ = write!(label, " ({name})");
    }
    if sandbox.status != NodeStatus::Running {
        let _ = write!(label, " · {}", sandbox.status.to_string().to_lowercase());
    }
    let running = sandbox.status == NodeStatus::Running;
    let mut entries = vec![Entry::item(
        Action::Shell(hostname.clone()),
        "Launch shell",
        running,
    )];
    if !sandbox.kept {
        // What was meant to stay is asked about.
        let delete = if sandbox.persistent {
            "Delete…"
        } else {
            "Delete"
        };
        entries.push(Entry::item(Action::Delete(hostname.clone()), delete, true));
    }
    Entry::Submenu {
        label: shorten(&label),
        entries,
    }
}

/// Always as many lines, for a menu that is open doesn't grow.
fn usage(vm: &Vm) -> [String; 5] {
    let stats = vm.stats.as_ref();
    let said = |text: fn(&Stats) -> String| stats.map_or_else(|| "–".to_owned(), text);
    [
        format!("IP: {}", vm.ip),
        format!(
            "Load (1m 5m 15m): {}",
            said(|s| {
                let [one, five, fifteen] = s.load;
                format!("{one:.2}  {five:.2}  {fifteen:.2}")
            })
        ),
        format!(
            "Memory: {}  {}",
            said(|s| format!(
                "{} / {}",
                format::bytes(s.memory_used),
                format::bytes(s.memory_total)
            )),
            stats.map_or_else(
                || format::bar(0, 0),
                |s| format::bar(s.memory_used, s.memory_total)
            )
        ),
        format!(
            "Disk: {}  {}",
            said(|s| format!(
                "{} / {} ({:.0}%)",
                format::bytes(s.disk_used),
                format::bytes(s.disk_total),
                s.disk_percent
            )),
            stats.map_or_else(
                || format::bar(0, 0),
                |s| format::bar(s.disk_used, s.disk_total)
            )
        ),
        format!(
            "Net: {}",
            said(|s| format!(
                "RX {}  TX {}",
                format::rate(s.received, s.since),
                format::rate(s.sent, s.since)
            ))
        ),
    ]
}

fn actions(state: &State) -> Vec<Entry> {
    let vm = state.vm();
    let status = vm.map(|vm| vm.status);
    let running = status == Some(NodeStatus::Running);
    let idle = vm.is_some() && state.busy.is_none();
    let (power, label) = match status {
        Some(NodeStatus::Stopped) => (Action::Start, "Start VM"),
        Some(NodeStatus::Paused) => (Action::Resume, "Resume VM"),
        Some(NodeStatus::Suspended) => (Action::Restore, "Restore VM"),
        Some(NodeStatus::Running) | None => (Action::Restart, "Restart VM"),
    };
    let hostname = vm.map(|vm| vm.hostname.clone()).unwrap_or_default();
    vec![
        Entry::item(Action::Shell(hostname), "Launch shell", running && idle),
        Entry::item(
            Action::DockerShell,
            "Launch Docker shell",
            running && idle && state.docker_socket().is_some(),
        ),
        Entry::item(power, label, idle),
        Entry::item(
            Action::ShutDown,
            "Shut Down VM",
            idle && status != Some(NodeStatus::Stopped),
        ),
        Entry::item(Action::Reset, "Reset VM Disk…", idle && !state.asking),
        Entry::item(Action::Log, "View Serial Log", vm.is_some()),
        docker(state),
    ]
}

fn docker(state: &State) -> Entry {
    let (label, enabled, checked) =
        match (state.vm().and_then(|vm| vm.docker.as_ref()), &state.docker) {
            (_, Docker::On(_)) => ("Docker forward".to_owned(), true, true),
            // The configuration's is not the menu's to switch off.
            (Some(docker), _) if docker.listening => {
                ("Docker forward (by the daemon)".to_owned(), false, true)
            }
            (Some(docker), _) => {
                let socket = docker.socket.display();
                let label = shorten(&format!("Docker forward: {socket} is in use"));
                (label, false, false)
            }
            (None, Docker::Off) => ("Docker forward".to_owned(), state.vm().is_some(), false),
        };
    Entry::Check {
        action: Action::Docker,
        label,
        enabled,
        checked,
    }
}

/// A text on one line that is not too long.
fn shorten(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut chars = text.chars().map(plain);
    let mut short: String = chars.by_ref().take(MAX_LINE).collect();
    if chars.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;
