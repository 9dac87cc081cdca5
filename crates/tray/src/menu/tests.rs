use super::*;
use crate::state::{DaemonDocker, Fleet, Stats};
use std::time::Duration;

fn running() -> State {
    State {
        daemon: Daemon::Up(Fleet {
            vm: Some(Vm {
                hostname: "slicer-1".into(),
                ip: "192.168.64.2".into(),
                status: NodeStatus::Running,
                stats: Some(Stats {
                    uptime: Duration::from_secs(23),
                    load: [0.08, 0.034, 1.0],
                    memory_used: 160 << 20,
                    memory_total: 8 << 30,
                    disk_used: 488 << 20,
                    disk_total: 15_891_378_995,
                    disk_percent: 3.4,
                    received: 4096,
                    sent: 0,
                    since: Duration::from_secs(2),
                }),
                docker: None,
            }),
            sandboxes: vec![
                Sandbox {
                    hostname: "sbox-1".into(),
                    group: "sbox".into(),
                    name: None,
                    status: NodeStatus::Running,
                    persistent: false,
                    kept: false,
                },
                Sandbox {
                    hostname: "sbox-2".into(),
                    group: "sbox".into(),
                    name: Some("web".into()),
                    status: NodeStatus::Stopped,
                    persistent: true,
                    kept: false,
                },
            ],
        }),
        ..State::default()
    }
}

fn vm(state: &mut State) -> &mut Vm {
    match &mut state.daemon {
        Daemon::Up(fleet) => fleet.vm.as_mut().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn with_status(status: NodeStatus) -> State {
    let mut state = running();
    vm(&mut state).status = status;
    vm(&mut state).stats = None;
    state
}

/// The menu as text: what is disabled in parentheses, what is checked with an x.
fn text(state: &State) -> String {
    fn write(entries: &[Entry], indent: usize, out: &mut Vec<String>) {
        for entry in entries {
            let pad = " ".repeat(indent);
            let shown = |label: &str, enabled: bool| {
                if enabled {
                    label.to_owned()
                } else {
                    format!("({label})")
                }
            };
            match entry {
                Entry::Line(text) => out.push(format!("{pad}{text}")),
                Entry::Item { label, enabled, .. } => {
                    out.push(format!("{pad}> {}", shown(label, *enabled)));
                }
                Entry::Check {
                    label,
                    enabled,
                    checked,
                    ..
                } => {
                    let mark = if *checked { "x" } else { " " };
                    out.push(format!("{pad}[{mark}] {}", shown(label, *enabled)));
                }
                Entry::Submenu { label, entries } => {
                    out.push(format!("{pad}{label}:"));
                    write(entries, indent + 2, out);
                }
                Entry::Separator => out.push(format!("{pad}---")),
            }
        }
    }
    let mut out = Vec::new();
    write(&View::of(state).entries, 0, &mut out);
    out.join("\n")
}

#[test]
fn a_running_vm_has_it_all() {
    assert_eq!(
        text(&running()),
        "slicer-1 running · Up 23s
Sandboxes: 2:
  sbox-1:
    > Launch shell
    > Delete
  sbox-2 (web) · stopped:
    > (Launch shell)
    > Delete…
IP: 192.168.64.2
Load (1m 5m 15m): 0.08  0.03  1.00
Memory: 160 MB / 8.0 GB  ▰▱▱▱▱▱▱▱▱▱
Disk: 488 MB / 14.8 GB (3%)  ▰▱▱▱▱▱▱▱▱▱
Net: RX 2 KB/s  TX 0 B/s
---
> Launch shell
> (Launch Docker shell)
> Restart VM
> Shut Down VM
> Reset VM Disk…
> View Serial Log
[ ] Docker forward
---
> Quit"
    );
    let view = View::of(&running());
    assert!(view.lit);
    assert_eq!(view.summary, "slicer-1 running · Up 23s");
}

#[test]
fn a_stopped_vm_can_be_started() {
    assert_eq!(
        text(&with_status(NodeStatus::Stopped)),
        "slicer-1 stopped
Sandboxes: 2:
  sbox-1:
    > Launch shell
    > Delete
  sbox-2 (web) · stopped:
    > (Launch shell)
    > Delete…
IP: 192.168.64.2
Load (1m 5m 15m): –
Memory: –  ▱▱▱▱▱▱▱▱▱▱
Disk: –  ▱▱▱▱▱▱▱▱▱▱
Net: –
---
> (Launch shell)
> (Launch Docker shell)
> Start VM
> (Shut Down VM)
> Reset VM Disk…
> View Serial Log
[ ] Docker forward
---
> Quit"
    );
    let power = |status| {
        let text = text(&with_status(status));
        text.lines()
            .find(|l| l.ends_with("VM") && !l.contains("Shut"))
            .unwrap()
            .to_owned()
    };
    assert_eq!(power(NodeStatus::Paused), "> Resume VM");
    assert_eq!(power(NodeStatus::Suspended), "> Restore VM");
    assert!(!View::of(&with_status(NodeStatus::Paused)).lit);
}

#[test]
fn one_thing_at_a_time_is_done_to_a_vm() {
    let mut state = running();
    state.busy = Some("restarting");
    let text = text(&state);
    assert!(text.starts_with("slicer-1 restarting…\n"), "{text}");
    for item in [
        "Launch shell",
        "Restart VM",
        "Shut Down VM",
        "Reset VM Disk…",
    ] {
        assert!(text.contains(&format!("\n> ({item})\n")), "{text}");
    }
    // Others are not touched.
    assert!(text.contains("\n    > Launch shell\n"), "{text}");
}

#[test]
fn no_daemon_is_a_line() {
    let mut state = State {
        daemon: Daemon::Down("No daemon at ~/slicer-mac/slicer.sock".into()),
        ..State::default()
    };
    assert_eq!(
        text(&state),
        "No daemon at ~/slicer-mac/slicer.sock
---
> (Launch shell)
> (Launch Docker shell)
> (Restart VM)
> (Shut Down VM)
> (Reset VM Disk…)
> (View Serial Log)
[ ] (Docker forward)
---
> Quit"
    );
    state.daemon = Daemon::Unknown;
    assert!(text(&state).starts_with("Looking for the daemon…\n"));
    state.daemon = Daemon::Up(Fleet::default());
    let text = text(&state);
    assert!(
        text.starts_with("No VM is configured\nSandboxes: 0:\n---\n"),
        "{text}"
    );
}

#[test]
fn docker_is_forwarded_by_the_daemon_or_by_the_tray() {
    let mut state = running();
    state.docker = Docker::On("/h/.slicer/docker.sock".into());
    let by_tray = text(&state);
    assert!(by_tray.contains("[x] Docker forward\n"), "{by_tray}");
    assert!(by_tray.contains("> Launch Docker shell\n"), "{by_tray}");
    state.docker = Docker::Off;
    vm(&mut state).docker = Some(DaemonDocker {
        socket: "/h/.slicer/docker.sock".into(),
        listening: true,
    });
    let by_daemon = text(&state);
    assert!(
        by_daemon.contains("[x] (Docker forward (by the daemon))\n"),
        "{by_daemon}"
    );
    assert!(by_daemon.contains("> Launch Docker shell\n"), "{by_daemon}");
    vm(&mut state).docker.as_mut().unwrap().listening = false;
    let in_use = text(&state);
    assert!(
        in_use.contains("[ ] (Docker forward: /h/.slicer/docker.sock is in use)\n"),
        "{in_use}"
    );
    assert!(in_use.contains("> (Launch Docker shell)\n"), "{in_use}");
}

#[test]
fn what_went_wrong_is_a_line_of_bounded_length() {
    let mut state = running();
    state.trouble = Some(format!("Restart VM: {}\nx", "no ".repeat(50)));
    let text = text(&state);
    let line = text.lines().nth(1).unwrap();
    assert!(line.starts_with("⚠ Restart VM: no no "), "{line}");
    assert!(line.ends_with('…'));
    assert_eq!(line.chars().count(), MAX_LINE);
}

#[test]
fn many_sandboxes_are_counted_and_those_that_are_kept_are_not_deleted() {
    let mut state = running();
    if let Daemon::Up(fleet) = &mut state.daemon {
        let mut one = fleet.sandboxes.remove(0);
        one.kept = true;
        fleet.sandboxes = vec![one; MAX_SANDBOXES + 2];
    }
    let text = text(&state);
    assert!(text.contains("Sandboxes: 32:\n"), "{text}");
    assert!(text.contains("\n  and 2 more\n"), "{text}");
    assert!(!text.contains("Delete"), "{text}");
}

#[test]
fn only_what_is_not_alike_is_replaced() {
    let before = View::of(&running()).entries;
    let mut state = running();
    state.busy = Some("restarting");
    let busy = View::of(&state).entries;
    assert_eq!(alike(&before, &busy), (before.len(), 0));
    state.trouble = Some("Restart VM: no".into());
    let troubled = View::of(&state).entries;
    // The new line is in the place of what was second.
    assert_eq!(alike(&before, &troubled), (1, before.len() - 1));
    let stopped = View::of(&with_status(NodeStatus::Stopped)).entries;
    let (first, last) = alike(&before, &stopped);
    assert!(matches!(
        &before[first],
        Entry::Item {
            action: Action::Restart,
            ..
        }
    ));
    assert!(matches!(
        &before[before.len() - last - 1],
        Entry::Item {
            action: Action::Restart,
            ..
        }
    ));
    assert_eq!(alike(&[], &before), (0, 0));
}
