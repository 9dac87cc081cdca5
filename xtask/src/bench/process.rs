//! What processes take of the machine.

use anyhow::{Context, Result};
use std::fs;

/// The unit of times in `/proc/PID/stat`, which is the same on all architectures slicer runs on.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// A size of a file of `/proc/PID`, MiB.
pub(crate) fn mib(pid: i32, file: &str, key: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {key} in {path}"))? / 1024.0)
}

/// A process's share of the memory it has, MiB: what others have, too, by parts.
pub(crate) fn pss(pid: i32) -> Result<f64> {
    mib(pid, "smaps_rollup", "Pss:")
}

/// The sum of that.
pub(crate) fn total_pss(pids: &[i32]) -> Result<f64> {
    pids.iter().map(|pid| pss(*pid)).sum()
}

/// What follows the name in `/proc/PID/stat`, from the third field on.
fn stat(pid: i32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = text
        .rsplit_once(')')
        .with_context(|| format!("no name in {path}"))?;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// A process's CPU time, user and system, in ticks.
pub(crate) fn ticks(pid: i32) -> Result<f64> {
    let times = stat(pid)?;
    let times = times.get(11..13).context("no times of a process")?;
    times.iter().map(|t| Ok(t.parse::<f64>()?)).sum()
}

/// The sum of that.
pub(crate) fn total_ticks(pids: &[i32]) -> Result<f64> {
    pids.iter().map(|pid| ticks(*pid)).sum()
}

/// All that a process has started, and what these have.
pub(crate) fn descendants(pid: i32) -> Result<Vec<i32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let Ok(stat) = stat(child) else { continue };
        if let Some(parent) = stat.get(1).and_then(|p| p.parse::<i32>().ok()) {
            parents.push((child, parent));
        }
    }
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(of) = family.get(at).copied() {
        let children = parents.iter().filter(|(_, parent)| *parent == of);
        family.extend(children.map(|(child, _)| *child));
        at += 1;
    }
    family.remove(0);
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_is_found_and_weighed() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(descendants(own).unwrap().contains(&pid));
        assert!(descendants(pid).unwrap().is_empty());
        assert!(pss(own).unwrap() > 0.1);
        assert!(ticks(own).unwrap() >= 0.0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(pss(pid).is_err());
    }
}
