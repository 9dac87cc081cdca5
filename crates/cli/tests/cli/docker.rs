//! Docker contexts.

use crate::support::{FakeDaemon, json};
use crate::{Done, bare, done, slicer};
use std::fs;
use std::os::unix::net::UnixListener;

/// A daemon whose VMs have these forwards.
fn daemon(forwards: &str) -> FakeDaemon {
    let answer = format!(
        r#"{{"hostname":"slicer-1","hostgroup":"slicer","status":"Running","storage":"image",
            "image":"i","network":{{"mode":"nat","policy_source":"host_group","host_group":{{}},
            "effective":{{}}}},"forwards":[{forwards}]}}"#
    );
    FakeDaemon::start(move |_| {
        let answer = answer.clone();
        async move { json(200, answer) }
    })
}

fn forward(listen: &str, listening: bool) -> String {
    format!(
        r#"{{"listen":"127.0.0.1:6443","target":"127.0.0.1:6443","listening":true}},
            {{"listen":"{listen}","target":"unix:/var/run/docker.sock","listening":{listening}}}"#
    )
}

fn run(daemon: &FakeDaemon, args: &[&str]) -> Done {
    done(slicer(daemon, args).output().unwrap())
}

#[test]
fn a_context_is_made_selected_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("docker.sock");
    let _listens = UnixListener::bind(&socket).unwrap();
    let socket = socket.display().to_string();
    let daemon = daemon(&forward(&socket, true));
    let config = daemon.dir().join(".docker/config.json");
    let context = ["docker", "context"];
    for _ in 0..2 {
        let made = run(&daemon, &context);
        assert_eq!((made.code, &*made.stderr), (0, ""));
        assert_eq!(
            made.stdout,
            format!(
                "Docker context \"slicer\" leads to slicer-1 by unix://{socket} and is selected\n"
            )
        );
        let text = fs::read_to_string(&config).unwrap();
        assert_eq!(text, "{\n\t\"currentContext\": \"slicer\"\n}\n");
    }
    assert_eq!(daemon.lines(), ["GET /vm/slicer-1", "GET /vm/slicer-1"]);
    let made = run(
        &daemon,
        &[
            "docker", "context", "slicer-1", "--name", "vm1", "--no-use", "--json",
        ],
    );
    let made: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!(made["host"], format!("unix://{socket}"));
    assert_eq!(
        (&made["name"], &made["selected"]),
        (&"vm1".into(), &false.into())
    );
    let removed = run(&daemon, &["docker", "context", "--remove"]);
    assert_eq!(removed.stdout, "Docker context removed: slicer\n");
    assert_eq!(fs::read_to_string(&config).unwrap(), "{}\n");
    // No daemon is needed to remove one, and it takes one that is there.
    let remove = |name| {
        let args = ["docker", "context", "--remove", "--name", name, "--json"];
        done(bare(daemon.dir(), &args).output().unwrap())
    };
    assert_eq!(remove("vm1").code, 0);
    let missing = remove("vm1");
    assert_eq!(missing.code, 1);
    assert_eq!(
        missing.stderr,
        "Error: there is no Docker context \"vm1\"\n"
    );
}

#[test]
fn contexts_of_others_are_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let socket = |name: &str| home.path().join(name).display().to_string();
    let first = daemon(&forward(&socket("a.sock"), false));
    let made = run(&first, &["docker", "context"]);
    assert_eq!(made.code, 0);
    assert!(made.stderr.contains("doesn't listen"), "{}", made.stderr);
    let second = daemon(&forward(&socket("b.sock"), false));
    let make = |args: &[&str]| {
        let mut command = slicer(&second, &[&["docker", "context"], args].concat());
        command.env("DOCKER_CONFIG", first.dir().join(".docker"));
        done(command.output().unwrap())
    };
    let refused = make(&[]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("a.sock"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(make(&["--force"]).code, 0);
    assert!(make(&[]).stdout.contains("b.sock"));
    // One that Docker's own command made is not removed by mistake.
    let meta = fs::read_dir(first.dir().join(".docker/contexts/meta")).unwrap();
    let meta = meta.last().unwrap().unwrap().path().join("meta.json");
    let theirs = fs::read_to_string(&meta).unwrap();
    fs::write(&meta, theirs.replace("slicer VM", "my")).unwrap();
    let refused = make(&["--remove"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("not made by slicer"),
        "{}",
        refused.stderr
    );
    assert!(meta.exists());
    assert_eq!(make(&["--remove", "--force"]).code, 0);
    assert!(!meta.exists());
}

#[test]
fn what_stands_in_the_way_is_told() {
    let none = daemon("");
    let refused = run(&none, &["docker", "context"]);
    assert_eq!(refused.code, 1);
    assert_eq!(
        refused.stderr,
        "Error: the daemon forwards no docker.sock of VM \"slicer-1\"\n\
         Hint: put `forwards: [\"~/.slicer/docker.sock:/var/run/docker.sock\"]` into its host \
         group in slicer-mac.yaml, and restart the daemon\n"
    );
    assert!(!none.dir().join(".docker").exists());
    let remote = daemon(&forward("/nowhere/docker.sock", true));
    let refused = run(&remote, &["docker", "context"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("not on this host"),
        "{}",
        refused.stderr
    );
    let refused = run(
        &remote,
        &["docker", "context", "--remove", "--name", "default"],
    );
    assert_eq!(refused.code, 2);
    let there = daemon(&forward("127.0.0.1:2375", true));
    for (variable, value) in [("DOCKER_HOST", "unix:///x"), ("DOCKER_CONTEXT", "other")] {
        let mut command = slicer(&there, &["docker", "context"]);
        let told = done(command.env(variable, value).output().unwrap());
        assert_eq!(told.code, 0);
        assert!(
            told.stdout.contains("tcp://127.0.0.1:2375"),
            "{}",
            told.stdout
        );
        assert!(
            told.stderr.starts_with(&format!("Note: {variable}")),
            "{}",
            told.stderr
        );
    }
}
