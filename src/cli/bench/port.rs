//! The port of a benchmark of whole workers: what comes in is copied out of memory when its time has come, what goes
//! out is counted and forgotten.
//!
//! Its receive ring is that of a network card whose other side costs nothing: packets arrive at their times, as many
//! as it holds wait, and those that find it full are lost. Nobody has to put them there, since which packet comes when
//! is known beforehand; so no core is spent on a source, and the worker meets no cache line that a source has just
//! written. Whatever takes the worker's core away, the packets keep coming.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    io::PacketIo,
    packet::{
        BURST, FramePool, FrameQueue,
        prefetch::{CACHE_LINE, prefetch_read, prefetch_write},
    },
    runtime::Clock,
};

/// Packets that the receive ring holds.
pub const RING: u64 = 1024;
/// Packets of a common wire by which a worker may be ahead of the others, when there are so many: with what they hold,
/// less than the replay window of 1024. Each holds a burst, among which there are about as many packets of every other.
const fn lead(workers: usize) -> u64 {
    let held = 2 * BURST * workers;
    if held + BURST < 1024 { 1024 - held as u64 } else { BURST as u64 }
}

/// Frames, one behind the other. What a worker reads for every packet here is in no line that another writes to.
#[derive(Debug, Default, Clone)]
#[repr(align(128))]
pub struct Feed {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// The place of each on the wire that several workers' packets come from.
    places: Vec<u64>,
}

impl Feed {
    /// Appends a frame, which is at this place of the common wire.
    pub fn push(&mut self, bytes: &[u8], place: u64) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.places.push(place);
    }

    /// Frames.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A frame.
    #[inline]
    #[must_use]
    pub fn frame(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(number).copied().unwrap_or(start);
        self.bytes.get(start..end).unwrap_or(&[])
    }

    /// Reads all of it, so that it lies in the caches of the core that does.
    fn approach(&self) {
        let bytes = self.bytes.iter().step_by(CACHE_LINE).fold(0, |all, byte| all ^ u64::from(*byte));
        let ends = self.ends.iter().fold(bytes, |all, end| all ^ *end as u64);
        std::hint::black_box(self.places.iter().fold(ends, |all, place| all ^ place));
    }

    /// Starts loading a frame, since a network card would have put it near the processor.
    #[inline]
    fn prefetch(&self, number: usize) {
        self.frame(number).chunks(64).for_each(prefetch_read);
    }
}

/// Where each of several workers is on the wire that the packets of all come from.
#[derive(Debug)]
pub struct Wire {
    at: Vec<Line>,
    /// Packets by which one may be ahead of the others.
    lead: u64,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Wire {
    /// The wire of so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self { at: (0..workers).map(|_| Line::default()).collect(), lead: lead(workers) })
    }

    /// The place up to which a worker may take packets.
    fn limit(&self, own: usize) -> u64 {
        let others = self.at.iter().enumerate().filter(|(number, _)| *number != own);
        let least = others.map(|(_, line)| line.0.load(Relaxed)).min();
        least.map_or(u64::MAX, |least| least.saturating_add(self.lead))
    }

    /// Asks for the line that [`Self::set`] is about to write, which another worker has read.
    fn prefetch(&self, own: usize) {
        self.at.get(own).into_iter().for_each(prefetch_write);
    }

    fn set(&self, own: usize, place: u64) {
        if let Some(line) = self.at.get(own) {
            line.0.store(place, Relaxed);
        }
    }
}

/// When packets come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// There is always one.
    Full,
    /// At this many millions a second.
    Rate(f64),
}

/// What a source is to give.
#[derive(Debug)]
pub struct Order {
    /// The frames, in turn.
    pub feed: Arc<Feed>,
    /// How many packets.
    pub packets: u64,
    /// When they come.
    pub pace: Pace,
    /// The wire they come from together with those of other workers, and the number of this one there.
    pub wire: Option<(Arc<Wire>, usize)>,
}

/// Packets come in.
#[derive(Debug)]
struct Source {
    order: Order,
    clock: Clock,
    /// The counter when the first packet came.
    start: u64,
    /// Ticks from a packet to the next, times 2^16; 0: there is always one.
    gap: u64,
    /// Packets that have come, lost ones included.
    come: u64,
    /// The oldest in the ring, by number: here, and not in memory that may share its line with another worker's.
    front: Range<u64>,
    /// Those behind them, where some between were lost.
    behind: VecDeque<Range<u64>>,
    waiting: u64,
    lost: u64,
    /// Which were taken, in order.
    taken: Vec<Range<u64>>,
    /// Packets for which there was no buffer.
    no_buffer: u64,
    /// The place of the common wire up to which packets may be taken, as it was last looked up: the others' places are
    /// only looked at when this is reached.
    limit: u64,
}

impl Source {
    /// Lets come what has come by now.
    fn arrive(&mut self) {
        let order = &self.order;
        let now = self.clock.ticks().saturating_sub(self.start);
        let come = match self.gap {
            0 => order.packets.min(self.come + RING - self.waiting),
            gap => order.packets.min(((u128::from(now) << 16) / u128::from(gap)) as u64 + 1),
        };
        let room = (RING - self.waiting).min(come - self.come);
        if room > 0 {
            let come = self.come..self.come + room;
            match self.behind.back_mut().unwrap_or(&mut self.front) {
                last if last.is_empty() => *last = come,
                last if last.end == come.start => last.end = come.end,
                _ => self.behind.push_back(come),
            }
        }
        self.waiting += room;
        self.lost += come - self.come - room;
        self.come = come;
    }

    fn is_done(&self) -> bool {
        self.come == self.order.packets && self.waiting == 0
    }

    /// Packets up to `most` that are next in the ring, as one range.
    fn next(&self, most: u64) -> Range<u64> {
        self.front.start..self.front.end.min(self.front.start + most)
    }

    /// Those of these packets that come from a common wire no further ahead of the other workers than may be: nearly always all,
    /// so the last one is looked at first.
    fn within_lead(&mut self, packets: Range<u64>) -> Range<u64> {
        let Some((wire, own)) = &self.order.wire else { return packets };
        let places = &self.order.feed.places;
        let place = |number: u64| places.get(number as usize).copied().unwrap_or(u64::MAX);
        if packets.is_empty() || place(packets.end - 1) < self.limit {
            return packets;
        }
        self.limit = wire.limit(*own);
        let within = packets.clone().take_while(|number| place(*number) < self.limit).count();
        packets.start..packets.start + within as u64
    }

    fn take(&mut self, taken: Range<u64>) {
        let n = taken.end - taken.start;
        if n == 0 {
            return;
        }
        self.waiting -= n;
        self.front.start = taken.end;
        if self.front.is_empty()
            && let Some(next) = self.behind.pop_front()
        {
            self.front = next;
        }
        if self.gap > 0 {
            self.taken.push(taken);
        }
    }
}

/// What went out.
#[derive(Debug, Default)]
struct Sink {
    packets: u64,
    /// Clock and, at each time it was read, how many packets went out.
    times: Option<(Clock, Vec<(u64, u32)>)>,
    /// All frames that went out, where they are wanted.
    frames: Option<Feed>,
}

/// One queue of a port. What one worker counts here is in no line of another's.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BenchPort {
    source: Option<Source>,
    sink: Sink,
}

impl BenchPort {
    /// Lets packets come from now on.
    pub fn begin(&mut self, order: Order, clock: &Clock) {
        let gap = match order.pace {
            Pace::Full => 0,
            Pace::Rate(rate) => ((clock.tick_hz() as f64 * 65_536.0 / (rate * 1e6)) as u64).max(1),
        };
        // Written now, so that no page is missing later.
        let mut taken = Vec::new();
        if gap > 0 {
            taken.resize(order.packets as usize, 0..0);
            taken.clear();
        }
        if let Some((wire, own)) = &order.wire {
            wire.set(*own, 0);
        }
        self.source = Some(Source {
            start: clock.ticks(),
            clock: clock.clone(),
            gap,
            come: 0,
            front: 0..0,
            behind: VecDeque::with_capacity(RING as usize + 1),
            waiting: 0,
            lost: 0,
            taken,
            no_buffer: 0,
            limit: 0,
            order,
        });
    }

    /// Brings the packets near the core that asks, which is to receive them.
    pub fn approach(&self) {
        if let Some(source) = &self.source {
            source.order.feed.approach();
        }
    }

    /// The first packet comes now.
    pub fn start(&mut self) {
        if let Some(source) = &mut self.source {
            source.start = source.clock.ticks();
        }
    }

    /// Whether all packets have come and were taken or lost.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.source.as_ref().is_none_or(Source::is_done)
    }

    /// Packets that came, and those of them that were lost because the ring was full.
    #[must_use]
    pub fn offered(&self) -> (u64, u64) {
        self.source.as_ref().map_or((0, 0), |source| (source.come, source.lost))
    }

    /// Notes from now on when packets go out, for `packets` of them.
    pub fn note_times(&mut self, clock: &Clock, packets: u64) {
        let mut times = vec![(0, 0); packets as usize];
        times.clear();
        self.sink.times = Some((clock.clone(), times));
    }

    /// Keeps from now on what goes out.
    pub fn keep_frames(&mut self) {
        self.sink.frames = Some(Feed::default());
    }

    /// What went out since then; nothing more is kept.
    pub fn kept_frames(&mut self) -> Feed {
        self.sink.frames.take().unwrap_or_default()
    }

    /// Packets that went out.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sink.packets
    }

    /// How long each packet took from its arrival at this port until it went out of `exit`, in ticks, given that they
    /// go out in the order in which they came.
    pub fn delays(&self, exit: &Self, mut each: impl FnMut(u64)) {
        let (Some(source), Some((_, times))) = (&self.source, &exit.sink.times) else { return };
        let mut came = source.taken.iter().cloned().flatten();
        for (time, packets) in times {
            for number in came.by_ref().take(*packets as usize) {
                let at = source.start + ((u128::from(number) * u128::from(source.gap)) >> 16) as u64;
                each(time.saturating_sub(at));
            }
        }
    }
}

impl PacketIo for BenchPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let Some(source) = &mut self.source else { return 0 };
        source.arrive();
        if let Some((wire, own)) = &source.order.wire {
            wire.prefetch(*own);
        }
        let most = max.min(out.remaining_capacity()) as u64;
        let next = source.next(most);
        let next = source.within_lead(next);
        let (feed, mut taken) = (&source.order.feed, next.start..next.start);
        for number in next {
            let place = (number % feed.len().max(1) as u64) as usize;
            feed.prefetch(place + BURST);
            let Some(frame) = pool.alloc_with(feed.frame(place)) else {
                source.no_buffer += 1;
                break;
            };
            out.push(frame);
            taken.end += 1;
        }
        let n = (taken.end - taken.start) as usize;
        source.take(taken);
        if let Some((wire, own)) = &source.order.wire {
            let next = source.next(1).next();
            match next.and_then(|next| source.order.feed.places.get(next as usize)) {
                Some(place) => wire.set(*own, *place),
                None if source.is_done() => wire.set(*own, u64::MAX),
                None => {}
            }
        }
        n
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize {
        let n = frames.len();
        self.sink.packets += n as u64;
        if let Some((clock, times)) = &mut self.sink.times {
            times.push((clock.ticks(), n as u32));
        }
        if let Some(kept) = &mut self.sink.frames {
            frames.iter().for_each(|frame| kept.push(pool.umem().bytes(frame), 0));
        }
        frames.drain(..).for_each(|frame| pool.free(frame));
        n
    }

    fn complete(&mut self, _: &mut FramePool) {}

    fn shutdown(&mut self, _: &mut FramePool) -> usize {
        0
    }

    fn held(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{HugePages, Umem};

    fn feed(frames: u8) -> Arc<Feed> {
        let mut feed = Feed::default();
        (0..frames).for_each(|n| feed.push(&[n; 60], n.into()));
        Arc::new(feed)
    }

    fn pool() -> FramePool {
        Umem::new(256, 2048, HugePages::Never).unwrap().into_pools(1).pop().unwrap()
    }

    #[test]
    fn what_finds_the_ring_full_is_lost_and_all_is_accounted_for() {
        let (mut pool, clock, mut port) = (pool(), Clock::new(), BenchPort::default());
        let order = Order { feed: feed(4), packets: 5000, pace: Pace::Rate(100.0), wire: None };
        port.begin(order, &clock);
        port.start();
        // All have come by then: one in 10 ns.
        std::thread::sleep(std::time::Duration::from_millis(2));
        let (mut queue, mut taken) = (FrameQueue::new(), 0);
        while port.rx_burst(&mut pool, &mut queue, 64) > 0 {
            taken += queue.len() as u64;
            assert_eq!(pool.umem().bytes(&queue[1])[0], 1, "the oldest first, in order");
            queue.drain(..).for_each(|frame| pool.free(frame));
        }
        assert_eq!((taken, port.offered()), (RING, (5000, 5000 - RING)));
        assert!(port.is_done());
    }

    #[test]
    fn delays_are_those_of_the_packets_that_were_not_lost() {
        let (mut pool, clock) = (pool(), Clock::new());
        let (mut port, mut exit) = (BenchPort::default(), BenchPort::default());
        let order = Order { feed: feed(4), packets: 100_000, pace: Pace::Rate(1.0), wire: None };
        port.begin(order, &clock);
        exit.note_times(&clock, 100_000);
        port.start();
        let mut queue = FrameQueue::new();
        // The ring overflows after 1024 us; more come for as long as a busy machine may sleep over it.
        std::thread::sleep(std::time::Duration::from_micros(1500));
        while !port.is_done() {
            port.rx_burst(&mut pool, &mut queue, 64);
            if !queue.is_empty() {
                exit.tx_burst(&mut pool, &mut queue);
            }
        }
        let (offered, lost) = port.offered();
        assert!(lost > 0);
        let mut delays = Vec::new();
        port.delays(&exit, |ticks| delays.push(clock.nanoseconds(0, ticks)));
        assert_eq!(delays.len() as u64, offered - lost);
        // The first waited for as long as nobody looked; those after the loss are told by when they came themselves.
        assert!(delays[0] >= 1_500_000, "{} ns", delays[0]);
        let source = port.source.as_ref().unwrap();
        let whole = clock.nanoseconds(source.start, clock.ticks());
        let numbers: Vec<u64> = source.taken.iter().cloned().flatten().collect();
        assert_eq!((numbers[RING as usize - 1], numbers.len()), (RING - 1, delays.len()));
        assert!(numbers[RING as usize] > RING + 400, "{}", numbers[RING as usize]);
        for (number, delay) in numbers.iter().zip(delays) {
            assert!(delay + number * 1000 <= whole + 1000, "packet {number} took {delay} of {whole} ns");
        }
    }

    #[test]
    fn of_a_common_wire_nobody_gets_far_ahead() {
        let (mut pool, clock, wire) = (pool(), Clock::new(), Wire::new(2));
        let mut all = [Feed::default(), Feed::default()];
        for place in 0..4000_u64 {
            all[place as usize % 2].push(&[0; 60], place);
        }
        let mut ports = all.map(|feed| {
            let mut port = BenchPort::default();
            let order = Order { packets: 2000, feed: Arc::new(feed), pace: Pace::Full, wire: None };
            port.begin(order, &clock);
            port
        });
        for (own, port) in ports.iter_mut().enumerate() {
            port.source.as_mut().unwrap().order.wire = Some((Arc::clone(&wire), own));
        }
        let mut run = |port: &mut BenchPort| {
            let (mut queue, mut taken) = (FrameQueue::new(), 0);
            while port.rx_burst(&mut pool, &mut queue, 64) > 0 {
                taken += queue.len() as u64;
                queue.drain(..).for_each(|frame| pool.free(frame));
            }
            taken
        };
        assert_eq!(run(&mut ports[0]), lead(2) / 2);
        assert_eq!(run(&mut ports[1]), lead(2));
        let mut rest = 0;
        while !(ports[0].is_done() && ports[1].is_done()) {
            rest += run(&mut ports[0]) + run(&mut ports[1]);
        }
        assert_eq!(rest, 4000 - lead(2) / 2 - lead(2));
    }
}
