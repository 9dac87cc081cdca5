//! Empties the page cache of a guest that is idle. The balloon's driver tells the host of memory
//! that is free, by itself, but what once was read from a disk stays in the cache, and never is.
//!
//! Only what the kernel would evict first, in pieces, by the root cgroup's `memory.reclaim`
//! (cgroup-v2.rst), never below a floor, and not while anybody works or waits for memory.

use crate::error::{AgentError, io_error};
use crate::log;
use procfs::{Current, CurrentSI, KernelStats, Meminfo, MemoryPressure};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs::{self, File};
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Looks in a row that found the guest idle before it is asked for anything: two minutes.
const PATIENCE: u32 = 12;
/// Share of its processors that an idle guest may use, in percent.
const IDLE_CPU: u64 = 15;
/// What an idle guest may read and write between two looks, KiB.
const IDLE_DISK: u64 = 8 << 10;
/// What it may have waited for memory between two looks, microseconds.
const IDLE_STALL: u64 = 1_000;
/// The least cache that is left to a guest, bytes, and its share of the memory.
const FLOOR: u64 = 128 << 20;
const FLOOR_SHARE: u64 = 16;
/// Less than this is not worth the work.
const LEAST: u64 = 16 << 20;
/// The most between two looks, and at a time.
const MOST: u64 = 256 << 20;
const PIECE: u64 = 16 << 20;
/// Free memory in smaller blocks than the host is told of that is worth putting together, bytes.
const SCATTERED: u64 = 64 << 20;
/// The order of those blocks.
const REPORTED_ORDER: usize = 9;
const PAGE: u64 = 4096;

/// Watches the guest for as long as the agent lives, on a thread of its own: it is to work only
/// when nobody else does, and what it asks of the kernel takes as long as it takes.
pub(crate) fn watch() {
    let thread = thread::Builder::new().name("reclaim".to_owned());
    let run = || {
        let _ = rustix::process::setpriority_process(None, 19);
        let control = match Control::open() {
            Ok(control) => control,
            // An old kernel, or one that has its memory cgroups elsewhere.
            Err(e) => return log::info(&format!("the page cache is kept: {e}")),
        };
        let mut watcher = Watcher::default();
        loop {
            thread::sleep(LOOK);
            look(&mut watcher, &control);
        }
    };
    if let Err(e) = thread.spawn(run) {
        log::warn(&format!("the page cache is kept: {e}"));
    }
}

fn look(watcher: &mut Watcher, control: &Control) {
    let Some(bytes) = Sample::take().and_then(|now| watcher.see(now)) else {
        return;
    };
    let mut left = bytes;
    let mut stuck = false;
    while left > 0 && !stuck && !pressed() {
        let piece = left.min(PIECE);
        stuck = control.reclaim(piece).is_err();
        left = left.saturating_sub(piece);
    }
    if scattered() > SCATTERED {
        // A kernel without it keeps a little more.
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    }
    let asked = bytes.saturating_sub(left) >> 20;
    log::info(&format!(
        "the guest is idle: dropped {asked} MiB of page cache"
    ));
    watcher.dropped(Sample::take(), stuck);
}

/// Whether anybody waited for memory in the last seconds.
fn pressed() -> bool {
    MemoryPressure::current().is_ok_and(|p| p.some.avg10 > 0.0)
}

/// Free memory in blocks that the host is not told of, bytes.
fn scattered() -> u64 {
    scattered_in(&fs::read_to_string("/proc/buddyinfo").unwrap_or_default())
}

/// Of `Node 0, zone Normal 5 3 …`, free blocks by their order (proc_buddyinfo(5)).
fn scattered_in(buddyinfo: &str) -> u64 {
    let of_zone = |line: &str| -> u64 {
        let blocks = line.split_whitespace().skip(4).take(REPORTED_ORDER);
        let pages = blocks.enumerate().map(|(order, count)| {
            let count: u64 = count.parse().unwrap_or_default();
            count.saturating_mul(1 << order)
        });
        pages.fold(0, u64::saturating_add).saturating_mul(PAGE)
    };
    buddyinfo.lines().map(of_zone).fold(0, u64::saturating_add)
}

/// The root cgroup's directory, whether or not the image mounts it.
struct Control(OwnedFd);

impl Control {
    fn open() -> Result<Self, AgentError> {
        let mounted = || {
            let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&context)?;
            let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
        };
        let root = mounted().map_err(io_error::<rustix::io::Errno>("mount", "cgroup2"))?;
        let this = Self(root);
        this.file().map(|_| this)
    }

    fn file(&self) -> Result<File, AgentError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&self.0, "memory.reclaim", flags, Mode::empty())
            .map(File::from)
            .map_err(io_error("open", "memory.reclaim"))
    }

    /// Fails when less could be had, too.
    fn reclaim(&self, bytes: u64) -> Result<(), AgentError> {
        self.file()?
            .write_all(bytes.to_string().as_bytes())
            .map_err(io_error::<io::Error>("write", "memory.reclaim"))
    }
}

/// What the guest has done since its boot, and has now.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    /// Time of all processors that something ran, and that it could have, ticks.
    busy: u64,
    ticks: u64,
    /// Read and written, KiB.
    disk: u64,
    /// Time that anybody waited for memory, microseconds.
    stalled: u64,
    /// What the kernel holds of disks and could do without, bytes.
    cache: u64,
    memory: u64,
}

impl Sample {
    /// None when the kernel doesn't tell, and so nothing is known.
    fn take() -> Option<Self> {
        let cpu = KernelStats::current().ok()?.total;
        let idle = cpu.idle.saturating_add(cpu.iowait.unwrap_or_default());
        let others = [cpu.irq, cpu.softirq, cpu.steal];
        let busy = others
            .into_iter()
            .flatten()
            .chain([cpu.user, cpu.nice, cpu.system])
            .fold(0, u64::saturating_add);
        let vmstat = procfs::vmstat().ok()?;
        let kib = |name| u64::try_from(vmstat.get(name).copied().unwrap_or_default()).ok();
        let memory = Meminfo::current().ok()?;
        // Of the cache, what lies in no file can't be dropped.
        let files = memory
            .cached
            .saturating_sub(memory.shmem.unwrap_or_default());
        Some(Self {
            busy,
            ticks: busy.saturating_add(idle),
            disk: kib("pgpgin")?.saturating_add(kib("pgpgout")?),
            // Without pressure stall information, what is read tells enough.
            stalled: MemoryPressure::current().map_or(0, |p| p.some.total),
            cache: files
                .saturating_add(memory.buffers)
                .saturating_add(memory.s_reclaimable.unwrap_or_default()),
            memory: memory.mem_total,
        })
    }

    fn idle_since(&self, before: &Self) -> bool {
        let grown = |pick: fn(&Self) -> u64| pick(self).saturating_sub(pick(before));
        let ticks = grown(|s| s.ticks);
        ticks > 0
            && grown(|s| s.busy).saturating_mul(100) <= ticks.saturating_mul(IDLE_CPU)
            && grown(|s| s.disk) <= IDLE_DISK
            && grown(|s| s.stalled) <= IDLE_STALL
    }
}

/// Decides, look by look.
#[derive(Debug, Default)]
struct Watcher {
    last: Option<Sample>,
    /// Looks in a row that found the guest idle.
    idle: u32,
    /// How much cache there was when the kernel wouldn't drop more: that is in use.
    stuck: Option<u64>,
}

impl Watcher {
    /// How much of its cache the guest shall drop now, bytes.
    fn see(&mut self, now: Sample) -> Option<u64> {
        let before = self.last.replace(now)?;
        if !now.idle_since(&before) {
            self.idle = 0;
            // Other files may be in use from here on.
            self.stuck = None;
            return None;
        }
        self.idle = self.idle.saturating_add(1);
        if self.idle < PATIENCE {
            return None;
        }
        let floor = FLOOR.max(now.memory / FLOOR_SHARE);
        let excess = now.cache.saturating_sub(floor);
        let in_use = self
            .stuck
            .is_some_and(|cache| now.cache < cache.saturating_add(LEAST));
        (excess >= LEAST && !in_use).then(|| excess.min(MOST))
    }

    /// Takes note of what dropping has come to. Its work is not the guest's.
    fn dropped(&mut self, now: Option<Sample>, stuck: bool) {
        self.last = now;
        self.stuck = now.filter(|_| stuck).map(|sample| sample.cache);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A guest of two processors with so much cache, so many looks after its boot.
    fn idle(look: u64, cache: u64) -> Sample {
        Sample {
            busy: 20 * look,
            ticks: 2000 * look,
            disk: 100 * look,
            stalled: 0,
            cache,
            memory: 8 * GIB,
        }
    }

    /// Looks until the first that asks for something, and what it asks for.
    fn first(watcher: &mut Watcher, samples: impl Iterator<Item = Sample>) -> Option<(usize, u64)> {
        samples
            .enumerate()
            .find_map(|(i, sample)| Some((i, watcher.see(sample)?)))
    }

    #[test]
    fn only_after_minutes_and_not_below_the_floor() {
        let mut watcher = Watcher::default();
        let asked = first(&mut watcher, (0..100).map(|i| idle(i, 4 * GIB)));
        assert_eq!(asked, Some((PATIENCE as usize, MOST)));
        // 8 GiB of memory keep 512 MiB.
        let last = watcher.see(idle(13, 600 << 20));
        assert_eq!(last, Some(88 << 20));
        let kept = first(&mut watcher, (14..100).map(|i| idle(i, 520 << 20)));
        assert_eq!(kept, None);
        let small = (0..100).map(|i| Sample {
            memory: GIB / 2,
            ..idle(i, 140 << 20)
        });
        assert_eq!(first(&mut Watcher::default(), small), None);
    }

    #[test]
    fn never_while_anybody_works_or_waits() {
        let works: [fn(&mut Sample, u64); 3] = [
            |s, i| s.busy = 400 * i,
            |s, i| s.disk = 10_000 * i,
            |s, i| s.stalled = 2_000 * i,
        ];
        for work in works {
            let busy = (0..100).map(|i| {
                let mut sample = idle(i, 4 * GIB);
                work(&mut sample, i);
                sample
            });
            assert_eq!(first(&mut Watcher::default(), busy), None);
        }
        // Once is enough to wait anew.
        let mut watcher = Watcher::default();
        let once = (0..100).map(|i| Sample {
            disk: if i < 8 { 0 } else { 1 << 20 },
            ..idle(i, 4 * GIB)
        });
        let (look, _) = first(&mut watcher, once).unwrap();
        assert_eq!(look, 8 + PATIENCE as usize);
    }

    #[test]
    fn what_is_in_use_is_asked_for_once() {
        let mut watcher = Watcher::default();
        assert!(first(&mut watcher, (0..13).map(|i| idle(i, 2 * GIB))).is_some());
        watcher.dropped(Some(idle(13, 2 * GIB)), true);
        let kept = first(&mut watcher, (14..99).map(|i| idle(i, 2 * GIB)));
        assert_eq!(kept, None);
        // Until there is more, or something has been going on.
        assert!(watcher.see(idle(99, 2 * GIB + LEAST)).is_some());
        watcher.dropped(Some(idle(99, 2 * GIB)), true);
        let worked = |i| Sample {
            busy: 200_000,
            ..idle(i, 2 * GIB)
        };
        assert_eq!(watcher.see(worked(100)), None);
        assert!(first(&mut watcher, (101..200).map(worked)).is_some());
    }

    #[test]
    fn small_blocks_are_counted() {
        let text = "Node 0, zone      DMA      1      0      0      0      0      0      0      0      0      1      3 \n\
                    Node 0, zone    DMA32      0      2      0      0      0      0      0      0      1      7      9 \n";
        assert_eq!(scattered_in(text), (1 + 4 + 256) * PAGE);
        assert_eq!(scattered_in(""), 0);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let sample = Sample::take().unwrap();
        assert!(
            sample.ticks > sample.busy && sample.memory > 0,
            "{sample:?}"
        );
    }
}
