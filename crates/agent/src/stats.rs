//! What the guest uses, for `GET /stats`. A figure the kernel doesn't give is 0.

use procfs::{Current, LoadAverage, Meminfo};
use rustix::fs::statvfs;
use rustix::system::uname;
use slicer_api::{StatsSnapshot, Timestamp, format_duration};
use std::time::Duration;

/// Bytes of a sector in `/proc/diskstats`, whatever the disk's own are.
const SECTOR: u64 = 512;

/// Reads all figures. Reads files, which in `/proc` don't block for long.
pub(crate) fn snapshot(uptime: Duration) -> StatsSnapshot {
    let names = uname();
    let memory = Meminfo::current().ok();
    let total_memory = memory.as_ref().map_or(0, |m| m.mem_total);
    let available = memory
        .as_ref()
        .and_then(|m| m.mem_available)
        .unwrap_or_default();
    let memory_used = total_memory.saturating_sub(available);
    let load = LoadAverage::current().ok();
    let load = |pick: fn(&LoadAverage) -> f32| {
        load.as_ref()
            .map(|l| (f64::from(pick(l)) * 100.0).round() / 100.0)
            .unwrap_or_default()
    };
    let disks = disks();
    let (received, sent) = network();
    let space = statvfs("/").ok();
    let space = |pick: fn(&rustix::fs::StatVfs) -> u64| {
        space
            .as_ref()
            .map_or(0, |s| pick(s).saturating_mul(s.f_frsize))
    };
    let used = space(|s| s.f_blocks.saturating_sub(s.f_bfree));
    let free = space(|s| s.f_bavail);
    StatsSnapshot {
        hostname: names.nodename().to_string_lossy().into_owned(),
        arch: names.machine().to_string_lossy().into_owned(),
        timestamp: Timestamp::now(),
        uptime: format_duration(uptime),
        total_cpus: std::thread::available_parallelism().map_or(0, |n| n.get() as u64),
        total_memory,
        memory_used,
        memory_available: available,
        memory_used_percent: percent(memory_used, total_memory),
        load_avg1: load(|l| l.one),
        load_avg5: load(|l| l.five),
        load_avg15: load(|l| l.fifteen),
        disk_read_total: disks.read,
        disk_write_total: disks.written,
        network_read_total: received,
        network_write_total: sent,
        disk_io_inflight: disks.inflight,
        open_connections: procfs_value("/proc/net/sockstat", tcp_in_use)
            .saturating_add(procfs_value("/proc/net/sockstat6", tcp_in_use)),
        open_files: procfs::sys::fs::file_nr().map_or(0, |f| f.allocated),
        entropy: procfs::sys::kernel::random::entropy_avail().map_or(0, u64::from),
        disk_space_total: space(|s| s.f_blocks),
        disk_space_used: used,
        disk_space_free: free,
        disk_space_used_percent: percent(used, used.saturating_add(free)),
    }
}

/// A share in percent, to two places.
#[expect(clippy::cast_precision_loss, reason = "two places are asked for")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 / whole as f64 * 10_000.0).round() / 100.0
}

#[derive(Default)]
struct Disks {
    read: u64,
    written: u64,
    inflight: u64,
}

/// What went to and from whole disks: a partition's share is in its disk's, and what a loop or
/// mapped device does shows on the disk below.
fn disks() -> Disks {
    let mut sum = Disks::default();
    for disk in procfs::diskstats().unwrap_or_default() {
        let sys = format!("/sys/block/{}/device", disk.name);
        if !std::path::Path::new(&sys).exists() {
            continue;
        }
        sum.read += disk.sectors_read.saturating_mul(SECTOR);
        sum.written += disk.sectors_written.saturating_mul(SECTOR);
        sum.inflight += disk.in_progress;
    }
    sum
}

/// Bytes received and sent by network cards. What containers send passes a bridge and their own
/// ends of a cable besides, so only what has a device behind it counts.
fn network() -> (u64, u64) {
    let cards = procfs::net::dev_status().unwrap_or_default();
    cards
        .iter()
        .filter(|(name, _)| std::path::Path::new(&format!("/sys/class/net/{name}/device")).exists())
        .fold((0, 0), |(received, sent), (_, card)| {
            (received + card.recv_bytes, sent + card.sent_bytes)
        })
}

fn procfs_value(path: &str, read: fn(&str) -> Option<u64>) -> u64 {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|text| read(&text))
        .unwrap_or_default()
}

/// The sockets in use of `TCP: inuse 5 orphan 0 …` (proc_net(5)).
fn tcp_in_use(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("TCP: ").or_else(|| l.strip_prefix("TCP6: ")))?;
    let mut words = line.split_whitespace();
    words.find(|w| *w == "inuse")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_this_machines() {
        let s = snapshot(Duration::from_secs(413));
        assert_eq!(s.uptime, "6m53s");
        assert!(s.total_cpus > 0 && s.open_files > 0, "{s:?}");
        assert!(
            s.total_memory > 64 << 20 && s.memory_used < s.total_memory,
            "{s:?}"
        );
        assert_eq!(s.memory_used + s.memory_available, s.total_memory);
        assert!(
            s.disk_space_used + s.disk_space_free <= s.disk_space_total,
            "{s:?}"
        );
        assert!((0.0..=100.0).contains(&s.disk_space_used_percent), "{s:?}");
    }

    #[test]
    fn sockets_are_counted() {
        let text =
            "sockets: used 147\nTCP: inuse 5 orphan 0 tw 2 alloc 7 mem 1\nUDP: inuse 3 mem 0\n";
        assert_eq!(tcp_in_use(text), Some(5));
        assert_eq!(tcp_in_use("TCP6: inuse 4\nUDP6: inuse 1\n"), Some(4));
        assert_eq!(tcp_in_use("TCP: mem 1\n"), None);
    }

    #[test]
    fn shares_of_nothing_are_nothing() {
        assert!(percent(1, 0).abs() < f64::EPSILON);
        assert!((percent(1, 3) - 33.33).abs() < 1e-9);
    }
}
