//! Lifetimes of security associations: who is to be replaced, and who has lived too long (RFC 4301 4.4.2.1).
//!
//! Workers count; the control thread compares, a part of the associations each time, and ends what is over by a flag
//! that workers read once for each run of packets. So a lifetime is kept to within a few milliseconds of traffic.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    config::{
        Config, Tunnel,
        build::{Association, Fingerprint, Half},
    },
    stats::{SaColumn, Segment, counters::group},
};

/// Associations compared in one call.
const AT_ONCE: usize = 256;

/// How far an association is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stage {
    /// In use.
    #[default]
    Current,
    /// A new key is asked for.
    Due,
    /// It seals or opens nothing more.
    Over,
}

impl Stage {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Due => "due",
            Self::Over => "over",
        }
    }
}

/// What bounds a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Its age.
    Time,
    /// What it has sealed or opened.
    Bytes,
    /// The same in packets.
    Packets,
    /// Its sequence numbers.
    Numbers,
}

impl Bound {
    const fn words(self) -> &'static str {
        match self {
            Self::Time => "its lifetime",
            Self::Bytes => "its bytes",
            Self::Packets => "its packets",
            Self::Numbers => "its sequence numbers",
        }
    }
}

/// The life of one association so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Life {
    /// Nanoseconds that it was old when the clock of this process began; less than none for one that came later.
    head_start: i128,
    /// What was counted by its row before it.
    bytes_before: u64,
    /// How far it is.
    pub stage: Stage,
}

/// What an association has used of its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Seconds since it was first seen.
    pub age: u64,
    /// Bytes sealed or opened since this process began.
    pub bytes: u64,
    /// Packets, by its newest sequence number.
    pub packets: u64,
}

/// The lives of all associations.
#[derive(Debug, Default)]
pub struct Lifetimes {
    lives: HashMap<(Fingerprint, bool), Life>,
    turn: usize,
}

/// What names a life: the association, and which way it goes.
const fn name(association: &Association) -> (Fingerprint, bool) {
    (association.fingerprint, matches!(association.half, Half::In(_)))
}

/// Bytes counted by a row, of all workers.
fn counted(segment: &Segment, row: u32) -> u64 {
    let layout = segment.layout();
    let cell = layout.group(group::SA).and_then(|g| g.cell(row as usize, SaColumn::Bytes as usize));
    let Some(cell) = cell else { return 0 };
    let cells = (0..layout.workers).filter_map(|worker| segment.cells().get(worker * layout.block() + cell));
    cells.map(|cell| cell.load(std::sync::atomic::Ordering::Relaxed)).sum()
}

impl Lifetimes {
    /// Takes up a new list. `since`: when each was first seen, in seconds since 1970, where that is remembered.
    /// `before`: the rows that have counted until now, by name. To be called before workers get the new list, for
    /// what was over to stay over.
    pub fn renew(
        &mut self,
        config: &Config,
        associations: &[Association],
        segment: &Segment,
        now: u64,
        since: impl Fn(&Association) -> Option<u32>,
    ) {
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let rows = segment.layout().group(group::SA).map_or(&[][..], |g| &g.rows);
        let rows: HashMap<&str, usize> = rows.iter().map(String::as_str).zip(0..).collect();
        let mut lives = HashMap::with_capacity(associations.len());
        for association in associations {
            let life = self.lives.get(&name(association)).copied().unwrap_or_else(|| {
                let age = since(association)
                    .map_or(Duration::ZERO, |since| today.saturating_sub(Duration::from_secs(since.into())));
                // Another key may have had this name, whose counts go on.
                let bytes_before =
                    rows.get(association.name.as_str()).map_or(0, |row| counted(segment, *row as u32));
                Life {
                    head_start: age.as_nanos() as i128 - i128::from(now),
                    bytes_before,
                    stage: Stage::Current,
                }
            });
            lives.insert(name(association), life);
        }
        self.lives = lives;
        for association in associations {
            self.check(config, association, segment, now);
        }
    }

    /// Looks at some of the associations, reports those that are due or over, and ends these.
    pub fn tick(&mut self, config: &Config, associations: &[Association], segment: &Segment, now: u64) {
        let count = associations.len();
        for _ in 0..count.min(AT_ONCE) {
            self.turn = (self.turn + 1) % count;
            self.check(config, &associations[self.turn], segment, now);
        }
    }

    /// What an association has used.
    #[must_use]
    pub fn used(&self, association: &Association, segment: &Segment, now: u64) -> (Used, Stage) {
        let life = self.lives.get(&name(association)).copied().unwrap_or_default();
        let age = (life.head_start + i128::from(now)).max(0);
        let used = Used {
            age: (age / 1_000_000_000) as u64,
            bytes: counted(segment, association.row).saturating_sub(life.bytes_before),
            packets: association.newest(),
        };
        (used, life.stage)
    }

    fn check(&mut self, config: &Config, association: &Association, segment: &Segment, now: u64) {
        let tunnel = &config.tunnels[association.tunnel];
        let (used, known) = self.used(association, segment, now);
        let age =
            self.lives.get(&name(association)).map_or(0, |life| (life.head_start + i128::from(now)).max(0));
        let (bound, percent) = nearest(tunnel, association, used, age as u128);
        let stage = if percent >= 100 {
            Stage::Over
        } else if percent >= u128::from(tunnel.rekey_at.get()) {
            Stage::Due
        } else {
            Stage::Current
        };
        // Numbers end by themselves, and inbound ones are the sender's to count.
        association.set_ended(stage == Stage::Over && bound != Bound::Numbers);
        if stage == known {
            return;
        }
        if let Some(life) = self.lives.get_mut(&name(association)) {
            life.stage = stage;
        }
        let (name, words) = (&association.name, bound.words());
        match stage {
            Stage::Over => tracing::error!(
                "association {name} has used up {words} and is stopped: replace its key on both ends"
            ),
            Stage::Due => {
                tracing::warn!("association {name} has used {percent} % of {words}: replace its key soon")
            }
            Stage::Current => {}
        }
    }
}

/// The bound that an association is nearest to, and how far it is towards it, in percent.
fn nearest(tunnel: &Tunnel, association: &Association, used: Used, age: u128) -> (Bound, u128) {
    let time = tunnel.lifetime.as_ref().map(|bound| (Bound::Time, age, bound.value.0.as_nanos()));
    let bytes =
        tunnel.lifetime_bytes.as_ref().map(|bound| (Bound::Bytes, used.bytes.into(), bound.value.0.into()));
    let packets = tunnel
        .lifetime_packets
        .as_ref()
        .map(|bound| (Bound::Packets, used.packets.into(), bound.value.0.into()));
    let end: u128 = if *tunnel.esn { u64::MAX.into() } else { u32::MAX.into() };
    // A sender with ESN never gets there; one without stops at its last number.
    let numbers = match &association.half {
        Half::Out(sa) if sa.sequence.is_exhausted() => (Bound::Numbers, 1, 1),
        Half::Out(_) | Half::In(_) => (Bound::Numbers, used.packets.into(), end),
    };
    [time, bytes, packets, Some(numbers)]
        .into_iter()
        .flatten()
        .map(|(bound, used, end): (Bound, u128, u128)| (bound, used.saturating_mul(100) / end.max(1)))
        .max_by_key(|(_, percent)| *percent)
        .unwrap_or((Bound::Numbers, 0))
}
