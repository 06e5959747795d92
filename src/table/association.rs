//! Security associations (RFC 4301 4.4.2, RFC 4303): what a worker needs to seal, and to open.

use std::{
    net::IpAddr,
    slice,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
};

use crate::crypto::{
    aead::Key,
    replay::{Marked, Refused, Window},
    sequence::Sequence,
};

/// An outbound security association: what a worker needs to seal.
///
/// All but the key is one cache line, and the key begins with the next.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SaOut {
    /// The numbers not used yet.
    pub sequence: Arc<Sequence>,
    /// Its row in the counters.
    pub index: u32,
    /// Security parameters index.
    pub spi: u32,
    /// Whether sequence numbers have 64 bits (RFC 4304).
    pub esn: bool,
    /// Its lifetime is over: it seals nothing more. The control thread sets it.
    pub ended: AtomicBool,
    /// The schedule of its key.
    pub key: Key,
}

/// An inbound security association: what a worker needs to open.
///
/// All but the key fits into one cache line, and the key begins with the next.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SaIn {
    /// Where its packets must come from; an IPv4 address in the low 32 bits.
    pub remote: u128,
    /// The numbers seen.
    pub window: Arc<Window>,
    /// The window before it, which had another size.
    pub former: Option<Arc<Former>>,
    /// Security parameters index.
    pub spi: u32,
    /// Its row in the counters.
    pub index: u32,
    /// The tunnel it belongs to.
    pub tunnel: u16,
    /// The gateway that inner packets belong to.
    pub gateway: u16,
    /// The gateway that carries outer packets.
    pub underlay: u16,
    /// Whether sequence numbers have 64 bits (RFC 4304).
    pub esn: bool,
    /// Whether its packets come in UDP (RFC 3948).
    pub udp: bool,
    /// Its lifetime is over: it opens nothing more. The control thread sets it.
    pub ended: AtomicBool,
    /// The schedule of its key.
    pub key: Key,
}

impl SaIn {
    /// [`Window::check_at`], also by the window before for as long as a worker may still accept by that alone.
    ///
    /// # Errors
    /// Why the number would not be accepted.
    #[inline]
    pub fn check_at(&self, newest: u64, sequence: u64) -> Result<(), Refused> {
        if let Some(former) = &self.former {
            former.check(sequence)?;
        }
        self.window.check_at(newest, sequence)
    }

    /// [`Window::mark`], likewise.
    ///
    /// # Errors
    /// Why the number is not accepted.
    #[inline]
    pub fn mark(&self, sequence: u64) -> Result<u64, Refused> {
        if let Some(former) = &self.former {
            former.mark(sequence)?;
        }
        self.window.mark(sequence)
    }

    /// Whether other workers mark its numbers too.
    #[inline]
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.window.is_shared()
    }

    /// [`Window::mark_all`], likewise.
    #[inline]
    pub fn mark_all(&self, numbers: &[u64], mut each: impl FnMut(usize, Marked<'_>)) {
        if self.former.is_none() {
            return self.window.mark_all(numbers, each);
        }
        for (place, number) in numbers.iter().enumerate() {
            match self.mark(*number) {
                Ok(0) => {}
                Ok(behind) => {
                    each(place, Marked::Behind { numbers: slice::from_ref(number), newest: number + behind });
                }
                Err(refused) => each(place, Marked::Refused(refused)),
            }
        }
    }
}

/// A window in whose place another of a different size has come.
///
/// Workers take new tables up one after the other. Until the last has them, one may accept by the old window alone;
/// so those that have the new one already ask and mark both, the old one first. Then the control thread adds to the
/// new window what the old one has seen ([`Former::end`]), and the old one is asked no more. Every number that was
/// accepted meanwhile stands in the window that each later packet is compared with.
#[derive(Debug)]
pub struct Former {
    window: Arc<Window>,
    /// The one before that, where two changes follow so closely.
    before: Option<Arc<Self>>,
    over: AtomicBool,
}

impl Former {
    /// `window` is about to be replaced; `before` is its own predecessor, if that still counts.
    #[must_use]
    pub const fn new(window: Arc<Window>, before: Option<Arc<Self>>) -> Self {
        Self { window, before, over: AtomicBool::new(false) }
    }

    /// All workers have the new window: it takes over what this one has seen.
    pub fn end(&self, successor: &Window) {
        successor.absorb(&self.window);
        // What was absorbed is to be seen by whoever sees that this one is over.
        self.over.store(true, Release);
    }

    /// Whether it is asked no more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Acquire)
    }

    #[cold]
    fn check(&self, sequence: u64) -> Result<(), Refused> {
        if self.is_over() {
            return Ok(());
        }
        self.before.as_ref().map_or(Ok(()), |before| before.check(sequence))?;
        self.window.check(sequence)
    }

    #[cold]
    fn mark(&self, sequence: u64) -> Result<(), Refused> {
        if self.is_over() {
            return Ok(());
        }
        self.before.as_ref().map_or(Ok(()), |before| before.mark(sequence))?;
        self.window.mark(sequence).map(|_| ())
    }
}

/// An address as associations compare it: IPv4 in the low 32 bits.
#[must_use]
pub const fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits() as u128,
        IpAddr::V6(address) => address.to_bits(),
    }
}
