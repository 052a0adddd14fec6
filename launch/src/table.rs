//! Plain tables: columns as wide as their widest cell, numbers to the right.

/// Rows of text under headings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns whose cells stand to the right.
    right: Vec<bool>,
}

impl Table {
    /// A table with headings; one that begins with `>` stands to the right.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let right = headings
            .iter()
            .map(|heading| heading.starts_with('>'))
            .collect();
        let headings = headings
            .iter()
            .map(|heading| heading.trim_start_matches('>').to_owned());
        Self {
            rows: vec![headings.collect()],
            right,
        }
    }

    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as lines.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let space = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = if *right {
                    (space.as_str(), "")
                } else {
                    ("", &*space)
                };
                line.push_str(&format!("{before}{cell}{after}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["name", ">steps"]);
        assert!(table.is_empty());
        table.row(["bootstrap", "5"]);
        table.row(["m", "1,000"]);
        assert_eq!(
            table.render(),
            "name       steps\nbootstrap      5\nm          1,000\n"
        );
    }
}
