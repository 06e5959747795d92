//! Packets that a tunnel is sent for their own sake: NAT keepalives (RFC 3948 2.3) and dummies (RFC 4303 2.6).

use super::{Entry, Resumed};
use crate::{
    packet::{Flags, FramePool, Meta},
    table::tables::{NextHop, Tables},
    wire::{ip::protocol, udp},
};

/// The one byte of a keepalive.
const KEEPALIVE: u8 = 0xff;
/// The least size of a dummy: that of a small packet.
const LEAST_DUMMY: u16 = 40;

/// A keepalive for the tunnel of this number. `None`: it is not up, does not travel in UDP, or there is no buffer.
#[must_use]
pub fn keepalive(tables: &Tables, pool: &mut FramePool, number: u16) -> Option<Resumed> {
    let tunnel = tables.tunnel(number)?;
    let (next_hop, &NextHop::Via { interface, neighbour, .. }) = tables.outer_way(tunnel.next_hop, number)?
    else {
        return None;
    };
    if !tunnel.outer.is_udp() {
        return None;
    }
    let mut frame = pool.alloc()?;
    let umem = pool.umem();
    let len = tunnel.outer.header_len() + 1;
    // A buffer holds some thousand bytes.
    let _ = umem.grow_back(&mut frame, len);
    let bytes = umem.bytes_mut(&mut frame);
    if let Some(last) = bytes.last_mut() {
        *last = KEEPALIVE;
    }
    tunnel.outer.write(bytes, 0, true, 0);
    if tunnel.outer.needs_checksum() {
        tunnel.outer.fill_checksum(bytes);
    }
    let meta = Meta {
        l4: (len - 1 - udp::HEADER_LEN) as u16,
        ip_len: len as u16,
        proto: protocol::UDP,
        flags: Flags::ORIGINATED.with(Flags::V6, tunnel.outer.is_v6()),
        gateway: tunnel.underlay,
        next_hop,
        tunnel: number,
        egress: interface,
        neighbour: neighbour.to_bits(),
        ..Meta::EMPTY
    };
    Some(Resumed { frame, meta, entry: Entry::Tx })
}

/// A dummy for the tunnel of this number, to be sealed. Its size is that of padded packets, where packets are padded;
/// otherwise `random` chooses it. `None`: there is no such tunnel, or no buffer.
#[must_use]
pub fn dummy(tables: &Tables, pool: &mut FramePool, number: u16, random: u16) -> Option<Resumed> {
    let tunnel = tables.tunnel(number)?;
    let most = tunnel.inner_mtu().max(LEAST_DUMMY);
    let len = if tunnel.tfc > 0 { LEAST_DUMMY } else { LEAST_DUMMY + random % (most - LEAST_DUMMY + 1) };
    let mut frame = pool.alloc()?;
    let umem = pool.umem();
    if !umem.grow_back(&mut frame, len.into()) {
        pool.free(frame);
        return None;
    }
    umem.bytes_mut(&mut frame).fill(0);
    let meta = Meta {
        ip_len: len,
        flags: Flags::ORIGINATED | Flags::DUMMY,
        gateway: tunnel.gateway,
        tunnel: number,
        ..Meta::EMPTY
    };
    Some(Resumed { frame, meta, entry: Entry::Seal })
}
