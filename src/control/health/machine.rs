//! When traffic may use a way out: the state of one interface or tunnel, whatever tells of its health.

use std::fmt;

/// What is thought of a way at a time, by everything that watches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is known yet.
    Unknown,
    /// It works.
    Good,
    /// It does not.
    Bad(Reason),
}

/// Why a way does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No answer came to so many probes in a row.
    Probes,
    /// The BFD session is down.
    Bfd,
    /// No security association opens or seals any more.
    Associations,
    /// The port has no carrier, or is gone.
    Carrier,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probes => "probes are not answered",
            Self::Bfd => "the BFD session is down",
            Self::Associations => "its security associations have ended",
            Self::Carrier => "its port has no carrier",
        })
    }
}

/// What traffic may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is known yet: traffic tries.
    Init,
    /// It works.
    Up,
    /// It does not.
    Down,
    /// It works again, and has to go on doing so until this time (ns) before traffic comes back.
    Held(u64),
    /// It works again, and an operator has to say that traffic may come back.
    Waiting,
}

impl State {
    /// Whether traffic may go this way.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Init | Self::Up)
    }

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Up => "up",
            Self::Down => "down",
            Self::Held(_) => "held",
            Self::Waiting => "waiting",
        }
    }

    /// What statistics call it.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Init => 0,
            Self::Up => 1,
            Self::Down => 2,
            Self::Held(_) => 3,
            Self::Waiting => 4,
        }
    }
}

/// How traffic comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// For how long a way has to work again (ns).
    pub hold_down: u64,
    /// Whether it is then used again by itself.
    pub auto: bool,
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub old: State,
    /// What it is.
    pub new: State,
    /// For how long it was so (ns).
    pub lasted: u64,
}

/// The state of one way. Whoever has it calls [`Machine::update`] with the time whenever something may have changed, and
/// often enough for the hold-down.
#[derive(Debug, Clone)]
pub struct Machine {
    state: State,
    since: u64,
    reason: Option<Reason>,
    switches: u64,
    /// It has once worked for [`ESTABLISHED`].
    established: bool,
    /// How traffic comes back.
    pub policy: Policy,
}

/// A way that has never worked for so long (ns) comes up without a hold-down: when a gateway starts, devices and sessions
/// come one after the other.
const ESTABLISHED: u64 = 1_000_000_000;

impl Machine {
    /// Of a way nothing is known of.
    #[must_use]
    pub const fn new(policy: Policy, now: u64) -> Self {
        Self { state: State::Init, since: now, reason: None, switches: 0, established: false, policy }
    }

    /// Takes up what is thought of the way at `now` (ns).
    pub fn update(&mut self, verdict: Verdict, now: u64) -> Option<Change> {
        self.established |= self.state == State::Up && now.saturating_sub(self.since) >= ESTABLISHED;
        let new = match (self.state, verdict) {
            (_, Verdict::Bad(reason)) => {
                self.reason = Some(reason);
                State::Down
            }
            (State::Init, Verdict::Good) => State::Up,
            (State::Down, Verdict::Good) if !self.established => State::Up,
            (State::Down, Verdict::Good) => {
                self.after_hold_down(State::Held(now + self.policy.hold_down), now)
            }
            (held @ State::Held(_), _) => self.after_hold_down(held, now),
            (state, _) => state,
        };
        self.change(new, now)
    }

    /// An operator lets traffic come back at once. `None`: there is nothing to come back, or it does not work.
    pub fn fail_back(&mut self, now: u64) -> Option<Change> {
        match self.state {
            State::Held(_) | State::Waiting => self.change(State::Up, now),
            State::Init | State::Up | State::Down => None,
        }
    }

    /// What a held way is at `now`.
    const fn after_hold_down(&self, held: State, now: u64) -> State {
        match held {
            State::Held(until) if now >= until => {
                if self.policy.auto {
                    State::Up
                } else {
                    State::Waiting
                }
            }
            held => held,
        }
    }

    fn change(&mut self, new: State, now: u64) -> Option<Change> {
        let old = self.state;
        if old == new {
            return None;
        }
        let lasted = now.saturating_sub(self.since);
        self.switches += u64::from(old.is_usable() != new.is_usable());
        (self.state, self.since) = (new, now);
        if new.is_usable() {
            self.reason = None;
        }
        Some(Change { old, new, lasted })
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Since when it is so (ns).
    #[must_use]
    pub const fn since(&self) -> u64 {
        self.since
    }

    /// Why it went down, until traffic comes back.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// How often traffic had to leave it, or came back.
    #[must_use]
    pub const fn switches(&self) -> u64 {
        self.switches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BAD: Verdict = Verdict::Bad(Reason::Probes);
    const AUTO: Policy = Policy { hold_down: 100, auto: true };
    const START: u64 = ESTABLISHED;

    /// One that has worked for long.
    fn established(policy: Policy) -> Machine {
        let mut machine = Machine::new(policy, 0);
        machine.update(Verdict::Good, 0);
        machine.update(Verdict::Good, ESTABLISHED);
        machine
    }

    #[test]
    fn it_goes_down_at_once_and_comes_back_after_the_hold_down() {
        let mut machine = established(AUTO);
        let down = Change { old: State::Up, new: State::Down, lasted: START };
        assert_eq!(machine.update(BAD, START), Some(down));
        assert_eq!(machine.reason(), Some(Reason::Probes));
        assert_eq!(machine.update(Verdict::Good, START + 30).unwrap().new, State::Held(START + 130));
        assert!(!machine.state().is_usable());
        assert_eq!(machine.update(Verdict::Good, START + 129), None);
        assert_eq!(machine.update(Verdict::Good, START + 130).unwrap().new, State::Up);
        assert_eq!((machine.switches(), machine.reason()), (2, None));
    }

    #[test]
    fn in_the_beginning_traffic_tries_and_nothing_is_held_down() {
        for policy in [AUTO, Policy { auto: false, ..AUTO }] {
            let mut machine = Machine::new(policy, 5);
            assert!(machine.state().is_usable(), "traffic tries what is not known yet");
            assert_eq!(machine.update(Verdict::Unknown, 10), None);
            let up = Change { old: State::Init, new: State::Up, lasted: 10 };
            assert_eq!(machine.update(Verdict::Good, 15), Some(up));
            assert_eq!(machine.update(BAD, 25).unwrap().new, State::Down);
            assert_eq!(machine.update(Verdict::Good, 26).unwrap().new, State::Up);
            machine.update(Verdict::Good, 26 + ESTABLISHED);
            assert_eq!(machine.update(BAD, 30 + ESTABLISHED).unwrap().new, State::Down);
            assert_eq!(
                machine.update(Verdict::Good, 31 + ESTABLISHED).unwrap().new,
                State::Held(131 + ESTABLISHED)
            );
        }
    }

    #[test]
    fn a_fault_in_the_hold_down_begins_it_anew() {
        let mut machine = established(AUTO);
        machine.update(BAD, START);
        machine.update(Verdict::Good, START + 10);
        assert_eq!(machine.update(BAD, START + 109).unwrap().new, State::Down);
        assert_eq!(machine.update(Verdict::Good, START + 111).unwrap().new, State::Held(START + 211));
        assert_eq!(machine.switches(), 1, "what was not used was not left");
    }

    #[test]
    fn an_operator_lets_it_come_back() {
        let mut machine = established(Policy { hold_down: 100, auto: false });
        assert_eq!(machine.fail_back(START), None);
        machine.update(BAD, START);
        assert_eq!(machine.fail_back(START + 1), None, "not while it does not work");
        machine.update(Verdict::Good, START + 10);
        assert_eq!(machine.update(Verdict::Good, START + 110).unwrap().new, State::Waiting);
        assert_eq!(machine.update(Verdict::Good, 2 * START), None);
        assert_eq!(machine.fail_back(2 * START + 1).unwrap().new, State::Up);
        // And from the hold-down, when he is in a hurry.
        machine.update(BAD, 2 * START + 2);
        machine.update(Verdict::Good, 2 * START + 3);
        assert_eq!(machine.fail_back(2 * START + 4).unwrap().new, State::Up);
    }

    #[test]
    fn without_a_hold_down_it_comes_back_at_once() {
        let mut machine = established(Policy { hold_down: 0, auto: true });
        machine.update(BAD, START);
        assert_eq!(machine.update(Verdict::Good, START + 1).unwrap().new, State::Up);
    }

    proptest! {
        /// Whatever is told: traffic leaves with the first bad word, and comes back only after a hold-down of good ones.
        #[test]
        fn traffic_comes_back_only_after_a_quiet_time(
            auto: bool,
            hold_down in 0_u64..50,
            steps in prop::collection::vec((0_u64..40, 0..4), 1..80),
        ) {
            let mut machine = established(Policy { hold_down, auto });
            let (mut now, mut switches) = (ESTABLISHED, 0);
            // Since when nothing bad was told, after something bad.
            let mut good_since: Option<u64> = None;
            for (wait, what) in steps {
                now += wait;
                let before = machine.state().is_usable();
                let by_hand = what == 3 && machine.fail_back(now).is_some();
                match what {
                    0 => { machine.update(BAD, now); good_since = None; }
                    1 => { machine.update(Verdict::Good, now); good_since = good_since.or(Some(now)); }
                    2 => { machine.update(Verdict::Unknown, now); }
                    _ => {}
                }
                let after = machine.state().is_usable();
                switches += u64::from(before != after);
                if what == 0 {
                    prop_assert!(!after);
                }
                if !before && after && !by_hand {
                    prop_assert!(auto && good_since.is_some_and(|since| now >= since + hold_down));
                }
                prop_assert_eq!(machine.switches(), switches);
                prop_assert!(machine.since() <= now);
            }
        }
    }
}
