//! Which ways out of this box can be used: a word for each interface and tunnel, written by the control thread, read by
//! workers once a burst or a packet. A switch from an active to a standby path is one store.

use std::sync::atomic::{AtomicU8, Ordering};

/// Numbers of interfaces and of tunnels.
const NUMBERS: usize = 1 << 16;

/// Why a way is not to be used: bits, which are set and cleared each on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause(u8);

impl Cause {
    /// Probes, BFD or the tunnel's own signs say that the far end is not reached.
    pub const UNREACHED: Self = Self(1);
    /// An operator has taken it out of service.
    pub const DRAINED: Self = Self(1 << 1);
    /// The port has no carrier; of a tunnel, the line that it goes by cannot be used.
    pub const NO_CARRIER: Self = Self(1 << 2);
    /// It works again, but traffic is not to come back yet: the hold-down runs, or an operator has to say so.
    pub const HELD: Self = Self(1 << 3);
}

/// The words of all interfaces and tunnels.
#[derive(Debug)]
pub struct Liveness {
    interfaces: Box<[AtomicU8]>,
    tunnels: Box<[AtomicU8]>,
}

impl Default for Liveness {
    fn default() -> Self {
        let all = || (0..NUMBERS).map(|_| AtomicU8::new(0)).collect();
        Self { interfaces: all(), tunnels: all() }
    }
}

impl Liveness {
    /// Whether nothing speaks against the interface of this number.
    #[inline]
    #[must_use]
    pub fn interface_is_up(&self, number: u16) -> bool {
        is_zero(&self.interfaces, number)
    }

    /// Whether nothing speaks against the tunnel of this number.
    #[inline]
    #[must_use]
    pub fn tunnel_is_up(&self, number: u16) -> bool {
        is_zero(&self.tunnels, number)
    }

    /// Whether the interface of this number works as far as is known: for those who have no other way. Traffic may have to
    /// wait before it comes back; and a carrier is looked for a few times a second only, so what has none may have one by
    /// now.
    #[inline]
    #[must_use]
    pub fn interface_works(&self, number: u16) -> bool {
        works(&self.interfaces, number)
    }

    /// The same of the tunnel of this number.
    #[inline]
    #[must_use]
    pub fn tunnel_works(&self, number: u16) -> bool {
        works(&self.tunnels, number)
    }

    /// Control: says whether `cause` speaks against the interface of this number. The result is whether that changed
    /// anything.
    pub fn set_interface(&self, number: u16, cause: Cause, holds: bool) -> bool {
        set(&self.interfaces, number, cause, holds)
    }

    /// Control: says whether `cause` speaks against the tunnel of this number. The result is whether that changed
    /// anything.
    pub fn set_tunnel(&self, number: u16, cause: Cause, holds: bool) -> bool {
        set(&self.tunnels, number, cause, holds)
    }

    /// Whether `cause` speaks against the interface of this number.
    #[must_use]
    pub fn interface_has(&self, number: u16, cause: Cause) -> bool {
        has(&self.interfaces, number, cause)
    }

    /// Whether `cause` speaks against the tunnel of this number.
    #[must_use]
    pub fn tunnel_has(&self, number: u16, cause: Cause) -> bool {
        has(&self.tunnels, number, cause)
    }
}

#[inline(always)]
fn is_zero(words: &[AtomicU8], number: u16) -> bool {
    words.get(usize::from(number)).is_some_and(|word| word.load(Ordering::Relaxed) == 0)
}

#[inline(always)]
fn works(words: &[AtomicU8], number: u16) -> bool {
    const SOFT: u8 = Cause::HELD.0 | Cause::NO_CARRIER.0;
    words.get(usize::from(number)).is_some_and(|word| word.load(Ordering::Relaxed) & !SOFT == 0)
}

fn has(words: &[AtomicU8], number: u16, cause: Cause) -> bool {
    words.get(usize::from(number)).is_some_and(|word| word.load(Ordering::Relaxed) & cause.0 != 0)
}

fn set(words: &[AtomicU8], number: u16, cause: Cause, holds: bool) -> bool {
    let Some(word) = words.get(usize::from(number)) else { return false };
    let before = if holds {
        word.fetch_or(cause.0, Ordering::Release)
    } else {
        word.fetch_and(!cause.0, Ordering::Release)
    };
    (before & cause.0 != 0) != holds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_up_when_nothing_speaks_against_it() {
        let liveness = Liveness::default();
        assert!(liveness.tunnel_is_up(7) && liveness.interface_is_up(u16::MAX));
        assert!(liveness.set_tunnel(7, Cause::UNREACHED, true));
        assert!(liveness.set_tunnel(7, Cause::DRAINED, true));
        assert!(!liveness.set_tunnel(7, Cause::DRAINED, true), "it was drained already");
        assert!(!liveness.tunnel_is_up(7) && liveness.tunnel_is_up(8) && liveness.interface_is_up(7));
        assert!(liveness.set_tunnel(7, Cause::UNREACHED, false));
        assert!(!liveness.tunnel_is_up(7), "still drained");
        assert!(liveness.tunnel_has(7, Cause::DRAINED) && !liveness.tunnel_has(7, Cause::UNREACHED));
        assert!(!liveness.tunnel_works(7));
        assert!(liveness.set_tunnel(7, Cause::DRAINED, false));
        assert!(liveness.tunnel_is_up(7) && liveness.tunnel_works(7));
        for cause in [Cause::HELD, Cause::NO_CARRIER] {
            liveness.set_tunnel(7, cause, true);
            assert!(!liveness.tunnel_is_up(7) && liveness.tunnel_works(7));
        }
    }
}
