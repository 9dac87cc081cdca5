//! The bounded log of a background exec: its newest frames, whole.

use jiff::Timestamp;
use slicer_api::FrameType;
use std::collections::VecDeque;

/// What keeping a frame costs besides its output, so that a command that writes byte by byte can't
/// have more memory than another.
pub(super) const FRAME_COST: u64 = size_of::<Head>() as u64;
/// The most output in one frame, whatever the ring's size.
const MAX_PAYLOAD: usize = 32 << 10;
/// The least a frame may be cut to in a ring that is very small.
const MIN_PAYLOAD: usize = 64;

/// A frame without its output.
#[derive(Debug, Clone, Copy)]
struct Head {
    timestamp: Timestamp,
    /// Bytes of output before its own, since the beginning.
    start: u64,
    len: u32,
    kind: FrameType,
}

/// A frame as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) id: u64,
    pub(super) kind: FrameType,
    pub(super) timestamp: Timestamp,
    pub(super) payload: Vec<u8>,
}

/// Frames that a reader has missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    /// The last of them.
    pub(super) id: u64,
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

/// Where a reader is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The next frame it wants.
    id: u64,
    /// Bytes of output before that frame, as far as it knows.
    offset: u64,
}

impl Cursor {
    /// A reader that begins at this frame; the first is 1.
    pub(super) fn at(id: u64) -> Self {
        Self {
            id: id.max(1),
            offset: 0,
        }
    }
}

/// The newest frames, as many as fit. The very newest is always kept.
#[derive(Debug)]
pub(super) struct Ring {
    limit: u64,
    first_id: u64,
    heads: VecDeque<Head>,
    output: VecDeque<u8>,
    written: u64,
}

impl Ring {
    /// An empty ring for this many bytes, the cost of frames included.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            first_id: 1,
            heads: VecDeque::new(),
            output: VecDeque::new(),
            written: 0,
        }
    }

    /// The most output a frame should have, so that several fit.
    pub(super) fn payload_limit(&self) -> usize {
        usize::try_from(self.limit / 4)
            .unwrap_or(MAX_PAYLOAD)
            .clamp(MIN_PAYLOAD, MAX_PAYLOAD)
    }

    /// The id the next frame will get.
    pub(super) fn next_id(&self) -> u64 {
        self.first_id + self.heads.len() as u64
    }

    /// Bytes of output ever written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes of output that are here no more.
    pub(super) fn dropped(&self) -> u64 {
        self.written - self.output.len() as u64
    }

    /// Adds a frame, and drops the oldest for which there is no more room.
    pub(super) fn push(&mut self, kind: FrameType, timestamp: Timestamp, payload: &[u8]) {
        // Frames are cut far below this before they come here.
        let payload = &payload[..payload.len().min(u32::MAX as usize)];
        self.make_room(payload.len() as u64);
        self.reserve(payload.len());
        self.heads.push_back(Head {
            timestamp,
            start: self.written,
            len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            kind,
        });
        self.output.extend(payload);
        self.written += payload.len() as u64;
    }

    fn make_room(&mut self, payload: u64) {
        let room = self.limit.saturating_sub(payload + FRAME_COST);
        while !self.heads.is_empty()
            && self.output.len() as u64 + self.heads.len() as u64 * FRAME_COST > room
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(head) = self.heads.pop_front() {
            self.output.drain(..head.len as usize);
            self.first_id += 1;
        }
    }

    /// Doubles the buffer as a vector would, but never past what the ring may have.
    fn reserve(&mut self, more: usize) {
        let needed = self.output.len() + more;
        if needed > self.output.capacity() {
            let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
            let doubled = (self.output.capacity() * 2).clamp(4096.min(limit), limit);
            self.output
                .reserve_exact(doubled.max(needed) - self.output.len());
        }
    }

    /// Gives back memory that nothing will be written to any more.
    pub(super) fn shrink(&mut self) {
        self.heads.shrink_to_fit();
        self.output.shrink_to_fit();
    }

    /// Drops all frames but the newest.
    pub(super) fn clear(&mut self) {
        while self.heads.len() > 1 {
            self.drop_oldest();
        }
        self.shrink();
    }

    /// What `cursor` has missed, which it is then past.
    pub(super) fn gap(&self, cursor: &mut Cursor) -> Option<Gap> {
        if cursor.id >= self.first_id {
            return None;
        }
        let gap = Gap {
            id: self.first_id - 1,
            frames: self.first_id - cursor.id,
            bytes: self.dropped() - cursor.offset,
        };
        cursor.id = self.first_id;
        cursor.offset = self.dropped();
        Some(gap)
    }

    /// The frame at `cursor`, which is then past it.
    pub(super) fn read(&self, cursor: &mut Cursor) -> Option<Frame> {
        let index = usize::try_from(cursor.id.checked_sub(self.first_id)?).ok()?;
        let head = self.heads.get(index)?;
        let start = usize::try_from(head.start - self.dropped()).ok()?;
        let end = start + head.len as usize;
        let frame = Frame {
            id: cursor.id,
            kind: head.kind,
            timestamp: head.timestamp,
            payload: self.output.range(start..end).copied().collect(),
        };
        cursor.id += 1;
        cursor.offset = head.start + u64::from(head.len);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(ring: &Ring, cursor: &mut Cursor) -> Vec<Frame> {
        std::iter::from_fn(|| ring.read(cursor)).collect()
    }

    #[test]
    fn the_newest_frame_is_kept_even_when_it_is_too_large() {
        let mut ring = Ring::new(1);
        for text in ["one", "two"] {
            ring.push(FrameType::Stdout, Timestamp::UNIX_EPOCH, text.as_bytes());
        }
        let mut cursor = Cursor::at(0);
        assert_eq!(
            ring.gap(&mut cursor),
            Some(Gap {
                id: 1,
                frames: 1,
                bytes: 3
            })
        );
        assert_eq!(all(&ring, &mut cursor)[0].payload, b"two");
        assert_eq!((ring.next_id(), ring.written(), ring.dropped()), (3, 6, 3));
    }

    proptest! {
        /// Whatever is pushed and however far a reader falls behind: it sees every frame once and
        /// whole, or is told how much it missed.
        #[test]
        fn a_reader_gets_all_or_is_told(
            limit in 0u64..2000,
            pushes in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..200), any::<bool>()), 0..80),
        ) {
            let mut ring = Ring::new(limit);
            let mut cursor = Cursor::at(1);
            let (mut next, mut bytes, mut seen_bytes) = (1, 0, 0);
            let index = |id: u64| usize::try_from(id).unwrap() - 1;
            let mut pushed = Vec::new();
            for (payload, reads) in pushes {
                ring.push(FrameType::Stdout, Timestamp::UNIX_EPOCH, &payload);
                bytes += payload.len() as u64;
                pushed.push(payload);
                prop_assert_eq!(ring.written(), bytes);
                prop_assert_eq!(ring.next_id(), pushed.len() as u64 + 1);
                let kept = ring.output.len() as u64 + ring.heads.len() as u64 * FRAME_COST;
                prop_assert!(kept <= limit || ring.heads.len() == 1);
                prop_assert!(ring.output.capacity() as u64 <= limit.max(200 + 64) * 2);
                if reads {
                    if let Some(gap) = ring.gap(&mut cursor) {
                        prop_assert_eq!(gap.id, next + gap.frames - 1);
                        let missed: usize = pushed[index(next)..=index(gap.id)].iter().map(Vec::len).sum();
                        prop_assert_eq!(gap.bytes, missed as u64);
                        next = gap.id + 1;
                        seen_bytes += gap.bytes;
                    }
                    for frame in all(&ring, &mut cursor) {
                        prop_assert_eq!(frame.id, next);
                        prop_assert_eq!(&frame.payload, &pushed[index(next)]);
                        seen_bytes += frame.payload.len() as u64;
                        next += 1;
                    }
                    prop_assert_eq!(next, ring.next_id());
                    prop_assert_eq!(seen_bytes, bytes);
                }
            }
            ring.clear();
            prop_assert!(ring.heads.len() <= 1);
            prop_assert_eq!(ring.written(), bytes);
        }

        #[test]
        fn any_beginning_is_safe(id in any::<u64>(), count in 0usize..40) {
            let mut ring = Ring::new(300);
            for _ in 0..count {
                ring.push(FrameType::Stderr, Timestamp::UNIX_EPOCH, b"0123456789");
            }
            let mut cursor = Cursor::at(id);
            let gap = ring.gap(&mut cursor);
            prop_assert!(gap.is_none_or(|g| g.bytes <= ring.dropped()));
            let frames = all(&ring, &mut cursor);
            prop_assert!(frames.len() <= ring.heads.len());
        }
    }
}
