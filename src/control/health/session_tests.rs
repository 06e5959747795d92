use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const FAST: Timing = Timing { min_tx: 50 * MS, min_rx: 50 * MS, multiplier: 3 };

/// Two ends and the line between them.
struct Pair {
    ends: [Session; 2],
    now: u64,
    /// Packets on their way: to whom, and when they come.
    flying: Vec<(usize, u64, [u8; LEN])>,
    /// Whether packets to an end are lost.
    cut: [bool; 2],
    /// When each end sent its packets (ms).
    sent: [Vec<u64>; 2],
}

impl Pair {
    fn new(a: Timing, b: Timing) -> Self {
        Self {
            ends: [Session::new(a, 0x11, 3, 0), Session::new(b, 0x22, 99, 0)],
            now: 0,
            flying: Vec::new(),
            cut: [false; 2],
            sent: [Vec::new(), Vec::new()],
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += MS;
            let (come, rest): (Vec<_>, Vec<_>) =
                self.flying.drain(..).partition(|(_, at, _)| *at <= self.now);
            self.flying = rest;
            for (to, _, packet) in come {
                if !self.cut[to]
                    && let Ok(Some(answer)) = self.ends[to].receive(&packet, LEN, self.now)
                {
                    self.flying.push((1 - to, self.now + MS, answer));
                }
            }
            for from in 0..2 {
                let (flying, sent, now) = (&mut self.flying, &mut self.sent[from], self.now);
                self.ends[from].expire(now);
                self.ends[from].send(now, |packet| {
                    flying.push((1 - from, now + MS, packet));
                    sent.push(now / MS);
                    true
                });
            }
        }
    }

    /// Until something holds; the time it took in ms.
    fn until(&mut self, holds: impl Fn(&[Session; 2]) -> bool) -> u64 {
        let start = self.now;
        while !holds(&self.ends) {
            assert!(self.now - start < 100 * SECOND, "{:?}", self.ends);
            self.run(1);
        }
        (self.now - start) / MS
    }
}

fn both_up(ends: &[Session; 2]) -> bool {
    ends.iter().all(|end| end.states() == (State::Up, State::Up))
}

#[test]
fn two_ends_come_up_and_settle_on_their_intervals() {
    let slow = Timing { min_tx: 100 * MS, min_rx: 300 * MS, multiplier: 5 };
    let mut pair = Pair::new(FAST, slow);
    let took = pair.until(both_up);
    assert!(took < 3_000, "{took} ms");
    pair.run(3_000);
    // The first may send every 50 ms, but the second takes one in 300.
    assert_eq!(pair.ends[0].transmit_interval(), 300 * MS);
    assert_eq!(pair.ends[1].transmit_interval(), 100 * MS);
    assert_eq!(pair.ends[0].detection_time(), 5 * 100 * MS);
    assert_eq!(pair.ends[1].detection_time(), 3 * 300 * MS);
    assert!(!pair.ends[0].polling && !pair.ends[1].polling, "a poll ends with its answer");
    assert_eq!(pair.ends[0].discriminators(), (0x11, 0x22));
    assert_eq!(pair.ends[0].verdict(pair.now), Verdict::Good);
    // Jitter: three quarters to the whole of the interval.
    pair.sent[0].clear();
    pair.run(20_000);
    let gaps: Vec<u64> = pair.sent[0].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (225..=301).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().max() > gaps.iter().min(), "{gaps:?}");
}

#[test]
fn silence_is_found_out_within_the_detection_time_and_told() {
    let mut pair = Pair::new(FAST, FAST);
    pair.until(both_up);
    pair.run(2_000);
    assert_eq!(pair.ends[0].detection_time(), 150 * MS);
    // One way only: who hears nothing goes down and says so; the other one follows.
    pair.cut[0] = true;
    let took = pair.until(|ends| ends[0].states().0 == State::Down);
    assert!((100..=152).contains(&took), "{took} ms");
    assert_eq!(pair.ends[0].diagnostics().0, Diagnostic::TIME_EXPIRED);
    let took = pair.until(|ends| ends[1].states().0 == State::Down);
    assert!(took < 10, "told at once: {took} ms");
    assert_eq!(pair.ends[1].diagnostics(), (Diagnostic::NEIGHBOUR_DOWN, Diagnostic::TIME_EXPIRED));
    assert_eq!(pair.ends[0].verdict(pair.now), Verdict::Bad(Reason::Bfd));
    // While it is down, packets go once a second at most, but for news.
    pair.run(3_000);
    pair.sent[0].clear();
    pair.run(10_000);
    assert!(pair.sent[0].len() <= 14, "{:?}", pair.sent[0]);
    pair.cut[0] = false;
    assert!(pair.until(both_up) < 3_000);
    assert_eq!((pair.ends[0].counts.downs, pair.ends[1].counts.downs), (1, 1));
    assert_eq!(pair.ends[0].diagnostics().0, Diagnostic::NONE);
}

#[test]
fn an_end_that_starts_anew_is_met_again() {
    let mut pair = Pair::new(FAST, FAST);
    pair.until(both_up);
    pair.run(1_000);
    let now = pair.now;
    pair.ends[1] = Session::new(FAST, 0x77, 5, now);
    pair.run(1);
    assert!(pair.until(|ends| ends[0].states().0 != State::Up) < 200);
    assert!(pair.until(both_up) < 5_000);
    assert_eq!(pair.ends[0].discriminators(), (0x11, 0x77));
}

#[test]
fn what_an_operator_takes_down_is_no_fault() {
    let mut pair = Pair::new(FAST, FAST);
    pair.until(both_up);
    pair.ends[1].set_admin_down(true);
    pair.run(20);
    assert_eq!(pair.ends[0].states(), (State::Down, State::AdminDown));
    assert_eq!(pair.ends[0].verdict(pair.now), Verdict::Unknown);
    pair.run(5_000);
    assert_eq!(pair.ends[0].states().0, State::Down);
    assert_eq!(pair.ends[0].verdict(pair.now), Verdict::Unknown);
    pair.ends[1].set_admin_down(false);
    assert!(pair.until(both_up) < 5_000);
}

#[test]
fn other_times_are_agreed_on_by_a_poll() {
    let mut pair = Pair::new(FAST, FAST);
    pair.until(both_up);
    pair.run(1_000);
    pair.ends[0].retime(Timing { min_tx: 200 * MS, min_rx: 100 * MS, multiplier: 4 });
    assert!(pair.ends[0].polling);
    pair.run(1_000);
    assert!(both_up(&pair.ends) && !pair.ends[0].polling, "{:?}", pair.ends);
    assert_eq!((pair.ends[0].transmit_interval(), pair.ends[1].transmit_interval()), (200 * MS, 100 * MS));
    assert_eq!(pair.ends[1].detection_time(), 800 * MS);
    assert_eq!(pair.ends[0].detection_time(), 300 * MS);
    // Back to a faster pace: what is waited for is shortened when the other end knows of it.
    pair.ends[0].retime(FAST);
    assert_eq!(pair.ends[0].detection_time(), 300 * MS);
    pair.run(1_000);
    assert!(both_up(&pair.ends));
    assert_eq!(pair.ends[0].detection_time(), 150 * MS);
    assert_eq!(pair.ends[0].counts.downs + pair.ends[1].counts.downs, 0);
}

#[test]
fn packets_of_others_and_malformed_ones_change_nothing_and_are_counted() {
    let mut pair = Pair::new(FAST, FAST);
    pair.until(both_up);
    let good = pair.ends[1].packet();
    let before = format!("{:?}", Session { counts: Counts::default(), ..pair.ends[0].clone() });
    let mut bad = vec![
        (Repr { your_discriminator: 0x12, ..good }.emit(), LEN),
        (Repr { my_discriminator: 0, ..good }.emit(), LEN),
        (Repr { your_discriminator: 0, ..good }.emit(), LEN),
        (Repr { multiplier: 0, ..good }.emit(), LEN),
        (good.emit(), LEN - 1),
    ];
    for (at, byte) in [(0, 0x40), (1, 0xc1), (3, 23), (3, 25)] {
        let mut packet = good.emit();
        packet[at] = byte;
        bad.push((packet, LEN));
    }
    for (n, (packet, len)) in bad.iter().enumerate() {
        let now = pair.now;
        assert!(pair.ends[0].receive(packet, *len, now + 40 * MS).is_err(), "{n}");
        assert_eq!(pair.ends[0].counts.refused, n as u64 + 1);
    }
    let after = format!("{:?}", Session { counts: Counts::default(), ..pair.ends[0].clone() });
    assert_eq!(before, after);
}

#[test]
fn an_end_that_wants_no_packets_gets_none() {
    let mut session = Session::new(FAST, 1, 1, 0);
    let wish = Repr { required_min_rx: 0, state: State::Down, your_discriminator: 0, ..session.packet() };
    session.receive(&wish.emit(), LEN, 0).unwrap();
    session.send(10 * SECOND, |_| panic!("sent"));
    // But an answer to its poll.
    let poll = Repr { poll: true, ..wish };
    let answer = session.receive(&poll.emit(), LEN, 0).unwrap().expect("an answer");
    let answer = Repr::parse(&Control::new(answer), LEN).unwrap();
    assert!(answer.last && !answer.poll);
}

#[test]
fn a_session_that_never_comes_up_is_a_fault_after_a_while() {
    let mut session = Session::new(FAST, 1, 1, 0);
    assert_eq!(session.verdict(4 * SECOND), Verdict::Unknown);
    assert_eq!(session.verdict(5 * SECOND), Verdict::Bad(Reason::Bfd));
    session.expire(10 * SECOND);
    assert_eq!(session.states().0, State::Down);
}

proptest! {
    /// Whatever comes, intervals and times stay within what both asked for, and nothing panics.
    #[test]
    fn any_bytes_leave_a_sound_session(
        packets in prop::collection::vec((any::<[u8; LEN]>(), 0_u64..500, any::<bool>()), 1..60),
    ) {
        let mut session = Session::new(FAST, 0x11, 7, 0);
        let mut now = 0;
        for (mut packet, wait, plausible) in packets {
            now += wait * MS;
            if plausible {
                // Let it through the first checks.
                packet[0] = 0x20 | packet[0] & 0x1f;
                packet[1] &= 0xfa;
                packet[3] = 24;
                packet[8..12].copy_from_slice(&0x11_u32.to_be_bytes());
            }
            let before = session.states();
            let result = session.receive(&packet, LEN, now);
            if result.is_err() {
                prop_assert_eq!(session.states(), before);
            }
            session.expire(now);
            session.send(now, |_| true);
            prop_assert!(session.transmit_interval() >= FAST.min_tx);
            if session.states().0 != State::Up {
                prop_assert!(session.transmit_interval() >= SLOW_TX);
            }
        }
    }

    /// Any two ends that hear each other come up, and stay up.
    #[test]
    fn any_two_ends_agree(
        a in (50_u64..3000, 50_u64..3000, 3_u8..=8),
        b in (50_u64..3000, 50_u64..3000, 3_u8..=8),
    ) {
        let timing = |(tx, rx, multiplier): (u64, u64, u8)| {
            Timing { min_tx: tx * MS, min_rx: rx * MS, multiplier }
        };
        let mut pair = Pair::new(timing(a), timing(b));
        pair.until(both_up);
        pair.run(20_000);
        prop_assert!(both_up(&pair.ends));
        prop_assert_eq!(pair.ends[0].counts.downs + pair.ends[1].counts.downs, 0);
        prop_assert_eq!(pair.ends[0].detection_time(), u64::from(b.2) * a.1.max(b.0) * MS);
        prop_assert_eq!(pair.ends[0].transmit_interval(), a.0.max(b.1) * MS);
    }
}
