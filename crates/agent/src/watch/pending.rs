//! Changes that wait until their like can't come any more.

use super::tree::Change;
use slicer_api::WatchKind;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Changes that may wait. More are too many to be told one by one.
const MAX_PENDING: usize = 16 << 10;

/// Changes in the order in which they came, each once within a time.
#[derive(Debug)]
pub(super) struct Pending {
    debounce: Duration,
    queue: VecDeque<(Instant, Change)>,
    waiting: HashSet<Change>,
}

impl Pending {
    /// Holds each change back for this long.
    pub(super) fn new(debounce: Duration) -> Self {
        Self {
            debounce,
            queue: VecDeque::new(),
            waiting: HashSet::new(),
        }
    }

    /// Takes a change; false when there is no room for it.
    pub(super) fn push(&mut self, now: Instant, change: Change) -> bool {
        if self.waiting.contains(&change) {
            return true;
        }
        if self.queue.len() >= MAX_PENDING {
            return false;
        }
        self.waiting.insert(change.clone());
        self.queue.push_back((now + self.debounce, change));
        true
    }

    /// Drops all, and says instead that something was lost.
    pub(super) fn lose(&mut self, now: Instant, path: &std::path::Path) {
        self.queue.clear();
        self.waiting.clear();
        let lost = Change {
            kind: WatchKind::Overflow,
            path: path.to_owned(),
            is_dir: true,
        };
        self.queue.push_back((now, lost));
    }

    /// When there will be something to take.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }

    /// Takes what has waited long enough, at most `limit` of them.
    pub(super) fn take(&mut self, now: Instant, limit: usize) -> Vec<Change> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some((_, change)) = self.queue.pop_front_if(|(at, _)| *at <= now)
        {
            self.waiting.remove(&change);
            taken.push(change);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: WatchKind, path: &str) -> Change {
        Change {
            kind,
            path: path.into(),
            is_dir: false,
        }
    }

    #[test]
    fn one_of_a_kind_within_the_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pending = Pending::new(Duration::from_millis(100));
        let (create, write) = (
            change(WatchKind::Create, "/a"),
            change(WatchKind::Write, "/a"),
        );
        for (millis, change) in [(0, &create), (1, &write), (2, &write), (99, &create)] {
            assert!(pending.push(at(millis), change.clone()));
        }
        assert_eq!(pending.due(), Some(at(100)));
        assert_eq!(pending.take(at(99), 9), []);
        assert_eq!(pending.take(at(100), 9), std::slice::from_ref(&create));
        assert!(pending.push(at(100), create.clone()));
        assert_eq!(pending.take(at(300), 9), [write, create]);
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn too_many_are_told_as_one() {
        let now = Instant::now();
        let mut pending = Pending::new(Duration::ZERO);
        for n in 0..MAX_PENDING {
            assert!(pending.push(now, change(WatchKind::Create, &n.to_string())));
        }
        assert!(!pending.push(now, change(WatchKind::Create, "more")));
        assert!(pending.push(now, change(WatchKind::Create, "0")));
        pending.lose(now, std::path::Path::new("/a"));
        let left = pending.take(now, 9);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].kind, WatchKind::Overflow);
        assert!(pending.push(now, change(WatchKind::Create, "0")));
    }
}
