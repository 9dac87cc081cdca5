//! The report that is read: `docs/benchmarks.md` and its chart, made of a file of results.

use super::chart;
use super::report::{Bar, Outcome};
use crate::text::say;
use crate::workspace;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// What `xtask page` takes.
#[derive(clap::Args)]
pub(crate) struct PageArgs {
    /// A file of `bench/results`, of a whole run
    results: PathBuf,
}

/// What no run of it tells.
const LIMITS: &[&str] = &[
    "Guests are emulated on the machine above. On one with KVM every time is another, and so are \
     ratios to what the processor does in no time at all.",
    "Nothing here was measured on a Mac. The floors there would be a program of Apple's framework, \
     not QEMU.",
    "Pulling an image over a real network, and what guests reach on the internet, are in none of \
     the times.",
    "How many VMs fit into a host is told from the memory of some that idle, not by filling it up.",
    "Numbers without an interval were measured once, or are the median of what belongs to one side \
     only. An interval of fewer than six pairs says little.",
];

/// Makes the report again.
pub(crate) fn render(args: &PageArgs) -> Result<()> {
    write(&args.results)
}

/// Writes the report of these results.
pub(crate) fn write(results: &Path) -> Result<()> {
    let text = fs::read(results).with_context(|| format!("cannot read {}", results.display()))?;
    let outcome: Outcome = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not of a benchmark", results.display()))?;
    let name = results.file_name().and_then(|n| n.to_str());
    let docs = workspace()?.join("docs");
    let files = [
        ("benchmarks.md", page(&outcome, name.unwrap_or_default())),
        ("benchmarks.svg", chart::svg(&outcome.bars)),
    ];
    for (name, text) in files {
        let file = docs.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        say(&format!("Wrote {}", file.display()));
    }
    Ok(())
}

/// The report of what is in the file of this name.
pub(crate) fn page(outcome: &Outcome, file: &str) -> String {
    let mut page = String::new();
    // Writing to a string doesn't fail.
    let _ = fill(&mut page, outcome, file);
    page
}

fn fill(page: &mut String, outcome: &Outcome, file: &str) -> std::fmt::Result {
    let e = &outcome.environment;
    let judged = outcome.bars.iter().filter(|b| b.pass.is_some());
    let missed: Vec<&Bar> = judged.clone().filter(|b| b.pass == Some(false)).collect();
    writeln!(
        page,
        "# Benchmarks\n\n\
         Written by `make bench`: don't edit it. [bench/README.md](../bench/README.md) says what each \
         line measures and how, [every sample](../bench/results/{file}) is kept, and \
         [SPECIFICATION.md](../SPECIFICATION.md) says which figures can be relied on.\n\n\
         Seconds depend on the machine, so most of this is ratios: slicer's time over that of the same \
         thing done by hand with nothing but QEMU, or with the tool one would use otherwise, measured \
         in turns within one run. 1 is as fast, less is faster. A ratio is the median over its pairs, \
         and with 95 % certainty between the two numbers beside it (percentile bootstrap).\n"
    )?;
    writeln!(
        page,
        "**{} of {} bars hold, {} are missed.**\n\n\
         ![Each ratio with its interval, the line at 1, and the most that is allowed](benchmarks.svg)\n",
        judged.clone().count() - missed.len(),
        judged.count(),
        missed.len()
    )?;
    if !missed.is_empty() {
        writeln!(page, "## What is missed\n")?;
        for bar in &missed {
            let interval = bar.interval();
            writeln!(
                page,
                "- **{}**: {}{}, where at most {} is wanted. {}.",
                bar.name,
                bar.shown(),
                if interval.is_empty() {
                    String::new()
                } else {
                    format!(" ({interval})")
                },
                bar.limit.unwrap_or_default(),
                escaped(&bar.what)
            )?;
        }
        writeln!(page)?;
    }
    let mut section = None;
    for bar in &outcome.bars {
        if section != Some(&bar.section) {
            section = Some(&bar.section);
            writeln!(
                page,
                "{}## {}\n\n| bar | what | value | 95 % | pairs | at most | |\n|---|---|--:|--:|--:|--:|---|",
                if page.ends_with("|\n") { "\n" } else { "" },
                bar.section
            )?;
        }
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} |",
            bar.name,
            escaped(&bar.what),
            bar.shown(),
            bar.interval(),
            bar.estimate
                .map(|e| e.count.to_string())
                .unwrap_or_default(),
            bar.limit.map(|l| l.to_string()).unwrap_or_default(),
            match bar.pass {
                Some(false) => format!("**{}**", bar.verdict()),
                _ => bar.verdict().to_owned(),
            }
        )?;
    }
    writeln!(
        page,
        "\n## Times and sizes\n\nMedians of this run, on this machine:\n"
    )?;
    for line in &outcome.medians {
        writeln!(page, "- {line}")?;
    }
    writeln!(page, "\n## Not measured, and limits\n")?;
    for s in &outcome.skipped {
        writeln!(page, "- **{}**: {}", s.what, s.why)?;
    }
    for limit in LIMITS {
        writeln!(page, "- {limit}")?;
    }
    writeln!(page, "\n## Where it was measured\n\n| | |\n|---|---|")?;
    let at = jiff::Timestamp::from_second(i64::try_from(e.unix_seconds).unwrap_or_default());
    let rows = [
        ("slicer", e.commit.clone()),
        ("when", at.map(|t| t.to_string()).unwrap_or_default()),
        (
            "host",
            format!("{}, {} CPUs, {} MiB", e.processor, e.cpus, e.memory_mib),
        ),
        ("system", format!("{}, Linux {}", e.os, e.kernel)),
        (
            "QEMU",
            format!("{}, guests under {}", e.qemu, e.accelerator),
        ),
        ("guests", format!("Linux {}", e.guest_kernel)),
        (
            "load",
            format!(
                "{:.1} before, {:.1} after; {:.0} % of the CPU time went to something else",
                e.load_before, e.load_after, e.others_percent
            ),
        ),
        ("duration", format!("{:.0} min", e.seconds / 60.0)),
        (
            "noise",
            e.noisy.clone().map_or_else(
                || "none was found".to_owned(),
                |why| format!("**noisy: {why}**"),
            ),
        ),
    ];
    for (key, value) in rows {
        writeln!(page, "| {key} | {} |", escaped(&value))?;
    }
    let parts: Vec<String> = outcome
        .parts
        .iter()
        .map(|p| format!("{} {:.0} s", p.part, p.seconds))
        .collect();
    writeln!(page, "| parts | {} |", parts.join(", "))
}

/// A text that is no markup and ends no cell.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Environment, PartTime, Skipped};
    use crate::bench::stats::Estimate;

    /// Compares with a file beside this one, or writes it when `UPDATE_GOLDEN` is set.
    fn golden(name: &str, text: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src/bench/golden")
            .join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, text).unwrap();
        }
        let kept = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(kept, text, "UPDATE_GOLDEN=1 writes it anew");
    }

    fn outcome() -> Outcome {
        let e = |low, median, high| Estimate {
            median,
            low,
            high,
            count: 20,
        };
        Outcome {
            environment: Environment {
                commit: "0123456".into(),
                os: "Debian".into(),
                kernel: "6.1".into(),
                processor: "A processor".into(),
                cpus: 2,
                memory_mib: 4096,
                qemu: "QEMU 7.2".into(),
                accelerator: "tcg".into(),
                guest_kernel: "6.1-cloud".into(),
                load_before: 0.25,
                load_after: 2.0,
                others_percent: 1.5,
                unix_seconds: 1_790_000_000,
                seconds: 1080.0,
                noisy: Some("a | b".into()),
            },
            bars: vec![
                Bar::ratio("launch", "a / b", e(0.98, 1.02, 1.08), 1.1).of("Launches"),
                Bar::ratio("pool", "a <b> / c", e(0.021, 0.024, 0.031), 0.02).of("Launches"),
                Bar::ratio("exec", "d / e", e(1.7, 1.9, 2.1), 2.0).of("Commands"),
                Bar::note("exec, own", "d / f", e(0.9, 1.0, 1.1)).of("Commands"),
                Bar::limit("memory", "RSS, MiB", 26.0, 25.0).of("Cost"),
            ],
            medians: vec!["launch 3.1 s".into()],
            skipped: vec![Skipped {
                what: "fork".into(),
                why: "there is none".into(),
            }],
            parts: vec![PartTime {
                part: "launch".into(),
                seconds: 120.0,
                load_before: 0.25,
                load_after: 1.0,
            }],
        }
    }

    #[test]
    fn the_page_says_what_is_missed_and_under_what_it_was_measured() {
        golden("page.md", &page(&outcome(), "1.json"));
    }

    #[test]
    fn the_chart_shows_each_judged_ratio() {
        let svg = chart::svg(&outcome().bars);
        golden("chart.svg", &svg);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("<path").count(), 1);
        assert_eq!(svg.matches("class=\"one\"").count(), 1);
    }
}
