//! Rings in memory shared with the kernel.

use std::{
    marker::PhantomData,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

use crate::{Error, RingStorage};

/// One frame in an rx or tx ring (`struct xdp_desc`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Offset of the first byte of the frame in the UMEM.
    pub addr: u64,
    /// Length of the frame in bytes.
    pub len: u32,
    /// [`Descriptor::CONTINUED`] when the frame goes on in the next descriptor (only with scatter-gather).
    pub options: u32,
}

impl Descriptor {
    /// `XDP_PKT_CONTD`: the frame goes on in the next descriptor.
    pub const CONTINUED: u32 = 1;

    /// Whether the frame goes on in the next descriptor.
    pub const fn is_continued(&self) -> bool {
        self.options & Self::CONTINUED != 0
    }
}

/// A fill or completion ring: offsets of chunks.
pub type AddressRing = MappedRing<u64>;
/// An rx or tx ring.
pub type DescriptorRing = MappedRing<Descriptor>;

/// A ring that the kernel made and this process has mapped.
pub struct MappedRing<T> {
    /// Keeps the mapping; the pointers below lead into it.
    _map: MmapRaw,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    mask: u32,
    entries: PhantomData<T>,
}

// SAFETY: the pointers lead into a mapping that the value owns, and which no thread is bound to.
unsafe impl<T: Send> Send for MappedRing<T> {}

impl<T: Copy> MappedRing<T> {
    /// Maps the ring of `size` slots at `page_offset` of the socket.
    pub(crate) fn map(
        socket: &impl AsRawFd,
        page_offset: u64,
        size: u32,
        offsets: &libc::xdp_ring_offset,
    ) -> Result<Self, Error> {
        let system = |source| Error::System { call: "mmap of a ring", source };
        let slots_bytes = size as usize * size_of::<T>();
        let len = offsets.desc as usize + slots_bytes;
        let map = MmapOptions::new()
            .offset(page_offset)
            .len(len)
            .populate()
            .map_raw(socket.as_raw_fd())
            .map_err(system)?;
        let at = |offset: u64, bytes: usize, align: usize| {
            let offset = usize::try_from(offset).ok().filter(|o| o + bytes <= len && o % align == 0);
            offset.and_then(|o| NonNull::new(map.as_mut_ptr().wrapping_add(o)))
        };
        let word = |offset| at(offset, 4, 4).map(NonNull::cast::<AtomicU32>);
        let slots = at(offsets.desc, slots_bytes, align_of::<T>()).map(NonNull::cast::<T>);
        match (word(offsets.producer), word(offsets.consumer), word(offsets.flags), slots) {
            (Some(producer), Some(consumer), Some(flags), Some(slots)) if size.is_power_of_two() => {
                Ok(Self { _map: map, producer, consumer, flags, slots, mask: size - 1, entries: PhantomData })
            }
            _ => Err(Error::Geometry { reason: "the kernel's ring offsets make no sense".into() }),
        }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `map` checked that the word lies in the mapping, aligned; both sides access it atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    fn slot(&self, index: u32) -> NonNull<T> {
        // SAFETY: the masked index is below the size, and `map` checked that all slots lie in the mapping.
        unsafe { self.slots.add((index & self.mask) as usize) }
    }
}

// SAFETY: `map` checked that the size is a power of two; orderings are as asked; `slot` masks the index.
unsafe impl<T: Copy> RingStorage for MappedRing<T> {
    type Entry = T;

    fn size(&self) -> u32 {
        self.mask + 1
    }
    fn load_producer(&self) -> u32 {
        self.producer().load(Ordering::Acquire)
    }
    fn store_producer(&self, index: u32) {
        self.producer().store(index, Ordering::Release);
    }
    fn load_consumer(&self) -> u32 {
        self.consumer().load(Ordering::Acquire)
    }
    fn store_consumer(&self, index: u32) {
        self.consumer().store(index, Ordering::Release);
    }
    fn needs_wakeup(&self) -> bool {
        self.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
    unsafe fn read(&self, index: u32) -> T {
        // SAFETY: `slot` is in the mapping; the caller owns it; any bit pattern is a valid `u64` or `Descriptor`.
        unsafe { self.slot(index).read() }
    }
    unsafe fn write(&self, index: u32, entry: T) {
        // SAFETY: `slot` is in the mapping and the caller owns it.
        unsafe { self.slot(index).write(entry) }
    }
}
