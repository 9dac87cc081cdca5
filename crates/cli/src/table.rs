//! Plain tables: names, dashes as long as the names, then a line per row.

use crate::output::one_line;

/// A column's name and least width.
pub(crate) type Column = (&'static str, usize);

/// A table of `N` columns, left aligned.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    columns: [Column; N],
    gap: usize,
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table whose columns stand `gap` blanks apart.
    pub(crate) fn new(columns: [Column; N], gap: usize) -> Self {
        Self {
            columns,
            gap,
            rows: Vec::new(),
        }
    }

    /// Adds a row. An empty cell is shown as `-`.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| {
            let cell = one_line(&cell);
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        }));
    }

    /// The table as text, a line end after every line.
    pub(crate) fn render(&self) -> String {
        let names = self.columns.map(|(name, _)| name.to_owned());
        let dashes = self.columns.map(|(name, _)| "-".repeat(name.len()));
        let lines = [&names, &dashes].into_iter().chain(&self.rows);
        let mut widths = self.columns.map(|(_, least)| least);
        for line in lines.clone() {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for line in lines {
            let start = text.len();
            for (width, cell) in widths.iter().zip(line) {
                text.push_str(cell);
                let pad = width - cell.chars().count() + self.gap;
                text.extend(std::iter::repeat_n(' ', pad));
            }
            text.truncate(start + text[start..].trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must() {
        let mut t = Table::new([("NAME", 6), ("A B", 0), ("LAST", 9)], 2);
        t.row(["ö".into(), "long cell".into(), String::new()]);
        t.row(["longname".into(), "\x1b".into(), "z".into()]);
        assert_eq!(
            t.render(),
            "NAME      A B        LAST\n\
             ----      ---        ----\n\
             ö         long cell  -\n\
             longname  \u{fffd}          z\n"
        );
    }
}
