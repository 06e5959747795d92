//! Up to 64 packets on their way through the pipeline together.

#![allow(unsafe_code)]

use std::{marker::PhantomData, ptr::NonNull};

use super::{BURST, DropReason, Frame, FramePool, FrameQueue, Meta, Slot, Slots, Umem};

/// Packets that go through the pipeline together: a frame and a [`Meta`] each.
///
/// Stages say which packets they mean by [`Slots`]. A packet leaves the burst in one of two ways: [`Burst::drop`]
/// with a reason, or [`Burst::take`] by whoever sends it on. Nothing else loses a packet.
#[derive(Debug)]
pub struct Burst {
    frames: [Option<Frame>; BURST],
    meta: Box<[Meta; BURST]>,
    live: Slots,
    dropped: Slots,
    /// Nanoseconds on the gateway's clock when the burst was taken up.
    pub now: u64,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            frames: [const { None }; BURST],
            meta: Box::new([Meta::EMPTY; BURST]),
            live: Slots::NONE,
            dropped: Slots::NONE,
            now: 0,
        }
    }
}

impl Burst {
    /// The packets in it.
    #[inline]
    #[must_use]
    pub const fn live(&self) -> Slots {
        self.live
    }

    /// The packets dropped since the last [`Burst::sweep`].
    #[inline]
    #[must_use]
    pub const fn dropped(&self) -> Slots {
        self.dropped
    }

    /// Whether a further packet finds room.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        (self.live | self.dropped).0 != u64::MAX
    }

    /// Adds a packet in the lowest free slot.
    ///
    /// # Errors
    /// The frame itself, when the burst is full.
    #[inline]
    pub fn push(&mut self, frame: Frame, meta: Meta) -> Result<Slot, Frame> {
        let Some(slot) = (!(self.live | self.dropped)).first() else { return Err(frame) };
        *self.entry(slot) = Some(frame);
        *self.meta_mut(slot) = meta;
        self.live.insert(slot);
        Ok(slot)
    }

    /// Takes frames up that came from `port`, as many as find room if the burst is empty, else none. Of their
    /// metadata only the port is set: the parse stage writes all of it.
    #[inline]
    pub fn load(&mut self, from: &mut FrameQueue, port: u16) {
        if (self.live | self.dropped).is_empty() {
            let n = from.len().min(BURST);
            let places = self.frames.iter_mut().zip(self.meta.iter_mut());
            for ((entry, meta), frame) in places.zip(from.drain(..n)) {
                *entry = Some(frame);
                meta.port = port;
            }
            self.live = Slots::first_n(n);
        }
    }

    /// Drops the packet. Its frame goes home, and its reason is counted, with the next [`Burst::sweep`].
    ///
    /// Only the first reason of a packet counts.
    #[inline]
    pub fn drop(&mut self, slot: Slot, reason: DropReason) {
        if self.live.contains(slot) {
            self.live.remove(slot);
            self.dropped.insert(slot);
            self.meta_mut(slot).reason = Some(reason);
        }
    }

    /// Takes the frames of all dropped packets home and tells `count` of each packet and its reason.
    #[inline]
    pub fn sweep(&mut self, pool: &mut FramePool, mut count: impl FnMut(&Meta, DropReason)) {
        for slot in std::mem::take(&mut self.dropped) {
            if let Some(frame) = self.entry(slot).take() {
                pool.free(frame);
            }
            let meta = self.meta(slot);
            if let Some(reason) = meta.reason {
                count(meta, reason);
            }
        }
    }

    /// Takes the packet's frame out of the burst, to send it on.
    #[inline]
    #[must_use]
    pub fn take(&mut self, slot: Slot) -> Option<Frame> {
        if !self.live.contains(slot) {
            return None;
        }
        self.live.remove(slot);
        self.entry(slot).take()
    }

    /// Queues the frames of `slots`, which are live, one after the other, as long as there is room and `finish` says that the
    /// frame is ready to go. The result is which were queued, and their bytes.
    #[inline(always)]
    pub fn queue_while(
        &mut self,
        slots: Slots,
        queue: &mut FrameQueue,
        mut finish: impl FnMut(&mut Frame, &Meta) -> bool,
    ) -> (Slots, u64) {
        let (mut queued, mut bytes) = (Slots::NONE, 0);
        for slot in slots & self.live {
            let (Some(frame), meta) = self.frame_and_meta(slot) else { break };
            if queue.is_full() || !finish(frame, meta) {
                break;
            }
            bytes += frame.len() as u64;
            queue.extend(self.entry(slot).take());
            queued.insert(slot);
        }
        self.live -= queued;
        (queued, bytes)
    }

    /// Asks for the packet a few slots further on, while a walk over the burst is at this one: the headers of a burst do not
    /// stay in the nearest cache from one walk to the next ([`Umem::prefetch`]). The processor sees by itself what comes next
    /// only while chunks follow each other in memory, and after some time of operation they do not.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a number modulo the length of an array is a place in it")]
    pub fn prefetch_after(&self, umem: &Umem, slot: Slot) {
        const AHEAD: usize = 3;
        self.frames[(slot.index() + AHEAD) % BURST].iter().for_each(|frame| umem.prefetch_head(frame));
    }

    /// The packet's frame.
    #[inline]
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    pub const fn frame(&self, slot: Slot) -> Option<&Frame> {
        self.frames[slot.index()].as_ref()
    }

    /// The packet's frame, to move its ends.
    #[inline]
    #[must_use]
    pub const fn frame_mut(&mut self, slot: Slot) -> Option<&mut Frame> {
        self.entry(slot).as_mut()
    }

    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    const fn entry(&mut self, slot: Slot) -> &mut Option<Frame> {
        &mut self.frames[slot.index()]
    }

    /// What is known of the packet.
    #[inline]
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    pub const fn meta(&self, slot: Slot) -> &Meta {
        &self.meta[slot.index()]
    }

    /// What is known of the packet, to change.
    #[inline]
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    pub const fn meta_mut(&mut self, slot: Slot) -> &mut Meta {
        &mut self.meta[slot.index()]
    }

    /// The packet's bytes. Empty when the slot holds none.
    #[inline]
    #[must_use]
    pub fn bytes<'a>(&'a self, umem: &'a Umem, slot: Slot) -> &'a [u8] {
        self.frame(slot).map_or(&[], |frame| umem.bytes(frame))
    }

    /// The packet's bytes, to change. Empty when the slot holds none.
    #[inline]
    #[must_use]
    pub fn bytes_mut<'a>(&'a mut self, umem: &'a Umem, slot: Slot) -> &'a mut [u8] {
        self.frame_mut(slot).map_or(&mut [], |frame| umem.bytes_mut(frame))
    }

    /// The packet's bytes and what is known of it, both to change.
    #[inline]
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the arrays' length")]
    pub fn packet_mut<'a>(&'a mut self, umem: &'a Umem, slot: Slot) -> (&'a mut [u8], &'a mut Meta) {
        (umem.entry_mut(&mut self.frames[slot.index()]), &mut self.meta[slot.index()])
    }

    /// The packet's frame, to move its ends, and what is known of it.
    #[inline]
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the arrays' length")]
    pub const fn frame_and_meta(&mut self, slot: Slot) -> (Option<&mut Frame>, &Meta) {
        (self.frames[slot.index()].as_mut(), &self.meta[slot.index()])
    }

    /// All packets, to be handed out one by one and in parts.
    #[inline(always)]
    pub fn packets(&mut self) -> Packets<'_> {
        let (frames, meta) = (NonNull::from(&mut self.frames).cast(), NonNull::from(&mut *self.meta).cast());
        Packets { frames, meta, left: Slots(u64::MAX), burst: PhantomData }
    }
}

/// Packets of a burst, of which each is handed out once, in the order of their slots: frame and what is known of it, both to
/// change for as long as the burst is borrowed.
#[derive(Debug)]
pub struct Packets<'a> {
    /// The first of an array of [`BURST`], like `meta`.
    frames: NonNull<Option<Frame>>,
    meta: NonNull<Meta>,
    /// Those that have not been handed out.
    left: Slots,
    burst: PhantomData<&'a mut Burst>,
}

impl<'a> Packets<'a> {
    /// Hands those of these slots out that have not been.
    #[inline(always)]
    pub fn part(&mut self, slots: Slots) -> Self {
        let part = slots & self.left;
        self.left -= part;
        Self { left: part, ..*self }
    }

    /// Hands the packet in this slot out; `None` where there is none, or it has been.
    #[inline(always)]
    pub fn one(&mut self, slot: Slot) -> Option<(Slot, &'a mut Frame, &'a mut Meta)> {
        self.part(Slots::only(slot)).next()
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = (Slot, &'a mut Frame, &'a mut Meta);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        while let Some(slot) = self.left.first() {
            self.left.remove_first();
            // SAFETY: a slot's index is below the length of both arrays.
            let mut entry = unsafe { self.frames.add(slot.index()) };
            // SAFETY: likewise.
            let mut meta = unsafe { self.meta.add(slot.index()) };
            // SAFETY: the burst is borrowed exclusively for `'a`. Each slot is left to one of its `Packets` at most, and to none
            // after this, so nobody else has this entry.
            let entry = unsafe { entry.as_mut() };
            if let Some(frame) = entry {
                // SAFETY: likewise.
                return Some((slot, frame, unsafe { meta.as_mut() }));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::HugePages;

    fn pool() -> FramePool {
        Umem::new(128, 2048, HugePages::Never).unwrap().into_pools(1).pop().unwrap()
    }

    #[test]
    fn every_packet_leaves_once() {
        let mut pool = pool();
        let mut burst = Burst::default();
        for n in 0..BURST {
            let frame = pool.alloc_with(&[n as u8]).unwrap();
            assert_eq!(burst.push(frame, Meta::EMPTY).unwrap().index(), n);
        }
        let extra = burst.push(pool.alloc().unwrap(), Meta::EMPTY).unwrap_err();
        pool.free(extra);
        let (a, b) = (Slot::new(3).unwrap(), Slot::new(5).unwrap());
        burst.drop(a, DropReason::NoRoute);
        burst.drop(a, DropReason::Blackhole);
        let frame = burst.take(b).unwrap();
        assert!(burst.take(b).is_none() && burst.take(a).is_none());
        assert_eq!(pool.umem().bytes(&frame), [5]);
        pool.free(frame);
        let mut seen = Vec::new();
        burst.sweep(&mut pool, |_, reason| seen.push(reason));
        assert_eq!(seen, [DropReason::NoRoute]);
        assert_eq!(burst.live().len(), BURST - 2);
        for slot in burst.live() {
            burst.drop(slot, DropReason::Shutdown);
        }
        burst.sweep(&mut pool, |_, reason| seen.push(reason));
        assert_eq!((seen.len(), pool.available()), (BURST - 1, 128));
    }

    #[test]
    fn packets_come_in_parts() {
        let mut pool = pool();
        let mut burst = Burst::default();
        for n in 0..BURST {
            let frame = pool.alloc_with(&[n as u8]).unwrap();
            burst.push(frame, Meta { sport: n as u16, ..Meta::EMPTY }).unwrap();
        }
        let gone = Slot::new(9).unwrap();
        pool.free(burst.take(gone).unwrap());
        let mut packets = burst.packets();
        let list = |part: &[(Slot, &mut Frame, &mut Meta)]| -> Vec<usize> {
            assert!(part.iter().all(|(slot, _, meta)| slot.index() == usize::from(meta.sport)));
            part.iter().map(|(slot, ..)| slot.index()).collect()
        };
        let first: Vec<_> = packets.part(Slots(0b1011_0100)).collect();
        let one: Vec<_> = packets.one(Slot::new(8).unwrap()).into_iter().collect();
        assert!(packets.one(gone).is_none(), "there is no frame");
        let none: Vec<_> = packets.part(Slots::NONE).collect();
        let rest: Vec<_> = packets.part(Slots(1 << 3 | 1 << 7 | 1 << 8 | 1 << 63)).collect();
        assert!(packets.one(Slot::new(3).unwrap()).is_none(), "it was handed out");
        // All of them at once: none is given twice.
        assert_eq!((list(&first), list(&one), list(&none)), (vec![2, 4, 5, 7], vec![8], vec![]));
        assert_eq!(list(&rest), [3, 63]);
    }

    #[test]
    fn several_packets_can_be_changed_together() {
        let mut pool = pool();
        let umem = std::sync::Arc::clone(pool.umem());
        let mut burst = Burst::default();
        for n in 0..4_u8 {
            burst.push(pool.alloc_with(&[n; 4]).unwrap(), Meta::EMPTY).unwrap();
        }
        let mut held = Vec::new();
        for (slot, frame, _) in burst.packets().part(Slots(0b1110)) {
            let cut = umem.cut_if(frame, |bytes| (bytes[0] != 2).then_some((1, 2, bytes[0])));
            assert_eq!(cut.is_ok(), slot.index() != 2);
            held.extend(cut.ok().map(|(bytes, first)| {
                assert_eq!(usize::from(first), slot.index());
                bytes
            }));
        }
        held[0][0] = 100;
        held[1][1] = 200;
        assert_eq!(burst.bytes(&umem, Slot::new(1).unwrap()), [100, 1]);
        assert_eq!(burst.bytes(&umem, Slot::new(2).unwrap()), [2; 4]);
        assert_eq!(burst.bytes(&umem, Slot::new(3).unwrap()), [3, 200]);
    }
}
