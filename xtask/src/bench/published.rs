//! What is published of the benchmark, held to what was measured.

use super::chart;
use super::page::page;
use super::report::Outcome;
use crate::workspace;
use std::fs;

/// The results that the report in `docs` names, and the report.
fn published() -> (Outcome, String, String) {
    let root = workspace().unwrap();
    let text = fs::read_to_string(root.join("docs/benchmarks.md")).unwrap();
    let (_, rest) = text.split_once("../bench/results/").unwrap();
    let (name, _) = rest.split_once(')').unwrap();
    let results = fs::read(root.join("bench/results").join(name)).unwrap();
    let outcome = serde_json::from_slice(&results).unwrap();
    (outcome, name.to_owned(), text)
}

#[test]
fn what_is_published_is_what_was_measured() {
    let (outcome, name, text) = published();
    let again = "cargo run --release -p xtask -- page bench/results/NAME.json";
    assert!(text == page(&outcome, &name), "run {again}");
    let svg = workspace().unwrap().join("docs/benchmarks.svg");
    let svg = fs::read_to_string(svg).unwrap();
    assert!(svg == chart::svg(&outcome.bars), "run {again}");
}

#[test]
fn the_specification_promises_what_was_measured_and_links_to_what_is_there() {
    let root = workspace().unwrap();
    let text = fs::read_to_string(root.join("SPECIFICATION.md")).unwrap();
    let (outcome, ..) = published();
    let mut promises = 0;
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        for link in line.split("](").skip(1) {
            let path = link.split([')', '#']).next().unwrap();
            assert!(root.join(path).exists(), "{path} is not there: {line}");
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        let Some(name) = cells.last().and_then(|c| c.split("bar `").nth(1)) else {
            continue;
        };
        let name = name.split('`').next().unwrap();
        let bar = outcome.bars.iter().find(|b| b.name == name);
        let bar = bar.unwrap_or_else(|| panic!("there is no bar {name}"));
        let limit: f64 = cells[1].split_whitespace().nth(1).unwrap().parse().unwrap();
        assert_eq!(bar.limit, Some(limit), "{line}");
        assert_eq!(bar.pass, Some(true), "{name} is missed: {line}");
        promises += 1;
    }
    assert!(promises > 10, "{promises}");
}
