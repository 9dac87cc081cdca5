//! Everything that is printed. Data goes to stdout, all else to stderr; a failed write is an
//! error, never a panic.

use crate::error::CliError;
use serde::Serialize;
use std::io::Write;
use tokio::io::AsyncWriteExt as _;

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[1;36m";
const PLAIN: &str = "\x1b[0m";

/// Writes data to stdout. Doesn't block the runtime, so an interrupt is still seen when nobody
/// reads.
pub(crate) async fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = tokio::io::stdout();
    stdout
        .write_all(text.as_bytes())
        .await
        .map_err(CliError::Output)?;
    stdout.flush().await.map_err(CliError::Output)
}

/// Writes data to stdout where there is no runtime.
pub(crate) fn print_now(text: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text)
        .and_then(|()| stdout.flush())
        .map_err(CliError::Output)
}

/// A value as JSON for people and programs, with a line end.
pub(crate) fn json(value: &impl Serialize) -> Result<String, CliError> {
    let mut text = serde_json::to_string_pretty(value).map_err(CliError::Json)?;
    text.push('\n');
    Ok(text)
}

/// Says on stderr that the command failed.
pub(crate) fn error(text: &str) {
    say(RED, "Error", text);
}

/// Says something on stderr that is neither data nor an error.
pub(crate) fn note(text: &str) {
    say(CYAN, "Note", text);
}

/// Says on stderr how far something is, a line as it is.
#[cfg(target_os = "linux")]
pub(crate) fn progress(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// Says on stderr what may help.
pub(crate) fn hint(text: &str) {
    say(CYAN, "Hint", text);
}

fn say(color: &str, label: &str, text: &str) {
    // Drops the colours unless stderr is a terminal that wants them. When even stderr can't be
    // written to, the exit code must be enough.
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{color}{label}:{PLAIN} {}", one_line(text));
}

/// Text from elsewhere, without what could move the cursor or start a new line.
pub(crate) fn one_line(text: &str) -> String {
    text.trim()
        .chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// A progress bar of bytes, whose length is not known yet, shown on a terminal only.
pub(crate) fn byte_bar() -> indicatif::ProgressBar {
    if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::no_length();
    let style = indicatif::ProgressStyle::with_template(
        "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_its_line() {
        assert_eq!(one_line("a\nb\x1b[2Jc\r\n"), "a b\u{fffd}[2Jc");
    }
}
