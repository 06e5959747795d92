//! Reading captures.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use pcap_file::{
    DataLink, Endianness, PcapError, TsResolution,
    pcap::PcapReader,
    pcapng::{
        Block, PcapNgReader,
        blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
    },
};

use super::{CaptureError, NANOS};

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
