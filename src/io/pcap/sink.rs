//! Writing captures.

use std::{
    fmt,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use pcap_file::{
    DataLink, Endianness, PcapError, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
};

use super::{CaptureError, NANOS};

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
