//! What came of it: what is judged, where it was measured, and how it is kept.

use super::plan::Plan;
use super::run::Raw;
use super::stats::Estimate;
use crate::text::{Align, say, table};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// A number and, where that is judged, what it may be at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// What it is about, which bars share.
    #[serde(default)]
    pub(crate) section: String,
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) value: f64,
    /// Absent for what was measured once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) estimate: Option<Estimate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<f64>,
    pub(crate) pass: Option<bool>,
}

impl Bar {
    /// A ratio that was measured many times.
    pub(crate) fn ratio(name: &str, what: &str, e: Estimate, limit: f64) -> Self {
        Self {
            estimate: Some(e),
            ..Self::limit(name, what, e.median, limit)
        }
    }

    /// A value that was measured once.
    pub(crate) fn limit(name: &str, what: &str, value: f64, limit: f64) -> Self {
        Self {
            section: String::new(),
            name: name.to_owned(),
            what: what.to_owned(),
            value,
            estimate: None,
            limit: Some(limit),
            pass: Some(value <= limit),
        }
    }

    /// A ratio that is good to know.
    pub(crate) fn note(name: &str, what: &str, e: Estimate) -> Self {
        Self {
            limit: None,
            pass: None,
            ..Self::ratio(name, what, e, f64::INFINITY)
        }
    }

    /// The same bar, in a section.
    pub(crate) fn of(self, section: &str) -> Self {
        Self {
            section: section.to_owned(),
            ..self
        }
    }

    /// Its value, for people.
    pub(crate) fn shown(&self) -> String {
        number(self.value)
    }

    /// Its interval, for people; empty without one.
    pub(crate) fn interval(&self) -> String {
        let interval = |e: Estimate| format!("{}–{}", number(e.low), number(e.high));
        self.estimate.map(interval).unwrap_or_default()
    }

    /// Whether it holds, for people; empty where nothing is asked for. It is unsure when what is asked
    /// for is within the interval.
    pub(crate) fn verdict(&self) -> &'static str {
        let unsure = self
            .estimate
            .zip(self.limit)
            .is_some_and(|(e, limit)| e.low <= limit && limit < e.high);
        match (self.pass, unsure) {
            (Some(true), false) => "holds",
            (Some(true), true) => "holds, unsure",
            (Some(false), false) => "MISSED",
            (Some(false), true) => "MISSED, unsure",
            (None, _) => "",
        }
    }

    fn row(&self) -> [String; 6] {
        [
            self.name.clone(),
            self.shown(),
            self.interval(),
            self.limit.map(|l| format!("≤ {l}")).unwrap_or_default(),
            self.verdict().to_owned(),
            self.what.clone(),
        ]
    }
}

/// Three digits that say something, and no less than the whole.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v < 0.00005 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        v if v >= 0.01 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

/// Where it was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Of slicer.
    pub(crate) commit: String,
    pub(crate) os: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) qemu: String,
    pub(crate) accelerator: String,
    /// What guests run.
    pub(crate) guest_kernel: String,
    /// Load average over one minute, before anything was measured and after.
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
    /// CPU time that was used meanwhile by what is none of this, of all there was, per cent.
    pub(crate) others_percent: f64,
    pub(crate) unix_seconds: u64,
    pub(crate) seconds: f64,
    pub(crate) noisy: Option<String>,
}

/// How long a part took, and how busy the machine was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PartTime {
    pub(crate) part: String,
    pub(crate) seconds: f64,
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
}

/// What was to be measured and wasn't.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// What a report is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) environment: Environment,
    pub(crate) bars: Vec<Bar>,
    /// Where time and memory go, for people.
    pub(crate) medians: Vec<String>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) parts: Vec<PartTime>,
}

impl Outcome {
    /// Shows it on the terminal.
    pub(crate) fn show(&self) {
        let e = &self.environment;
        say(&format!(
            "\n{}, {} CPUs, {}, guests under {}, {:.0} s",
            e.commit, e.cpus, e.qemu, e.accelerator, e.seconds
        ));
        if let Some(why) = &e.noisy {
            say(&format!("NOISY: {why}. Run it on an idle machine."));
        }
        let header = [
            ("bar", Align::Left),
            ("value", Align::Right),
            ("95 %", Align::Right),
            ("limit", Align::Right),
            ("", Align::Left),
            ("what", Align::Left),
        ];
        let rows: Vec<_> = self.bars.iter().map(Bar::row).collect();
        say("");
        for line in table(header, &rows) {
            say(&line);
        }
        say("\nMedians:");
        for line in &self.medians {
            say(&format!("  {line}"));
        }
        if !self.skipped.is_empty() {
            say("\nNot measured:");
        }
        for Skipped { what, why } in &self.skipped {
            say(&format!("  {what}: {why}"));
        }
        say("\nParts:");
        for p in &self.parts {
            say(&format!(
                "  {} {:.0} s, load {:.1} to {:.1}",
                p.part, p.seconds, p.load_before, p.load_after
            ));
        }
    }

    /// Writes it, with how much was measured and every sample, below `dir`, under a name of its own.
    pub(crate) fn write(&self, plan: &Plan, raw: &Raw, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join(format!("{}.json", self.environment.unix_seconds));
        let mut all = serde_json::to_value(self)?;
        if let Some(map) = all.as_object_mut() {
            map.insert("plan".to_owned(), serde_json::to_value(plan)?);
            map.insert("raw".to_owned(), rounded(serde_json::to_value(raw)?));
        }
        let text = in_lines(&all)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Times to the tenth of a microsecond: what is beyond is the clock's.
fn rounded(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(n) if n.is_f64() => {
            let exact = n.as_f64().unwrap_or_default();
            serde_json::json!((exact * 1e7).round() / 1e7)
        }
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, rounded(v))).collect(),
        other => other,
    }
}

/// JSON with what is two steps down on a line of its own: for people to find something in, and for
/// version control.
fn in_lines(value: &serde_json::Value) -> Result<String> {
    use serde_json::Value;
    let map = value.as_object().context("an outcome is an object")?;
    let entry = |(key, value): (&String, &Value)| {
        let key = Value::from(key.as_str());
        let pair = |(k, v): (&String, &Value)| format!("{}:{v}", Value::from(k.as_str()));
        match value {
            Value::Array(items) => {
                let lines: Vec<_> = items.iter().map(Value::to_string).collect();
                format!("{key}:[\n {}\n]", lines.join(",\n "))
            }
            Value::Object(map) => {
                let lines: Vec<_> = map.iter().map(pair).collect();
                format!("{key}:{{\n {}\n}}", lines.join(",\n "))
            }
            other => format!("{key}:{other}"),
        }
    };
    let entries: Vec<_> = map.iter().map(entry).collect();
    Ok(format!("{{\n{}\n}}\n", entries.join(",\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shown = [314.6, 31.46, 3.146, 0.3146, 0.03146, 0.003_146, 0.0].map(number);
        assert_eq!(
            shown,
            ["315", "31.5", "3.15", "0.31", "0.031", "0.0031", "0"]
        );
    }

    #[test]
    fn a_bar_is_judged_by_the_median_and_doubted_by_the_interval() {
        let e = Estimate {
            median: 1.1,
            low: 1.0,
            high: 1.3,
            count: 9,
        };
        let verdict = |limit| Bar::ratio("a", "b", e, limit).verdict();
        assert_eq!(verdict(1.3), "holds");
        assert_eq!(verdict(1.2), "holds, unsure");
        assert_eq!(verdict(1.05), "MISSED, unsure");
        assert_eq!(verdict(0.9), "MISSED");
        assert_eq!(Bar::note("a", "b", e).verdict(), "");
        assert_eq!(Bar::limit("a", "b", 3.0, 2.0).verdict(), "MISSED");
    }

    #[test]
    fn what_is_kept_is_json_of_the_same_value() {
        let value =
            serde_json::json!({"a": [1, {"b": 2.5}], "c": {"d\"": [3]}, "e": null, "f": []});
        let text = in_lines(&value).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
        assert!(text.lines().count() > 6, "{text}");
        let times = rounded(serde_json::json!({"a": [0.123_456_789, 7], "b": "c"}));
        assert_eq!(times, serde_json::json!({"a": [0.123_456_8, 7], "b": "c"}));
    }
}
