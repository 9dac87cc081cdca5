//! What a Mac's memory is used for.

/// A Mac's memory, as its kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// All memory, bytes.
    pub total: u64,
    /// Bytes of a page.
    pub size: u64,
    /// Pages of programs' own.
    pub internal: u64,
    /// Those of them which may be thrown away.
    pub purgeable: u64,
    /// Pages that are never taken away.
    pub wired: u64,
    /// Pages that hold what was compressed.
    pub compressed: u64,
}

impl Pages {
    /// Memory programs could still get without swapping, bytes: all but what Activity Monitor calls
    /// used. What is in the way of it is copies of files.
    #[must_use]
    pub fn available(&self) -> u64 {
        let own = self.internal.saturating_sub(self.purgeable);
        let used = own
            .saturating_add(self.wired)
            .saturating_add(self.compressed);
        self.total.saturating_sub(used.saturating_mul(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_programs_and_not_wired_is_available() {
        let pages = Pages {
            total: 16 << 30,
            size: 16 << 10,
            internal: 300_000,
            purgeable: 10_000,
            wired: 100_000,
            compressed: 50_000,
        };
        assert_eq!(pages.available(), (16 << 30) - 440_000 * (16 << 10));
        // Counted at different moments, they may not fit together.
        let odd = Pages {
            purgeable: 400_000,
            wired: u64::MAX,
            ..pages
        };
        assert_eq!(odd.available(), 0);
    }
}
