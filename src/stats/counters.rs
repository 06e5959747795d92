//! What one worker counts.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::Segment;
pub use super::columns::*;
use crate::packet::DropReason;

/// Where a group's cells are in the worker's block.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    offset: usize,
    rows: usize,
    columns: usize,
}

/// The counters of one worker: the only writer of its block.
#[derive(Debug)]
pub struct WorkerCounters {
    segment: Arc<Segment>,
    first: usize,
    worker: Place,
    drop: Place,
    stage: Place,
    port: Place,
    interface: Place,
    tunnel: Place,
    policy: Place,
    sa: Place,
    pool: Place,
    limit: Place,
    /// Cells of an older block that this one goes on with.
    carried: Vec<Carried>,
}

/// A count that goes on in another cell. Several may go on in one.
#[derive(Debug, Clone, Copy)]
struct Carried {
    from: usize,
    to: usize,
    /// How much of it the new cell has.
    count: u64,
}

impl Carried {
    /// Gives the new cell what it does not have yet.
    fn take_up(&mut self, old: &Segment, new: &Segment) {
        if let (Some(from), Some(to)) = (old.cells().get(self.from), new.cells().get(self.to)) {
            let count = from.load(Ordering::Relaxed);
            let more = count.wrapping_sub(self.count);
            to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
            self.count = count;
        }
    }
}

impl WorkerCounters {
    /// The counters of worker number `worker` in a new segment that takes over from an older one: what has the same
    /// names in both goes on from where it stands, and what the worker still counts in the older one is added by
    /// [`WorkerCounters::carry_from`]. So whoever reads the new one at any time sees no count go back.
    #[must_use]
    pub fn taking_over(segment: &Arc<Segment>, worker: usize, older: &Segment) -> Self {
        let mut new = Self::new(segment, worker);
        let block = worker * older.layout().block();
        for group in &segment.layout().groups {
            let Some(old) = older.layout().group(&group.name) else { continue };
            let rows: std::collections::HashMap<&String, usize> =
                group.rows.iter().enumerate().map(|(i, name)| (name, i)).collect();
            for (old_row, name) in old.rows.iter().enumerate() {
                // Drops by an interface that is gone go on as those of none: the balance counts them.
                let gone = (group.name == self::group::DROP).then_some(0);
                let known = rows.get(name).copied().filter(|_| !name.is_empty());
                let Some(row) = known.or(gone) else { continue };
                for (column, name) in group.columns.iter().enumerate() {
                    let old_column = old.columns.iter().position(|c| c == name);
                    let from = old_column.and_then(|old_column| old.cell(old_row, old_column));
                    if let Some((from, to)) = from.zip(group.cell(row, column)) {
                        new.carried.push(Carried { from: block + from, to: new.first + to, count: 0 });
                    }
                }
            }
        }
        for carried in &mut new.carried {
            carried.take_up(older, segment);
        }
        new
    }

    /// Adds what was counted in `old` since. To be called by the worker, which is the only writer of both by then.
    pub fn carry_from(&self, old: &Self) {
        for mut carried in self.carried.iter().copied() {
            carried.take_up(&old.segment, &self.segment);
        }
    }

    /// The counters of worker number `worker`. Each number is to be taken once.
    #[must_use]
    pub fn new(segment: &Arc<Segment>, worker: usize) -> Self {
        let layout = segment.layout();
        let place = |name: &str| {
            let group = layout.group(name);
            group.map_or_else(Place::default, |g| Place {
                offset: g.offset,
                rows: g.rows.len(),
                columns: g.columns.len(),
            })
        };
        Self {
            first: worker * layout.block(),
            worker: place(group::WORKER),
            drop: place(group::DROP),
            stage: place(group::STAGE),
            port: place(group::PORT),
            interface: place(group::INTERFACE),
            tunnel: place(group::TUNNEL),
            policy: place(group::POLICY),
            sa: place(group::SA),
            pool: place(group::POOL),
            limit: place(group::LIMIT),
            carried: Vec::new(),
            segment: Arc::clone(segment),
        }
    }

    #[inline]
    fn cell(&self, place: Place, row: usize, column: usize) -> Option<&AtomicU64> {
        let at = self.first + place.offset + row * place.columns + column;
        if row < place.rows { self.segment.cells().get(at) } else { None }
    }

    /// Adds without a read-modify-write: this worker is the cell's only writer.
    #[inline]
    fn add(&self, place: Place, row: usize, column: usize, n: u64) {
        if cfg!(feature = "uncounted") {
            return;
        }
        if let Some(cell) = self.cell(place, row, column) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    fn set(&self, place: Place, row: usize, column: usize, n: u64) {
        if let Some(cell) = self.cell(place, row, column) {
            cell.store(n, Ordering::Relaxed);
        }
    }

    fn get(&self, place: Place, row: usize, column: usize) -> u64 {
        self.cell(place, row, column).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Counts of the worker itself.
    #[inline]
    pub fn worker(&self, column: WorkerColumn, n: u64) {
        self.add(self.worker, 0, column as usize, n);
    }

    /// Sets a gauge of the worker.
    #[inline]
    pub fn worker_gauge(&self, column: WorkerColumn, n: u64) {
        self.set(self.worker, 0, column as usize, n);
    }

    /// What the worker has counted of itself.
    #[must_use]
    pub fn read_worker(&self, column: WorkerColumn) -> u64 {
        self.get(self.worker, 0, column as usize)
    }

    /// Counts drops of packets that came by `interface` (`None`: by none that is known).
    #[inline]
    pub fn drops(&self, interface: Option<u16>, reason: DropReason, n: u64) {
        let row = interface.map_or(0, |i| usize::from(i) + 1);
        // Behind the interfaces are the ports.
        if row <= self.interface.rows {
            self.add(self.drop, row, reason as usize, n);
        }
    }

    /// Counts drops of packets that came by a port, and of which no interface is known.
    #[inline]
    pub fn port_drops(&self, port: u16, reason: DropReason, n: u64) {
        self.add(self.drop, 1 + self.interface.rows + usize::from(port), reason as usize, n);
    }

    /// Drops for `reason`, of all interfaces.
    #[must_use]
    pub fn read_drops(&self, reason: DropReason) -> u64 {
        (0..self.drop.rows).map(|row| self.get(self.drop, row, reason as usize)).sum()
    }

    /// Counts a timed run of a stage.
    #[inline]
    pub fn stage(&self, stage: usize, packets: u64, ticks: u64) {
        self.add(self.stage, stage, StageColumn::Packets as usize, packets);
        self.add(self.stage, stage, StageColumn::Bursts as usize, 1);
        self.add(self.stage, stage, StageColumn::Ticks as usize, ticks);
    }

    /// What was counted of a stage.
    #[must_use]
    pub fn read_stage(&self, stage: usize, column: StageColumn) -> u64 {
        self.get(self.stage, stage, column as usize)
    }

    /// Counts of a port.
    #[inline]
    pub fn port(&self, port: usize, column: PortColumn, n: u64) {
        self.add(self.port, port, column as usize, n);
    }

    /// What was counted of a port.
    #[must_use]
    pub fn read_port(&self, port: usize, column: PortColumn) -> u64 {
        self.get(self.port, port, column as usize)
    }

    /// Sets what a port counts itself.
    pub fn port_gauge(&self, port: usize, column: PortColumn, n: u64) {
        self.set(self.port, port, column as usize, n);
    }

    /// Counts packets and their bytes into an interface.
    #[inline]
    pub fn interface_in(&self, interface: u16, packets: u64, bytes: u64) {
        self.traffic(self.interface, usize::from(interface), TrafficColumn::InPackets, packets, bytes);
    }

    /// Counts packets and their bytes out of an interface.
    #[inline]
    pub fn interface_out(&self, interface: u16, packets: u64, bytes: u64) {
        self.traffic(self.interface, usize::from(interface), TrafficColumn::OutPackets, packets, bytes);
    }

    /// Counts packets and their bytes that came out of a tunnel into the gateway.
    #[inline]
    pub fn tunnel_in(&self, tunnel: u16, packets: u64, bytes: u64) {
        self.traffic(self.tunnel, usize::from(tunnel), TrafficColumn::InPackets, packets, bytes);
    }

    /// Counts packets and their bytes that the gateway sent into a tunnel.
    #[inline]
    pub fn tunnel_out(&self, tunnel: u16, packets: u64, bytes: u64) {
        self.traffic(self.tunnel, usize::from(tunnel), TrafficColumn::OutPackets, packets, bytes);
    }

    /// Counts packets and their bytes towards the gateway that the policy in this row decided about.
    #[inline]
    pub fn policy_in(&self, row: usize, packets: u64, bytes: u64) {
        self.traffic(self.policy, row, TrafficColumn::InPackets, packets, bytes);
    }

    /// Counts packets and their bytes out of the gateway that the policy in this row decided about.
    #[inline]
    pub fn policy_out(&self, row: usize, packets: u64, bytes: u64) {
        self.traffic(self.policy, row, TrafficColumn::OutPackets, packets, bytes);
    }

    /// Where a policy is counted: for whoever asks for it before it is needed.
    #[inline]
    #[must_use]
    pub fn policy_line(&self, row: usize) -> Option<&AtomicU64> {
        self.cell(self.policy, row, 0)
    }

    /// Where packets into a tunnel are counted: likewise.
    #[inline]
    #[must_use]
    pub fn tunnel_line(&self, tunnel: u16) -> Option<&AtomicU64> {
        self.cell(self.tunnel, usize::from(tunnel), TrafficColumn::OutPackets as usize)
    }

    /// Where packets of a security association are counted: likewise.
    #[inline]
    #[must_use]
    pub fn sa_line(&self, sa: u32) -> Option<&AtomicU64> {
        self.cell(self.sa, sa as usize, SaColumn::Packets as usize)
    }

    /// The bytes' column stands behind the packets'.
    #[inline]
    fn traffic(&self, place: Place, row: usize, column: TrafficColumn, packets: u64, bytes: u64) {
        self.add_both(place, row, column as usize, (packets, bytes));
    }

    /// As [`Self::add`], to this column and the one behind it: the place is found once.
    #[inline(always)]
    fn add_both(&self, place: Place, row: usize, column: usize, (first, second): (u64, u64)) {
        if cfg!(feature = "uncounted") || row >= place.rows {
            return;
        }
        let at = self.first + place.offset + row * place.columns + column;
        if let Some([one, other]) = self.segment.cells().get(at..).and_then(<[_]>::first_chunk) {
            one.store(one.load(Ordering::Relaxed).wrapping_add(first), Ordering::Relaxed);
            other.store(other.load(Ordering::Relaxed).wrapping_add(second), Ordering::Relaxed);
        }
    }

    /// Counts of a security association.
    #[inline]
    pub fn sa(&self, sa: u32, column: SaColumn, n: u64) {
        self.add(self.sa, sa as usize, column as usize, n);
    }

    /// Counts packets that a security association has sealed or opened, and their bytes.
    #[inline]
    pub fn sa_traffic(&self, sa: u32, packets: u64, bytes: u64) {
        self.add_both(self.sa, sa as usize, SaColumn::Packets as usize, (packets, bytes));
    }

    /// Counts what a limit let pass: packets and bytes from `column` on.
    #[inline]
    pub fn limit(&self, row: usize, column: LimitColumn, packets: u64, bytes: u64) {
        self.add(self.limit, row, column as usize, packets);
        self.add(self.limit, row, column as usize + 1, bytes);
    }

    /// What was counted of a limit.
    #[must_use]
    pub fn read_limit(&self, row: usize, column: LimitColumn) -> u64 {
        self.get(self.limit, row, column as usize)
    }

    /// Counts of a NAT pool.
    #[inline]
    pub fn pool(&self, pool: u16, column: PoolColumn, n: u64) {
        self.add(self.pool, usize::from(pool), column as usize, n);
    }

    /// Sets a gauge of a NAT pool.
    #[inline]
    pub fn pool_gauge(&self, pool: u16, column: PoolColumn, n: u64) {
        self.set(self.pool, usize::from(pool), column as usize, n);
    }

    /// What was counted of a NAT pool.
    #[must_use]
    pub fn read_pool(&self, pool: u16, column: PoolColumn) -> u64 {
        self.get(self.pool, usize::from(pool), column as usize)
    }

    /// Counts a packet that lay so far behind the newest, and raises the association's greatest lateness.
    #[inline]
    pub fn sa_lateness(&self, sa: u32, lateness: u64) {
        self.sa_latenesses(sa, crate::crypto::replay::behind(lateness), 1, lateness);
    }

    /// As [`Self::sa_lateness`], of several packets of one bucket; `greatest` is that of the latest.
    #[inline]
    pub fn sa_latenesses(&self, sa: u32, bucket: usize, packets: u64, greatest: u64) {
        self.add(self.sa, sa as usize, SaColumn::Lateness as usize + bucket, packets);
        if let Some(cell) = self.cell(self.sa, sa as usize, SaColumn::Lateness as usize)
            && greatest > cell.load(Ordering::Relaxed)
        {
            cell.store(greatest, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_in_a_new_segment() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect::<Vec<_>>();
        let segment = |interfaces: &[&str]| {
            let rows = Rows { interfaces: names(interfaces), ..Rows::default() };
            Arc::new(Segment::anonymous(rows.layout("x", 1, 1)).unwrap())
        };
        let (old, new) = (segment(&["a", "b"]), segment(&["b", "c", "a"]));
        let before = WorkerCounters::new(&old, 0);
        before.worker(WorkerColumn::Received, 9);
        before.interface_in(0, 1, 10);
        before.interface_in(1, 2, 20);
        let after = WorkerCounters::taking_over(&new, 0, &old);
        let counts = || {
            let packets = |row| after.get(after.interface, row, TrafficColumn::InPackets as usize);
            (after.read_worker(WorkerColumn::Received), packets(0), packets(1), packets(2))
        };
        // Whoever reads it before the worker has it sees what was counted so far.
        assert_eq!(counts(), (9, 2, 0, 1));
        before.worker(WorkerColumn::Received, 3);
        before.interface_in(1, 5, 50);
        after.carry_from(&before);
        assert_eq!(counts(), (12, 7, 0, 1));
    }

    #[test]
    fn drops_outlive_the_interface_they_were_counted_by() {
        let segment = |interfaces: &[&str]| {
            let rows =
                Rows { interfaces: interfaces.iter().map(|s| (*s).to_string()).collect(), ..Rows::default() };
            Arc::new(Segment::anonymous(rows.layout("x", 1, 1)).unwrap())
        };
        let (old, new) = (segment(&["a", "b", ""]), segment(&["b", "", "new"]));
        let before = WorkerCounters::new(&old, 0);
        for (interface, count) in [(None, 1), (Some(0), 2), (Some(1), 4), (Some(2), 8)] {
            before.drops(interface, DropReason::NoRoute, count);
        }
        let after = WorkerCounters::taking_over(&new, 0, &old);
        before.drops(Some(0), DropReason::NoRoute, 16);
        after.carry_from(&before);
        let row = |row| after.get(after.drop, row, DropReason::NoRoute as usize);
        assert_eq!([row(0), row(1), row(2), row(3)], [27, 4, 0, 0]);
        assert_eq!(after.read_drops(DropReason::NoRoute), before.read_drops(DropReason::NoRoute));
    }

    #[test]
    fn each_count_has_its_cell() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect::<Vec<_>>();
        let rows = Rows {
            interfaces: names(&["a", "b"]),
            ports: names(&["p", "q"]),
            tunnels: names(&["t"]),
            ..Rows::default()
        };
        let segment = Arc::new(Segment::anonymous(rows.layout("x", 2, 1)).unwrap());
        let (one, two) = (WorkerCounters::new(&segment, 0), WorkerCounters::new(&segment, 1));
        one.worker(WorkerColumn::Received, 3);
        two.worker(WorkerColumn::Received, 4);
        one.drops(None, DropReason::NoRoute, 1);
        one.drops(Some(1), DropReason::NoRoute, 2);
        // There is no interface 2: behind the last are the ports.
        one.drops(Some(2), DropReason::NoRoute, 100);
        one.drops(Some(7), DropReason::NoRoute, 100);
        one.port_drops(1, DropReason::EthernetTruncated, 7);
        one.port_drops(2, DropReason::EthernetTruncated, 100);
        one.interface_out(1, 5, 500);
        assert_eq!(one.read_worker(WorkerColumn::Received), 3);
        assert_eq!(two.read_worker(WorkerColumn::Received), 4);
        assert_eq!(one.read_drops(DropReason::NoRoute), 3);
        assert_eq!(two.read_drops(DropReason::NoRoute), 0);
        assert_eq!(one.read_drops(DropReason::EthernetTruncated), 7);
        let drops = segment.layout().group(group::DROP).unwrap();
        assert_eq!(drops.rows, ["-", "a", "b", "port p", "port q"]);
        let cell = drops.cell(4, DropReason::EthernetTruncated as usize).unwrap();
        assert_eq!(segment.cells()[cell].load(Ordering::Relaxed), 7);
        let group = segment.layout().group(group::INTERFACE).unwrap();
        let read =
            |c: TrafficColumn| segment.cells()[group.cell(1, c as usize).unwrap()].load(Ordering::Relaxed);
        assert_eq!((read(TrafficColumn::OutPackets), read(TrafficColumn::OutBytes)), (5, 500));
        assert_eq!(read(TrafficColumn::InPackets), 0);
    }
}
