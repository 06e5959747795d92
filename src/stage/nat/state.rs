//! What NAT keeps from burst to burst: one worker's sessions, and the fragments that wait for their first one.

use std::{io, sync::Arc};

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;

use crate::{
    packet::{DropReason, Frame, FramePool, Links, Meta},
    stage::{Entry, Event, EventQueue, Resumed},
    stats::{PoolColumn, WorkerColumn, WorkerCounters},
    table::{
        gateway_nat::SessionRules,
        hash::Seed,
        session::{Claims, Datagram, Fragments, Record, Sessions, Sources, View, tick},
        tables::Tables,
    },
};

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No packet came for as long as it lives.
    TimeOut,
    /// A reload took its rule away.
    RuleGone,
    /// The operator deleted it.
    Deleted,
}

impl End {
    /// As the log writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TimeOut => "time-out",
            Self::RuleGone => "rule-gone",
            Self::Deleted => "deleted",
        }
    }
}

/// The beginning or the end of a session, for the log.
#[derive(Debug, Clone, Copy)]
pub struct SessionNote {
    /// The session.
    pub session: View,
    /// When (ns on the gateway's clock).
    pub now: u64,
    /// Why it ended; nothing when it begins.
    pub end: Option<End>,
}

/// From a worker to whoever writes the log. When it is full, notes are lost, and counted.
pub type SessionLog = ArrayQueue<SessionNote>;

/// A fragment that waits for the first one of its datagram.
#[derive(Debug)]
struct Held {
    datagram: Datagram,
    frame: Frame,
    meta: Meta,
    since: u64,
}

/// Fragments of all datagrams that wait, at most, and of one.
const MAX_HELD: usize = 256;
const MAX_HELD_EACH: usize = 48;
/// How long they wait (ns): the other fragments are right behind, or lost.
const HOLD_TIME: u64 = 2_000_000_000;
/// Datagrams whose ports are known, and for how long (ns; RFC 791 3.2: 15 s).
const DATAGRAMS: usize = 4096;
const DATAGRAM_LIFE: u64 = 15_000_000_000;
/// How long ageing takes to go round all sessions, in ns, where there is time for it.
const TURN: u64 = 1_000_000_000;
/// Places that are looked at in one burst, at most: a microsecond or two.
const AGE_BUSY: u32 = 128;
/// The same in a round in which there was nothing to do.
const AGE_IDLE: u32 = 4096;
/// Events of one reason are told so far apart, in ns.
const EVENT_INTERVAL: u64 = 1_000_000_000;
/// Gateways, and pools, that are counted by number.
const NUMBERED: usize = 1 << 16;

/// One worker's sessions and fragments.
#[derive(Debug)]
pub struct NatTables {
    /// The sessions.
    pub sessions: Sessions,
    /// Ports of fragmented datagrams.
    pub fragments: Fragments,
    /// Sessions by host, of all workers.
    pub sources: Arc<Sources>,
    /// Which worker has which flow, of all workers.
    pub claims: Arc<Claims>,
    /// The same for all workers: what decides whose a packet is.
    pub seed: Seed,
    /// The worker's number.
    own: u32,
    /// Sessions by gateway.
    by_gateway: Vec<u32>,
    /// Of each pool, by row: how many of 64,000 ports that were tried were taken.
    occupied: Vec<u32>,
    /// Sessions of each pool, as far as this turn of ageing has come.
    counting: Vec<u32>,
    /// Rows of `counting` that are in use.
    rows: usize,
    /// Places that are left in this turn.
    left: u32,
    /// When ageing was last done.
    aged: u64,
    held: Vec<Held>,
    log: Option<Arc<SessionLog>>,
    /// When an event of each reason was last told.
    told: ArrayVec<(DropReason, u64), 8>,
}

impl NatTables {
    /// Tables of worker number `own` for `sessions` sessions. `seed`, `sources` and `claims` are the same for all workers.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn new(
        own: u32,
        sessions: usize,
        seed: Seed,
        sources: Arc<Sources>,
        claims: Arc<Claims>,
        log: Option<Arc<SessionLog>>,
    ) -> io::Result<Self> {
        Ok(Self {
            sessions: Sessions::new(sessions, seed)?,
            fragments: Fragments::new(DATAGRAMS, DATAGRAM_LIFE, seed),
            sources,
            claims,
            seed,
            own,
            by_gateway: vec![0; NUMBERED],
            occupied: vec![0; NUMBERED],
            counting: vec![0; NUMBERED],
            rows: 0,
            left: 0,
            aged: 0,
            held: Vec::with_capacity(MAX_HELD),
            log,
            told: ArrayVec::new(),
        })
    }

    /// Sessions of a gateway.
    #[must_use]
    pub fn of_gateway(&self, gateway: u16) -> u32 {
        self.by_gateway.get(usize::from(gateway)).copied().unwrap_or(0)
    }

    fn note(&self, counters: &WorkerCounters, id: u32, now: u64, end: Option<End>) {
        let Some(log) = &self.log else { return };
        let session = self.sessions.get(id).and_then(Record::view);
        if let Some(session) = session
            && log.push(SessionNote { session, now, end }).is_err()
        {
            counters.worker(WorkerColumn::NatLogLost, 1);
        }
    }

    /// Counts a session that has begun.
    pub(super) fn begun(&mut self, counters: &WorkerCounters, id: u32, gateway: u16, now: u64) {
        if let Some(count) = self.by_gateway.get_mut(usize::from(gateway)) {
            *count += 1;
        }
        counters.worker(WorkerColumn::NatMade, 1);
        counters.worker_gauge(WorkerColumn::NatSessions, self.sessions.len() as u64);
        self.note(counters, id, now, None);
    }

    /// Ends a session.
    pub(super) fn end(&mut self, counters: &WorkerCounters, id: u32, now: u64, why: End) {
        self.note(counters, id, now, Some(why));
        let Some(record) = self.sessions.get(id) else { return };
        let inside = record.inside();
        if record.is_counted() {
            self.sources.release(inside.gateway(), inside.address());
        }
        if record.is_claimed() {
            self.claims.give_up(self.sessions.hash(inside), self.own);
        }
        if let Some(count) = self.by_gateway.get_mut(usize::from(inside.gateway())) {
            *count = count.saturating_sub(1);
        }
        self.sessions.remove(id);
        counters.worker(WorkerColumn::NatEnded, 1);
        counters.worker_gauge(WorkerColumn::NatSessions, self.sessions.len() as u64);
    }

    /// Whether the session of a place goes on at `now`, by the rules of its gateway; ends it where it does not.
    #[inline]
    pub(super) fn is_valid(
        &mut self,
        counters: &WorkerCounters,
        id: u32,
        rules: &SessionRules,
        generation: u32,
        now: u64,
    ) -> bool {
        let Some(record) = self.sessions.get(id) else { return false };
        match verdict(record, Some((rules, generation)), now) {
            None => true,
            Some(end) => {
                self.end(counters, id, now, end);
                false
            }
        }
    }

    /// Ends the session at a place, if it is still the one that is meant.
    pub fn delete(&mut self, counters: &WorkerCounters, id: u32, incarnation: u8, now: u64) {
        let view = self.sessions.get(id).and_then(Record::view);
        if view.is_some_and(|view| view.incarnation == incarnation) {
            self.end(counters, id, now, End::Deleted);
        }
    }

    /// Notes how many of the ports that were tried for a new session were taken.
    pub(super) fn tried(&mut self, counters: &WorkerCounters, row: u16, tried: u32, taken: u32) {
        let Some(occupied) = self.occupied.get_mut(usize::from(row)) else { return };
        let sample = 1000 * taken / tried.max(1);
        *occupied = *occupied - *occupied / 64 + sample;
        counters.pool_gauge(row, PoolColumn::Occupied, u64::from(*occupied / 64));
    }

    /// Tells the control thread that no more sessions are made, unless it was told a moment ago.
    pub(super) fn tell(
        &mut self,
        counters: &WorkerCounters,
        events: &EventQueue,
        now: u64,
        (gateway, address): (u16, u32),
        reason: DropReason,
    ) {
        match self.told.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, last)) if now.saturating_sub(*last) < EVENT_INTERVAL => return,
            Some((_, last)) => *last = now,
            None => {
                let _ = self.told.try_push((reason, now));
            }
        }
        if events.push(Event::NatExhausted { gateway, reason, address }).is_err() {
            counters.worker(WorkerColumn::EventsLost, 1);
        }
    }

    /// Looks at some of the sessions and ends those whose time is over or whose rule is gone. What it costs is
    /// bounded; a session that it has not come to yet is looked at again when a packet comes for it.
    pub fn age(&mut self, tables: &Tables, counters: &WorkerCounters, now: u64, idle: bool) {
        let places = self.sessions.places();
        if places == 0 {
            return;
        }
        let elapsed = now.saturating_sub(self.aged);
        let due = u64::from(places).saturating_mul(elapsed) / TURN;
        if due == 0 {
            return;
        }
        self.aged = now;
        let most = if idle { AGE_IDLE } else { AGE_BUSY };
        let count = due.min(u64::from(most)) as u32;
        let mut over: ArrayVec<(u32, End), 64> = ArrayVec::new();
        let (counting, rows) = (&mut self.counting, &mut self.rows);
        self.sessions.age(count, |id, record| {
            let gateway = tables.gateway(record.inside().gateway());
            let nat = gateway.and_then(|gateway| gateway.nat.as_ref());
            let rules = nat.and_then(|nat| Some((nat.sessions.as_deref()?, nat.generation)));
            match verdict(record, rules, now) {
                Some(end) => {
                    // What finds no room here is found in the next turn.
                    let _ = over.try_push((id, end));
                }
                None => {
                    if let (Some((rules, _)), Some(crate::table::session::Kind::Pool)) =
                        (rules, record.kind())
                        && let Some(pool) = rules.pools.get(record.rule() as usize)
                        && let Some(count) = counting.get_mut(usize::from(pool.row))
                    {
                        *count += 1;
                        *rows = (*rows).max(usize::from(pool.row) + 1);
                    }
                }
            }
            false
        });
        for (id, end) in over {
            self.end(counters, id, now, end);
        }
        self.left = self.left.saturating_sub(count);
        if self.left == 0 {
            for (row, count) in self.counting.iter_mut().take(self.rows).enumerate() {
                counters.pool_gauge(row as u16, PoolColumn::Sessions, u64::from(*count));
                *count = 0;
            }
            self.left = places;
        }
    }

    /// Keeps a fragment until the first one of its datagram has come.
    ///
    /// # Errors
    /// The frame itself, when as many wait as are kept.
    pub(super) fn hold(
        &mut self,
        datagram: Datagram,
        frame: Frame,
        meta: Meta,
        now: u64,
    ) -> Result<(), Frame> {
        let same = self.held.iter().filter(|held| held.datagram == datagram).count();
        if self.held.len() >= MAX_HELD || same >= MAX_HELD_EACH {
            return Err(frame);
        }
        self.held.push(Held { datagram, frame, meta, since: now });
        Ok(())
    }

    /// Lets fragments go on whose first one has come, and drops those that have waited long enough. The result is
    /// how many went.
    pub fn release(
        &mut self,
        counters: &WorkerCounters,
        pool: &mut FramePool,
        resumed: &mut ArrayVec<Resumed, { crate::packet::BURST }>,
        now: u64,
    ) -> usize {
        let (mut at, mut moved) = (0, 0);
        while let Some(held) = self.held.get(at) {
            let ports = self.fragments.ports(held.datagram, now);
            let late = now.saturating_sub(held.since) > HOLD_TIME;
            if ports.is_none() && !late || resumed.is_full() {
                at += 1;
                continue;
            }
            moved += 1;
            // In order.
            let Held { frame, mut meta, .. } = self.held.remove(at);
            if let Some(ports) = ports {
                super::fragments::give_ports(&mut meta, ports);
                // There is room, as was seen above.
                let _ = resumed.try_push(Resumed { frame, meta, entry: Entry::Forward });
            } else {
                counters.drops(super::interface(&meta), DropReason::NatFragmentTimeout, 1);
                pool.free(frame);
            }
        }
        moved
    }

    /// Fragments that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.held.len()
    }

    /// Gives up all fragments that wait.
    pub fn give_up(&mut self, counters: &WorkerCounters, pool: &mut FramePool) {
        for held in self.held.drain(..) {
            counters.drops(None, DropReason::Shutdown, 1);
            pool.free(held.frame);
        }
    }
}

/// Why a session is to end, if it is. `rules`: those of its gateway, and their generation.
#[inline]
fn verdict(record: &Record, rules: Option<(&SessionRules, u32)>, now: u64) -> Option<End> {
    let Some((rules, generation)) = rules else { return Some(End::RuleGone) };
    let (seen, checked) = record.seen();
    let (inside, tcp) = (record.inside(), record.tcp());
    if tick(now).wrapping_sub(seen) > rules.time_outs.of(inside.protocol(), tcp) {
        return Some(End::TimeOut);
    }
    if checked != generation {
        let kind = record.kind()?;
        let Some(rule) = rules.rule_of(kind, inside, record.outside()) else { return Some(End::RuleGone) };
        record.confirm(generation, rule);
    }
    None
}

/// NAT of one worker.
#[derive(Debug, Default)]
pub struct NatState {
    /// Ways to the other workers.
    pub links: Links,
    /// Sessions and fragments; none where no gateway needs them.
    pub tables: Option<Box<NatTables>>,
}
