//! Captures: packets out of pcap and pcapng files, packets into pcap files, and a port that has both.
//!
//! A [`PcapPort`] lives by a virtual clock, so that a run over captures gives the same result every time.

use std::{io, path::PathBuf};

use pcap_file::DataLink;
use thiserror::Error;

use super::{PacketIo, PortHealth};
use crate::packet::{FramePool, FrameQueue};

mod sink;
mod source;

pub use sink::PcapSink;
pub use source::{PcapSource, Record};

const NANOS: u64 = 1_000_000_000;

/// Why a capture cannot be read or written. Packets are counted from 1, as Wireshark does.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The file cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The capture.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is none of the formats read here.
    #[error("{} is no pcap or pcapng capture: {reason}", path.display())]
    Foreign {
        /// The capture.
        path: PathBuf,
        /// What it looks like.
        reason: &'static str,
    },
    /// Packets of another link layer.
    #[error("{} has packets of link type {link_type:?}; only Ethernet is read", path.display())]
    LinkType {
        /// The capture.
        path: PathBuf,
        /// Its link type.
        link_type: DataLink,
    },
    /// The file ends in the middle of a packet or block.
    #[error("{} ends in the middle of packet {packet}", path.display())]
    Truncated {
        /// The capture.
        path: PathBuf,
        /// The packet that is not whole.
        packet: u64,
    },
    /// A header or block that breaks its format.
    #[error("{}: packet {packet} cannot be read: {reason}", path.display())]
    Malformed {
        /// The capture.
        path: PathBuf,
        /// The packet at or before which it was found.
        packet: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The capture holds only the first bytes of a packet.
    #[error(
        "{}: packet {packet} was cut to {captured} of its {original} bytes; capture again without a snap length",
        path.display()
    )]
    Cut {
        /// The capture.
        path: PathBuf,
        /// The packet.
        packet: u64,
        /// Bytes in the file.
        captured: usize,
        /// Bytes on the wire.
        original: u32,
    },
    /// A packet that no buffer holds.
    #[error("{}: packet {packet} has {length} bytes, more than the {longest} of a buffer", path.display())]
    TooLong {
        /// The capture.
        path: PathBuf,
        /// The packet.
        packet: u64,
        /// Bytes of the packet.
        length: usize,
        /// Bytes that a buffer holds.
        longest: usize,
    },
    /// A time that the file format cannot hold: pcap ends in the year 2106.
    #[error("{}: packet {packet} cannot be stamped {now} ns", path.display())]
    Time {
        /// The capture.
        path: PathBuf,
        /// The packet.
        packet: u64,
        /// The time, in nanoseconds since 1970.
        now: u64,
    },
}

/// A port that receives from one capture and sends into another, by a virtual clock.
///
/// It gives out a packet once the clock has reached its timestamp, and stamps what it sends with the clock. A packet
/// that finds no buffer waits for one, so nothing is lost here.
#[derive(Debug, Default)]
pub struct PcapPort {
    source: Option<PcapSource>,
    sink: Option<PcapSink>,
    /// The packet read ahead: its bytes are in `next_bytes`.
    next: Option<u64>,
    next_bytes: Vec<u8>,
    now: u64,
    sent: u64,
    error: Option<CaptureError>,
}

impl PcapPort {
    /// A port over a capture to receive from and one to send into. Without a sink, packets sent are only counted.
    ///
    /// # Errors
    /// That of the first packet.
    pub fn new(source: Option<PcapSource>, sink: Option<PcapSink>) -> Result<Self, CaptureError> {
        let mut port = Self { source, sink, ..Self::default() };
        port.read_ahead();
        port.error.take().map_or(Ok(port), Err)
    }

    /// Sets the clock, in nanoseconds since 1970. It never goes back: an earlier time changes nothing.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// The clock.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// When the next packet is due; `None` when there is none. In a capture that is out of order this may be past.
    #[must_use]
    pub const fn next_timestamp(&self) -> Option<u64> {
        self.next
    }

    /// Packets sent so far.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// What ended the source or the sink early. A port with an error receives nothing more.
    #[must_use]
    pub const fn error(&self) -> Option<&CaptureError> {
        self.error.as_ref()
    }

    /// Writes out what is still buffered and closes the captures.
    ///
    /// # Errors
    /// The error of [`PcapPort::error`], or that of the last write.
    pub fn finish(self) -> Result<(), CaptureError> {
        let closed = self.sink.map_or(Ok(()), PcapSink::finish);
        self.error.map_or(closed, Err)
    }

    fn read_ahead(&mut self) {
        self.next = None;
        match self.source.as_mut().and_then(PcapSource::next) {
            Some(Ok(record)) => {
                self.next = Some(record.timestamp);
                self.next_bytes.clear();
                self.next_bytes.extend_from_slice(record.bytes);
            }
            Some(Err(error)) => self.fail(error),
            None => {}
        }
    }

    /// Keeps the first error only: later ones follow from it.
    fn fail(&mut self, error: CaptureError) {
        self.next = None;
        self.error.get_or_insert(error);
    }
}

impl PacketIo for PcapPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let mut n = 0;
        while n < max && !out.is_full() && self.next.is_some_and(|timestamp| timestamp <= self.now) {
            let (length, longest) = (self.next_bytes.len(), pool.umem().max_packet());
            if length > longest {
                let last = self.source.as_ref().map(|source| (source.path().to_owned(), source.count()));
                let (path, packet) = last.unwrap_or_default();
                self.fail(CaptureError::TooLong { path, packet, length, longest });
                break;
            }
            let Some(frame) = pool.alloc_with(&self.next_bytes) else { break };
            out.push(frame);
            n += 1;
            self.read_ahead();
        }
        n
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize {
        let sent = frames.len();
        for frame in frames.drain(..) {
            if let Some(sink) = &mut self.sink
                && let Err(error) = sink.write(self.now, pool.umem().bytes(&frame))
            {
                self.sink = None;
                self.fail(error);
            }
            pool.free(frame);
        }
        self.sent += sent as u64;
        sent
    }

    fn complete(&mut self, _: &mut FramePool) {}

    fn shutdown(&mut self, _: &mut FramePool) -> usize {
        0
    }

    fn held(&self) -> usize {
        0
    }

    fn health(&mut self) -> PortHealth {
        if self.error.is_some() { PortHealth::Gone } else { PortHealth::Up }
    }
}

#[cfg(test)]
mod tests;
