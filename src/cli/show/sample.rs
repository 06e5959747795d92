//! Counters at one moment, and what happened between two.

use std::{collections::HashMap, time::Instant};

use crate::stats::{Layout, PortColumn, Reader, SaColumn, counters::group};

/// All counters at one moment, workers together.
#[derive(Debug)]
pub struct Sample {
    at: Instant,
    layout: Layout,
    /// Cells of each group, row after row.
    cells: HashMap<String, Vec<u64>>,
    /// Where each row of each group is.
    rows: HashMap<(String, String), usize>,
    /// What each worker counts of itself, in the order of the columns.
    workers: Vec<Vec<u64>>,
}

/// Of these the workers' greatest counts, not their sum.
fn is_greatest(in_group: &str, column: &str) -> bool {
    (in_group, column) == (group::PORT, PortColumn::Health.name())
        || (in_group, column) == (group::SA, SaColumn::Lateness.name())
}

impl Sample {
    /// What the counters say now.
    #[must_use]
    pub fn of(reader: &Reader) -> Self {
        let layout = reader.layout().clone();
        let mut cells = HashMap::new();
        let mut rows = HashMap::new();
        for group in &layout.groups {
            let mut values = Vec::with_capacity(group.cells());
            for (row, name) in group.rows.iter().enumerate() {
                rows.insert((group.name.clone(), name.clone()), row);
                values.extend(group.columns.iter().map(|column| {
                    let each = (0..layout.workers).map(|w| reader.of_worker(w, &group.name, row, column));
                    if is_greatest(&group.name, column) { each.max().unwrap_or(0) } else { each.sum() }
                }));
            }
            cells.insert(group.name.clone(), values);
        }
        let columns = layout.group(group::WORKER).map_or(&[][..], |g| &g.columns);
        let worker = |w| columns.iter().map(|c| reader.of_worker(w, group::WORKER, 0, c)).collect();
        let workers = (0..layout.workers).map(worker).collect();
        Self { at: Instant::now(), layout, cells, rows, workers }
    }

    /// What each worker counts of itself, in the order of the columns.
    #[must_use]
    pub fn workers(&self) -> &[Vec<u64>] {
        &self.workers
    }

    /// What is counted and by whom.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Names of a group's rows. A number that nothing has at the moment has no name and is left out.
    pub fn rows<'a>(&'a self, group: &str) -> impl Iterator<Item = &'a str> {
        let rows = self.layout.group(group).map_or(&[][..], |g| &g.rows);
        rows.iter().map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Names of a group's columns.
    pub fn columns<'a>(&'a self, group: &str) -> impl Iterator<Item = &'a str> {
        let columns = self.layout.group(group).map_or(&[][..], |g| &g.columns);
        columns.iter().map(String::as_str)
    }

    /// A counter; 0 where there is none.
    #[must_use]
    pub fn get(&self, group: &str, row: &str, column: &str) -> u64 {
        self.find(group, row, column).unwrap_or(0)
    }

    fn find(&self, group: &str, row: &str, column: &str) -> Option<u64> {
        let known = self.layout.group(group)?;
        let row = self.rows.get(&(group.to_string(), row.to_string()))?;
        let column = known.columns.iter().position(|c| c == column)?;
        self.cells.get(group)?.get(row * known.columns.len() + column).copied()
    }

    /// A column's sum over all rows.
    #[must_use]
    pub fn sum(&self, group: &str, column: &str) -> u64 {
        let Some(known) = self.layout.group(group) else { return 0 };
        let Some(column) = known.columns.iter().position(|c| c == column) else { return 0 };
        let cells = self.cells.get(group).map_or(&[][..], Vec::as_slice);
        cells.iter().skip(column).step_by(known.columns.len()).sum()
    }
}

/// Two moments of one gateway.
#[derive(Debug, Clone, Copy)]
pub struct Between<'a> {
    /// The later one.
    pub now: &'a Sample,
    /// The earlier one, where there was one.
    pub before: Option<&'a Sample>,
}

impl Between<'_> {
    /// Seconds between the two.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let before = self.before.filter(|before| {
            // Another process counts from zero again.
            before.layout.pid == self.now.layout.pid
        })?;
        Some(self.now.at.saturating_duration_since(before.at).as_secs_f64()).filter(|s| *s > 0.0)
    }

    /// By how much a counter grew.
    #[must_use]
    pub fn growth(&self, group: &str, row: &str, column: &str) -> Option<u64> {
        self.seconds()?;
        // A row that is new has grown from nothing.
        let before = self.before?.get(group, row, column);
        Some(self.now.get(group, row, column).saturating_sub(before))
    }

    /// By how much a counter grew each second.
    #[must_use]
    pub fn rate(&self, group: &str, row: &str, column: &str) -> Option<f64> {
        Some(self.growth(group, row, column)? as f64 / self.seconds()?)
    }

    /// The rate of a column's sum over all rows.
    #[must_use]
    pub fn rate_of_sum(&self, group: &str, column: &str) -> Option<f64> {
        let grown = self.now.sum(group, column).saturating_sub(self.before?.sum(group, column));
        Some(grown as f64 / self.seconds()?)
    }

    /// What a worker counts of itself, by the number of the column, since the earlier moment or since the start.
    #[must_use]
    pub fn recent_of_worker(&self, worker: usize, column: usize) -> u64 {
        let of = |sample: &Sample| {
            sample.workers.get(worker).and_then(|counts| counts.get(column)).copied().unwrap_or(0)
        };
        let before = self.before.filter(|_| self.seconds().is_some());
        of(self.now).saturating_sub(before.map_or(0, of))
    }

    /// The counter since the earlier moment where there is one, else since the start.
    #[must_use]
    pub fn recent(&self, group: &str, row: &str, column: &str) -> u64 {
        self.growth(group, row, column).unwrap_or_else(|| self.now.get(group, row, column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Segment, TrafficColumn, WorkerCounters, counters::Rows};

    #[test]
    fn samples_add_workers_and_rates_follow_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let rows = |names: &[&str]| Rows {
            interfaces: names.iter().map(|n| (*n).to_string()).collect(),
            sas: vec!["t/in/0x1".into()],
            ..Rows::default()
        };
        let make = |names: &[&str]| {
            let segment = std::sync::Arc::new(Segment::create(&path, rows(names).layout("x", 2, 1)).unwrap());
            let workers = [0, 1].map(|w| WorkerCounters::new(&segment, w));
            (Reader::open(&path).unwrap(), workers, segment)
        };
        let (reader, workers, _first) = make(&["a", "b"]);
        workers[0].interface_in(1, 5, 500);
        workers[1].interface_in(1, 2, 200);
        workers[0].sa_lateness(0, 7);
        workers[1].sa_lateness(0, 9);
        let before = Sample::of(&reader);
        let packets = TrafficColumn::InPackets.name();
        assert_eq!(before.get(group::INTERFACE, "b", packets), 7);
        assert_eq!(before.sum(group::INTERFACE, packets), 7);
        assert_eq!(before.get(group::SA, "t/in/0x1", SaColumn::Lateness.name()), 9);
        assert_eq!(before.get(group::INTERFACE, "c", packets), 0);

        // A reload put another interface in front, and left a number without a name.
        let (reader, workers, _second) = make(&["", "c", "b"]);
        workers[0].interface_in(1, 3, 300);
        workers[0].interface_in(2, 17, 1700);
        let now = Sample::of(&reader);
        assert_eq!(now.rows(group::INTERFACE).collect::<Vec<_>>(), ["c", "b"]);
        let between = Between { now: &now, before: Some(&before) };
        assert_eq!(between.growth(group::INTERFACE, "b", packets), Some(10));
        assert_eq!(between.growth(group::INTERFACE, "c", packets), Some(3));
        let rate = between.rate(group::INTERFACE, "b", packets).unwrap();
        assert!((rate * between.seconds().unwrap() - 10.0).abs() < 1e-6);
        let first = Between { now: &now, before: None };
        assert_eq!(first.rate(group::INTERFACE, "b", packets), None);
        assert_eq!(first.recent(group::INTERFACE, "b", packets), 17);
    }
}
