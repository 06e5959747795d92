//! Ports in memory: a wire between two ports of one process.
//!
//! The two ends may belong to different gateways with a UMEM each, so bytes are copied across, as on a wire.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::PacketIo;
use crate::packet::{FramePool, FrameQueue};

/// One direction: packets on their way, and the empty buffers they travel in, so that nothing is allocated.
#[derive(Debug)]
struct Lane {
    full: ArrayQueue<Vec<u8>>,
    empty: ArrayQueue<Vec<u8>>,
}

impl Lane {
    fn new(capacity: usize) -> Arc<Self> {
        let lane = Self { full: ArrayQueue::new(capacity), empty: ArrayQueue::new(capacity) };
        for _ in 0..capacity {
            let _ = lane.empty.push(Vec::with_capacity(BUFFER));
        }
        Arc::new(lane)
    }

    fn send(&self, bytes: &[u8]) -> bool {
        let Some(mut buffer) = self.empty.pop() else { return false };
        buffer.clear();
        buffer.extend_from_slice(bytes);
        // There are as many buffers as places, so there is a place.
        self.full.push(buffer).is_ok()
    }

    fn receive<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let buffer = self.full.pop()?;
        let result = f(&buffer);
        let _ = self.empty.push(buffer);
        Some(result)
    }
}

/// Bytes that a buffer of the wire starts with: an ordinary frame. It grows when a larger one comes.
const BUFFER: usize = 1536;

/// One end of a wire in memory.
#[derive(Debug)]
pub struct MemPort {
    tx: Arc<Lane>,
    rx: Arc<Lane>,
    /// Packets that came in but found no buffer.
    no_buffer: u64,
}

/// A wire that holds up to `capacity` packets in each direction, as its two ends.
#[must_use]
pub fn wire(capacity: usize) -> (MemPort, MemPort) {
    let (one, other) = (Lane::new(capacity.max(1)), Lane::new(capacity.max(1)));
    let a = MemPort { tx: Arc::clone(&one), rx: Arc::clone(&other), no_buffer: 0 };
    (a, MemPort { tx: other, rx: one, no_buffer: 0 })
}

impl MemPort {
    /// Puts a packet on the wire, from a program rather than from a gateway. `false` when the wire is full.
    #[must_use]
    pub fn send(&self, bytes: &[u8]) -> bool {
        self.tx.send(bytes)
    }

    /// Takes a packet off the wire.
    #[must_use]
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.rx.receive(<[u8]>::to_vec)
    }

    /// Packets on their way to this end.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.rx.full.len()
    }
}

impl PacketIo for MemPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let mut n = 0;
        while n < max && !out.is_full() {
            let Some(frame) = self.rx.receive(|bytes| pool.alloc_with(bytes)) else { break };
            match frame {
                Some(frame) => {
                    out.push(frame);
                    n += 1;
                }
                None => self.no_buffer += 1,
            }
        }
        n
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize {
        let umem = Arc::clone(pool.umem());
        let sent = frames.iter().take_while(|frame| self.tx.send(umem.bytes(frame))).count();
        frames.drain(..sent).for_each(|frame| pool.free(frame));
        sent
    }

    fn complete(&mut self, _: &mut FramePool) {}

    fn shutdown(&mut self, _: &mut FramePool) -> usize {
        0
    }

    fn held(&self) -> usize {
        0
    }

    fn stats(&mut self) -> super::PortStats {
        super::PortStats { rx_fill_empty: self.no_buffer, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{HugePages, Umem};

    #[test]
    fn what_goes_in_comes_out_and_a_full_wire_takes_no_more() {
        let mut pool = Umem::new(8, 2048, HugePages::Never).unwrap().into_pools(1).pop().unwrap();
        let (mut a, mut b) = wire(2);
        let mut queue: FrameQueue = (0..3_u8).filter_map(|n| pool.alloc_with(&[n; 60])).collect();
        assert_eq!(a.tx_burst(&mut pool, &mut queue), 2);
        assert_eq!(queue.len(), 1);
        let mut got = FrameQueue::new();
        assert_eq!(b.rx_burst(&mut pool, &mut got, 64), 2);
        assert_eq!(pool.umem().bytes(&got[1]), [1; 60]);
        assert_eq!(a.tx_burst(&mut pool, &mut queue), 1);
        assert_eq!(b.receive().unwrap(), [2; 60]);
        got.drain(..).for_each(|f| pool.free(f));
        assert_eq!(pool.available(), 8);
    }
}
