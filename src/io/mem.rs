//! Ports in memory: a wire between two ports of one process.
//!
//! The two ends may belong to different gateways with a UMEM each, so bytes are copied across, as on a wire.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::PacketIo;
use crate::packet::{FramePool, FrameQueue};

/// Longest packet a memory wire carries: what the largest chunk holds.
type Packet = Box<[u8]>;

/// One end of a wire in memory.
#[derive(Debug)]
pub struct MemPort {
    tx: Arc<ArrayQueue<Packet>>,
    rx: Arc<ArrayQueue<Packet>>,
    /// Frames that were received but found no buffer.
    no_buffer: u64,
}

/// A wire that holds up to `capacity` packets in each direction, as its two ends.
#[must_use]
pub fn wire(capacity: usize) -> (MemPort, MemPort) {
    let one = Arc::new(ArrayQueue::new(capacity.max(1)));
    let other = Arc::new(ArrayQueue::new(capacity.max(1)));
    let a = MemPort { tx: Arc::clone(&one), rx: Arc::clone(&other), no_buffer: 0 };
    let b = MemPort { tx: other, rx: one, no_buffer: 0 };
    (a, b)
}

impl MemPort {
    /// Puts a packet on the wire, from a program rather than from a gateway. `false` when the wire is full.
    #[must_use]
    pub fn send(&self, bytes: &[u8]) -> bool {
        self.tx.push(bytes.into()).is_ok()
    }

    /// Takes a packet off the wire.
    #[must_use]
    pub fn receive(&self) -> Option<Box<[u8]>> {
        self.rx.pop()
    }

    /// Packets on their way to this end.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.rx.len()
    }
}

impl PacketIo for MemPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let mut n = 0;
        while n < max && !out.is_full() {
            let Some(bytes) = self.rx.pop() else { break };
            match pool.alloc_with(&bytes) {
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
        let room = self.tx.capacity() - self.tx.len();
        let n = room.min(frames.len());
        for frame in frames.drain(..n) {
            // The only sender is this end, so there is room for what was counted.
            let _ = self.tx.push(pool.umem().bytes(&frame).into());
            pool.free(frame);
        }
        n
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
        assert_eq!(&*b.receive().unwrap(), [2; 60]);
        got.drain(..).for_each(|f| pool.free(f));
        assert_eq!(pool.available(), 8);
    }
}
