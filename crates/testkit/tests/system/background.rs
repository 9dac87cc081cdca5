//! Commands in the background of a real VM.

use crate::tests;
use crate::tour::{Tour, VM};
use libtest_mimic::Trial;
use slicer_api::{AUTO_ID, ExecRequest, FrameType, LogsRequest, Stdio};
use slicer_testkit::{LIMIT, wait_until};
use std::sync::Arc;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("background", tour; by_the_command, output_is_taken_up_again)
}

/// The id in what `bg exec` prints.
fn id(printed: &str) -> String {
    let word = printed
        .split_whitespace()
        .find_map(|w| w.strip_prefix("exec_id="));
    word.unwrap_or_else(|| panic!("no id in {printed}"))
        .to_owned()
}

async fn by_the_command(tour: &Tour) {
    let daemon = tour.daemon();
    let started = tour
        .cli(&format!("bg exec {VM} --cwd /tmp -- sleep 600"))
        .await;
    let id = id(started.text());
    assert!(id.starts_with("ex_"), "{id}");
    let info = tour.cli(&format!("vm bg info {VM} {id}")).await.json();
    assert_eq!(
        (
            &info["running"],
            &info["command"],
            &info["cwd"],
            &info["uid"]
        ),
        (&true.into(), &"sleep".into(), &"/tmp".into(), &1000.into())
    );
    let list = tour.cli(&format!("bg list {VM}")).await;
    assert!(list.text().contains(&id), "{list:?}");
    let early = tour.cli(&format!("bg remove {VM} {id}")).await;
    assert!(early.code == 1 && early.stderr.contains("409"), "{early:?}");
    let waited = tour.cli(&format!("bg wait {VM} {id} --timeout 1s")).await;
    assert_eq!(waited.code, 124, "{waited:?}");
    tour.cli(&format!("bg kill {VM} {id}")).await.json();
    let waited = tour.cli(&format!("bg wait {VM} {id}")).await;
    assert_eq!(waited.code, 143, "{waited:?}");
    assert_eq!(
        tour.cli(&format!("bg remove {VM} {id}")).await.text(),
        format!("Removed {id}\n")
    );
    for action in ["info", "logs", "wait", "kill", "remove"] {
        let gone = tour.cli(&format!("bg {action} {VM} {id}")).await;
        assert!(gone.code != 0 && gone.stderr.contains("410"), "{gone:?}");
    }

    let script = "echo out; echo err >&2; exit 7";
    let words = [
        "bg",
        "exec",
        VM,
        "--follow",
        "-s",
        "/bin/bash",
        "--",
        script,
    ];
    let followed = daemon.cli(&words).await;
    assert_eq!((followed.code, &*followed.stdout), (7, &b"out\n"[..]));
    assert!(followed.stderr.contains("err\n"), "{followed:?}");
    let id = self::id(&followed.stderr);
    let logs = tour.cli(&format!("bg logs {VM} {id}")).await;
    assert_eq!(logs.text(), "out\n");
    tour.cli(&format!("bg remove {VM} {id}")).await.text();
}

async fn output_is_taken_up_again(tour: &Tour) {
    let client = tour.client();
    let request = ExecRequest {
        cmd: "echo one; until [ -e /tmp/bg-gate ]; do sleep 0.1; done; echo two; exit 5".into(),
        shell: Some("/bin/bash".into()),
        uid: AUTO_ID,
        stdio: Stdio::Text,
        ..ExecRequest::default()
    };
    let started = client.start_background(VM, &request).await.unwrap();
    let id = started.exec_id;
    let follow = |from_id| {
        client.background_logs(
            VM,
            &id,
            LogsRequest {
                follow: true,
                from_id,
            },
        )
    };
    let mut first = follow(0).await.unwrap();
    let mut next = 0;
    while next == 0 {
        let frame = first.next_frame().await.unwrap().unwrap();
        if frame.data.as_deref() == Some("one\n") {
            next = frame.id + 1;
        }
    }
    // The client leaves; the command doesn't notice.
    drop(first);
    tour.says("touch /tmp/bg-gate").await;
    let mut again = follow(next).await.unwrap();
    let frame = again.next_frame().await.unwrap().unwrap();
    assert_eq!((frame.id, frame.data.as_deref()), (next, Some("two\n")));
    let frame = again.next_frame().await.unwrap().unwrap();
    assert_eq!(
        (frame.frame.kind, frame.frame.exit_code),
        (Some(FrameType::Exit), 5)
    );
    assert!(again.next_frame().await.is_none());
    tour.says("rm /tmp/bg-gate").await;
    wait_until("the command is removed", LIMIT, async || {
        client.remove_background(VM, &id).await.is_ok()
    })
    .await;
    let gone = client.background_exec(VM, &id).await.unwrap_err();
    assert_eq!(gone.status(), Some(410));
}
