//! What a build that comes to nothing leaves behind: nothing.

use std::path::Path;

use super::{Ephemeral, Kept, build};
use crate::{
    config::{self, Config},
    table::{hash::Seed, neighbour::NeighbourTable},
    wire::ethernet::MacAddr,
};

const MACS: [MacAddr; 1] = [MacAddr([2, 0, 0, 0, 0, 1])];

/// A gateway with routes by these routers on its link.
fn config(routers: std::ops::Range<u8>) -> Config {
    let mut text = "[system]\nname = \"x\"\n[port.a]\ndriver = \"memory\"\n[gateway.g]\n\
                    [interface.a]\nport = \"a\"\ngateway = \"g\"\nside = \"peer\"\naddresses = [\"192.0.2.1/24\"]\n"
        .to_string();
    for router in routers {
        text += &format!("[[gateway.g.route]]\nto = \"10.{router}.0.0/16\"\nvia = \"192.0.2.{router}\"\n");
    }
    config::parse(Path::new("/x.toml"), &text, &|_: &str| None).unwrap().0
}

/// With room for four neighbours, and two routers in use.
fn kept() -> Kept {
    let (_, writer) = NeighbourTable::new(4, Seed::new(1, 2));
    let mut kept = Kept::new(writer, 1, Seed::new(1, 2));
    build(&config(10..12), &MACS, &mut kept, &mut Ephemeral::default(), 0).unwrap();
    assert_eq!(kept.commit(), []);
    assert_eq!(kept.neighbours.pinned(), 2);
    kept
}

#[test]
fn a_build_that_fails_leaves_no_router_pinned() {
    let mut kept = kept();
    for now in 1..20 {
        let failed = build(&config(20..26), &MACS, &mut kept, &mut Ephemeral::default(), now);
        let error = failed.err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains("next hop 192.0.2.")), "{error:?}");
        assert_eq!(kept.neighbours.pinned(), 2);
    }
    // There is room for others as before.
    build(&config(10..14), &MACS, &mut kept, &mut Ephemeral::default(), 30).unwrap();
    assert_eq!(kept.commit().len(), 4, "each by its route, and by the list of all");
    assert_eq!(kept.neighbours.pinned(), 4);
}

#[test]
fn a_build_that_is_not_taken_up_leaves_no_router_pinned() {
    let mut kept = kept();
    for now in 1..20 {
        build(&config(20..22), &MACS, &mut kept, &mut Ephemeral::default(), now).unwrap();
        assert_eq!(kept.neighbours.pinned(), 4);
        // As when it cannot be published; without a word the next build does the same.
        if now % 2 == 0 {
            kept.go_back();
            assert_eq!(kept.neighbours.pinned(), 2);
        }
    }
    kept.go_back();
    // What is in force can still be let go by the next one.
    build(&config(20..22), &MACS, &mut kept, &mut Ephemeral::default(), 30).unwrap();
    for router in kept.commit() {
        assert!(kept.neighbours.unpin(router, 30));
    }
    assert_eq!(kept.neighbours.pinned(), 2);
    // And those are none that were in use before.
    build(&config(10..10), &MACS, &mut kept, &mut Ephemeral::default(), 31).unwrap();
    for router in kept.commit() {
        assert!(kept.neighbours.unpin(router, 31));
    }
    assert_eq!(kept.neighbours.pinned(), 0);
}
