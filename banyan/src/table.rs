//! Tables for people: columns that line up, two spaces between them, no lines drawn.
//!
//! Does not: wrap or cut. What is printed can be read by `awk` too.

/// A column: its heading, and the side on which its values line up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    Left(&'static str),
    /// For numbers.
    Right(&'static str),
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Self::Left(heading) | Self::Right(heading) => heading,
        }
    }
}

/// Each line ends with a line break and without spaces.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.fold(columns[column].heading().chars().count(), usize::max)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let headings = columns.map(|column| column.heading().to_owned());
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row.iter().zip(columns).zip(widths).map(|((cell, column), width)| match column {
            Column::Left(_) => format!("{cell:width$}"),
            Column::Right(_) => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let columns = [Column::Left("NODE"), Column::Right("SLOTS"), Column::Left("STATE")];
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["a", "1366", "up"]), row(["a-long-name", "7", ""])];
        let want = "\
NODE         SLOTS  STATE
a             1366  up
a-long-name      7
";
        assert_eq!(table(columns, &rows), want);
        assert_eq!(table(columns, &[]), "NODE  SLOTS  STATE\n");
    }
}
