//! Every byte of an ESP packet changed, every length it can be cut or stretched to: the right reason, and no harm.

use super::{
    common::frame::*,
    tunnel::{Kind, PLAIN, Pair},
};

/// What refuses a packet when it opens one: the first three may all be right when the sequence number was changed.
const SEQUENCE: [&str; 3] = ["esp-integrity", "esp-late", "esp-replayed"];

/// Bytes in front of the ESP header in a frame: Ethernet with one tag, IP, and UDP where it is.
fn front(kind: Kind) -> usize {
    18 + if kind.outer_v6 { 40 } else { 20 } + if kind.udp { 8 } else { 0 }
}

/// The frame with its lengths, and the checksum over them, made right again for so many bytes of ESP.
fn resized(sealed: &[u8], kind: Kind, esp: usize) -> Vec<u8> {
    let at = front(kind);
    let mut frame = sealed.to_vec();
    frame.resize(at + esp, 0xa5);
    let ip_len = (at + esp - 18) as u16;
    if kind.outer_v6 {
        frame[18 + 4..18 + 6].copy_from_slice(&(ip_len - 40).to_be_bytes());
    } else {
        frame[18 + 2..18 + 4].copy_from_slice(&ip_len.to_be_bytes());
        frame[18 + 10..18 + 12].fill(0);
        let sum = checksum(&frame[18..38]);
        frame[18 + 10..18 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    if kind.udp {
        frame[at - 4..at - 2].copy_from_slice(&((esp + 8) as u16).to_be_bytes());
    }
    frame
}

fn kinds() -> impl Iterator<Item = Kind> {
    (0..8).map(|bits| Kind { outer_v6: bits & 1 > 0, udp: bits & 2 > 0, esn: bits & 4 > 0, ..PLAIN })
}

/// A sealed packet that has not been opened yet.
fn seal(pair: &mut Pair) -> Vec<u8> {
    pair.a.from(
        &pair.host_a,
        &udp("10.1.0.9", "10.2.0.9", (1, 2), b"thirty-two bytes of payload here").bytes(),
    );
    let mut sealed = pair.sealed();
    assert_eq!(sealed.len(), 1);
    sealed.remove(0)
}

/// Puts a frame into the other end, and gives the one reason for which it was dropped.
fn reason(pair: &mut Pair, bytes: &[u8]) -> Option<&'static str> {
    pair.b.send(1, bytes);
    let dropped = pair.b.dropped();
    let answers = pair.b.raw(1).len();
    match (&dropped[..], pair.b.packets(&pair.host_b).len()) {
        ([], 1) => None,
        ([(reason, 1)], 0) => Some(reason),
        other => panic!("{other:?}, {answers} answers"),
    }
}

#[test]
fn every_byte_of_esp_changed_is_refused_and_does_no_harm() {
    for kind in kinds() {
        let mut pair = Pair::new(kind);
        let good = seal(&mut pair);
        let at = front(kind);
        for place in at..good.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[place] ^= flip;
                let found =
                    reason(&mut pair, &bad).unwrap_or_else(|| panic!("{kind:?}, byte {place}: it passed"));
                let right = match place - at {
                    0..4 => ["no-sa"].as_slice(),
                    4..8 => &SEQUENCE,
                    _ => &["esp-integrity"],
                };
                assert!(right.contains(&found), "{kind:?}, byte {} ^ {flip:#x}: {found}", place - at);
            }
        }
        // None of them has moved the window: the packet itself is still welcome, once.
        assert_eq!(reason(&mut pair, &good), None, "{kind:?}");
        assert_eq!(reason(&mut pair, &good), Some("esp-replayed"), "{kind:?}");
        let sa = &pair.b.single.built.tables.sas[0];
        assert_eq!(sa.window.newest(), 2);
    }
}

#[test]
fn every_length_is_refused_for_what_it_is() {
    for kind in kinds() {
        let mut pair = Pair::new(kind);
        let good = seal(&mut pair);
        let whole = good.len() - front(kind);
        for esp in (0..whole).chain(whole + 1..whole + 70) {
            let found = reason(&mut pair, &resized(&good, kind, esp));
            // In UDP, fewer than eight bytes are no ESP packet, and one of 0xff is a keepalive.
            let wanted = if esp < 36 || esp % 4 != 0 { "esp-length" } else { "esp-integrity" };
            assert_eq!(found, Some(wanted), "{kind:?}: {esp} of {whole} bytes");
        }
        assert_eq!(reason(&mut pair, &resized(&good, kind, whole)), None, "{kind:?}");
    }
}

/// The outer header: whatever is changed there, the packet is dropped with some reason, or opened as it was sealed.
#[test]
fn every_byte_of_the_outer_headers_changed_does_no_harm() {
    for kind in kinds() {
        let mut pair = Pair::new(kind);
        for place in 18..front(kind) {
            for flip in [0x01, 0x04, 0x80, 0xff] {
                let good = seal(&mut pair);
                let mut bad = good.clone();
                bad[place] ^= flip;
                pair.b.send(1, &bad);
                let dropped: u64 = pair.b.dropped().iter().map(|(_, count)| count).sum();
                let packets = pair.b.packets(&pair.host_b);
                // To another address of the link it is carried on, or waits to be.
                let carried = pair.b.raw(1).len() as u64 + pair.b.single.worker.ledger().waiting;
                assert!(
                    dropped + packets.len() as u64 + carried >= 1,
                    "{kind:?}, byte {place} ^ {flip:#x}: nothing was counted"
                );
                for packet in &packets {
                    let inner = Ip::read(packet);
                    assert_eq!(inner.payload[8..], *b"thirty-two bytes of payload here");
                }
            }
        }
    }
}

#[test]
fn fragments_of_esp_and_packets_from_elsewhere_have_reasons_of_their_own() {
    let mut pair = Pair::new(PLAIN);
    let good = seal(&mut pair);
    let mut elsewhere = good.clone();
    elsewhere[18 + 15] ^= 1;
    let elsewhere = resized(&elsewhere, PLAIN, good.len() - front(PLAIN));
    assert_eq!(reason(&mut pair, &elsewhere), Some("esp-outer-mismatch"));
    let sa = &pair.b.single.built.tables.sas[0];
    let row = sa.index as usize;
    let segment = &pair.b.single.segment;
    let group = segment.layout().group("sa").unwrap();
    let column = group.columns.iter().position(|column| column == "outer").unwrap();
    let cell = &segment.cells()[group.cell(row, column).unwrap()];
    assert_eq!(cell.load(std::sync::atomic::Ordering::Relaxed), 1);
}
