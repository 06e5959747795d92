//! The short cut against the long way.

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    table::{
        hash::Seed,
        interface::{Demux, Interface, Side},
        lpm::{Lpm4, Lpm6},
        neighbour::NeighbourTable,
        sad::Sad,
        spd::Spd,
        tables::{Features, Gateway},
    },
    wire::{ethernet::MacAddr, vlan::L2Header},
};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// Port 0 with an untagged interface, VLANs 100 and 300, and 802.1ad 200 with 100 in it.
fn tables() -> Tables {
    let seed = Seed::new(1, 2);
    let header = L2Header::new(MacAddr::ZERO, MAC, Tags::None, EtherType::IPV4);
    let interface = |number: u16| Interface {
        port: 0,
        gateway: number % 2,
        side: if number == 0 { Side::Local } else { Side::Peer },
        mac: MAC,
        mtu: 1500,
        header_v4: header,
        header_v6: header,
        addresses: smallvec::SmallVec::new(),
        proxied: Vec::new(),
        watch: crate::table::probe::Watch::default(),
        host: None,
    };
    let gateway = |_| Gateway {
        own: Default::default(),
        routes_v4: Lpm4::new().0,
        routes_v6: Lpm6::new().0,
        spd: Spd::build(&[], seed).unwrap(),
        actions: Vec::new(),
        first_policy: 0,
        protects: false,
        nat: None,
        transit: false,
        icmp_source: (None, None),
    };
    let mut demux = Demux::default();
    demux.bind(0, 0);
    demux.bind(100, 1);
    demux.bind(300, 2);
    demux.bind_double(200, 100, 3);
    Tables {
        generation: 0,
        demux: [demux].into(),
        interfaces: (0..4).map(interface).collect(),
        gateways: (0..2).map(gateway).collect(),
        next_hops: std::sync::Arc::default(),
        tunnels: Vec::new(),
        sad_v4: Sad::build(&[], seed).unwrap(),
        sad_v6: Sad::build(&[], seed).unwrap(),
        sas: Vec::new(),
        neighbours: NeighbourTable::new(16, seed).0,
        sealing_v4: Sad::build(&[], seed).unwrap(),
        sealing_v6: Sad::build(&[], seed).unwrap(),
        trouble: Default::default(),
        liveness: Default::default(),
        limits: Default::default(),
        features: Features::of(&[], &[], &[]),
    }
}

fn ordinary_frame(tag: Option<u16>, proto: u8, payload: usize, dont_fragment: bool) -> Vec<u8> {
    let mut frame = [MAC.0, [2, 0, 0, 0, 0, 2]].concat();
    if let Some(tci) = tag {
        frame.extend([0x81, 0x00]);
        frame.extend(tci.to_be_bytes());
    }
    frame.extend([0x08, 0x00]);
    let mut header = [0; ipv4::HEADER_LEN];
    ipv4::Repr {
        traffic_class: 0x2e,
        total_len: (ipv4::HEADER_LEN + 20 + payload) as u16,
        identification: 7,
        dont_fragment,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 9,
        protocol: proto,
        source: [10, 0, 0, 1].into(),
        destination: [198, 51, 100, 9].into(),
    }
    .emit(&mut header);
    frame.extend(header);
    frame.extend((0..20 + payload).map(|n| n as u8));
    frame
}

/// What the short cut makes of a frame, on the way of the one before where that fits.
fn short_cut<'a>(
    tables: &'a Tables,
    way: &mut Option<Way<'a>>,
    bytes: &[u8],
    meta: &mut Meta,
) -> Option<&'a Gateway> {
    let front = bytes.first_chunk()?;
    if !way.as_ref().is_some_and(|way| way.is_of(meta.port, front)) {
        *way = Way::of(tables, meta.port, bytes);
    }
    let way = way.as_ref()?;
    ordinary::read(way, front, bytes.len(), meta).then_some(way.gateway)
}

#[test]
fn the_short_cut_takes_what_is_ordinary() {
    let tables = tables();
    let mut way = None;
    for (tag, proto) in [(None, 6), (Some(100), 17), (Some(0xe12c), 6), (Some(0x6000), 17), (Some(100), 50)] {
        let frame = ordinary_frame(tag, proto, 10, true);
        assert!(short_cut(&tables, &mut way, &frame, &mut Meta::EMPTY.clone()).is_some(), "{tag:?}");
    }
    for (tag, proto) in [(Some(101), 6), (None, 1), (Some(100), 51)] {
        let frame = ordinary_frame(tag, proto, 10, true);
        assert!(short_cut(&tables, &mut way, &frame, &mut Meta::EMPTY.clone()).is_none(), "{tag:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Frames that are ordinary but for a few bytes or their length, on several ways in turn.
    #[test]
    fn the_short_cut_says_what_the_long_way_says(
        frames in prop::collection::vec((
            prop::sample::select(vec![None, Some(100), Some(0xe12c), Some(0), Some(101)]),
            prop::sample::select(vec![6_u8, 17, 1, 50]),
            0..40_usize,
            any::<bool>(),
            prop::collection::vec((any::<Index>(), any::<u8>()), 0..3),
            prop::option::weighted(0.2, any::<Index>()),
            any::<bool>(),
        ), 1..8),
    ) {
        let tables = tables();
        let mut way = None;
        for (tag, proto, payload, dont_fragment, changes, cut, mend) in frames {
            let mut bytes = ordinary_frame(tag, proto, payload, dont_fragment);
            for (place, value) in changes {
                // Most of them where the headers are.
                let near = bytes.len().min(48);
                bytes[place.index(near)] = value;
            }
            let l3 = if tag.is_some() { 18 } else { 14 };
            if let Some(header) = bytes.get_mut(l3..).and_then(|b| ipv4::Ipv4::at_mut(b, 0)).filter(|_| mend) {
                let mut header = header;
                header.fill_checksum();
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let (mut short, mut long) = (Meta::EMPTY, Meta::EMPTY);
            let result = frame(&tables, &bytes, &mut long);
            if let Some(gateway) = short_cut(&tables, &mut way, &bytes, &mut short) {
                prop_assert_eq!(result, Ok(Carried::Ip));
                prop_assert_eq!(format!("{short:?}"), format!("{long:?}"));
                prop_assert!(std::ptr::eq(gateway, tables.gateway(long.gateway).unwrap()));
            }
        }
    }
}
