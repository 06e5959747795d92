//! Captures: packets out of pcap and pcapng files, packets into pcap files, and a port that has both.
//!
//! A [`PcapPort`] lives by a virtual clock, so that a run over captures gives the same result every time.

use std::{
    fmt,
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use pcap_file::{
    DataLink, Endianness, PcapError, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter},
    pcapng::{
        Block, PcapNgReader,
        blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
    },
};
use thiserror::Error;

use super::{PacketIo, PortHealth};
use crate::packet::{FramePool, FrameQueue};

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

/// One packet of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was captured, in nanoseconds since 1970.
    pub timestamp: u64,
    /// The frame, from its destination MAC address on.
    pub bytes: &'a [u8],
    /// Bytes it had on the wire: more than `bytes` has only with [`PcapSource::allow_cut`].
    pub original_length: u32,
    /// The interface it was captured on, from 0. A pcap file has one.
    pub interface: u32,
}

type Input = Box<dyn Read + Send>;

enum Format {
    Pcap(PcapReader<Input>),
    PcapNg(PcapNgReader<Input>),
}

/// Packets out of a pcap (microseconds or nanoseconds, either byte order) or pcapng file, in the file's order.
pub struct PcapSource {
    path: PathBuf,
    format: Format,
    /// The packet last read. Reused, so that reading allocates only for packets longer than any before.
    bytes: Vec<u8>,
    /// Packets read so far.
    count: u64,
    longest: usize,
    allow_cut: bool,
    ended: bool,
}

impl fmt::Debug for PcapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PcapSource({}, {} packets read)", self.path.display(), self.count)
    }
}

/// What is known of a packet beside its bytes.
struct Header {
    timestamp: u64,
    original_length: u32,
    interface: u32,
}

impl PcapSource {
    /// Opens a capture.
    ///
    /// # Errors
    /// [`CaptureError::Io`], [`CaptureError::Foreign`] or, for pcap, [`CaptureError::LinkType`]. A pcapng file tells
    /// its link types later, with each interface.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CaptureError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| CaptureError::Io { path: path.to_owned(), source })?;
        Self::from_reader(path, file)
    }

    /// Reads a capture from anything that reads; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As of [`PcapSource::open`].
    pub fn from_reader(
        name: impl Into<PathBuf>,
        mut reader: impl Read + Send + 'static,
    ) -> Result<Self, CaptureError> {
        let path = name.into();
        let mut magic = Vec::with_capacity(4);
        if let Err(source) = reader.by_ref().take(4).read_to_end(&mut magic) {
            return Err(CaptureError::Io { path, source });
        }
        let kind = Kind::of(&magic);
        let input: Input = Box::new(io::Cursor::new(magic).chain(reader));
        let format = match kind {
            Kind::Pcap => PcapReader::new(input).map(Format::Pcap),
            Kind::PcapNg => PcapNgReader::new(input).map(Format::PcapNg),
            Kind::Other(reason) => return Err(CaptureError::Foreign { path, reason }),
        };
        let format = match format {
            Ok(format) => format,
            Err(PcapError::IoError(source)) if source.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(CaptureError::Io { path, source });
            }
            Err(_) => return Err(CaptureError::Foreign { path, reason: "its file header is not whole" }),
        };
        if let Format::Pcap(reader) = &format
            && reader.header().datalink != DataLink::ETHERNET
        {
            return Err(CaptureError::LinkType { path, link_type: reader.header().datalink });
        }
        let bytes = Vec::new();
        Ok(Self { path, format, bytes, count: 0, longest: usize::MAX, allow_cut: false, ended: false })
    }

    /// Refuses packets of more than `longest` bytes: what a buffer holds.
    #[must_use]
    pub fn limit(mut self, longest: usize) -> Self {
        self.longest = longest;
        self
    }

    /// Gives out packets that a snap length has cut, instead of refusing them.
    #[must_use]
    pub fn allow_cut(mut self) -> Self {
        self.allow_cut = true;
        self
    }

    /// The file, or the name given to [`PcapSource::from_reader`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Packets read so far: the number of the last one.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The next packet; `None` at the end of the file, and ever after the end or an error.
    ///
    /// # Errors
    /// Any [`CaptureError`], once.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend its items")]
    pub fn next(&mut self) -> Option<Result<Record<'_>, CaptureError>> {
        if self.ended {
            return None;
        }
        let header = match self.advance() {
            Ok(Some(header)) => header,
            Ok(None) => {
                self.ended = true;
                return None;
            }
            Err(error) => {
                self.ended = true;
                return Some(Err(error));
            }
        };
        Some(Ok(Record {
            timestamp: header.timestamp,
            bytes: &self.bytes,
            original_length: header.original_length,
            interface: header.interface,
        }))
    }

    /// Reads the next packet into `bytes`.
    fn advance(&mut self) -> Result<Option<Header>, CaptureError> {
        let next = match &mut self.format {
            Format::Pcap(reader) => next_of_pcap(reader, &mut self.bytes),
            Format::PcapNg(reader) => next_of_pcapng(reader, &mut self.bytes),
        };
        let packet = self.count + 1;
        let path = || self.path.clone();
        let Some(header) = next.map_err(|fault| fault.explain(path(), packet))? else { return Ok(None) };
        let captured = self.bytes.len();
        if captured > self.longest {
            return Err(CaptureError::TooLong {
                path: path(),
                packet,
                length: captured,
                longest: self.longest,
            });
        }
        let original = header.original_length;
        if captured as u64 > u64::from(original) {
            let reason = format!("it has {captured} bytes in the file and {original} on the wire");
            return Err(CaptureError::Malformed { path: path(), packet, reason });
        }
        if (captured as u64) < u64::from(original) && !self.allow_cut {
            return Err(CaptureError::Cut { path: path(), packet, captured, original });
        }
        self.count = packet;
        Ok(Some(header))
    }
}

/// What the first four bytes of a file tell.
enum Kind {
    Pcap,
    PcapNg,
    Other(&'static str),
}

impl Kind {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0xa1, 0xb2, 0xc3, 0xd4] | [0xd4, 0xc3, 0xb2, 0xa1] => Self::Pcap,
            [0xa1, 0xb2, 0x3c, 0x4d] | [0x4d, 0x3c, 0xb2, 0xa1] => Self::Pcap,
            [0x0a, 0x0d, 0x0d, 0x0a] => Self::PcapNg,
            [0x1f, 0x8b, ..] => Self::Other("it is compressed; unpack it with gunzip"),
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Other("it is compressed; unpack it with unzstd"),
            [] => Self::Other("it is empty"),
            _ => Self::Other("its first bytes are those of another format"),
        }
    }
}

/// An error before it knows its file and packet.
enum Fault {
    Reader(PcapError),
    LinkType(DataLink),
    Other(&'static str),
}

impl From<PcapError> for Fault {
    fn from(error: PcapError) -> Self {
        Self::Reader(error)
    }
}

impl Fault {
    fn explain(self, path: PathBuf, packet: u64) -> CaptureError {
        match self {
            Self::Reader(PcapError::IoError(source)) if source.kind() == io::ErrorKind::UnexpectedEof => {
                CaptureError::Truncated { path, packet }
            }
            Self::Reader(PcapError::IoError(source)) => CaptureError::Io { path, source },
            Self::Reader(error) => CaptureError::Malformed { path, packet, reason: error.to_string() },
            Self::LinkType(link_type) => CaptureError::LinkType { path, link_type },
            Self::Other(reason) => CaptureError::Malformed { path, packet, reason: reason.to_owned() },
        }
    }
}

fn next_of_pcap(reader: &mut PcapReader<Input>, bytes: &mut Vec<u8>) -> Result<Option<Header>, Fault> {
    let resolution = reader.header().ts_resolution;
    // The raw packet: the crate's checks refuse every packet that a snap length has cut, without saying so.
    let Some(packet) = reader.next_raw_packet().transpose()? else { return Ok(None) };
    let scale = if resolution == TsResolution::NanoSecond { 1 } else { 1000 };
    let fraction = u64::from(packet.ts_frac) * scale;
    if fraction >= NANOS {
        return Err(Fault::Other("its time has more than a second of fraction"));
    }
    bytes.clear();
    bytes.extend_from_slice(&packet.data);
    let timestamp = u64::from(packet.ts_sec) * NANOS + fraction;
    Ok(Some(Header { timestamp, original_length: packet.orig_len, interface: 0 }))
}

fn next_of_pcapng(reader: &mut PcapNgReader<Input>, bytes: &mut Vec<u8>) -> Result<Option<Header>, Fault> {
    loop {
        // A packet's units are those of its interface, which the reader keeps; so the packet lets go of it first.
        let Some(block) = reader.next_block().transpose()? else { return Ok(None) };
        let (ticks, original_length, interface) = match block {
            Block::EnhancedPacket(packet) => {
                bytes.clear();
                bytes.extend_from_slice(&packet.data);
                // The crate takes every unit for a nanosecond.
                let ticks = packet.timestamp.as_secs() * NANOS + u64::from(packet.timestamp.subsec_nanos());
                (ticks, packet.original_len, packet.interface_id)
            }
            Block::Packet(packet) => {
                bytes.clear();
                bytes.extend_from_slice(&packet.data);
                let (ticks, length, id) = (packet.timestamp, packet.original_len, packet.interface_id);
                // High word first in either byte order; the crate reads one 64-bit number.
                let swapped = reader.section().endianness == Endianness::Little;
                (if swapped { ticks.rotate_left(32) } else { ticks }, length, u32::from(id))
            }
            Block::SimplePacket(_) => return Err(Fault::Other("a simple packet block has no time")),
            Block::InterfaceDescription(description) => {
                if description.linktype != DataLink::ETHERNET {
                    return Err(Fault::LinkType(description.linktype));
                }
                continue;
            }
            _ => continue,
        };
        let Some(description) = reader.interfaces().get(interface as usize) else {
            return Err(Fault::Other("it names an interface that the file does not describe"));
        };
        let Some(timestamp) = nanoseconds(ticks, description) else {
            return Err(Fault::Other("its time is out of range"));
        };
        return Ok(Some(Header { timestamp, original_length, interface }));
    }
}

const NANOS: u64 = 1_000_000_000;

/// A pcapng time as nanoseconds since 1970 (draft-ietf-opsawg-pcapng 4.2: `if_tsresol`, `if_tsoffset`).
fn nanoseconds(ticks: u64, interface: &InterfaceDescriptionBlock<'_>) -> Option<u64> {
    let (mut resolution, mut offset) = (6_u8, 0_i64);
    for option in &interface.options {
        match option {
            InterfaceDescriptionOption::IfTsResol(value) => resolution = *value,
            InterfaceDescriptionOption::IfTsOffset(value) => offset = value.cast_signed(),
            _ => {}
        }
    }
    let scaled = u128::from(ticks) * u128::from(NANOS);
    let exponent = u32::from(resolution & 0x7f);
    let nanos = if resolution & 0x80 == 0 {
        // 10^38 is the last power of ten in 128 bits; less than a tick of 10^-38 s is nothing in any case.
        10_u128.checked_pow(exponent).map_or(0, |unit| scaled / unit)
    } else {
        scaled >> exponent
    };
    let offset = i128::from(offset) * i128::from(NANOS);
    u64::try_from(i128::try_from(nanos).ok()?.checked_add(offset)?).ok()
}

/// Packets into a pcap file with nanoseconds, little-endian on every machine.
pub struct PcapSink {
    path: PathBuf,
    writer: PcapWriter<BufWriter<Box<dyn Write + Send>>>,
    count: u64,
}

impl fmt::Debug for PcapSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PcapSink({}, {} packets written)", self.path.display(), self.count)
    }
}

/// Longest packet a capture says it may hold: what tcpdump writes.
const SNAP_LENGTH: u32 = 262_144;

impl PcapSink {
    /// Makes a capture file, in place of any that is there.
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, CaptureError> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|source| CaptureError::Io { path: path.to_owned(), source })?;
        Self::from_writer(path, file)
    }

    /// Writes a capture to anything that writes; `name` stands for the path in errors.
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn from_writer(
        name: impl Into<PathBuf>,
        writer: impl Write + Send + 'static,
    ) -> Result<Self, CaptureError> {
        let path = name.into();
        let header = PcapHeader {
            snaplen: SNAP_LENGTH,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        let writer: Box<dyn Write + Send> = Box::new(writer);
        match PcapWriter::with_header(BufWriter::new(writer), header) {
            Ok(writer) => Ok(Self { path, writer, count: 0 }),
            Err(error) => Err(write_error(path, 0, error)),
        }
    }

    /// Appends a packet, stamped `now` (nanoseconds since 1970).
    ///
    /// # Errors
    /// [`CaptureError::Io`], or [`CaptureError::Time`] after 2106.
    pub fn write(&mut self, now: u64, bytes: &[u8]) -> Result<(), CaptureError> {
        let packet = self.count + 1;
        if now / NANOS > u64::from(u32::MAX) {
            return Err(CaptureError::Time { path: self.path.clone(), packet, now });
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.writer
            .write_packet(&PcapPacket::new(Duration::from_nanos(now), length, bytes))
            .map_err(|error| write_error(self.path.clone(), packet, error))?;
        self.count = packet;
        Ok(())
    }

    /// Packets written so far.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Writes out what is still buffered and closes the file.
    ///
    /// # Errors
    /// [`CaptureError::Io`]. A sink that is dropped instead keeps such an error to itself.
    pub fn finish(self) -> Result<(), CaptureError> {
        self.writer.into_writer().flush().map_err(|source| CaptureError::Io { path: self.path, source })
    }
}

fn write_error(path: PathBuf, packet: u64, error: PcapError) -> CaptureError {
    match error {
        PcapError::IoError(source) => CaptureError::Io { path, source },
        error => CaptureError::Malformed { path, packet, reason: error.to_string() },
    }
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
                let (path, packet) =
                    self.source.as_ref().map_or_else(Default::default, |s| (s.path.clone(), s.count));
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
#[path = "pcap_tests.rs"]
mod tests;
