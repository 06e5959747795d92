//! Registration of packet memory with the kernel, and its sharing among sockets.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{Error, Memory, sys};

/// What `XDP_UMEM_REG` takes at most on machines with pages of 4 KiB.
const LARGEST_KERNEL_CHUNK: usize = 4096;

/// Packet memory for any number of sockets. A handle: clones mean the same memory.
///
/// The kernel learns of the memory with the first socket; further ones join it (`XDP_SHARED_UMEM`), through any
/// socket that is still bound. The memory outlives every socket that uses it.
#[derive(Clone)]
pub struct Umem {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Umem({} bytes)", self.shared.memory.len())
    }
}

struct Shared {
    memory: Arc<dyn Memory>,
    headroom: u32,
    /// Bound sockets, any of which a new socket can join.
    members: Mutex<Vec<Member>>,
}

struct Member {
    socket: Weak<OwnedFd>,
    /// Index of its device, and its queue.
    place: (u32, u32),
}

impl Umem {
    /// Checks what the kernel would refuse. `headroom` is kept free in front of received frames, in addition to
    /// the 256 bytes that the kernel keeps for the XDP program.
    ///
    /// # Errors
    /// [`Error::Geometry`].
    pub fn new(memory: Arc<dyn Memory>, headroom: u32) -> Result<Self, Error> {
        let (chunk, len) = (memory.chunk_size(), memory.len());
        let reason = if !chunk.is_power_of_two() || !(2048..=16384).contains(&chunk) {
            format!(
                "packets lie in chunks of 2048, 4096, 8192 or 16384 bytes, not of {chunk}; set another buffer size"
            )
        } else if len == 0 || len % chunk != 0 {
            format!("packet memory of {len} bytes is not a number of whole chunks of {chunk} bytes")
        } else if memory.base().align_offset(4096) != 0 {
            "packet memory does not start at a page".into()
        } else if headroom as usize > chunk.min(LARGEST_KERNEL_CHUNK) / 2 {
            format!("a headroom of {headroom} bytes leaves too little of a chunk of {chunk} bytes")
        } else {
            return Ok(Self { shared: Arc::new(Shared { memory, headroom, members: Mutex::default() }) });
        };
        Err(Error::Geometry { reason })
    }

    /// The memory itself.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.shared.memory
    }

    /// Longest frame that a chunk holds behind the headroom. With [`Umem::is_divided`] it is received in pieces, to be
    /// put together there.
    pub fn max_frame(&self) -> usize {
        const XDP_PACKET_HEADROOM: usize = 256;
        self.shared.memory.chunk_size() - XDP_PACKET_HEADROOM - self.shared.headroom as usize
    }

    /// Bytes of what the kernel takes for a chunk: those of the memory, but a page of 4096 at most. Larger ones it
    /// refuses, on huge pages too (`EINVAL`, as of Linux 6.18).
    pub fn kernel_chunk(&self) -> usize {
        self.shared.memory.chunk_size().min(LARGEST_KERNEL_CHUNK)
    }

    /// Whether a chunk of the memory is several of the kernel's. Then sockets use scatter-gather (Linux 6.6): a frame
    /// beyond [`Umem::kernel_chunk`] comes in several descriptors, each in a chunk of its own, and is sent from one
    /// chunk of the memory by a descriptor for each of the kernel's chunks that it touches.
    pub fn is_divided(&self) -> bool {
        self.kernel_chunk() < self.shared.memory.chunk_size()
    }

    /// Registers the memory on a socket that is to be the first.
    pub(crate) fn register(&self, socket: &OwnedFd) -> Result<(), Error> {
        let memory = &self.shared.memory;
        let registration = libc::xdp_umem_reg {
            addr: memory.base() as u64,
            len: memory.len() as u64,
            chunk_size: self.kernel_chunk() as u32,
            headroom: self.shared.headroom,
            flags: 0,
            tx_metadata_len: 0,
        };
        sys::set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::ENOBUFS | libc::ENOMEM) => Error::MemoryLock { bytes: memory.len() },
                _ => sys::explain("registering packet memory", "CAP_NET_RAW and CAP_IPC_LOCK", source),
            }
        })
    }

    /// A bound socket to join, if there is one.
    pub(crate) fn member(&self) -> Option<Arc<OwnedFd>> {
        self.members().iter().find_map(|member| member.socket.upgrade())
    }

    /// Whether a socket of this memory has this device and queue.
    pub(crate) fn has(&self, place: (u32, u32)) -> bool {
        self.members().iter().any(|member| member.place == place && member.socket.strong_count() > 0)
    }

    /// Notes a bound socket.
    pub(crate) fn add_member(&self, socket: &Arc<OwnedFd>, place: (u32, u32)) {
        let mut members = self.members();
        members.retain(|member| member.socket.strong_count() > 0);
        members.push(Member { socket: Arc::downgrade(socket), place });
    }

    /// Forgets a socket that can no longer be joined, since it closes or its device went away.
    pub(crate) fn remove_member(&self, socket: &OwnedFd) {
        let stays = |fd: Arc<OwnedFd>| fd.as_raw_fd() != socket.as_raw_fd();
        self.members().retain(|member| member.socket.upgrade().is_some_and(stays));
    }

    fn members(&self) -> std::sync::MutexGuard<'_, Vec<Member>> {
        // The list is whole between any two statements, so a panic elsewhere does not spoil it.
        self.shared.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugePages, MappedMemory};

    fn umem(chunks: usize, chunk: usize, headroom: u32) -> Result<Umem, Error> {
        Umem::new(Arc::new(MappedMemory::new(chunks, chunk, HugePages::Never).unwrap()), headroom)
    }

    #[test]
    fn the_longest_frame_follows_from_chunk_and_headroom() {
        assert_eq!(umem(4, 2048, 0).unwrap().max_frame(), 1792);
        assert_eq!(umem(4, 4096, 128).unwrap().max_frame(), 3712);
        assert_eq!(umem(4, 16384, 0).unwrap().max_frame(), 16128);
    }

    #[test]
    fn a_large_chunk_is_several_of_the_kernels() {
        for (chunk, kernel, divided) in
            [(2048, 2048, false), (4096, 4096, false), (8192, 4096, true), (16384, 4096, true)]
        {
            let umem = umem(4, chunk, 0).unwrap();
            assert_eq!((umem.kernel_chunk(), umem.is_divided()), (kernel, divided));
        }
    }

    #[test]
    fn geometry_the_kernel_would_refuse_is_refused_here() {
        assert!(umem(4, 32768, 0).unwrap_err().to_string().contains("32768"));
        assert!(umem(4, 1024, 0).is_err());
        assert!(umem(4, 2048, 1500).is_err());
        assert!(umem(4, 8192, 3000).is_err());
    }
}
