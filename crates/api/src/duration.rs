//! Go's duration grammar (`time.ParseDuration`), which every `timeout` of the API uses.

use std::time::Duration;

/// Why a duration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Empty text, or a sign.
    #[error("invalid duration {0:?}: expected a form like 500ms, 60s or 1h2m3.5s")]
    Malformed(String),
    /// A number without a unit.
    #[error("missing unit in duration {0:?}: expected a form like 500ms, 60s or 1h2m3.5s")]
    MissingUnit(String),
    /// A unit that is not one of ns, us, ms, s, m, h.
    #[error("unknown unit {unit:?} in duration {text:?}: use ns, us, ms, s, m or h")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The part that is no unit.
        unit: String,
    },
    /// More than Go's own limit of about 292 years.
    #[error("duration {0:?} is too long")]
    TooLong(String),
}

/// 2^63 nanoseconds, the end of Go's range.
const MAX_NANOS: f64 = 9_223_372_036_854_775_808.0;

/// Parses a Go duration such as `60s`, `1m0s`, `1h2m3.5s` or `500ms`. `0` needs no unit.
/// Negative durations, which no parameter of the API can use, are refused.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let malformed = || DurationError::Malformed(text.to_owned());
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(malformed());
    }
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        if !number.bytes().any(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let value: f64 = number.parse().map_err(|_| malformed())?;
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(DurationError::MissingUnit(text.to_owned())),
            unit => {
                return Err(DurationError::UnknownUnit {
                    text: text.to_owned(),
                    unit: unit.to_owned(),
                });
            }
        };
        nanos += value * scale;
        rest = tail;
    }
    if nanos >= MAX_NANOS {
        return Err(DurationError::TooLong(text.to_owned()));
    }
    // Nanoseconds below i64::MAX fit; Go, too, drops what is finer.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(Duration::from_nanos(nanos.round() as u64))
}

/// Formats as Go's `Duration.String()` does for whole seconds: `53s`, `7m45s`, `1h0m3s`.
/// Anything finer than a second is rounded.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let secs = duration.as_secs() + u64::from(duration.subsec_millis() >= 500);
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_forms_are_read() {
        for (text, nanos) in [
            ("0", 0),
            ("500ms", 500_000_000),
            ("60s", 60_000_000_000),
            ("1m0s", 60_000_000_000),
            ("2m", 120_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            (".5s", 500_000_000),
            ("1us", 1000),
            ("1µs", 1000),
            ("+3ns", 3),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_nanos(nanos)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "", "60", "1.5", "-1s", "s", ".", "1x", "1s2", "1.2.3s", "１s", "9999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn formats_like_go() {
        for (secs, text) in [(0, "0s"), (53, "53s"), (465, "7m45s"), (3603, "1h0m3s")] {
            assert_eq!(format_duration(Duration::from_secs(secs)), text);
        }
        assert_eq!(format_duration(Duration::from_millis(1600)), "2s");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,20}") {
            let _ = parse_duration(&text);
        }

        #[test]
        fn what_is_formatted_reads_back(secs in 0u64..10_000_000) {
            let d = Duration::from_secs(secs);
            proptest::prop_assert_eq!(parse_duration(&format_duration(d)), Ok(d));
        }
    }
}
