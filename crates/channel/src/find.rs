//! Finding a trigger in bytes that hold none, at nearly no cost: all that comes over the channel is
//! looked through, in a guest whose processor may be emulated.

use crate::wire::{TRIGGER_LEN, Trigger};

/// Looks for one trigger.
///
/// Wherever the trigger is, one of its bytes is at a multiple of its length, so only those places
/// are looked at. A trigger is random, as is most of what is copied: one place in sixteen then
/// holds some byte of the trigger, and is looked at closely.
pub(crate) struct Finder {
    trigger: [u8; TRIGGER_LEN],
    /// Where in the trigger a byte is, a bit for each place.
    places: [u16; 256],
}

impl Finder {
    pub(crate) fn new(Trigger(trigger): Trigger) -> Self {
        let mut places = [0; 256];
        for (n, byte) in trigger.into_iter().enumerate() {
            places[usize::from(byte)] |= 1 << n;
        }
        Self { trigger, places }
    }

    /// Where the first trigger begins.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<usize> {
        // A plain loop: built for size, iterators that skip look at every byte.
        let mut at = TRIGGER_LEN - 1;
        while let Some(byte) = bytes.get(at) {
            let mut places = self.places[usize::from(*byte)];
            // The last place first: that is the first trigger.
            while let Some(n) = places.checked_ilog2() {
                let start = at - n as usize;
                if bytes[start..].starts_with(&self.trigger) {
                    return Some(start);
                }
                places ^= 1 << n;
            }
            at += TRIGGER_LEN;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_is_found(
            trigger: [u8; TRIGGER_LEN],
            few in proptest::array::uniform16(0u8..2),
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in proptest::collection::vec(0usize..200, 0..4),
        ) {
            for trigger in [trigger, few] {
                for at in &at {
                    if let Some(place) = bytes.get_mut(*at..*at + TRIGGER_LEN) {
                        place.copy_from_slice(&trigger);
                    }
                }
                let expected = bytes.windows(TRIGGER_LEN).position(|w| w == trigger);
                prop_assert_eq!(Finder::new(Trigger(trigger)).find(&bytes), expected);
                for byte in &mut bytes {
                    *byte &= 1;
                }
            }
        }
    }
}
