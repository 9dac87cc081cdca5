//! Buffers that are used again: a fresh one costs a page fault for each of its pages, which in an
//! emulated guest is more than filling it.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// What buffers begin at a multiple of: file systems take whole pages without copying them.
pub(crate) const ALIGN: usize = 4096;

/// The buffers of one copy, all of one size.
#[derive(Debug, Clone)]
pub struct Buffers {
    size: usize,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer with the bytes that are in it. Dropped, it can be had again.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    size: usize,
    filled: usize,
    home: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// Buffers for so many bytes each.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            size,
            spare: Arc::default(),
        }
    }

    /// An empty buffer. There are as many as are taken.
    #[must_use]
    pub fn take(&self) -> Buffer {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = spare.pop();
        drop(spare);
        let memory = memory.unwrap_or_else(|| vec![0; self.size + ALIGN]);
        // Without a place to align it to there is none to be had without copies.
        let start = memory.as_ptr().align_offset(ALIGN);
        Buffer {
            start: if start <= ALIGN { start } else { 0 },
            memory,
            size: self.size,
            filled: 0,
            home: Arc::clone(&self.spare),
        }
    }
}

impl Buffer {
    /// Whether there is room for no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.filled == self.size
    }

    /// Adds as many of these bytes as there is room for, and says how many.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.size - self.filled);
        let from = self.start + self.filled;
        self.memory[from..from + n].copy_from_slice(&bytes[..n]);
        self.filled += n;
        n
    }

    /// Lets `read` add up to `most` bytes, until it gives none.
    ///
    /// # Errors
    /// That of `read`.
    pub fn fill<E>(
        &mut self,
        most: usize,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let end = self.size.min(self.filled.saturating_add(most));
        while self.filled < end {
            let room = &mut self.memory[self.start + self.filled..self.start + end];
            match read(room)? {
                0 => break,
                n => self.filled += n.min(room.len()),
            }
        }
        Ok(())
    }

    /// What is in it, as something that can be shared.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_filled_and_used_again() {
        let buffers = Buffers::new(10_000);
        let mut buffer = buffers.take();
        assert_eq!(buffer.append(&[1; 6000]), 6000);
        assert_eq!(buffer.append(&[2; 6000]), 4000);
        assert!(buffer.is_full() && buffer.append(b"x") == 0);
        assert_eq!(buffer.as_ref().as_ptr().align_offset(ALIGN), 0);
        let at = buffer.as_ref().as_ptr();
        let bytes = buffer.freeze();
        assert!(bytes[..6000].iter().all(|b| *b == 1) && bytes[6000..].iter().all(|b| *b == 2));
        let other = buffers.take();
        assert_ne!(other.memory.as_ptr(), bytes.as_ptr());
        drop(bytes);
        let mut again = buffers.take();
        let mut pieces = [3, 5, 0, 7].into_iter();
        let read = |room: &mut [u8]| {
            let n = pieces.next().unwrap_or(0).min(room.len());
            room[..n].fill(9);
            Ok::<_, std::io::Error>(n)
        };
        again.fill(6, read).unwrap();
        assert_eq!((again.as_ref(), again.as_ref().as_ptr()), (&[9; 6][..], at));
        again.fill(6, |_| Err(())).unwrap_err();
        again.fill(6, |_| Ok::<_, ()>(0)).unwrap();
        assert_eq!(again.as_ref().len(), 6);
    }
}
