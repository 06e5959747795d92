//! One queue of a device as a port.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    thread,
    time::{Duration, Instant},
};

use af_xdp::{Descriptor, Device, Kick, LinkState, Memory, Socket, SocketConfig, Umem};

use super::{
    device::{LINK_HEADER, XdpError},
    pieces::Pieces,
};
use crate::{
    io::{PacketIo, PortHealth, PortStats},
    packet::{BURST, Frame, FramePool, FrameQueue, Lender},
};

/// Frames that a fill ring leaves in the pool, for packets that the gateway makes itself.
const LEFT_IN_POOL: usize = 2 * BURST;
/// Rounds without a system call after the device was found down. At a million rounds a second: a few milliseconds.
const REST_WHEN_DOWN: u32 = 4096;
/// How long the end of a port waits for frames under way to be sent.
const SEND_OFF: Duration = Duration::from_millis(100);

/// One queue of a device, through an AF_XDP socket.
pub struct XdpPort {
    /// Gone after [`PacketIo::shutdown`].
    socket: Option<Socket>,
    lender: Lender,
    /// Where a buffer is several of the kernel's chunks.
    pieces: Option<Pieces>,
    /// Frames given to the tx ring and not yet back from the completion ring.
    sending: usize,
    /// The kernel has not taken all of the tx ring.
    kick_again: bool,
    /// Rounds until the next kick, when the device is down.
    rest: u32,
    health: PortHealth,
    need_wakeup: bool,
    busy_poll: bool,
    kicks: u64,
    wakeups: u64,
    /// Offsets from the kernel that were not lent, and frames to send that are not of this memory.
    foreign: u64,
}

impl fmt::Debug for XdpPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = PacketIo::held(self);
        write!(f, "XdpPort({:?}, {held} frames, {:?})", self.socket, self.health)
    }
}

impl AsRawFd for XdpPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl XdpPort {
    /// Opens a queue, with its fill ring full. Frames come in when the device's program knows the socket.
    ///
    /// # Errors
    /// [`XdpError::Mtu`], [`XdpError::TooFewFrames`], [`XdpError::ForeignFrames`], or what the socket says.
    pub fn open(
        umem: &Umem,
        device: &Device,
        queue: u32,
        config: &SocketConfig,
        pool: &mut FramePool,
    ) -> Result<Self, XdpError> {
        let name = || device.name().to_owned();
        if umem.memory().base() != pool.umem().memory().base() {
            return Err(XdpError::ForeignFrames { device: name() });
        }
        let (mtu, largest) = (device.mtu()?, umem.max_frame().saturating_sub(LINK_HEADER));
        if mtu as usize > largest {
            let chunk = pool.umem().chunk_size();
            return Err(XdpError::Mtu { device: name(), mtu, chunk, largest });
        }
        let (needed, available) = (config.fill_size as usize + LEFT_IN_POOL, pool.available());
        if available < needed {
            return Err(XdpError::TooFewFrames { device: name(), needed, available });
        }
        let socket = Socket::open(umem, device, queue, config)?;
        let mut port = Self {
            socket: Some(socket),
            lender: pool.lender(),
            pieces: Pieces::of(umem),
            sending: 0,
            kick_again: false,
            rest: 0,
            health: PortHealth::Up,
            need_wakeup: config.need_wakeup,
            busy_poll: config.busy_poll.is_some(),
            kicks: 0,
            wakeups: 0,
            foreign: 0,
        };
        port.fill(pool, config.fill_size);
        if let Some(Err(error)) = port.socket.as_mut().map(Socket::bind) {
            // Never bound: the kernel has not looked at the ring.
            port.socket = None;
            port.lender.recall(pool);
            return Err(error.into());
        }
        Ok(port)
    }

    /// Whether the device reads and writes the frames itself.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.socket.as_ref().is_some_and(Socket::is_zero_copy)
    }

    /// Gives up to `most` frames to the fill ring.
    fn fill(&mut self, pool: &mut FramePool, most: u32) {
        let Some(socket) = &mut self.socket else { return };
        let mut room = socket.fill.reserve(most);
        while room.room() > 0 && pool.available() > LEFT_IN_POOL {
            let Some(frame) = pool.alloc() else { break };
            match self.lender.lend(frame) {
                Ok(offset) => {
                    room.push(offset);
                }
                Err(_) => self.foreign += 1,
            }
        }
        room.submit();
    }

    /// Takes home what has been sent.
    fn reap(&mut self, pool: &mut FramePool) {
        if self.sending == 0 {
            return;
        }
        let Some(socket) = &mut self.socket else { return };
        let mut done = socket.completion.peek(u32::MAX);
        for offset in done.by_ref() {
            if self.pieces.as_mut().is_some_and(|pieces| !pieces.is_sent(offset)) {
                continue;
            }
            match self.lender.adopt(offset, 0) {
                Some(frame) => pool.free(frame),
                None => self.foreign += 1,
            }
            self.sending = self.sending.saturating_sub(1);
        }
        done.release();
    }

    fn kick(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        self.kicks += 1;
        let kicked = socket.kick_tx();
        self.kick_again = matches!(kicked, Kick::Busy | Kick::Down);
        self.health = match kicked {
            Kick::Done | Kick::Busy => PortHealth::Up,
            Kick::Down => PortHealth::Down,
            Kick::Gone => PortHealth::Gone,
        };
        if kicked == Kick::Down {
            self.rest = REST_WHEN_DOWN;
        }
    }

    /// Kicks once more where the last kick left frames in the ring.
    fn kick_rest(&mut self) {
        if !self.kick_again || self.health == PortHealth::Gone {
            return;
        }
        match self.rest.checked_sub(1) {
            Some(rest) => self.rest = rest,
            None => self.kick(),
        }
    }

    fn drain(&mut self, pool: &mut FramePool) {
        let Some(socket) = &mut self.socket else { return };
        let mut seen = socket.rx.peek(u32::MAX);
        for descriptor in seen.by_ref() {
            match self.lender.adopt(descriptor.addr, descriptor.len) {
                Some(frame) => pool.free(frame),
                None => self.foreign += 1,
            }
        }
        seen.release();
        if let Some(pieces) = &mut self.pieces {
            pieces.abandon(pool);
        }
    }

    /// [`PacketIo::rx_burst`] of packets that may be in pieces.
    fn receive_pieces(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let (Some(socket), Some(pieces)) = (&mut self.socket, &mut self.pieces) else { return 0 };
        let (before, most) = (out.len(), out.len() + out.remaining_capacity().min(max));
        // As many descriptors as there are, and at most as many packets as are wanted.
        let mut seen = socket.rx.peek(u32::MAX);
        while out.len() < most {
            let Some(descriptor) = seen.next() else { break };
            let piece = self.lender.adopt(descriptor.addr, descriptor.len);
            self.foreign += u64::from(piece.is_none());
            // There is room for one.
            out.extend(pieces.join(piece, descriptor.is_continued(), pool));
        }
        seen.release();
        out.len() - before
    }

    /// Gives the tx ring what it has room for, packets in as many pieces as they take. Returns how many packets.
    fn send_pieces(&mut self, frames: &mut FrameQueue) -> usize {
        let (Some(socket), Some(pieces)) = (&mut self.socket, &mut self.pieces) else { return 0 };
        let mut room = socket.tx.reserve(frames.iter().map(|frame| pieces.count(frame)).sum());
        let mut left = room.room();
        let fits = |frame: &Frame| {
            let rest = left.checked_sub(pieces.count(frame));
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        let accepted = frames.iter().map(fits).take_while(|fits| *fits).count();
        for frame in frames.drain(..accepted) {
            let len = frame.len() as u64;
            match self.lender.lend(frame) {
                Ok(offset) => {
                    for descriptor in pieces.cut(offset, len) {
                        room.push(descriptor);
                    }
                    self.sending += 1;
                }
                Err(_) => self.foreign += 1,
            }
        }
        room.submit();
        accepted
    }

    /// Kicks, where frames are new in the tx ring and the kernel wants to be told.
    fn kick_new(&mut self, accepted: usize) {
        let Some(socket) = &mut self.socket else { return };
        if accepted > 0 && self.rest == 0 && (!self.need_wakeup || socket.tx.needs_wakeup()) {
            self.kick();
        }
    }
}

impl PacketIo for XdpPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        if self.pieces.is_some() {
            return self.receive_pieces(pool, out, max);
        }
        let Some(socket) = &mut self.socket else { return 0 };
        let before = out.len();
        let mut seen = socket.rx.peek(out.remaining_capacity().min(max) as u32);
        for descriptor in seen.by_ref() {
            match self.lender.adopt(descriptor.addr, descriptor.len) {
                // There is room: no more were asked for.
                Some(frame) => out.extend([frame]),
                None => self.foreign += 1,
            }
        }
        seen.release();
        out.len() - before
    }

    fn tx_burst(&mut self, _: &mut FramePool, frames: &mut FrameQueue) -> usize {
        if self.health == PortHealth::Gone || frames.is_empty() {
            return 0;
        }
        if self.pieces.is_some() {
            let accepted = self.send_pieces(frames);
            self.kick_new(accepted);
            return accepted;
        }
        let Some(socket) = &mut self.socket else { return 0 };
        let mut room = socket.tx.reserve(frames.len() as u32);
        let accepted = room.room() as usize;
        for frame in frames.drain(..accepted) {
            let len = frame.len() as u32;
            match self.lender.lend(frame) {
                Ok(addr) => {
                    room.push(Descriptor { addr, len, options: 0 });
                }
                Err(_) => self.foreign += 1,
            }
        }
        self.sending += room.submit() as usize;
        self.kick_new(accepted);
        accepted
    }

    fn complete(&mut self, pool: &mut FramePool) {
        self.kick_rest();
        self.reap(pool);
        self.fill(pool, BURST as u32);
        if let Some(socket) = &mut self.socket
            && (self.busy_poll || socket.fill.needs_wakeup())
            && self.health != PortHealth::Gone
        {
            self.wakeups += 1;
            socket.wake_rx();
        }
    }

    fn shutdown(&mut self, pool: &mut FramePool) -> usize {
        let since = Instant::now();
        while self.sending > 0 && self.health() == PortHealth::Up && since.elapsed() < SEND_OFF {
            self.kick();
            self.reap(pool);
            thread::sleep(Duration::from_micros(100));
        }
        self.reap(pool);
        self.drain(pool);
        if let Some(socket) = self.socket.take() {
            let zero_copy = socket.is_zero_copy();
            // In copy mode the kernel has no way to write to a frame once the socket is closed. A device with
            // zero-copy may: its frames come home only when it is seen to have let go of them.
            if socket.close() || !zero_copy {
                self.lender.recall(pool);
            }
        }
        std::mem::take(&mut self.sending)
    }

    fn held(&self) -> usize {
        self.lender.count() + self.pieces.as_ref().map_or(0, Pieces::held)
    }

    fn stats(&mut self) -> PortStats {
        let kernel = self.socket.as_ref().and_then(|socket| socket.statistics().ok()).unwrap_or_default();
        PortStats {
            rx_ring_full: kernel.rx_ring_full,
            rx_fill_empty: kernel.rx_fill_ring_empty,
            rx_dropped: kernel.rx_dropped + self.pieces.as_ref().map_or(0, Pieces::spoilt),
            invalid_descriptors: kernel.rx_invalid_descriptors + kernel.tx_invalid_descriptors + self.foreign,
            tx_kicks: self.kicks,
            rx_wakeups: self.wakeups,
        }
    }

    fn health(&mut self) -> PortHealth {
        if self.health == PortHealth::Gone {
            return PortHealth::Gone;
        }
        self.health = match self.socket.as_ref().map(Socket::link_state) {
            Some(LinkState::Up) => PortHealth::Up,
            Some(LinkState::Down) => PortHealth::Down,
            Some(LinkState::Gone) | None => PortHealth::Gone,
        };
        self.health
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}
