//! Tables for people.

use comfy_table::{Cell, CellAlignment, presets};

/// A column: its heading, and whether it holds numbers.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    /// Words, from the left.
    Text(&'static str),
    /// Numbers, from the right.
    Number(&'static str),
}

/// A table, aligned, without lines.
#[derive(Debug)]
pub struct Table {
    inner: comfy_table::Table,
    columns: Vec<Column>,
    rows: usize,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(columns: Vec<Column>) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(presets::NOTHING);
        inner.set_header(columns.iter().map(|column| match column {
            Column::Text(name) => Cell::new(name),
            Column::Number(name) => Cell::new(name).set_alignment(CellAlignment::Right),
        }));
        for (column, kind) in inner.column_iter_mut().zip(&columns) {
            column.set_padding((0, 2));
            if matches!(kind, Column::Number(_)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self { inner, columns, rows: 0 }
    }

    /// Adds a row: as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.inner.add_row(cells);
        self.rows += 1;
    }

    /// Whether it has no rows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows == 0
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in self.inner.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A dash for what there is not.
#[must_use]
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// Packets a second.
#[must_use]
pub fn rate(value: Option<f64>) -> String {
    or_dash(value.map(|v| format!("{v:.0}")))
}

/// Bytes a second as megabits a second.
#[must_use]
pub fn mbps(value: Option<f64>) -> String {
    or_dash(value.map(|v| format!("{:.2}", v * 8.0 / 1e6)))
}

/// A number that may not be finite, to one place.
#[must_use]
pub fn tenth(value: Option<f64>) -> String {
    or_dash(value.map(|v| format!("{v:.1}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_and_words_begin_in_one_column() {
        let mut table = Table::new(vec![Column::Text("NAME"), Column::Number("PACKETS"), Column::Text("TO")]);
        assert!(table.is_empty());
        table.row(vec!["a".into(), "1234567890".into(), "x".into()]);
        table.row(vec!["longer".into(), "5".into(), "yy".into()]);
        let text = table.to_string();
        assert_eq!(text, "NAME       PACKETS  TO\na       1234567890  x\nlonger           5  yy\n");
    }
}
