//! Numbers as people read them.

use std::time::Duration;

const BAR: u32 = 10;

/// A size: `0 B`, `160 MB`, `14.8 GB`, in powers of 1024.
pub(crate) fn bytes(bytes: u64) -> String {
    slicer_api::short_size(bytes, " ")
}

/// Bytes per second over some time; none is shown as such.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "rounded for reading, and never negative"
)]
pub(crate) fn rate(count: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let per_second = if seconds > 0.0 {
        (count as f64 / seconds).round() as u64
    } else {
        0
    };
    format!("{}/s", bytes(per_second))
}

/// A time in its two largest units: `23s`, `6m 53s`, `3h 12m`, `4d 2h`.
pub(crate) fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// A part of a whole as a row of marks. It is full only if the whole is, and empty only if nothing is
/// used.
pub(crate) fn bar(used: u64, total: u64) -> String {
    let (used, total) = (u128::from(used.min(total)), u128::from(total));
    let width = u128::from(BAR);
    let full = match total {
        0 => 0,
        _ if used == total => width,
        _ if used == 0 => 0,
        _ => ((used * width + total / 2) / total).clamp(1, width - 1),
    };
    (0..width)
        .map(|i| if i < full { '▰' } else { '▱' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second() {
        assert_eq!(rate(4096, Duration::from_secs(2)), "2 KB/s");
        assert_eq!(rate(5, Duration::ZERO), "0 B/s");
        assert_eq!(rate(1, Duration::from_secs(3)), "0 B/s");
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (23, "23s"),
            (60, "1m 0s"),
            (413, "6m 53s"),
            (11_520, "3h 12m"),
            (353_000, "4d 2h"),
        ] {
            assert_eq!(uptime(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_bar_tells_the_ends_apart() {
        assert_eq!(bar(0, 8), "▱▱▱▱▱▱▱▱▱▱");
        assert_eq!(bar(1, 1000), "▰▱▱▱▱▱▱▱▱▱");
        assert_eq!(bar(1, 2), "▰▰▰▰▰▱▱▱▱▱");
        assert_eq!(bar(999, 1000), "▰▰▰▰▰▰▰▰▰▱");
        assert_eq!(bar(9, 8), "▰▰▰▰▰▰▰▰▰▰");
        assert_eq!(bar(0, 0), "▱▱▱▱▱▱▱▱▱▱");
        assert_eq!(bar(u64::MAX / 2, u64::MAX), "▰▰▰▰▰▱▱▱▱▱");
    }
}
