//! Sizes as people write them.

use crate::ImageError;

/// Parses a whole number with a binary unit, such as `512M` or `15G`. `K`, `M`, `G` and `T`, in
/// either case, with or without `B` or `iB`, all mean powers of 1024; a bare number is bytes.
pub fn parse_size(text: &str) -> Result<u64, ImageError> {
    let invalid = || ImageError::Size(text.to_owned());
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let unit = unit.trim_start().to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(invalid()),
    };
    number.checked_mul(1 << shift).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("15G", 15 << 30),
            ("15GiB", 15 << 30),
            (" 15 gb ", 15 << 30),
            ("2T", 2 << 40),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "G",
            "-1G",
            "1.5G",
            "15X",
            "15GG",
            "15 iB G",
            "99999999999T",
            "١G",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC{0,12}") {
            let _ = parse_size(&text);
        }
    }
}
