//! One session, in one cache line.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::table::pages::Zeroed;
use crate::{
    table::hash::{HashKey, Seed},
    wire::checksum::Delta,
};

/// Nanoseconds of the gateway's clock in the unit of a session's times: 2^20 ns, about a millisecond.
const TICK_SHIFT: u32 = 20;

/// A moment of the gateway's clock (ns) in a session's unit; it wraps after 52 days.
#[inline]
#[must_use]
pub const fn tick(now: u64) -> u32 {
    (now >> TICK_SHIFT) as u32
}

/// A time in a session's unit, rounded up.
#[must_use]
pub fn ticks(time: std::time::Duration) -> u32 {
    let unit = 1_u128 << TICK_SHIFT;
    u32::try_from(time.as_nanos().div_ceil(unit)).unwrap_or(u32::MAX / 2).min(u32::MAX / 2)
}

/// What the packets of a session look like on one side, read from the gateway's side outwards: `address` and `port`
/// are the host's or those that stand for it, `remote` and `remote_port` whom it talks to. Of ICMP queries `port` is
/// the identifier and `remote_port` zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Address and remote address.
    addresses: u64,
    /// Port, remote port, gateway, protocol.
    rest: u64,
}

impl Key {
    /// A key from its parts.
    #[inline]
    #[must_use]
    pub const fn new(
        gateway: u16,
        protocol: u8,
        (address, port): (u32, u16),
        (remote, remote_port): (u32, u16),
    ) -> Self {
        let addresses = (address as u64) << 32 | remote as u64;
        let rest = (port as u64) << 48
            | (remote_port as u64) << 32
            | (gateway as u64) << 16
            | (protocol as u64) << 8;
        Self { addresses, rest }
    }

    /// The host's address, or the one that stands for it.
    #[inline]
    #[must_use]
    pub const fn address(self) -> u32 {
        (self.addresses >> 32) as u32
    }

    /// Its port.
    #[inline]
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.rest >> 48) as u16
    }

    /// Whom it talks to.
    #[inline]
    #[must_use]
    pub const fn remote(self) -> u32 {
        self.addresses as u32
    }

    /// At which port.
    #[inline]
    #[must_use]
    pub const fn remote_port(self) -> u16 {
        (self.rest >> 32) as u16
    }

    /// The gateway.
    #[inline]
    #[must_use]
    pub const fn gateway(self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// The protocol.
    #[inline]
    #[must_use]
    pub const fn protocol(self) -> u8 {
        (self.rest >> 8) as u8
    }

    /// The same with another address and port in place of the host's.
    #[inline]
    #[must_use]
    pub const fn with_host(self, address: u32, port: u16) -> Self {
        Self {
            addresses: (address as u64) << 32 | self.addresses & 0xffff_ffff,
            rest: (port as u64) << 48 | self.rest & 0xffff_ffff_ffff,
        }
    }

    /// The keyed hash.
    #[inline]
    #[must_use]
    pub fn hash(self, seed: &Seed) -> u64 {
        (self.addresses, self.rest).keyed_hash(seed)
    }
}

/// What made a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A source pool: the host began.
    Pool = 1,
    /// A port mapping: the remote end began.
    Mapping = 2,
}

/// How far a TCP connection has come: what was seen of either end (RFC 5382 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tcp(u8);

/// Bits of a TCP header's flags.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

impl Tcp {
    const SYN_INSIDE: u8 = 1;
    const SYN_OUTSIDE: u8 = 2;
    const FIN_INSIDE: u8 = 4;
    const FIN_OUTSIDE: u8 = 8;
    const RESET: u8 = 16;
    /// Both ends have been heard: where the beginning was missed, this is what there is to go by.
    const HEARD_INSIDE: u8 = 32;
    const HEARD_OUTSIDE: u8 = 64;

    /// After a segment with these flags from the host (`inside`) or from the remote end.
    #[inline]
    #[must_use]
    pub const fn after(self, flags: u8, inside: bool) -> Self {
        let closed = self.is_closed();
        let (syn, fin, heard) = if inside {
            (Self::SYN_INSIDE, Self::FIN_INSIDE, Self::HEARD_INSIDE)
        } else {
            (Self::SYN_OUTSIDE, Self::FIN_OUTSIDE, Self::HEARD_OUTSIDE)
        };
        if flags & RST != 0 {
            return Self(self.0 | Self::RESET);
        }
        if flags & SYN != 0 {
            // The same ports are taken for a new connection.
            return Self(if closed { syn } else { self.0 | syn });
        }
        let fin = if flags & FIN != 0 { fin } else { 0 };
        Self(self.0 | heard | fin)
    }

    /// Both ends have said that they are through, or one has broken it off.
    #[inline]
    #[must_use]
    pub const fn is_closed(self) -> bool {
        let both = Self::FIN_INSIDE | Self::FIN_OUTSIDE;
        self.0 & Self::RESET != 0 || self.0 & both == both
    }

    /// Both ends have agreed to begin, and it has not ended.
    #[inline]
    #[must_use]
    pub const fn is_established(self) -> bool {
        let (syn, heard) = (Self::SYN_INSIDE | Self::SYN_OUTSIDE, Self::HEARD_INSIDE | Self::HEARD_OUTSIDE);
        !self.is_closed() && (self.0 & syn == syn || self.0 & heard == heard)
    }

    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        if self.0 & Self::RESET != 0 {
            "reset"
        } else if self.is_closed() {
            "closed"
        } else if self.0 & (Self::FIN_INSIDE | Self::FIN_OUTSIDE) != 0 {
            "closing"
        } else if self.is_established() {
            "established"
        } else {
            "opening"
        }
    }
}

/// A session to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewSession {
    /// Inside.
    pub inside: Key,
    /// Outside.
    pub outside: Key,
    /// What makes it.
    pub kind: Kind,
    /// Place of its rule.
    pub rule: u32,
    /// Which snapshot of the rules it was made by.
    pub generation: u32,
    /// Whether its source is counted.
    pub counted: bool,
    /// Whether its flow is claimed (see [`super::Claims`]).
    pub claimed: bool,
    /// TCP: after the first segment.
    pub tcp: Tcp,
    /// What the change of address outwards adds to a checksum (see `wire::checksum::Delta`).
    pub address_delta: u16,
    /// What the change of port outwards adds.
    pub port_delta: u16,
}

/// What a record is held against: the rules' generation, the time (tick), and how long any session lives (ticks).
#[derive(Debug, Clone, Copy)]
pub struct Current {
    /// The generation of the gateway's rules.
    pub generation: u32,
    /// Now.
    pub tick: u32,
    /// The shortest time-out: who was seen as lately goes on, whatever it is.
    pub life: u32,
}

/// What a session makes of one end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The new address.
    pub address: u32,
    /// The new port, if it is to be another.
    pub port: Option<u16>,
    /// What the change of address does to a checksum.
    pub address_delta: Delta,
    /// What the change of port does.
    pub port_delta: Delta,
}

/// One session.
///
/// Words: 0 head: kind, state, whether counted, claimed and alone (8 bits each), address and port delta, incarnation (16 each) · 1, 2
/// inside key · 3, 4 outside key · 5 last packet (tick), generation · 6 made (tick), rule · 7 packets out, in (32 bits
/// each). The worker alone writes; the head is zero while there is none.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Record([AtomicU64; 8]);

// SAFETY: atomic numbers, which zero is a value of.
#[allow(unsafe_code)]
unsafe impl Zeroed for Record {}

const KIND: u64 = 0xff;
const STATE_SHIFT: u32 = 8;
const COUNTED: u64 = 1 << 16;
const CLAIMED: u64 = 1 << 17;
/// The session is all there is to a packet from inside, or from outside, by the rules of its generation.
const ALONE_INSIDE: u64 = 1 << 18;
const ALONE_OUTSIDE: u64 = 1 << 19;
const ADDRESS_DELTA_SHIFT: u32 = 24;
const PORT_DELTA_SHIFT: u32 = 40;
/// 8 bits: enough for a reader not to take one session for another that ended while it read.
const INCARNATION_SHIFT: u32 = 56;

impl Record {
    #[inline(always)]
    fn load(&self, word: usize) -> u64 {
        self.0.get(word).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn store(&self, word: usize, value: u64) {
        if let Some(place) = self.0.get(word) {
            place.store(value, Ordering::Relaxed);
        }
    }

    /// Whether it is taken.
    #[inline(always)]
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.load(0) & KIND != 0
    }

    /// The inside key.
    #[inline(always)]
    #[must_use]
    pub fn inside(&self) -> Key {
        Key { addresses: self.load(1), rest: self.load(2) }
    }

    /// The outside key.
    #[inline(always)]
    #[must_use]
    pub fn outside(&self) -> Key {
        Key { addresses: self.load(3), rest: self.load(4) }
    }

    /// When the last packet came (tick), and the generation of rules it was checked against.
    #[inline(always)]
    #[must_use]
    pub fn seen(&self) -> (u32, u32) {
        let word = self.load(5);
        ((word >> 32) as u32, word as u32)
    }

    /// What becomes of a packet with this key, from inside or outside, where that is sure without asking a rule.
    #[inline(always)]
    #[must_use]
    pub fn translation(&self, inside: bool, key: Key, current: Current) -> Option<Translation> {
        let (own, other) =
            if inside { (self.inside(), self.outside()) } else { (self.outside(), self.inside()) };
        let (head, (seen, generation)) = (self.load(0), self.seen());
        let is = own == key
            && head & (if inside { ALONE_INSIDE } else { ALONE_OUTSIDE }) != 0
            && generation == current.generation
            && current.tick.wrapping_sub(seen) <= current.life;
        if !is {
            return None;
        }
        let (address, port) = self.deltas();
        let (address, port) = (Delta::from_bits(address), Delta::from_bits(port));
        Some(Translation {
            address: other.address(),
            port: Some(other.port()),
            address_delta: if inside { address } else { address.inverse() },
            port_delta: if inside { port } else { port.inverse() },
        })
    }

    /// Notes that, as long as the rules are what they are, it is all there is to a packet of this side.
    #[inline]
    pub fn set_alone(&self, inside: bool) {
        let head = self.load(0);
        let new = head | if inside { ALONE_INSIDE } else { ALONE_OUTSIDE };
        if new != head {
            self.store(0, new);
        }
    }

    /// Notes that rules of this generation still want it so, under the rule at this place.
    pub fn confirm(&self, generation: u32, rule: u32) {
        self.store(0, self.load(0) & !(ALONE_INSIDE | ALONE_OUTSIDE));
        self.store(5, self.load(5) & !0xffff_ffff | u64::from(generation));
        self.store(6, self.load(6) & !0xffff_ffff | u64::from(rule));
    }

    /// What made it.
    #[inline(always)]
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self.load(0) & KIND {
            1 => Some(Kind::Pool),
            2 => Some(Kind::Mapping),
            _ => None,
        }
    }

    /// Place of its rule.
    #[must_use]
    pub fn rule(&self) -> u32 {
        self.load(6) as u32
    }

    /// Whether its source is counted.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.load(0) & COUNTED != 0
    }

    /// Whether its flow is claimed.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        self.load(0) & CLAIMED != 0
    }

    /// How far the connection has come.
    #[inline(always)]
    #[must_use]
    pub fn tcp(&self) -> Tcp {
        Tcp((self.load(0) >> STATE_SHIFT) as u8)
    }

    /// Notes how far it has come.
    #[inline(always)]
    pub fn set_tcp(&self, tcp: Tcp) {
        let head = self.load(0);
        let new = head & !(0xff << STATE_SHIFT) | u64::from(tcp.0) << STATE_SHIFT;
        if new != head {
            self.store(0, new);
        }
    }

    /// What the changes of address and of port outwards add to a checksum.
    #[inline(always)]
    #[must_use]
    pub fn deltas(&self) -> (u16, u16) {
        let head = self.load(0);
        ((head >> ADDRESS_DELTA_SHIFT) as u16, (head >> PORT_DELTA_SHIFT) as u16)
    }

    /// Notes a TCP segment with these flags.
    #[inline(always)]
    pub fn see_segment(&self, flags: u8, inside: bool) {
        let heard = if inside { Tcp::HEARD_INSIDE } else { Tcp::HEARD_OUTSIDE };
        let state = self.tcp();
        // Nearly always it says nothing new.
        if flags & (FIN | SYN | RST) != 0 || state.0 & heard == 0 {
            self.set_tcp(state.after(flags, inside));
        }
    }

    /// Notes a packet at `tick`: from the host (`inside`), or to it.
    #[inline(always)]
    pub fn touch(&self, tick: u32, inside: bool) {
        let seen = self.load(5);
        if (seen >> 32) as u32 != tick {
            self.store(5, u64::from(tick) << 32 | seen & 0xffff_ffff);
        }
        let counts = self.load(7);
        let into = counts & !0xffff_ffff | u64::from((counts as u32).wrapping_add(1));
        self.store(7, if inside { counts.wrapping_add(1 << 32) } else { into });
    }

    pub(super) fn write(&self, new: &NewSession, tick: u32) {
        let incarnation = (self.load(0) >> INCARNATION_SHIFT).wrapping_add(1) & 0xff;
        let counted = if new.counted { COUNTED } else { 0 } | if new.claimed { CLAIMED } else { 0 };
        // Whoever reads meanwhile sees the head of no session before anything else changes.
        self.store(0, incarnation << INCARNATION_SHIFT);
        fence(Ordering::Release);
        self.store(1, new.inside.addresses);
        self.store(2, new.inside.rest);
        self.store(3, new.outside.addresses);
        self.store(4, new.outside.rest);
        self.store(5, u64::from(tick) << 32 | u64::from(new.generation));
        self.store(6, u64::from(tick) << 32 | u64::from(new.rule));
        self.store(7, 0);
        let head = new.kind as u64
            | u64::from(new.tcp.0) << STATE_SHIFT
            | counted
            | u64::from(new.address_delta) << ADDRESS_DELTA_SHIFT
            | u64::from(new.port_delta) << PORT_DELTA_SHIFT
            | incarnation << INCARNATION_SHIFT;
        let [first, ..] = &self.0;
        first.store(head, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.store(0, self.load(0) & (0xff << INCARNATION_SHIFT));
    }

    /// The whole session, for whoever is not the worker; `None` when there is none, or it changed as it was read.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let [first, ..] = &self.0;
        let head = first.load(Ordering::Acquire);
        let kind = self.kind()?;
        let view = View {
            inside: self.inside(),
            outside: self.outside(),
            kind,
            tcp: Tcp((head >> STATE_SHIFT) as u8),
            rule: self.rule(),
            seen: self.seen().0,
            made: (self.load(6) >> 32) as u32,
            packets_out: (self.load(7) >> 32) as u32,
            packets_in: self.load(7) as u32,
            incarnation: (head >> INCARNATION_SHIFT) as u8,
        };
        fence(Ordering::Acquire);
        let still = |other: u64| (other ^ head) & (0xff << INCARNATION_SHIFT | KIND) == 0;
        (head & KIND != 0 && still(self.load(0))).then_some(view)
    }
}

/// A session as it was a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Inside.
    pub inside: Key,
    /// Outside.
    pub outside: Key,
    /// What made it.
    pub kind: Kind,
    /// TCP: how far it has come.
    pub tcp: Tcp,
    /// Place of its rule.
    pub rule: u32,
    /// When its last packet came (tick).
    pub seen: u32,
    /// When it was made (tick).
    pub made: u32,
    /// Packets from the host.
    pub packets_out: u32,
    /// Packets to the host.
    pub packets_in: u32,
    /// Which of those that had this place.
    pub incarnation: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_cache_line() {
        assert_eq!((size_of::<Record>(), align_of::<Record>()), (64, 64));
    }

    #[test]
    fn a_key_keeps_its_parts() {
        let key = Key::new(7, 17, (0x0A00_0001, 4000), (0xC000_0201, 53));
        assert_eq!((key.gateway(), key.protocol()), (7, 17));
        assert_eq!(
            (key.address(), key.port(), key.remote(), key.remote_port()),
            (0x0A00_0001, 4000, 0xC000_0201, 53)
        );
        assert_eq!(key.with_host(9, 8), Key::new(7, 17, (9, 8), (0xC000_0201, 53)));
    }

    #[test]
    fn connections_open_and_close() {
        let ack = 16;
        let opening = Tcp::default().after(SYN, true);
        assert!(!opening.is_established() && opening.name() == "opening");
        let open = opening.after(SYN | ack, false).after(ack, true);
        assert!(open.is_established());
        let half = open.after(FIN | ack, true).after(ack, false);
        assert!(half.is_established() && half.name() == "closing");
        let closed = half.after(FIN | ack, false).after(ack, true);
        assert!(closed.is_closed() && !closed.is_established());
        // The same ports again.
        let again = closed.after(SYN, true);
        assert!(!again.is_closed() && !again.is_established());
        assert!(again.after(SYN | ack, false).is_established());
        let reset = open.after(RST, false);
        assert!(reset.is_closed() && reset.name() == "reset");
        assert!(!reset.after(ack, true).is_established());
        // Picked up in its midst.
        assert!(Tcp::default().after(ack, true).after(ack, false).is_established());
    }

    #[test]
    fn times_are_rounded_up() {
        assert_eq!(ticks(std::time::Duration::from_nanos(1)), 1);
        assert_eq!(ticks(std::time::Duration::from_secs(300)), 286_103);
        assert!(ticks(std::time::Duration::MAX) <= u32::MAX / 2);
    }
}
