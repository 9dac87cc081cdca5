//! Words that are handed on through other languages.

/// A word for a POSIX shell, which zsh and fish read the same way unless it has a backslash.
pub(crate) fn sh(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A command line for a POSIX shell of these words.
pub(crate) fn sh_line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(sh).collect();
    words.join(" ")
}

/// A string literal of AppleScript. In such, only quotes and backslashes mean something else.
pub(crate) fn apple(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_back_every_word() {
        let words = [
            "plain-1.2/x",
            "",
            "two words",
            "it's",
            "'",
            "$HOME `id` \"q\" \\ !x",
            "line\nbreak",
            "~",
            "ä#*?",
        ];
        let line = format!("printf '%s\\0' {}", sh_line(words));
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        let expected: Vec<u8> = words
            .iter()
            .flat_map(|w| [w.as_bytes(), b"\0"].concat())
            .collect();
        assert_eq!(output.stdout, expected, "{line}");
        assert_eq!(sh("slicer-1"), "slicer-1");
    }

    #[test]
    fn applescript_keeps_quotes_and_backslashes() {
        assert_eq!(apple(r#"say "a\b""#), r#""say \"a\\b\"""#);
        assert_eq!(apple("it's"), "\"it's\"");
    }
}
