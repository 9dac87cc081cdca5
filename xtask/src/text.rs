//! What is shown on the terminal.

use std::io::Write;

/// Writes a line to stdout. A reader that has gone, `make bench | head`, is no error.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// How a column is set.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Sets rows as a table: a header, a rule, columns two spaces apart.
pub(crate) fn table<const N: usize>(
    header: [(&str, Align); N],
    rows: &[[String; N]],
) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].0.chars().count()]).max()
    };
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or_default());
    let cell = |column: usize, text: &str| {
        let width = widths[column];
        match header[column].1 {
            Align::Left => format!("{text:<width$}"),
            Align::Right => format!("{text:>width$}"),
        }
    };
    let line = |cells: [&str; N]| {
        let set: Vec<String> = (0..N).map(|column| cell(column, cells[column])).collect();
        set.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header.map(|(name, _)| name))];
    let rule = widths.map(|width| "-".repeat(width));
    lines.push(line(rule.each_ref().map(String::as_str)));
    lines.extend(
        rows.iter()
            .map(|row| line(row.each_ref().map(String::as_str))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["a".to_owned(), "1.5".to_owned()],
            ["länger".to_owned(), "10.25".to_owned()],
        ];
        assert_eq!(
            table([("step", Align::Left), ("s", Align::Right)], &rows),
            [
                "step        s",
                "------  -----",
                "a         1.5",
                "länger  10.25"
            ]
        );
    }
}
