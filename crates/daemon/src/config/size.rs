//! Sizes as people write them: `15G`.

/// Bytes in `text`: a whole number and a binary unit `K`, `M`, `G` or `T`, also written `Gi`, `GB`
/// or `GiB`, in either case. `None` when it isn't that, or doesn't fit.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "k" | "ki" | "kb" | "kib" => 10,
        "m" | "mi" | "mb" | "mib" => 20,
        "g" | "gi" | "gb" | "gib" => 30,
        "t" | "ti" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_and_needed() {
        for (text, want) in [
            ("15G", Some(15 << 30)),
            ("512M", Some(512 << 20)),
            ("1 TiB", Some(1 << 40)),
            ("7kb", Some(7 << 10)),
            ("15", None),
            ("G", None),
            ("", None),
            ("1.5G", None),
            ("-1G", None),
            ("99999999999T", None),
            ("15Gx", None),
        ] {
            assert_eq!(parse_size(text), want, "{text}");
        }
    }
}
