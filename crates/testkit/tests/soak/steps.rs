//! What is done to VMs, and what must come of it.

use crate::model::{Action, Commit, Kind, Model, Step, Vm};
use fastrand::Rng;
use hyper::Method;
use slicer_api::{
    CommitRequest, CreateNode, ExecRequest, ForkRequest, ForkWait, LiveForkRequest, NodeStatus,
    ShutdownAction, Wait,
};
use slicer_client::{Client, ClientError, NodeFilter};
use slicer_testkit::{BOOT, Signal, TestDaemon, send_signal, wait_until};
use std::fs;

/// Files that a VM has at most.
const FILES: u32 = 6;
/// The most that is copied at a time, bytes.
const COPY: usize = 2 << 20;
/// Where a guest's files are.
const DIR: &str = "/var/tmp/soak";
/// In its memory.
const NOTE: &str = "/dev/shm/note";

/// What came of a step.
enum Outcome {
    Vm(u32, Option<Vm>),
    Committed(u32, Vm, u32, Commit),
    Uncommitted(u32),
    Nothing,
}

/// Does these steps at once.
pub(crate) async fn run(model: &mut Model, daemon: &TestDaemon, steps: &[Step], rng: &mut Rng) {
    let mut jobs = Vec::new();
    for step in steps {
        let (number, rng) = (model.number(), Rng::with_seed(rng.u64(..)));
        jobs.push((step, number, rng));
    }
    let now = &*model;
    let jobs = jobs
        .into_iter()
        .map(|(step, number, rng)| one(now, daemon, step, number, rng));
    for outcome in futures_util::future::join_all(jobs).await {
        match outcome {
            Outcome::Vm(id, Some(vm)) => drop(model.vms.insert(id, vm)),
            Outcome::Vm(id, None) => drop(model.vms.remove(&id)),
            Outcome::Committed(id, vm, number, commit) => {
                model.vms.insert(id, vm);
                model.commits.insert(number, commit);
            }
            Outcome::Uncommitted(number) => drop(model.commits.remove(&number)),
            Outcome::Nothing => {}
        }
    }
}

/// Starts the daemon that has ended, one way or the other.
pub(crate) async fn start(model: &mut Model, daemon: &mut TestDaemon) {
    daemon.launch();
    let vms = std::mem::take(&mut model.vms);
    let after = vms.into_iter().filter_map(|(id, vm)| {
        let mut vm = match vm.status {
            NodeStatus::Suspended => vm,
            _ => vm.off()?,
        };
        // Restored, where it was suspended.
        if vm.kind == Kind::Configured {
            vm.status = NodeStatus::Running;
        }
        Some((id, vm))
    });
    model.vms = after.collect();
    settle(model, daemon).await;
}

/// Waits until each VM that runs answers, and sees what it has.
pub(crate) async fn settle(model: &Model, daemon: &TestDaemon) {
    let client = daemon.client();
    for vm in model.vms.values() {
        if vm.status == NodeStatus::Running {
            ready(&client, &vm.name).await;
            has_its_files(&client, vm).await;
        }
    }
}

/// Leaves nothing but what was there at the start, running.
pub(crate) async fn rest(model: &mut Model, daemon: &TestDaemon) {
    let client = daemon.client();
    let gone = |vm: &Vm| vm.kind != Kind::Configured;
    for vm in model.vms.values().filter(|vm| gone(vm)) {
        client.delete_node("sbox", &vm.name).await.unwrap();
    }
    model.vms.retain(|_, vm| !gone(vm));
    // Those above others first.
    let free = |model: &Model| {
        let mut all = model.commits.keys().copied();
        all.find(|id| model.is_free(*id) == Some(true))
    };
    while let Some(number) = free(model) {
        let commit = model.commits.remove(&number).unwrap();
        client.delete_commit(&commit.id).await.unwrap();
    }
    assert!(model.commits.is_empty(), "{:?}", model.commits);
    let vm = model.vms.get_mut(&0).unwrap();
    match vm.status {
        NodeStatus::Paused => client.resume(&vm.name).await.unwrap(),
        NodeStatus::Suspended => restore(&client, &vm.name).await,
        NodeStatus::Stopped => drop(client.relaunch(&vm.name).await.unwrap()),
        NodeStatus::Running => {}
    }
    vm.status = NodeStatus::Running;
    settle(model, daemon).await;
}

async fn ready(client: &Client, vm: &str) {
    wait_until(&format!("{vm} is ready"), BOOT, async || {
        client.health(vm).await.is_ok()
    })
    .await;
}

async fn restore(client: &Client, vm: &str) {
    let lost = client.restore(vm, BOOT).await.unwrap();
    assert_eq!(lost, None, "{vm}");
}

/// What a script prints, when it succeeds.
async fn says(client: &Client, vm: &str, script: &str) -> String {
    let request = ExecRequest {
        cmd: script.to_owned(),
        shell: Some("/bin/sh".to_owned()),
        ..ExecRequest::default()
    };
    let done = tokio::time::timeout(BOOT, client.exec_buffered(vm, &request)).await;
    let done = done.unwrap().unwrap();
    assert_eq!(done.exit_code, 0, "{vm}: {script}: {done:?}");
    done.stdout
}

/// Fails unless a running VM has what it must have, and no more.
async fn has_its_files(client: &Client, vm: &Vm) {
    let script = format!(
        "cd {DIR} 2>/dev/null && for f in *; do [ -e $f ] && echo $f $(cat $f); done; \
         [ ! -e {NOTE} ] || echo note $(cat {NOTE})"
    );
    let found = says(client, &vm.name, &script).await;
    let note = vm.note.iter().map(|note| ("note", note.as_str()));
    let files = vm.files.iter().map(|(f, text)| (f.as_str(), text.as_str()));
    let must: Vec<String> = files
        .chain(note)
        .map(|(file, text)| format!("{file} {text}"))
        .collect();
    assert_eq!(found.lines().collect::<Vec<_>>(), must, "{}", vm.name);
}

async fn status(client: &Client, vm: &str) -> Option<NodeStatus> {
    let all = client.nodes(&NodeFilter::default()).await.unwrap();
    let found = all.into_iter().find(|node| node.hostname == vm);
    found.map(|node| node.status)
}

/// Waits until a VM is off, however it came to that.
async fn is_off(client: &Client, vm: Vm) -> Option<Vm> {
    let name = vm.name.clone();
    let after = vm.off();
    let must = after.as_ref().map(|vm| vm.status);
    wait_until(&format!("{name} is off"), BOOT, async || {
        status(client, &name).await == must
    })
    .await;
    after
}

async fn one(model: &Model, daemon: &TestDaemon, step: &Step, number: u32, rng: Rng) -> Outcome {
    let client = daemon.client();
    match step {
        Step::Create(kind) => {
            let request = CreateNode {
                persistent: *kind == Kind::Kept,
                ..CreateNode::default()
            };
            let made = client.create_node("sbox", &request, Some(Wait::Agent), Some(BOOT));
            let vm = Vm::new(made.await.unwrap().hostname, *kind);
            has_its_files(&client, &vm).await;
            Outcome::Vm(number, Some(vm))
        }
        Step::Fork(id, kind) => {
            let of = &model.commits[id];
            let request = ForkRequest {
                persistent: Some(*kind == Kind::Kept),
                ..ForkRequest::default()
            };
            let made = client
                .fork(&of.id, &request, ForkWait::Agent, Some(BOOT))
                .await;
            let mut commits = of.commits.clone();
            commits.insert(*id);
            let vm = Vm {
                files: of.files.clone(),
                parent: Some(*id),
                commits,
                ..Vm::new(made.unwrap().hostname, *kind)
            };
            has_its_files(&client, &vm).await;
            Outcome::Vm(number, Some(vm))
        }
        Step::ForkLive(id) => {
            let of = &model.vms[id];
            let request = LiveForkRequest::default();
            let made = client
                .fork_live(&of.name, &request, ForkWait::Agent, Some(BOOT))
                .await;
            let vm = Vm {
                files: of.files.clone(),
                note: of.note.clone(),
                commits: of.commits.clone(),
                ..Vm::new(made.unwrap().vms.remove(0).hostname, Kind::Ephemeral)
            };
            has_its_files(&client, &vm).await;
            has_its_files(&client, of).await;
            Outcome::Vm(number, Some(vm))
        }
        Step::Untemplate => {
            for template in client.templates().await.unwrap() {
                let removed = client.remove_template(&template.id).await;
                // Another step may have found that it is of no use.
                let gone = matches!(removed, Err(ClientError::Api { status: 404, .. }));
                assert!(gone || removed.is_ok(), "{removed:?}");
            }
            Outcome::Nothing
        }
        Step::Uncommit(id) => {
            let done = client.delete_commit(&model.commits[id].id).await;
            let refused = matches!(&done, Err(ClientError::Api { status: 409, .. }));
            assert!(done.is_ok() || refused, "{done:?}");
            if let Some(free) = model.is_free(*id) {
                assert_eq!(done.is_ok(), free, "{done:?}");
            }
            if refused {
                Outcome::Nothing
            } else {
                Outcome::Uncommitted(*id)
            }
        }
        Step::Vm(id, action) => {
            of_vm(daemon, (*id, model.vms[id].clone()), *action, number, rng).await
        }
        Step::Restart | Step::Crash => unreachable!("nothing is done at the same time"),
    }
}

async fn of_vm(
    daemon: &TestDaemon,
    (id, vm): (u32, Vm),
    action: Action,
    number: u32,
    mut rng: Rng,
) -> Outcome {
    let client = daemon.client();
    let name = vm.name.clone();
    let becomes = |vm: Vm, status| Outcome::Vm(id, Some(Vm { status, ..vm }));
    match action {
        Action::Use => {
            has_its_files(&client, &vm).await;
            let mut vm = vm;
            let (file, text) = (format!("f{}", rng.u32(..FILES)), rng.u64(..).to_string());
            let note = rng.u64(..).to_string();
            let script = format!(
                "mkdir -p {DIR} && echo {text} > {DIR}/{file} && sync && echo {note} > {NOTE}"
            );
            says(&client, &name, &script).await;
            vm.files.insert(file, text);
            vm.note = Some(note);
            Outcome::Vm(id, Some(vm))
        }
        Action::Copy => {
            let here = daemon.dir().join(format!("copy-{id}"));
            let back = here.with_extension("back");
            let mut data = vec![0; rng.usize(..COPY)];
            rng.fill(&mut data);
            fs::write(&here, &data).unwrap();
            let there = format!("{name}:/var/tmp/copy");
            for (from, to) in [
                (here.to_str().unwrap(), &*there),
                (&there, back.to_str().unwrap()),
            ] {
                let done = daemon.cli(&["cp", from, to]).await;
                assert_eq!(done.code, 0, "{done:?}");
            }
            assert!(
                fs::read(&back).unwrap() == data,
                "{name}: a copy is not the same"
            );
            for file in [here, back] {
                fs::remove_file(file).unwrap();
            }
            Outcome::Nothing
        }
        Action::Refuse => {
            for path in refused(vm.status) {
                let target = format!("/vm/{name}/{path}");
                let answer = daemon.raw().post(&target, "").await;
                // Only what a user keeps can ever be committed.
                let never = *path == "commit" && vm.kind != Kind::Kept;
                let status = if never { 400 } else { 409 };
                assert_eq!(answer.status, status, "{target}: {}", answer.text());
            }
            if vm.kind == Kind::Configured {
                let target = format!("/hostgroup/slicer/nodes/{name}");
                let answer = daemon.raw().send(Method::DELETE, &target, "").await;
                assert_eq!(answer.status, 403, "{}", answer.text());
            }
            Outcome::Nothing
        }
        Action::Pause => {
            client.pause(&name).await.unwrap();
            becomes(vm, NodeStatus::Paused)
        }
        Action::Resume => {
            client.resume(&name).await.unwrap();
            has_its_files(&client, &vm).await;
            becomes(vm, NodeStatus::Running)
        }
        Action::Suspend => {
            client.suspend(&name).await.unwrap();
            becomes(vm, NodeStatus::Suspended)
        }
        Action::Restore => {
            restore(&client, &name).await;
            has_its_files(&client, &vm).await;
            becomes(vm, NodeStatus::Running)
        }
        Action::Shutdown => {
            let asked = client.shutdown(&name, ShutdownAction::Shutdown).await;
            asked.unwrap();
            Outcome::Vm(id, is_off(&client, vm).await)
        }
        Action::Kill => {
            send_signal(daemon.process_of(&name).unwrap(), Signal::KILL);
            Outcome::Vm(id, is_off(&client, vm).await)
        }
        Action::Relaunch => {
            client.relaunch(&name).await.unwrap();
            ready(&client, &name).await;
            has_its_files(&client, &vm).await;
            becomes(vm, NodeStatus::Running)
        }
        Action::Delete => {
            client.delete_node("sbox", &name).await.unwrap();
            Outcome::Vm(id, None)
        }
        Action::Commit => {
            let made = client.commit(&name, &CommitRequest::default()).await;
            let commit = Commit {
                id: made.unwrap().commit_id,
                source: id,
                files: vm.files.clone(),
                commits: vm.commits.clone(),
            };
            let mut vm = vm;
            vm.commits.insert(number);
            Outcome::Committed(id, vm, number, commit)
        }
    }
}

/// What can't be asked of a VM in this state.
fn refused(status: NodeStatus) -> &'static [&'static str] {
    match status {
        NodeStatus::Running => &["relaunch", "restore", "commit"],
        NodeStatus::Paused => &["exec?cmd=true", "relaunch", "restore", "commit"],
        NodeStatus::Suspended => &["exec?cmd=true", "pause", "resume", "relaunch", "commit"],
        NodeStatus::Stopped => &[
            "exec?cmd=true",
            "pause",
            "resume",
            "suspend",
            "restore",
            "shutdown",
        ],
    }
}
