//! What the first fragment of a datagram knows and the others do not: the ports (RFC 4787 11, RFC 5382 10).

use crate::table::hash::{HashKey, Seed};

/// What the fragments of one datagram share (RFC 791 3.2, RFC 8200 4.5), and the gateway they are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Datagram {
    source: u128,
    destination: u128,
    /// Gateway, identification, protocol; one of two bits that say which version of IP it is.
    rest: u64,
}

impl Datagram {
    /// An IPv4 datagram's fragments.
    #[must_use]
    pub const fn new(gateway: u16, source: u32, destination: u32, identification: u16, protocol: u8) -> Self {
        Self {
            source: source as u128,
            destination: destination as u128,
            rest: 1 << 63 | (gateway as u64) << 32 | (identification as u64) << 16 | protocol as u64,
        }
    }

    /// An IPv6 datagram's fragments. The protocol is none of what they share.
    #[must_use]
    pub const fn new_v6(gateway: u16, source: u128, destination: u128, identification: u32) -> Self {
        Self { source, destination, rest: 1 << 62 | (gateway as u64) << 32 | identification as u64 }
    }

    /// The worker that keeps its ports, of `workers`: the same for all its fragments, wherever they come in.
    #[must_use]
    pub fn owner(self, seed: &Seed, workers: u32) -> u32 {
        (((self.hash(seed) >> 32) * u64::from(workers)) >> 32) as u32
    }

    fn hash(self, seed: &Seed) -> u64 {
        (self.source.keyed_hash(seed), self.destination.keyed_hash(seed) ^ self.rest).keyed_hash(seed)
    }
}

/// Source and destination port; of ICMP queries identifier, and type and code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FragmentPorts {
    /// The protocol: the later fragments of an IPv6 datagram may name an extension header in its place.
    pub protocol: u8,
    /// As in `Meta::sport`.
    pub source: u16,
    /// As in `Meta::dport`.
    pub destination: u16,
}

/// What became of the first fragment of an ICMP error: only it has the quote that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// It went to this worker.
    Worker(u32),
    /// It was translated.
    Translated {
        /// The source now.
        source: u32,
        /// The destination now.
        destination: u32,
        /// Whether it went through once more, as from a peer.
        again: bool,
    },
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    datagram: Datagram,
    ports: FragmentPorts,
    onward: Option<Onward>,
    until: u64,
}

/// Entries that may take each other's place.
const WAYS: usize = 4;

/// Ports of datagrams whose first fragment has come: a fixed number, the oldest make room.
#[derive(Debug)]
pub struct Fragments {
    sets: Box<[[Entry; WAYS]]>,
    seed: Seed,
    lifetime: u64,
}

impl Fragments {
    /// Room for about `datagrams`, each for `lifetime` ns.
    #[must_use]
    pub fn new(datagrams: usize, lifetime: u64, seed: Seed) -> Self {
        let sets = datagrams.div_ceil(WAYS).next_power_of_two();
        Self { sets: vec![[Entry::default(); WAYS]; sets].into_boxed_slice(), seed, lifetime }
    }

    fn set(&mut self, datagram: Datagram) -> Option<&mut [Entry; WAYS]> {
        let place = datagram.hash(&self.seed) as usize & (self.sets.len() - 1);
        self.sets.get_mut(place)
    }

    /// Notes what the first fragment says.
    pub fn learn(&mut self, datagram: Datagram, ports: FragmentPorts, now: u64) {
        self.note(datagram, now, |entry| entry.ports = ports);
    }

    /// Notes what became of the first fragment of an ICMP error.
    pub fn learn_onward(&mut self, datagram: Datagram, onward: Onward, now: u64) {
        self.note(datagram, now, |entry| entry.onward = Some(onward));
    }

    fn note(&mut self, datagram: Datagram, now: u64, what: impl FnOnce(&mut Entry)) {
        let until = now.saturating_add(self.lifetime);
        let Some(set) = self.set(datagram) else { return };
        let same = set.iter().position(|entry| entry.datagram == datagram);
        let oldest = || set.iter().enumerate().min_by_key(|(_, entry)| entry.until).map_or(0, |(i, _)| i);
        let place = same.unwrap_or_else(oldest);
        if let Some(entry) = set.get_mut(place) {
            // What was known long ago is of another datagram.
            if same.is_none() || entry.until <= now {
                *entry = Entry { datagram, ..Entry::default() };
            }
            entry.until = until;
            what(entry);
        }
    }

    /// The ports of a datagram, when its first fragment has come and not too long ago.
    pub fn ports(&mut self, datagram: Datagram, now: u64) -> Option<FragmentPorts> {
        self.find(datagram, now).map(|entry| entry.ports)
    }

    /// What became of its first fragment, when it is an ICMP error.
    pub fn onward(&mut self, datagram: Datagram, now: u64) -> Option<Onward> {
        self.find(datagram, now)?.onward
    }

    fn find(&mut self, datagram: Datagram, now: u64) -> Option<Entry> {
        self.set(datagram)?.iter().find(|entry| entry.datagram == datagram && entry.until > now).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_first_fragment_said_holds_for_a_while() {
        let mut table = Fragments::new(16, 100, Seed::random());
        let of = |id| Datagram::new(1, 2, 3, id, 17);
        let ports = |n| FragmentPorts { protocol: 17, source: n, destination: 7 };
        table.learn(of(5), ports(5), 1000);
        assert_eq!(table.ports(of(5), 1099), Some(ports(5)));
        assert_eq!((table.ports(of(5), 1100), table.ports(of(6), 1000)), (None, None));
        assert_eq!(table.ports(Datagram::new(2, 2, 3, 5, 17), 1000), None);
        table.learn(of(5), ports(9), 1001);
        assert_eq!((table.ports(of(5), 1002), table.onward(of(5), 1002)), (Some(ports(9)), None));
        table.learn_onward(of(5), Onward::Worker(3), 1003);
        assert_eq!(
            (table.ports(of(5), 1004), table.onward(of(5), 1004)),
            (Some(ports(9)), Some(Onward::Worker(3)))
        );
        // What was known of a datagram long ago says nothing of one with the same identification now.
        table.learn(of(5), ports(1), 1200);
        assert_eq!(table.onward(of(5), 1201), None);
        let v6 = |id| Datagram::new_v6(1, 2, 3, id);
        assert_eq!(table.ports(v6(5 << 16 | 17), 1201), None);
        table.learn(v6(5), ports(2), 1200);
        assert_eq!((table.ports(v6(5), 1201), table.ports(v6(6), 1201)), (Some(ports(2)), None));
        // However many come, the newest is there.
        for id in 100..1100 {
            table.learn(of(id), ports(id), 2000 + u64::from(id));
            assert_eq!(table.ports(of(id), 2000 + u64::from(id)), Some(ports(id)));
        }
    }

    #[test]
    fn owners_are_spread() {
        let seed = Seed::random();
        let mut counts = [0; 3];
        for id in 0..3000 {
            counts[Datagram::new(0, 1, 2, id, 17).owner(&seed, 3) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}
