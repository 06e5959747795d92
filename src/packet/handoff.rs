//! How a packet goes from one worker to another, and a buffer back for it.
//!
//! All workers share one UMEM, so a packet is handed over without a copy: its frame and what is known of it go into a
//! ring, of which there is one for each ordered pair of workers. The buffer is then the other worker's. So that none
//! runs out of buffers while another gathers them, who takes a packet gives an empty buffer back, through a second
//! ring; what it cannot give at once it owes.

use super::{
    Frame, FramePool, Meta,
    ring::{Consumer, Producer, ring},
};

/// A packet on its way to another worker.
#[derive(Debug)]
pub struct Handed {
    /// Its frame.
    pub frame: Frame,
    /// What is known of it.
    pub meta: Meta,
}

/// Packets on their way from one worker to another, at most.
pub const CAPACITY: usize = 1024;

/// One worker's ends of the rings with one other.
#[derive(Debug)]
struct Link {
    packets_to: Producer<Handed>,
    packets_from: Consumer<Handed>,
    buffers_to: Producer<Frame>,
    buffers_from: Consumer<Frame>,
    /// Buffers to be given to the other.
    owed: usize,
}

/// One worker's ends of all its rings. Empty, as it is by default, where there is one worker.
#[derive(Debug, Default)]
pub struct Links {
    /// By worker; none to itself.
    links: Vec<Option<Link>>,
    own: usize,
    /// Frames taken less frames given away.
    gained: i64,
}

impl Links {
    /// The links of each of `workers` workers.
    #[must_use]
    pub fn mesh(workers: usize) -> Vec<Self> {
        let mut all: Vec<Self> = (0..workers)
            .map(|own| Self { links: (0..workers).map(|_| None).collect(), own, gained: 0 })
            .collect();
        for one in 0..workers {
            for other in one + 1..workers {
                let (there, at_other) = ring(CAPACITY);
                let (back, at_one) = ring(CAPACITY);
                // As many buffers may be on their way as packets were, and those owed from before.
                let (home_there, home_at_other) = ring(2 * CAPACITY);
                let (home_back, home_at_one) = ring(2 * CAPACITY);
                let of_one = Link {
                    packets_to: there,
                    packets_from: at_one,
                    buffers_to: home_there,
                    buffers_from: home_at_one,
                    owed: 0,
                };
                let of_other = Link {
                    packets_to: back,
                    packets_from: at_other,
                    buffers_to: home_back,
                    buffers_from: home_at_other,
                    owed: 0,
                };
                for (place, peer, link) in [(one, other, of_one), (other, one, of_other)] {
                    if let Some(slot) = all.get_mut(place).and_then(|links| links.links.get_mut(peer)) {
                        *slot = Some(link);
                    }
                }
            }
        }
        all
    }

    /// This worker's number.
    #[must_use]
    pub const fn own(&self) -> usize {
        self.own
    }

    /// How many workers there are: one where nobody is linked.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.links.len().max(1)
    }

    fn to(&mut self, worker: usize) -> Option<&mut Link> {
        self.links.get_mut(worker)?.as_mut()
    }

    /// Whether a packet to `worker` finds room.
    #[inline]
    pub fn has_room(&mut self, worker: usize) -> bool {
        self.to(worker).is_some_and(|link| link.packets_to.has_room())
    }

    /// Hands a packet to `worker`, which sees it after the next [`Links::publish`].
    ///
    /// # Errors
    /// The packet itself, when there is no room.
    #[inline]
    #[allow(clippy::result_large_err, reason = "a packet that finds no room must not be lost")]
    pub fn hand(&mut self, worker: usize, packet: Handed) -> Result<(), Handed> {
        let Some(link) = self.to(worker) else { return Err(packet) };
        link.packets_to.push(packet)?;
        self.gained -= 1;
        Ok(())
    }

    /// Shows the others what was handed to them; calls `shown` for each of them there is something new for.
    #[inline]
    pub fn publish(&mut self, mut shown: impl FnMut(usize)) {
        for (worker, link) in self.links.iter_mut().enumerate() {
            if let Some(link) = link
                && link.packets_to.publish()
            {
                shown(worker);
            }
        }
    }

    /// Whether nothing has been handed to this worker.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        self.links.iter_mut().flatten().all(|link| link.packets_from.is_empty())
    }

    /// Takes up to `most` packets, and gives `take` each of them. The result is how many.
    pub fn take(&mut self, most: usize, mut take: impl FnMut(Handed)) -> usize {
        let mut left = most;
        for link in self.links.iter_mut().flatten() {
            let before = left;
            while left > 0
                && let Some(packet) = link.packets_from.pop()
            {
                take(packet);
                left -= 1;
            }
            if left < before {
                link.packets_from.give_back();
                link.owed += before - left;
            }
        }
        self.gained += (most - left) as i64;
        most - left
    }

    /// Gives buffers that are owed, as far as `pool` has some to spare, and takes those that come back.
    pub fn settle(&mut self, pool: &mut FramePool) {
        let mut gained = 0;
        for link in self.links.iter_mut().flatten() {
            let mut came = false;
            while let Some(frame) = link.buffers_from.pop() {
                pool.free(frame);
                gained += 1;
                came = true;
            }
            if came {
                link.buffers_from.give_back();
            }
            // A reserve stays: who gives its last buffer cannot receive.
            while link.owed > 0 && pool.available() > RESERVE && link.buffers_to.has_room() {
                let Some(frame) = pool.alloc() else { break };
                if let Err(frame) = link.buffers_to.push(frame) {
                    pool.free(frame);
                    break;
                }
                link.owed -= 1;
                gained -= 1;
            }
            link.buffers_to.publish();
        }
        self.gained += gained;
    }

    /// Frames taken from others less frames given to them: by so much this worker has more than its own.
    #[must_use]
    pub const fn gained(&self) -> i64 {
        self.gained
    }
}

/// Buffers that a worker keeps for itself: two bursts.
const RESERVE: usize = 2 * super::BURST;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{HugePages, Umem};

    #[test]
    fn packets_arrive_in_order_and_buffers_come_back() {
        let mut pools = Umem::new(1024, 2048, HugePages::Never).unwrap().into_pools(2);
        let mut links = Links::mesh(2);
        for round in 0..200_u8 {
            for n in 0..40 {
                let frame = pools[0].alloc_with(&[round, n]).unwrap();
                links[0].hand(1, Handed { frame, meta: Meta::EMPTY }).unwrap();
            }
            assert!(links[1].is_empty());
            links[0].publish(|worker| assert_eq!(worker, 1));
            let mut seen = 0;
            let (_, right) = pools.split_at_mut(1);
            let pool = &mut right[0];
            let taken = links[1].take(64, |packet| {
                assert_eq!(pool.umem().bytes(&packet.frame), [round, seen]);
                pool.free(packet.frame);
                seen += 1;
            });
            assert_eq!(taken, 40);
            links[1].settle(&mut pools[1]);
            links[0].settle(&mut pools[0]);
        }
        assert_eq!((pools[0].available(), pools[1].available()), (512, 512));
        assert_eq!((links[0].gained(), links[1].gained()), (0, 0));
    }

    #[test]
    fn a_full_ring_gives_the_packet_back() {
        let mut pool = Umem::new(2048, 2048, HugePages::Never).unwrap().into_pools(1).pop().unwrap();
        let mut links = Links::mesh(2);
        for _ in 0..CAPACITY {
            let frame = pool.alloc().unwrap();
            links[0].hand(1, Handed { frame, meta: Meta::EMPTY }).unwrap();
        }
        let frame = pool.alloc().unwrap();
        assert!(!links[0].has_room(1));
        assert!(links[0].hand(1, Handed { frame, meta: Meta::EMPTY }).is_err());
        // There is no way to itself, nor where there is one worker.
        assert!(!links[0].has_room(0) && !Links::default().has_room(0));
        assert_eq!((Links::default().workers(), links[0].workers()), (1, 2));
    }
}
