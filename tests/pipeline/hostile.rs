//! Any frames at all: nothing panics, nothing is lost unseen. `cargo +nightly fuzz run path` goes on from here.

use causeway::control::fuzz;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn hostile_frames_break_no_gateway(story in proptest::collection::vec(any::<u8>(), 0..3000)) {
        fuzz::path(&story);
    }
}
