//! AF_PACKET sockets: for devices and kernels where XDP is not to be had.
//!
//! Frames are received from a ring shared with the kernel (TPACKET_V3) and sent in batches (`sendmmsg`) past the
//! queueing disciplines. Every frame is copied once each way.

use std::{
    fmt, io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use memmap2::{MmapOptions, MmapRaw};

use crate::{Device, Error, LinkState, sys};

/// Frames that one `sendmmsg` takes.
pub const SEND_BATCH: usize = 64;

/// Options of a packet socket.
#[derive(Clone, Debug)]
pub struct PacketConfig {
    /// Bytes of a block of the receive ring: a multiple of 4096, a power of two, and longer than any frame.
    pub block_size: u32,
    /// Blocks in the receive ring.
    pub blocks: u32,
    /// After how many milliseconds the kernel hands over a block that is not full.
    pub block_timeout: u32,
    /// Receive frames for all addresses, not only the device's own.
    pub promiscuous: bool,
    /// Number of a group of sockets that share the device's frames, by flow. Each socket of the group names it.
    pub fanout: Option<u16>,
}

impl Default for PacketConfig {
    fn default() -> Self {
        Self { block_size: 1 << 17, blocks: 64, block_timeout: 1, promiscuous: true, fanout: None }
    }
}

/// A frame in the receive ring.
#[derive(Debug)]
pub struct Received<'a> {
    bytes: &'a [u8],
    /// Tag protocol and control information that the kernel took out of the frame.
    vlan: Option<[u8; 4]>,
    whole: bool,
}

impl Received<'_> {
    const TAG_AT: usize = 12;

    /// Length of the frame in bytes, its VLAN tag included.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.vlan.map_or(0, |tag| tag.len())
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the ring holds all of the frame, and not its beginning only.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Copies the frame, with the VLAN tag that the kernel took out back in its place. False, without any copy, when
    /// `to` does not have exactly [`Received::len`] bytes.
    #[must_use]
    pub fn copy_to(&self, to: &mut [u8]) -> bool {
        if to.len() != self.len() {
            return false;
        }
        let Some(tag) = self.vlan else {
            to.copy_from_slice(self.bytes);
            return true;
        };
        let addresses = self.bytes.split_at_checked(Self::TAG_AT);
        let (Some((addresses, rest)), Some((head, tail))) =
            (addresses, to.split_at_mut_checked(Self::TAG_AT))
        else {
            return false;
        };
        let Some((place, tail)) = tail.split_at_mut_checked(tag.len()) else { return false };
        head.copy_from_slice(addresses);
        place.copy_from_slice(&tag);
        tail.copy_from_slice(rest);
        true
    }
}

/// Why sending stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All frames were sent.
    Finished,
    /// The device is busy: try again later.
    Busy,
    /// The kernel will not send the next frame, most likely since it is longer than the MTU allows.
    Refused,
    /// The device is down.
    Down,
    /// The device is gone.
    Gone,
}

/// What the kernel counted since the socket was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketStatistics {
    /// Frames that came, dropped ones included.
    pub received: u64,
    /// Frames dropped since the ring was full.
    pub dropped: u64,
}

/// A packet socket on one device.
pub struct PacketSocket {
    // Declared first: the socket closes before its ring is unmapped.
    fd: OwnedFd,
    ring: ReceiveRing,
    sender: Sender,
    device: Device,
    statistics: PacketStatistics,
}

impl fmt::Debug for PacketSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketSocket({})", self.device)
    }
}

impl PacketSocket {
    /// Opens a socket that receives what arrives at the device, but not what is sent through it.
    ///
    /// # Errors
    /// [`Error::Privilege`] without CAP_NET_RAW, [`Error::Geometry`] for the ring, [`Error::DeviceDown`],
    /// [`Error::System`].
    pub fn open(device: &Device, config: &PacketConfig) -> Result<Self, Error> {
        if !config.block_size.is_power_of_two() || config.block_size < 4096 || config.blocks == 0 {
            let reason = "a receive ring needs blocks of a power of two of bytes, 4096 at least".into();
            return Err(Error::Geometry { reason });
        }
        let explain = |call| move |source| sys::explain(call, "CAP_NET_RAW", source);
        // Protocol 0: nothing arrives before `bind` names the device.
        let fd =
            sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map_err(explain("opening a packet socket"))?;
        let set = |option, value: i32| sys::set_option(&fd, libc::SOL_PACKET, option, &value);
        set(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V3 as i32)
            .map_err(explain("asking for TPACKET_V3"))?;
        // In TPACKET_V3 frames are packed; the frame size is only checked for consistency.
        let frame_size = 2048;
        let ring = libc::tpacket_req3 {
            tp_block_size: config.block_size,
            tp_block_nr: config.blocks,
            tp_frame_size: frame_size,
            tp_frame_nr: config.block_size / frame_size * config.blocks,
            tp_retire_blk_tov: config.block_timeout,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &ring)
            .map_err(explain("making a receive ring"))?;
        let ring = ReceiveRing::map(&fd, config)?;
        set(libc::PACKET_QDISC_BYPASS, 1).map_err(explain("passing by the queueing disciplines"))?;
        // Linux 4.20; `is_outgoing` does the same for older ones.
        let _ = set(libc::PACKET_IGNORE_OUTGOING, 1);
        // SAFETY: a C structure of integers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = device.index() as i32;
        // SAFETY: the address structure of a packet socket.
        unsafe { sys::bind(&fd, &address) }.map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV) => Error::DeviceMissing { device: device.name().to_owned() },
            Some(libc::ENETDOWN) => Error::DeviceDown { device: device.name().to_owned() },
            _ => sys::explain("binding a packet socket", "CAP_NET_RAW", source),
        })?;
        if config.promiscuous {
            // SAFETY: a C structure of integers, for which zero is valid.
            let mut request: libc::packet_mreq = unsafe { mem::zeroed() };
            request.mr_ifindex = device.index() as i32;
            request.mr_type = libc::PACKET_MR_PROMISC as u16;
            sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
                .map_err(explain("setting a device promiscuous"))?;
        }
        if let Some(group) = config.fanout {
            let value = i32::from(group) | (libc::PACKET_FANOUT_HASH as i32) << 16;
            set(libc::PACKET_FANOUT, value).map_err(explain("joining a fanout group"))?;
        }
        let sender = Sender::new();
        Ok(Self { fd, ring, sender, device: device.clone(), statistics: PacketStatistics::default() })
    }

    /// Shows up to `max` received frames to `take`, oldest first. A frame for which `take` answers false is
    /// shown again next time. Returns how many were taken.
    pub fn receive(&mut self, max: usize, mut take: impl FnMut(&Received<'_>) -> bool) -> usize {
        let mut taken = 0;
        while taken < max {
            let Some(frame) = self.ring.current() else { break };
            if let Some(frame) = frame {
                if !take(&frame) {
                    break;
                }
                taken += 1;
            }
            self.ring.advance();
        }
        taken
    }

    /// Sends up to [`SEND_BATCH`] frames. Returns how many were sent, and why no more.
    pub fn send<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>) -> (usize, Stop) {
        self.sender.send(&self.fd, frames)
    }

    /// What the kernel counted.
    ///
    /// # Errors
    /// Those of `getsockopt`.
    pub fn statistics(&mut self) -> io::Result<PacketStatistics> {
        // The kernel's counters start again at zero with each read.
        let new: libc::tpacket_stats_v3 =
            sys::get_option(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
        self.statistics.received += u64::from(new.tp_packets);
        self.statistics.dropped += u64::from(new.tp_drops);
        Ok(self.statistics)
    }

    /// Sleeps until frames can be received, at most for `timeout`. Returns whether they can.
    ///
    /// # Errors
    /// Those of `poll`.
    pub fn poll(&self, timeout: Option<Duration>) -> io::Result<bool> {
        Ok(sys::poll(&self.fd, libc::POLLIN, timeout)? & libc::POLLIN != 0)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the device can carry frames. A few system calls.
    pub fn link_state(&self) -> LinkState {
        self.device.state()
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The mapped ring: blocks that the kernel fills with frames and hands over whole.
struct ReceiveRing {
    map: MmapRaw,
    block_size: usize,
    blocks: usize,
    block: usize,
    /// Frames of the current block not yet taken; `None` when the block has not been looked at.
    left: Option<u32>,
    /// Where in the current block the next frame starts.
    offset: usize,
}

impl ReceiveRing {
    fn map(fd: &OwnedFd, config: &PacketConfig) -> Result<Self, Error> {
        let (block_size, blocks) = (config.block_size as usize, config.blocks as usize);
        let map = MmapOptions::new()
            .len(block_size * blocks)
            .populate()
            .map_raw(fd.as_raw_fd())
            .map_err(|source| Error::System { call: "mmap of a receive ring", source })?;
        Ok(Self { map, block_size, blocks, block: 0, left: None, offset: 0 })
    }

    fn block(&self) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(self.block * self.block_size)
    }

    fn status(&self) -> &AtomicU32 {
        let at = self
            .block()
            .wrapping_add(mem::offset_of!(libc::tpacket_block_desc, hdr))
            .wrapping_add(mem::offset_of!(libc::tpacket_hdr_v1, block_status));
        // SAFETY: `block` is below `blocks`, so the word lies in the mapping, aligned; kernel and program pass the
        // block to each other by atomic access to it.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    /// The next frame. Outer `None`: no block is ours. Inner `None`: nothing to show here, advance.
    fn current(&mut self) -> Option<Option<Received<'_>>> {
        if self.left.is_none() {
            if self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return None;
            }
            let at = self.block().wrapping_add(mem::offset_of!(libc::tpacket_block_desc, hdr));
            // SAFETY: the block is ours until its status is given back; the header lies at its start, aligned.
            let header = unsafe { at.cast::<libc::tpacket_hdr_v1>().read() };
            self.left = Some(header.num_pkts);
            self.offset = header.offset_to_first_pkt as usize;
        }
        if self.left == Some(0) {
            return Some(None);
        }
        Some(self.frame_header().and_then(|header| self.frame(&header)))
    }

    /// The header of the next frame, if it lies in the block.
    fn frame_header(&self) -> Option<libc::tpacket3_hdr> {
        let end = self.offset.checked_add(size_of::<libc::tpacket3_hdr>())?;
        if end > self.block_size {
            return None;
        }
        let at = self.block().wrapping_add(self.offset);
        // SAFETY: checked to lie in the block, which is ours; the kernel aligns frames to 16 bytes, and an
        // unaligned read would not mind.
        Some(unsafe { at.cast::<libc::tpacket3_hdr>().read_unaligned() })
    }

    fn frame(&self, header: &libc::tpacket3_hdr) -> Option<Received<'_>> {
        let start = self.offset.checked_add(usize::from(header.tp_mac))?;
        let len = header.tp_snaplen as usize;
        if start.checked_add(len)? > self.block_size || self.is_outgoing() {
            return None;
        }
        let at = self.block().wrapping_add(start);
        // SAFETY: checked to lie in the block, which is ours while the result borrows `self`: giving it back takes
        // `&mut self`.
        let bytes = unsafe { std::slice::from_raw_parts(at, len) };
        let vlan = (header.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let known = header.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let protocol = if known { header.hv1.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
            let ([a, b], [c, d]) = (protocol.to_be_bytes(), (header.hv1.tp_vlan_tci as u16).to_be_bytes());
            [a, b, c, d]
        });
        Some(Received { bytes, vlan, whole: header.tp_snaplen == header.tp_len })
    }

    /// Whether the next frame was sent through the device rather than received.
    fn is_outgoing(&self) -> bool {
        let at = self.offset + libc::TPACKET3_HDRLEN - size_of::<libc::sockaddr_ll>();
        if at + size_of::<libc::sockaddr_ll>() > self.block_size {
            return false;
        }
        let at = self.block().wrapping_add(at);
        // SAFETY: checked to lie in the block, which is ours.
        let address = unsafe { at.cast::<libc::sockaddr_ll>().read_unaligned() };
        address.sll_pkttype == libc::PACKET_OUTGOING
    }

    /// Goes past the current frame, and gives the block back behind the last.
    fn advance(&mut self) {
        match self.left {
            Some(left @ 2..) => {
                // A frame that does not lie in the block would mean that the rest does not either.
                let step = self.frame_header().map_or(0, |header| header.tp_next_offset as usize);
                self.left = Some(if step == 0 { 0 } else { left - 1 });
                self.offset += step;
            }
            _ => {
                self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
                self.block = (self.block + 1) % self.blocks;
                self.left = None;
            }
        }
    }
}

/// The arrays that `sendmmsg` reads, made once.
struct Sender {
    messages: Box<[libc::mmsghdr]>,
    slices: Box<[libc::iovec]>,
}

// SAFETY: the pointers are written anew by each `send`, and lead nowhere between calls but into `slices`.
unsafe impl Send for Sender {}

impl Sender {
    fn new() -> Self {
        let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut slices = vec![empty; SEND_BATCH].into_boxed_slice();
        let messages = slices
            .iter_mut()
            .map(|slice| {
                // SAFETY: a C structure of integers and pointers, for which zero is valid.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = slice;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        Self { messages, slices }
    }

    fn send<'a>(&mut self, fd: &OwnedFd, frames: impl Iterator<Item = &'a [u8]>) -> (usize, Stop) {
        let mut count = 0;
        for ((slice, message), frame) in self.slices.iter_mut().zip(self.messages.iter_mut()).zip(frames) {
            *slice = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            message.msg_hdr.msg_iov = slice;
            count += 1;
        }
        let mut sent = 0;
        while sent < count {
            let Some(rest) = self.messages.get_mut(sent..count) else { break };
            // SAFETY: `rest` holds that many messages, each with one slice of a frame that is borrowed for `'a`,
            // longer than this call; the kernel only reads the frames.
            let result = unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match result {
                1.. => sent += result as usize,
                _ => return (sent, Self::stop(io::Error::last_os_error().raw_os_error())),
            }
        }
        (sent, Stop::Finished)
    }

    fn stop(errno: Option<i32>) -> Stop {
        match errno {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR | libc::EBUSY) => Stop::Busy,
            Some(libc::ENETDOWN) => Stop::Down,
            Some(libc::ENXIO | libc::ENODEV) => Stop::Gone,
            _ => Stop::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_back_behind_the_addresses() {
        let bytes: Vec<u8> = (0..60).collect();
        let frame = Received { bytes: &bytes, vlan: Some([0x88, 0xa8, 0x20, 0x05]), whole: true };
        let mut to = vec![0; 64];
        assert_eq!(frame.len(), 64);
        assert!(frame.copy_to(&mut to));
        assert_eq!(to[..12], bytes[..12]);
        assert_eq!(to[12..16], [0x88, 0xa8, 0x20, 0x05]);
        assert_eq!(to[16..], bytes[12..]);
        assert!(!frame.copy_to(&mut to[..63]));
        let plain = Received { bytes: &bytes, vlan: None, whole: true };
        assert!(plain.copy_to(&mut to[..60]));
        assert_eq!(to[..60], bytes);
    }

    #[test]
    fn a_tag_on_a_runt_is_refused() {
        let frame = Received { bytes: &[1; 8], vlan: Some([0x81, 0, 0, 1]), whole: true };
        assert!(!frame.copy_to(&mut [0; 12]));
    }

    #[test]
    fn what_stops_sending_is_told_apart() {
        assert_eq!(Sender::stop(Some(libc::ENOBUFS)), Stop::Busy);
        assert_eq!(Sender::stop(Some(libc::EMSGSIZE)), Stop::Refused);
        assert_eq!(Sender::stop(Some(libc::ENXIO)), Stop::Gone);
        assert_eq!(Sender::stop(Some(libc::ENETDOWN)), Stop::Down);
    }
}
