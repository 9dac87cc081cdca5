//! Requests that are refused, and how.

use crate::tests;
use crate::tour::{Tour, VM};
use hyper::Method;
use libtest_mimic::Trial;
use slicer_testkit::LIMIT;
use std::sync::Arc;
use std::time::Instant;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("limits", tour;
        creates_that_cannot_be, no_such_thing, a_wait_that_runs_out, a_paused_vm, tags,
        friendly_names, refused_uploads_are_told,
    )
}

const NODES: &str = "/hostgroup/sbox/nodes";

async fn creates_that_cannot_be(tour: &Tour) {
    let raw = tour.raw();
    let before = tour.cli("vm list").await;
    for (target, body, part) in [
        (NODES, r#"{"cpus":3}"#, "cpus 3"),
        (NODES, r#"{"ram_bytes":1073741825}"#, "ram_bytes"),
        (NODES, r#"{"ram_bytes":1000}"#, "ram_bytes 1000"),
        (NODES, r#"{"gpu_count":1}"#, "gpu"),
        (NODES, r#"{"cpus":-1}"#, "invalid JSON"),
        (NODES, r#"{"cpus":1.5}"#, "invalid JSON"),
        (NODES, r#"{"tags":"x"}"#, "invalid JSON"),
        (NODES, "{", "invalid JSON"),
        (NODES, "[]", "invalid JSON"),
        (NODES, "\u{0}", "invalid JSON"),
        (NODES, r#"{"ip":"10.0.0.1"}"#, "10.0.0.1"),
        (NODES, r#"{"ip":"nonsense"}"#, "nonsense"),
        (NODES, r#"{"tags":["a\nb"]}"#, "tag"),
        (NODES, r#"{"tags":["name=sbox-7"]}"#, "name"),
        (NODES, r#"{"tags":["name=Upper"]}"#, "name"),
        (NODES, r#"{"tags":["name=a","name=b"]}"#, "name"),
        (
            "/hostgroup/sbox/nodes?wait=agent&timeout=60",
            "{}",
            "timeout",
        ),
        ("/hostgroup/sbox/nodes?wait=agent&timeout=1x", "{}", "1x"),
        ("/hostgroup/sbox/nodes?wait=agent&timeout=-1s", "{}", "-1s"),
        ("/hostgroup/sbox/nodes?wait=forever", "{}", "forever"),
    ] {
        let answer = raw.post(target, body).await;
        assert_eq!(answer.status, 400, "{target} {body}: {}", answer.text());
        assert_eq!(answer.headers["content-type"], "application/json");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(part), "{target} {body}: {error}");
    }
    let answer = raw.post(NODES, r#"{"ip":"192.168.64.2"}"#).await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    let answer = raw.post("/hostgroup/nope/nodes", "{}").await;
    assert_eq!(answer.status, 404);
    let error = answer.text();
    assert!(error.contains("nope") && error.contains("sbox"), "{error}");
    let names = |list: &str| list.lines().filter(|l| l.starts_with("slicer")).count();
    assert_eq!(
        names(before.text()),
        names(tour.cli("vm list").await.text())
    );

    let refused = tour.cli("vm launch sbox --cpus 64").await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.starts_with("Error: "), "{refused:?}");
    assert_eq!(tour.cli("vm launch nope").await.code, 1);
    assert_eq!(tour.cli("vm launch").await.code, 2);
}

async fn no_such_thing(tour: &Tour) {
    let raw = tour.raw();
    for (method, target, status) in [
        (Method::GET, "/vm/sbox-99", 404),
        (Method::GET, "/vm/sbox-99/health", 404),
        (Method::GET, "/vm/sbox-99/logs", 404),
        (Method::POST, "/vm/sbox-99/exec?cmd=true", 404),
        (Method::POST, "/vm/sbox-99/pause", 404),
        (Method::POST, "/vm/sbox-99/shutdown", 404),
        (Method::POST, "/vm/sbox-99/relaunch", 404),
        (Method::DELETE, "/hostgroup/sbox/nodes/sbox-99", 404),
        (Method::DELETE, "/hostgroup/sbox/nodes/slicer-1", 404),
        (Method::DELETE, "/hostgroup/nope/nodes/sbox-1", 404),
        (Method::GET, "/hostgroup/nope/nodes", 404),
        (Method::GET, "/nope", 404),
        (Method::GET, "/", 404),
        (Method::GET, "/vm/..%2f..%2fetc", 404),
        (Method::PUT, "/nodes", 405),
        (Method::DELETE, "/nodes", 405),
        (Method::GET, "/vm/sbox-1/pause", 405),
        (Method::POST, "/info", 405),
        (Method::PATCH, NODES, 405),
        (Method::POST, "/vm/sbox-1/shutdown?action=explode", 400),
        (Method::POST, "/vm/sbox-1/relaunch", 409),
        (Method::GET, "/nodes?tag=a&tag_prefix=b", 400),
    ] {
        let answer = raw.send(method.clone(), target, "").await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {target}: {}",
            answer.text()
        );
        assert!(answer.json()["error"].is_string(), "{method} {target}");
    }
    let unknown = tour.cli("vm exec nobody -- true").await;
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("nobody"), "{unknown:?}");
    assert_eq!(tour.cli("vm delete sbox-99").await.code, 1);
}

async fn a_wait_that_runs_out(tour: &Tour) {
    let begun = Instant::now();
    let answer = tour
        .raw()
        .post(
            "/hostgroup/sbox/nodes?wait=agent&timeout=200ms",
            r#"{"tags":["late"]}"#,
        )
        .await;
    assert_eq!(answer.status, 408, "{}", answer.text());
    assert!(begun.elapsed() < LIMIT);
    let list = tour.raw().get("/nodes?tag=late").await;
    assert_eq!(list.json(), serde_json::json!([]));
    let late = tour.cli("vm launch sbox --wait --timeout 200ms").await;
    assert_eq!(late.code, 124, "{late:?}");
}

async fn a_paused_vm(tour: &Tour) {
    let created = tour
        .cli("vm launch sbox --wait --cpus 1 --ram-mb 256 --json")
        .await;
    let vm = created.json()["hostname"].as_str().unwrap().to_owned();
    let raw = tour.raw();
    for _ in 0..2 {
        assert_eq!(raw.post(&format!("/vm/{vm}/pause"), "").await.status, 200);
    }
    let begun = Instant::now();
    for (method, path) in [(Method::POST, "exec?cmd=true"), (Method::GET, "health")] {
        let answer = raw.send(method, &format!("/vm/{vm}/{path}"), "").await;
        assert_eq!(answer.status, 409, "{path}: {}", answer.text());
        assert!(
            answer.text().contains("paused"),
            "{path}: {}",
            answer.text()
        );
    }
    assert!(begun.elapsed().as_secs() < 2);
    let refused = tour.cli(&format!("vm exec {vm} -- true")).await;
    assert_eq!(refused.code, 1);
    for _ in 0..2 {
        assert_eq!(raw.post(&format!("/vm/{vm}/resume"), "").await.status, 200);
    }
    assert_eq!(
        tour.cli(&format!("vm exec {vm} -- echo back")).await.text(),
        "back\n"
    );
    // A paused VM can be deleted.
    raw.post(&format!("/vm/{vm}/pause"), "").await;
    let deleted = raw.send(Method::DELETE, &format!("{NODES}/{vm}"), "").await;
    assert_eq!(deleted.status, 200);
    assert_eq!(
        deleted.json(),
        serde_json::json!({"message": "VM deleted successfully", "disk_removed": "true"})
    );
}

async fn tags(tour: &Tour) {
    let raw = tour.raw();
    let body = r#"{"tags":["drive=1","team=web/a b"],"cpus":1,"ram_bytes":268435456}"#;
    let created = raw.post(NODES, body).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let vm = created.json()["hostname"].as_str().unwrap().to_owned();
    assert!(!created.json()["ip"].as_str().unwrap().is_empty());
    let found = async |target: &str| {
        let answer = raw.get(target).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        let nodes = answer.json();
        let nodes = nodes.as_array().unwrap().iter();
        nodes
            .map(|n| n["hostname"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    for target in [
        "/nodes?tag=drive%3D1",
        "/nodes?tag_prefix=drive",
        "/nodes?tag=team%3Dweb%2Fa+b",
        "/nodes?tag=team=web/a%20b",
        "/hostgroup/sbox/nodes?tag=drive=1",
        // The Go client's way.
        "/hostgroup/sbox/nodes%3Ftag=drive%253D1",
        "/devices?tag=drive%3D1",
    ] {
        assert_eq!(found(target).await, std::slice::from_ref(&vm), "{target}");
    }
    for target in [
        "/nodes?tag=drive",
        "/nodes?tag_prefix=rive",
        "/hostgroup/slicer/nodes?tag=drive%3D1",
        "/hostgroup/sbox/nodes%3Ftag=drive%253D2",
    ] {
        assert!(found(target).await.is_empty(), "{target}");
    }
    let list = tour.cli("vm list --tag drive=1 --json").await.json();
    assert_eq!(
        list[0]["tags"],
        serde_json::json!(["drive=1", "team=web/a b"])
    );
    for (command, left) in [
        (
            "add VM --tag x=1 --tag y",
            "drive=1\nteam=web/a b\nx=1\ny\n",
        ),
        (
            "remove VM --tag drive=1 --tag none",
            "team=web/a b\nx=1\ny\n",
        ),
        ("replace VM --tag z", "z\n"),
        ("list VM", "z\n"),
        ("replace VM", ""),
    ] {
        let line = format!("vm tag {}", command.replace("VM", &vm));
        assert_eq!(tour.cli(&line).await.text(), left, "{line}");
    }
    assert_eq!(
        raw.send(Method::DELETE, &format!("{NODES}/{vm}"), "")
            .await
            .status,
        200
    );
}

async fn friendly_names(tour: &Tour) {
    let line = "vm launch sbox --wait --cpus 1 --ram-mb 256 --name build";
    let created = tour.cli(line).await;
    created.text();
    assert_eq!(tour.cli("vm exec build -- echo hi").await.text(), "hi\n");
    let args = ["vm", "exec", "build", "--", "cat"];
    let echoed = tour.daemon().cli_with(&args, Some(b"over".to_vec())).await;
    assert_eq!(echoed.text(), "over");
    let list = tour.cli("vm list").await;
    let row = list.text().lines().find(|l| l.contains(" build ")).unwrap();
    let vm = row.split_whitespace().next().unwrap();
    // Names are for people: the API's paths know hostnames only.
    assert_eq!(tour.raw().get("/vm/build").await.status, 404);
    let twice = tour.cli("vm launch sbox --name build").await;
    assert_eq!(twice.code, 1);
    let answer = tour.raw().post(NODES, r#"{"tags":["name=build"]}"#).await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    tour.cli("vm delete build").await.text();
    assert_eq!(tour.raw().get(&format!("/vm/{vm}")).await.status, 404);
}

async fn refused_uploads_are_told(tour: &Tour) {
    // The answer is seen, though the body was not wanted.
    let body = vec![b'x'; 6 << 20];
    let answer = tour
        .raw()
        .post("/vm/sbox-99/exec?cmd=cat&stdin=true", body.clone())
        .await;
    assert_eq!(answer.status, 404);
    let answer = tour.raw().post(NODES, body).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let answer = tour
        .raw()
        .post(&format!("/vm/{VM}/exec?stdin=true"), "x")
        .await;
    assert_eq!(answer.status, 400);
}
