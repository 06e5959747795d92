//! One AF_XDP socket: one queue of one device, with its four rings.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    AddressRing, Consumer, DescriptorRing, Device, Error, LinkState, Producer, Umem, device::control_socket,
    storage::MappedRing, sys,
};

/// How frames get between the device and the UMEM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Zero-copy where the driver can, else copy.
    #[default]
    Auto,
    /// The kernel copies each frame; works on every device.
    Copy,
    /// The device reads and writes the UMEM itself, or `bind` fails.
    ZeroCopy,
}

/// Have the kernel poll the device from within our system calls, instead of by interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long a call may poll, in microseconds.
    pub micros: u32,
    /// How many frames it may take.
    pub budget: u32,
}

/// Options of a socket. Sizes are numbers of entries and powers of two.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Entries of the rx ring.
    pub rx_size: u32,
    /// Entries of the tx ring.
    pub tx_size: u32,
    /// Entries of the fill ring. Zero-copy drivers want twice the rx ring.
    pub fill_size: u32,
    /// Entries of the completion ring.
    pub completion_size: u32,
    /// Copy or zero-copy. On a shared UMEM the first socket decides for all.
    pub mode: Mode,
    /// Let the kernel say when it wants to be woken (`XDP_USE_NEED_WAKEUP`).
    pub need_wakeup: bool,
    /// Frames of several descriptors (`XDP_USE_SG`, Linux 6.6), for an MTU beyond a chunk of the kernel's. On by itself
    /// where the UMEM needs it: see [`Umem::is_divided`].
    pub scatter_gather: bool,
    /// Busy polling, off by default.
    pub busy_poll: Option<BusyPoll>,
    /// Frames that one kick may send in copy mode; 32 where the kernel does not know this option.
    pub tx_budget: Option<u32>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            rx_size: 2048,
            tx_size: 2048,
            fill_size: 4096,
            completion_size: 2048,
            mode: Mode::Auto,
            need_wakeup: true,
            scatter_gather: false,
            busy_poll: None,
            tx_budget: Some(256),
        }
    }
}

/// What the kernel counted (`XDP_STATISTICS`), since the socket was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames dropped on receive for other reasons than a full ring: too long, or no memory.
    pub rx_dropped: u64,
    /// Bad addresses in the fill ring.
    pub rx_invalid_descriptors: u64,
    /// Bad descriptors in the tx ring.
    pub tx_invalid_descriptors: u64,
    /// Frames dropped since the rx ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel found the fill ring empty.
    pub rx_fill_ring_empty: u64,
    /// Times the kernel found the tx ring empty.
    pub tx_ring_empty: u64,
}

/// What came of telling the kernel to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// The kernel has taken all it was given.
    Done,
    /// The device is busy: frames wait in the tx ring, kick again later.
    Busy,
    /// The device is down; it may come back.
    Down,
    /// The device is gone, for this socket for ever.
    Gone,
}

/// `XDP_MAX_TX_SKB_BUDGET`, Linux 6.17.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
/// How long a queue may take to be released by a socket that was closed before.
const RELEASE_TIME: Duration = Duration::from_secs(1);
const RELEASE_STEP: Duration = Duration::from_millis(5);

/// An AF_XDP socket. The rings are public so that several can be borrowed at once.
pub struct Socket {
    /// Frames received.
    pub rx: Consumer<DescriptorRing>,
    /// Frames to send; see [`Socket::kick_tx`].
    pub tx: Producer<DescriptorRing>,
    /// Chunks to receive into. Fill it before [`Socket::bind`]: some zero-copy drivers look at it only then.
    pub fill: Producer<AddressRing>,
    /// Chunks whose frames have been sent.
    pub completion: Consumer<AddressRing>,
    // Declared before `umem`: the socket closes before its memory can go.
    fd: Arc<OwnedFd>,
    /// For questions about the device.
    control: OwnedFd,
    umem: Umem,
    device: Device,
    queue: u32,
    config: SocketConfig,
    zero_copy: bool,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({} queue {}, zero-copy {})", self.device, self.queue, self.zero_copy)
    }
}

impl Socket {
    /// Opens a socket and makes its rings. It receives and sends nothing before [`Socket::bind`].
    ///
    /// # Errors
    /// [`Error::Geometry`] for a ring size, [`Error::Privilege`], [`Error::KernelTooOld`], [`Error::System`].
    pub fn open(umem: &Umem, device: &Device, queue: u32, config: &SocketConfig) -> Result<Self, Error> {
        let sizes = [
            (libc::XDP_UMEM_FILL_RING, "fill", config.fill_size),
            (libc::XDP_UMEM_COMPLETION_RING, "completion", config.completion_size),
            (libc::XDP_RX_RING, "rx", config.rx_size),
            (libc::XDP_TX_RING, "tx", config.tx_size),
        ];
        if let Some((_, ring, size)) = sizes.iter().find(|(_, _, size)| !size.is_power_of_two()) {
            let reason = format!("the {ring} ring cannot have {size} entries: take a power of two");
            return Err(Error::Geometry { reason });
        }
        let fd = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0)
            .map_err(|source| sys::explain("opening an AF_XDP socket", "CAP_NET_RAW", source))?;
        for (option, _, size) in &sizes {
            sys::set_option(&fd, libc::SOL_XDP, *option, size)
                .map_err(|source| sys::explain("making a ring", "CAP_NET_RAW", source))?;
        }
        let offsets: libc::xdp_mmap_offsets = sys::get_option(&fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)
            .map_err(|source| sys::explain("asking for ring offsets", "CAP_NET_RAW", source))?;
        let rx = MappedRing::map(&fd, libc::XDP_PGOFF_RX_RING as u64, config.rx_size, &offsets.rx)?;
        let tx = MappedRing::map(&fd, libc::XDP_PGOFF_TX_RING as u64, config.tx_size, &offsets.tx)?;
        let fill = MappedRing::map(&fd, libc::XDP_UMEM_PGOFF_FILL_RING, config.fill_size, &offsets.fr)?;
        let completion =
            MappedRing::map(&fd, libc::XDP_UMEM_PGOFF_COMPLETION_RING, config.completion_size, &offsets.cr)?;
        let socket = Self {
            // SAFETY: the rings of a new socket, mapped once; the kernel has the other end of each.
            rx: unsafe { Consumer::new(rx) },
            // SAFETY: as for `rx`.
            tx: unsafe { Producer::new(tx) },
            // SAFETY: as for `rx`.
            fill: unsafe { Producer::new(fill) },
            // SAFETY: as for `rx`.
            completion: unsafe { Consumer::new(completion) },
            fd: Arc::new(fd),
            control: control_socket()?,
            umem: umem.clone(),
            device: device.clone(),
            queue,
            config: config.clone(),
            zero_copy: false,
        };
        socket.set_options();
        Ok(socket)
    }

    /// Joins the socket to its queue. The first socket on a UMEM registers the memory. While the queue is still being
    /// released by a socket that was closed before, this waits, for a second at most.
    ///
    /// # Errors
    /// Any [`Error`]; the socket can be bound again, or its fill ring be emptied.
    pub fn bind(&mut self) -> Result<(), Error> {
        let place = (self.device.index(), self.queue);
        if self.umem.has(place) {
            // The kernel would say no more than "invalid argument".
            return Err(Error::QueueBusy { device: self.device.name().to_owned(), queue: self.queue });
        }
        let since = Instant::now();
        let mut registered = false;
        loop {
            let member = if registered { None } else { self.umem.member() };
            let result = match &member {
                Some(member) => self.bind_with(libc::XDP_SHARED_UMEM, member.as_raw_fd()),
                None => {
                    if !registered {
                        self.umem.register(&self.fd)?;
                        registered = true;
                    }
                    self.bind_first()
                }
            };
            let Err(error) = result else { break };
            match (error.raw_os_error(), member) {
                // The socket we wanted to join has lost its device.
                (Some(libc::EBADF), Some(member)) => self.umem.remove_member(&member),
                (Some(libc::EBUSY), _) if since.elapsed() < RELEASE_TIME => thread::sleep(RELEASE_STEP),
                (errno, _) => return Err(self.explain_bind(errno, error)),
            }
        }
        self.umem.add_member(&self.fd, place);
        let options: Result<libc::xdp_options, _> =
            sys::get_option(&self.fd, libc::SOL_XDP, libc::XDP_OPTIONS);
        self.zero_copy = options.is_ok_and(|o| o.flags & libc::XDP_OPTIONS_ZEROCOPY != 0);
        Ok(())
    }

    /// Whether the device reads and writes the UMEM itself.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The queue of the device, from 0.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Tells the kernel to send what is in the tx ring. Copy mode sends some frames a call (32 by default, see
    /// [`SocketConfig::tx_budget`]) and answers EAGAIN while there are more, so this goes on for as long as the
    /// kernel takes frames. Needed when `tx.needs_wakeup()` or without need-wakeup.
    #[must_use = "a busy device must be kicked again"]
    pub fn kick_tx(&mut self) -> Kick {
        loop {
            let before = self.tx.pending();
            // SAFETY: no memory is passed: an empty message without an address.
            let sent = unsafe {
                libc::sendto(self.fd.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0)
            };
            if sent >= 0 {
                return Kick::Done;
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN) if self.tx.pending() < before => {}
                Some(libc::ENETDOWN) => return Kick::Down,
                Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => return Kick::Gone,
                _ => return Kick::Busy,
            }
        }
    }

    /// Tells the kernel to receive: needed when `fill.needs_wakeup()`, or to busy-poll.
    pub fn wake_rx(&mut self) {
        // Its answer says nothing that the rx ring does not.
        // SAFETY: no memory is passed: an empty buffer and no address.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
    }

    /// Sleeps until a frame can be received, at most for `timeout` (`None`: for ever). Returns whether one can.
    ///
    /// # Errors
    /// Those of `poll`, an interrupting signal included.
    pub fn poll(&self, timeout: Option<Duration>) -> io::Result<bool> {
        Ok(sys::poll(&self.fd, libc::POLLIN, timeout)? & libc::POLLIN != 0)
    }

    /// What the kernel counted.
    ///
    /// # Errors
    /// Those of `getsockopt`.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let s: libc::xdp_statistics = sys::get_option(&self.fd, libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(Statistics {
            rx_dropped: s.rx_dropped,
            rx_invalid_descriptors: s.rx_invalid_descs,
            tx_invalid_descriptors: s.tx_invalid_descs,
            rx_ring_full: s.rx_ring_full,
            rx_fill_ring_empty: s.rx_fill_ring_empty_descs,
            tx_ring_empty: s.tx_ring_empty_descs,
        })
    }

    /// Whether the device can carry frames. A few system calls.
    pub fn link_state(&self) -> LinkState {
        self.device.state_by(&self.control)
    }

    /// Closes the socket and waits until the kernel no longer reaches its frames: none is left in a transmit queue
    /// or a device's receive ring. Returns whether that was seen to be so within a second.
    ///
    /// The proof: a queue takes a new socket only when the old one's buffer pool is gone, and the pool goes after
    /// the last frame. So a second, tiny socket is bound to the queue, and closed again.
    pub fn close(self) -> bool {
        let Self { fd, umem, device, queue, rx, tx, fill, completion, .. } = self;
        umem.remove_member(&fd);
        drop((rx, tx, fill, completion));
        let alone = Arc::into_inner(fd).is_some();
        alone && queue_is_free(&device, queue)
    }

    fn set_options(&self) {
        // All of these only make things faster: a kernel that does not know one goes on without.
        if let Some(budget) = self.config.tx_budget {
            let _ = sys::set_option(&self.fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget);
        }
        // In copy mode each frame under way counts against the send buffer, at about 2.5 kB for the usual MTU and 8.5 kB
        // for a descriptor of a page. The kernel allows twice what is asked for.
        let bytes = i32::try_from(self.config.tx_size.saturating_mul(4096)).unwrap_or(i32::MAX);
        let _ = sys::set_option(&self.fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes);
        if let Some(BusyPoll { micros, budget }) = self.config.busy_poll {
            let _ = sys::set_option(&self.fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &1_i32);
            let _ = sys::set_option(&self.fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &micros);
            let _ = sys::set_option(&self.fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &budget);
        }
    }

    fn scatters(&self) -> bool {
        self.config.scatter_gather || self.umem.is_divided()
    }

    /// Binds the socket that carries the memory, in the mode that was asked for.
    fn bind_first(&self) -> Result<(), Error> {
        let mut flags = 0;
        if self.config.need_wakeup {
            flags |= libc::XDP_USE_NEED_WAKEUP;
        }
        if self.scatters() {
            flags |= libc::XDP_USE_SG;
        }
        match self.config.mode {
            Mode::Copy => self.bind_with(flags | libc::XDP_COPY, 0),
            Mode::ZeroCopy => self.bind_with(flags | libc::XDP_ZEROCOPY, 0),
            // The kernel falls back by itself where a driver has no zero-copy, but not where it fails at it.
            Mode::Auto => match self.bind_with(flags, 0) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                    self.bind_with(flags | libc::XDP_COPY, 0)
                }
                result => result,
            },
        }
    }

    fn bind_with(&self, flags: u16, shared_fd: RawFd) -> Result<(), Error> {
        bind_address(&self.fd, &self.device, self.queue, flags, shared_fd)
            .map_err(|source| Error::System { call: "binding an AF_XDP socket", source })
    }

    fn explain_bind(&self, errno: Option<i32>, error: Error) -> Error {
        let device = self.device.name().to_owned();
        match errno {
            Some(libc::ENODEV) => Error::DeviceMissing { device },
            Some(libc::ENETDOWN) => Error::DeviceDown { device },
            Some(libc::EBUSY) => Error::QueueBusy { device, queue: self.queue },
            Some(libc::EPERM) => {
                Error::Privilege { call: "binding an AF_XDP socket", capability: "CAP_NET_RAW" }
            }
            Some(libc::EOPNOTSUPP) => Error::ZeroCopyUnsupported { device },
            Some(libc::EINVAL) => {
                let queues = self.device.queues();
                if self.queue >= queues {
                    Error::QueueMissing { device, queue: self.queue, queues }
                } else if self.scatters() {
                    Error::ScatterGatherUnsupported { device }
                } else {
                    error
                }
            }
            _ => error,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn bind_address(fd: &OwnedFd, device: &Device, queue: u32, flags: u16, shared_fd: RawFd) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: device.index(),
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared_fd as u32,
    };
    // SAFETY: the address structure of an AF_XDP socket.
    unsafe { sys::bind(fd, &address) }
}

/// Waits up to a second for the kernel to let go of a queue. False when it has not, or it could not be seen.
fn queue_is_free(device: &Device, queue: u32) -> bool {
    use crate::{HugePages, MappedMemory};
    let since = Instant::now();
    let config =
        SocketConfig { rx_size: 2, tx_size: 2, fill_size: 2, completion_size: 2, ..SocketConfig::default() };
    let probe = || -> Result<(Socket, Umem), Error> {
        let memory = MappedMemory::new(2, 2048, HugePages::Never)
            .map_err(|source| Error::System { call: "mmap of packet memory", source })?;
        let umem = Umem::new(Arc::new(memory), 0)?;
        let socket = Socket::open(&umem, device, queue, &config)?;
        umem.register(&socket.fd)?;
        Ok((socket, umem))
    };
    let Ok((socket, _umem)) = probe() else { return false };
    loop {
        match bind_address(&socket.fd, device, queue, libc::XDP_COPY, 0).map_err(|e| e.raw_os_error()) {
            // A device that is gone or down has no queue that could be in use: the kernel takes them apart first.
            Ok(()) | Err(Some(libc::ENODEV)) => return true,
            Err(Some(libc::EBUSY | libc::ENETDOWN)) if since.elapsed() < RELEASE_TIME => {
                thread::sleep(RELEASE_STEP);
            }
            Err(_) => return false,
        }
    }
}
