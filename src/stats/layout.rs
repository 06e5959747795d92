//! What a statistics segment holds and where.

use serde::{Deserialize, Serialize};

/// A table of counters: rows (interfaces, tunnels, …) by columns (packets, bytes, …).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The group's name.
    pub name: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Number of the group's first cell in a worker's block. Cells are 8 bytes, rows stand one after the other.
    pub offset: usize,
}

impl Group {
    /// How many cells it has.
    #[must_use]
    pub const fn cells(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Number, in a worker's block, of the cell at `row` and `column`.
    #[must_use]
    pub const fn cell(&self, row: usize, column: usize) -> Option<usize> {
        if row < self.rows.len() && column < self.columns.len() {
            Some(self.offset + row * self.columns.len() + column)
        } else {
            None
        }
    }
}

/// A whole segment: the same groups for each worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The gateway's name.
    pub name: String,
    /// The process that writes.
    pub pid: u32,
    /// Seconds since 1970 when the segment was made.
    pub started: u64,
    /// How many workers write, each into a block of its own.
    pub workers: usize,
    /// Ticks a second of the clock that stages are measured by.
    pub tick_hz: u64,
    /// Tables of counters.
    pub groups: Vec<Group>,
}

/// Cells of a cache line: blocks are rounded up to whole lines so that two workers never share one.
const LINE: usize = 8;

impl Layout {
    /// Lays out `groups` of (name, rows, columns) one behind the other.
    #[must_use]
    pub fn new(
        name: &str,
        workers: usize,
        tick_hz: u64,
        groups: Vec<(&str, Vec<String>, Vec<String>)>,
    ) -> Self {
        let mut offset = 0;
        let groups = groups.into_iter().map(|(name, rows, columns)| {
            let group = Group { name: name.into(), rows, columns, offset };
            offset += group.cells().next_multiple_of(LINE);
            group
        });
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            name: name.into(),
            pid: std::process::id(),
            started: started.map_or(0, |d| d.as_secs()),
            workers,
            tick_hz,
            groups: groups.collect(),
        }
    }

    /// Cells of one worker's block, a multiple of a cache line (two lines: processors fetch in pairs).
    #[must_use]
    pub fn block(&self) -> usize {
        let end = self.groups.iter().map(|g| g.offset + g.cells()).max().unwrap_or(0);
        end.next_multiple_of(2 * LINE)
    }

    /// The group of this name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|g| g.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_do_not_overlap_and_start_on_lines() {
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        let layout = Layout::new(
            "x",
            2,
            1,
            vec![("a", names(3), names(5)), ("b", names(0), names(4)), ("c", names(2), names(8))],
        );
        let mut seen = std::collections::BTreeSet::new();
        for g in &layout.groups {
            assert_eq!(g.offset % LINE, 0);
            for row in 0..g.rows.len() {
                for column in 0..g.columns.len() {
                    assert!(seen.insert(g.cell(row, column).unwrap()));
                }
            }
            assert!(g.cell(g.rows.len(), 0).is_none());
        }
        assert!(seen.iter().all(|&cell| cell < layout.block()));
    }
}
