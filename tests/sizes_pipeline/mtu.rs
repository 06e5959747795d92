//! What fits a tunnel, what its senders are told, and how what does not fit is divided.

use super::{common::frame::*, sites::*};

#[test]
fn esp_adds_what_it_must_and_no_more() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        for (from, to) in WAYS {
            for len in (60..80).chain([1000, kind.largest(1500)]) {
                let header = if from.contains(':') { 48 } else { 28 };
                let packet = udp(from, to, (1, 2), &data(len - header));
                let sealed = pair.seal(&packet.bytes()).payload;
                assert_eq!(sealed.len(), kind.sealed(len), "{kind:?}, {len} bytes");
            }
        }
    }
}
