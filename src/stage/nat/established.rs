//! The short way of nearly all packets that have sessions: TCP and UDP of a session that is there and goes on.
//!
//! What the rules make of a packet follows from its addresses and ports and from the rules alone. So once the long way
//! ([`super::one`]) has found that a session is all there is to a packet, the session's record says so, for each side
//! and until the rules change, and no rule is asked again. A burst goes through in three loops, each of which starts
//! the loads that the next one needs: keys and hashes, buckets, records. What finds no such session takes the long way.

use super::rewrite;
use crate::{
    packet::{BURST, Burst, Flags, Slots},
    stage::Cx,
    table::{
        session::{Current, Key, Sessions, Side, tick},
        tables::Tables,
    },
    wire::ip::protocol,
};

/// Packets of a burst on their way to their sessions, by slot.
struct Wanted {
    keys: [Key; BURST],
    hashes: [u64; BURST],
    /// Where the session most likely is.
    places: [u32; BURST],
}

/// Translates what has a session. The result is those that are left for the long way.
#[inline]
pub fn pass(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) -> Slots {
    let Some(state) = cx.nat.tables.as_deref() else { return slots };
    let sessions = &state.sessions;
    let mut wanted = Wanted { keys: [Key::default(); BURST], hashes: [0; BURST], places: [0; BURST] };
    let (mut inside, mut outside) = (Slots::NONE, Slots::NONE);
    for slot in slots {
        let meta = burst.meta(slot);
        let others = Flags::V6 | Flags::FRAGMENT | Flags::ICMP_ERROR | Flags::OPTIONS;
        let fits = !meta.flags.any(others)
            && meta.flags.has(Flags::HAS_PORTS)
            && matches!(meta.proto, protocol::TCP | protocol::UDP);
        if !fits {
            continue;
        }
        let (source, destination) = ((meta.src, meta.sport), (meta.dst, meta.dport));
        let n = slot.index();
        let (key, side) = if meta.flags.has(Flags::FROM_LOCAL) {
            inside.insert(slot);
            (Key::new(meta.gateway, meta.proto, source, destination), Side::Inside)
        } else {
            outside.insert(slot);
            (Key::new(meta.gateway, meta.proto, destination, source), Side::Outside)
        };
        let hash = sessions.hash(key);
        sessions.prefetch(side, hash);
        wanted.put(n, key, hash);
    }
    let mut done = Slots::NONE;
    if !inside.is_empty() {
        done |= side::<true>(cx, burst, &mut wanted, inside);
    }
    if !outside.is_empty() {
        done |= side::<false>(cx, burst, &mut wanted, outside);
    }
    cx.lanes.lookup |= done;
    slots - done
}

impl Wanted {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "masked to the arrays' length")]
    const fn put(&mut self, n: usize, key: Key, hash: u64) {
        self.keys[n % BURST] = key;
        self.hashes[n % BURST] = hash;
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "masked to the arrays' length")]
    fn find(&mut self, n: usize, sessions: &Sessions, side: Side) {
        self.places[n % BURST] = sessions.prefetch_likely(side, self.hashes[n % BURST]);
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "masked to the arrays' length")]
    const fn of(&self, n: usize) -> (Key, u32) {
        (self.keys[n % BURST], self.places[n % BURST])
    }
}

/// The packets of one side, whose buckets are on their way: the result is those that were translated.
#[inline(always)]
fn side<const INSIDE: bool>(cx: &Cx<'_>, burst: &mut Burst, wanted: &mut Wanted, slots: Slots) -> Slots {
    let Some(state) = cx.nat.tables.as_deref() else { return Slots::NONE };
    let sessions = &state.sessions;
    let side = if INSIDE { Side::Inside } else { Side::Outside };
    for slot in slots {
        wanted.find(slot.index(), sessions, side);
    }
    let mut done = Slots::NONE;
    let (umem, tables, tick, records) = (cx.umem, cx.tables, tick(cx.now), sessions.places_of_all());
    // A burst is nearly always of one gateway.
    let (mut gateway, mut current) = (u32::MAX, Current { generation: 0, tick, life: 0 });
    for slot in slots {
        let (bytes, meta) = burst.packet_mut(umem, slot);
        let number = u32::from(meta.gateway);
        if gateway != number {
            let Some(known) = rules(tables, meta.gateway) else { continue };
            (gateway, current.generation, current.life) = (number, known.0, known.1);
        }
        let (key, place) = wanted.of(slot.index());
        let Some(record) = records.get(place as usize) else { continue };
        let Some(new) = record.translation(INSIDE, key, current) else { continue };
        let Some(flags) = rewrite::end::<INSIDE>(bytes, meta, new) else { continue };
        if let Some(flags) = flags {
            record.see_segment(flags, INSIDE);
        }
        record.touch(tick, INSIDE);
        done.insert(slot);
    }
    done
}

/// The generation of a gateway's rules, and how long any of its sessions lives (ticks).
#[inline(never)]
fn rules(tables: &Tables, gateway: u16) -> Option<(u32, u32)> {
    let nat = tables.gateway(gateway)?.nat.as_ref()?;
    Some((nat.generation, nat.sessions.as_ref()?.time_outs.shortest()))
}
