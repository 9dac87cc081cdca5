//! Sizes as people read them.

/// A size in powers of 1024, with `gap` before the unit: `0B`, `159MB`, `29.2GB`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "one place is shown")]
pub fn short_size(bytes: u64, gap: &str) -> String {
    const UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // What would be shown as 1024 is 1 of the next.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let places = usize::from(unit >= 3);
    format!("{value:.places$}{gap}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KB"),
            (159 << 20, "159MB"),
            ((1 << 30) - 1, "1.0GB"),
            (15_891_378_995, "14.8GB"),
            (u64::MAX, "16384.0PB"),
        ] {
            assert_eq!(short_size(bytes, ""), text, "{bytes}");
        }
        assert_eq!(short_size(160 << 20, " "), "160 MB");
    }
}
