//! The backend's logic, against a framework whose every answer a test gives.

use crate::Apple;
use crate::framework::{ErrorKind, Event, Operation, VzError};
use crate::scripted::{Asked, Made, Scripted, files, spec};
use slicer_machine::{Hypervisor as _, Machine, MachineError, MachineState, StopReason};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

type Launched = Result<Box<dyn Machine>, MachineError>;

/// Launches a machine; its start is still to be answered.
fn launch(
    framework: Scripted,
    mut made: mpsc::UnboundedReceiver<Made>,
) -> (
    tokio::task::JoinHandle<Launched>,
    impl Future<Output = Made>,
) {
    let apple = Apple::new(framework);
    let launch = tokio::spawn(async move { apple.launch(spec("sbox-1")).await });
    (launch, async move { made.recv().await.unwrap() })
}

/// A machine that runs.
async fn running_of(
    framework: Scripted,
    made: mpsc::UnboundedReceiver<Made>,
) -> (Box<dyn Machine>, Made) {
    let (launch, made) = launch(framework, made);
    let mut made = made.await;
    made.obey(Operation::Start).await;
    (launch.await.unwrap().unwrap(), made)
}

async fn running() -> (Box<dyn Machine>, Made) {
    let (framework, made) = Scripted::new();
    running_of(framework, made).await
}

async fn state_is(machine: &dyn Machine, expected: &MachineState) {
    let mut state = machine.state();
    let there = state.wait_for(|s| s == expected);
    tokio::time::timeout(Duration::from_secs(20), there)
        .await
        .unwrap()
        .unwrap();
}

fn state_error() -> VzError {
    VzError {
        kind: ErrorKind::State,
        text: "invalid state".into(),
    }
}

#[tokio::test]
async fn a_launched_machine_runs_and_is_what_was_planned() {
    let (machine, made) = running().await;
    assert_eq!(*machine.state().borrow(), MachineState::Running);
    assert_eq!(made.plan.identifier, b"a new one");
    assert_eq!(made.plan.cpus, 2);
}

#[tokio::test]
async fn a_configuration_that_is_refused_is_told() {
    let (framework, made) = Scripted::new();
    let (launch, _made) = launch(framework.refusing("no entitlement"), made);
    let text = launch.await.unwrap().err().unwrap().to_string();
    assert_eq!(text, "sbox-1 did not start: no entitlement");
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let (framework, made) = Scripted::new();
    let (launch, made) = launch(framework, made);
    let mut made = made.await;
    let (_, done) = made.next().await;
    done.send(Err(VzError::other("limit of VMs exceeded")))
        .unwrap();
    let text = launch.await.unwrap().err().unwrap().to_string();
    assert_eq!(text, "sbox-1 did not start: limit of VMs exceeded");
    made.dropped().await;
}

#[tokio::test]
async fn a_start_without_an_answer_fails() {
    let (framework, made) = Scripted::new();
    let (launch, made) = launch(framework, made);
    let mut made = made.await;
    drop(made.next().await);
    let text = launch.await.unwrap().err().unwrap().to_string();
    assert!(text.contains("dropped its answer to start"), "{text}");
    made.dropped().await;
}

#[tokio::test]
async fn a_machine_that_fails_while_it_starts_is_told_why() {
    let (framework, made) = Scripted::new();
    let (launch, made) = launch(framework, made);
    let mut made = made.await;
    let (_, _done) = made.next().await;
    let failed = Event::Failed(VzError::other("the kernel is no Image"));
    made.events.send(failed).await.unwrap();
    let text = launch.await.unwrap().err().unwrap().to_string();
    assert!(text.contains("the kernel is no Image"), "{text}");
}

#[tokio::test]
async fn a_launch_that_is_given_up_is_stopped_once_it_has_started() {
    let (framework, made) = Scripted::new();
    let (launch, made) = launch(framework, made);
    let mut made = made.await;
    let (operation, done) = made.next().await;
    assert_eq!(operation, Operation::Start);
    launch.abort();
    assert!(launch.await.err().is_some_and(|e| e.is_cancelled()));
    done.send(Ok(())).unwrap();
    made.obey(Operation::Stop).await;
    made.dropped().await;
}

#[tokio::test]
async fn a_kill_gets_through_whatever_is_under_way() {
    let (machine, mut made) = running().await;
    machine_paused(&*machine, &mut made).await;
    let resume = machine.resume();
    let script = async {
        let (operation, _resume) = made.next().await;
        assert_eq!(operation, Operation::Resume);
        let killed = machine.kill();
        let answers = async {
            // In the middle of a transition the framework refuses, twice.
            for _ in 0..2 {
                let (operation, done) = made.next().await;
                assert_eq!(operation, Operation::Stop);
                done.send(Err(state_error())).unwrap();
            }
            made.obey(Operation::Stop).await;
        };
        let (killed, ()) = tokio::join!(killed, answers);
        killed.unwrap();
    };
    let (resumed, ()) = tokio::join!(resume, script);
    assert!(
        matches!(resumed, Err(MachineError::Gone { .. })),
        "{resumed:?}"
    );
    state_is(&*machine, &MachineState::Stopped(StopReason::Killed)).await;
    // Killing what is gone is success.
    machine.kill().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_can_not_be_stopped_is_given_up() {
    let (machine, mut made) = running().await;
    let killed = machine.kill();
    let answers = async {
        loop {
            match made.asked.recv().await {
                Some(Asked::Operation(_, done)) => drop(done.send(Err(state_error()))),
                Some(Asked::Connect(..)) => {}
                Some(Asked::Dropped) | None => return,
            }
        }
    };
    let (killed, ()) = tokio::join!(killed, answers);
    killed.unwrap();
    let state = machine.state().borrow().clone();
    let MachineState::Stopped(StopReason::Crashed(why)) = state else {
        panic!("{state:?}")
    };
    assert!(why.contains("invalid state"), "{why}");
}

async fn machine_paused(machine: &dyn Machine, made: &mut Made) {
    let (paused, ()) = tokio::join!(machine.pause(), made.obey(Operation::Pause));
    paused.unwrap();
}

#[tokio::test]
async fn what_is_paused_is_not_paused_again() {
    let (machine, mut made) = running().await;
    machine.resume().await.unwrap();
    machine_paused(&*machine, &mut made).await;
    assert_eq!(*machine.state().borrow(), MachineState::Paused);
    machine.pause().await.unwrap();
    let (resumed, ()) = tokio::join!(machine.resume(), made.obey(Operation::Resume));
    resumed.unwrap();
    assert_eq!(*machine.state().borrow(), MachineState::Running);
}

#[tokio::test]
async fn a_pause_that_fails_changes_nothing() {
    let (machine, mut made) = running().await;
    let refuse = async {
        let (_, done) = made.next().await;
        done.send(Err(VzError::other("not now"))).unwrap();
    };
    let (paused, ()) = tokio::join!(machine.pause(), refuse);
    let text = paused.unwrap_err().to_string();
    assert_eq!(text, "sbox-1: hypervisor command pause failed: not now");
    assert_eq!(*machine.state().borrow(), MachineState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_framework_that_does_not_answer_is_not_waited_for() {
    let (machine, mut made) = running().await;
    let silent = async {
        let (_, done) = made.next().await;
        tokio::time::sleep(Duration::from_hours(1)).await;
        drop(done);
    };
    let text = tokio::select! {
        paused = machine.pause() => paused.unwrap_err().to_string(),
        () = silent => panic!("the pause was waited for"),
    };
    assert!(text.contains("no answer within 30s"), "{text}");
}

#[tokio::test]
async fn a_pause_nobody_waits_for_is_gone_through_with() {
    let (machine, mut made) = running().await;
    let (operation, done) = tokio::select! {
        _ = machine.pause() => panic!("it was not answered"),
        asked = made.next() => asked,
    };
    assert_eq!(operation, Operation::Pause);
    done.send(Ok(())).unwrap();
    state_is(&*machine, &MachineState::Paused).await;
}

#[tokio::test]
async fn a_machine_that_is_dropped_while_it_is_saved_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut made) = running().await;
    machine_paused(&*machine, &mut made).await;
    let file = dir.path().join("memory");
    let (operation, done) = tokio::select! {
        _ = machine.save(&file) => panic!("it was not answered"),
        asked = made.next() => asked,
    };
    assert!(matches!(operation, Operation::Save(_)));
    drop(machine);
    done.send(Err(VzError::other("given up"))).unwrap();
    made.obey(Operation::Stop).await;
    made.dropped().await;
    assert!(files(dir.path()).is_empty());
}

#[tokio::test]
async fn a_guest_that_powers_off_ends_its_machine() {
    let (machine, made) = running().await;
    made.events.send(Event::GuestStopped).await.unwrap();
    state_is(&*machine, &MachineState::Stopped(StopReason::Guest)).await;
    for gone in [
        machine.pause().await,
        machine.request_stop().await,
        machine.connect().await.map(drop),
    ] {
        assert!(matches!(gone, Err(MachineError::Gone { .. })), "{gone:?}");
    }
    machine.kill().await.unwrap();
    assert_eq!(
        *machine.state().borrow(),
        MachineState::Stopped(StopReason::Guest)
    );
}

#[tokio::test]
async fn a_network_that_is_lost_is_no_end() {
    let (machine, mut made) = running().await;
    let lost = Event::NetworkLost(VzError::other("vmnet went away"));
    made.events.send(lost).await.unwrap();
    machine_paused(&*machine, &mut made).await;
    let failed = Event::Failed(VzError::other("its process died"));
    made.events.send(failed).await.unwrap();
    let crashed = StopReason::Crashed("its process died".into());
    state_is(&*machine, &MachineState::Stopped(crashed)).await;
}

#[tokio::test]
async fn the_power_button_is_pressed() {
    let (machine, mut made) = running().await;
    let press = made.obey(Operation::RequestStop);
    let (pressed, ()) = tokio::join!(machine.request_stop(), press);
    pressed.unwrap();
    assert_eq!(*machine.state().borrow(), MachineState::Running);
}

#[tokio::test]
async fn a_state_has_its_name_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut made) = running().await;
    machine_paused(&*machine, &mut made).await;
    let file = dir.path().join("memory");
    let (note, written) = tokio::join!(machine.save(&file), made.write(b"state"));
    assert_ne!(written, file);
    assert_eq!(std::fs::read(&file).unwrap(), b"state");
    assert_eq!(files(dir.path()), ["memory"]);
    assert_eq!(*machine.state().borrow(), MachineState::Paused);
    let plan = restored(&note.unwrap(), &file, Ok(())).await.unwrap();
    assert_eq!(plan.identifier, b"a new one");
}

/// Restores a state into another framework, which answers so.
async fn restored(
    note: &str,
    file: &Path,
    answer: Result<(), VzError>,
) -> Result<crate::plan::Plan, MachineError> {
    let (framework, mut made) = Scripted::new();
    let apple = Apple::new(framework);
    let script = async {
        let mut made = made.recv().await.unwrap();
        let (operation, done) = made.next().await;
        assert_eq!(operation, Operation::Restore(file.to_owned()));
        let works = answer.is_ok();
        done.send(answer).unwrap();
        if works {
            made.obey(Operation::Resume).await;
        }
        made
    };
    let (machine, made) = tokio::join!(apple.restore(spec("sbox-1"), file, note), script);
    let machine = machine?;
    assert_eq!(*machine.state().borrow(), MachineState::Running);
    Ok(made.plan)
}

async fn saved(dir: &Path) -> String {
    let (machine, mut made) = running().await;
    machine_paused(&*machine, &mut made).await;
    let file = dir.join("memory");
    let (note, _) = tokio::join!(machine.save(&file), made.write(b"state"));
    note.unwrap()
}

#[tokio::test]
async fn a_state_the_framework_refuses_is_incompatible_and_other_failures_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let note = saved(dir.path()).await;
    let refused = VzError {
        kind: ErrorKind::Restore,
        text: "another version".into(),
    };
    let file = dir.path().join("memory");
    let e = restored(&note, &file, Err(refused)).await.unwrap_err();
    assert!(matches!(e, MachineError::Incompatible { .. }), "{e}");
    let e = restored(&note, &file, Err(VzError::other("no file"))).await;
    assert!(matches!(e, Err(MachineError::Launch { .. })), "{e:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"state");
}

#[tokio::test]
async fn a_state_of_another_machine_is_refused_before_one_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let note = saved(dir.path()).await;
    let (framework, mut made) = Scripted::new();
    let apple = Apple::new(framework);
    let mut other = spec("sbox-1");
    other.cpus = 4;
    let e = apple
        .restore(other, &dir.path().join("memory"), &note)
        .await;
    let text = e.err().unwrap().to_string();
    assert!(text.contains("had 2 CPUs, and now has 4 CPUs"), "{text}");
    assert!(made.try_recv().is_err());
}

#[tokio::test]
async fn a_save_that_fails_leaves_the_machine_paused_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut made) = running().await;
    machine_paused(&*machine, &mut made).await;
    let file = dir.path().join("memory");
    let fail = async {
        let (operation, done) = made.next().await;
        let Operation::Save(path) = operation else {
            panic!()
        };
        std::fs::write(path, b"half").unwrap();
        done.send(Err(VzError::other("disk full"))).unwrap();
    };
    let (saved, ()) = tokio::join!(machine.save(&file), fail);
    let text = saved.unwrap_err().to_string();
    assert_eq!(text, "sbox-1: hypervisor command save failed: disk full");
    assert!(files(dir.path()).is_empty());
    assert_eq!(*machine.state().borrow(), MachineState::Paused);
}

#[tokio::test]
async fn a_machine_that_ends_while_it_is_saved_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, mut made) = running().await;
    machine_paused(&*machine, &mut made).await;
    let file = dir.path().join("memory");
    let fail = async {
        let (_, _done) = made.next().await;
        let failed = Event::Failed(VzError::other("out of memory"));
        made.events.send(failed).await.unwrap();
        state_is(
            &*machine,
            &MachineState::Stopped(StopReason::Crashed("out of memory".into())),
        )
        .await;
    };
    let (saved, ()) = tokio::join!(machine.save(&file), fail);
    assert!(matches!(saved, Err(MachineError::Gone { .. })), "{saved:?}");
    assert!(files(dir.path()).is_empty());
}

#[tokio::test]
async fn where_nothing_can_be_saved_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("memory");
    let (framework, made) = Scripted::new();
    let framework = framework.without_save();
    let apple = Apple::new(Scripted::new().0.without_save());
    assert!(!apple.capabilities().save_restore);
    let e = apple
        .restore(spec("sbox-1"), &file, "{}")
        .await
        .err()
        .unwrap();
    assert!(
        e.to_string()
            .contains("macOS 14 or later, and this is macOS 13.6"),
        "{e}"
    );
    let (machine, _made) = running_of(framework, made).await;
    let e = machine.save(&file).await.unwrap_err();
    assert!(matches!(e, MachineError::Unsupported { .. }), "{e}");

    let (framework, made) = Scripted::new();
    let (machine, _made) = running_of(framework.refusing_save("not with this device"), made).await;
    let e = machine.save(&file).await.unwrap_err();
    assert!(e.to_string().contains("not with this device"), "{e}");
}

/// A guest's agent. It ends when this is dropped.
struct Guest {
    _task: AbortOnDropHandle<()>,
}

/// A guest that echoes, on one connection.
fn guest(connection: OwnedFd) -> Guest {
    let stream = StdUnixStream::from(connection);
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::UnixStream::from_std(stream).unwrap();
    let serve = async move {
        let served = slicer_channel::serve(stream, |stream| {
            tokio::spawn(async move {
                let (mut r, mut w) = tokio::io::split(stream);
                drop(tokio::io::copy(&mut r, &mut w).await);
                drop(w.shutdown().await);
            });
        });
        drop(served.await);
    };
    Guest {
        _task: AbortOnDropHandle::new(tokio::spawn(serve)),
    }
}

/// Answers the next connection with one end of a pair.
async fn accept(made: &mut Made) -> OwnedFd {
    let Some(Asked::Connect(port, done)) = made.asked.recv().await else {
        panic!("only connections are asked for")
    };
    assert_eq!(port, 1024);
    let (near, far) = StdUnixStream::pair().unwrap();
    done.send(Ok(near.into())).unwrap();
    far.into()
}

async fn echoes(machine: &dyn Machine) {
    let echo = async {
        let mut stream = machine.connect().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"hello");
    };
    tokio::time::timeout(Duration::from_secs(20), echo)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_guest_that_refuses_at_first_is_asked_again() {
    let (machine, mut made) = running().await;
    let script = async {
        for _ in 0..3 {
            let Some(Asked::Connect(_, done)) = made.asked.recv().await else {
                panic!("only connections are asked for")
            };
            done.send(Err(VzError::other("connection reset by peer")))
                .unwrap();
        }
        // One that is taken, and closed before a greeting.
        drop(accept(&mut made).await);
        guest(accept(&mut made).await)
    };
    let ((), agent) = tokio::join!(echoes(&*machine), script);
    // Its agent ends, and another one takes its place.
    drop(agent);
    let again = async { guest(accept(&mut made).await) };
    let ((), _agent) = tokio::join!(echoes_at_last(&*machine), again);
}

/// As [`echoes`], for a machine whose last session may not have been missed yet.
async fn echoes_at_last(machine: &dyn Machine) {
    let echo = async {
        loop {
            let mut stream = machine.connect().await.unwrap();
            let mut back = Vec::new();
            let written = stream.write_all(b"hello").await;
            if written.is_ok()
                && stream.shutdown().await.is_ok()
                && stream.read_to_end(&mut back).await.is_ok()
                && back == b"hello"
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), echo)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_stream_waits_for_a_paused_machine_and_fails_with_a_stopped_one() {
    let (machine, mut made) = running().await;
    machine_paused(&*machine, &mut made).await;
    let waiting = tokio::time::timeout(Duration::from_millis(100), machine.connect());
    assert!(waiting.await.is_err());
    let end = async {
        made.events.send(Event::GuestStopped).await.unwrap();
    };
    let (stream, ()) = tokio::join!(machine.connect(), end);
    assert!(matches!(stream.err(), Some(MachineError::Gone { .. })));
}
