//! A BFD session (RFC 5880 6): asynchronous mode, without echo and without authentication, by whatever clock.
//!
//! Times inside are nanoseconds; packets and RFC 5880 count microseconds.

use super::machine::{Reason, Verdict};
use crate::wire::bfd::{Control, Diagnostic, Error, LEN, Repr, State};

const US: u64 = 1_000;
const SECOND: u64 = 1_000_000_000;
/// While a session is not up, packets go no faster (RFC 5880 6.8.3).
const SLOW_TX: u64 = SECOND;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The least interval to send at (ns).
    pub min_tx: u64,
    /// The least interval to receive at (ns).
    pub min_rx: u64,
    /// Intervals without a packet that the other end takes for a fault.
    pub multiplier: u8,
}

/// Why a packet was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is malformed.
    #[error(transparent)]
    Malformed(#[from] Error),
    /// It names another session, or one that is no more (RFC 5880 6.8.6).
    #[error("BFD packet of another session")]
    Discriminator,
}

/// One end of a session.
#[derive(Debug, Clone)]
pub struct Session {
    timing: Timing,
    local: u32,
    /// The other end's discriminator, state, and what it asked for; 0, `Down` and the least before it is heard.
    remote: u32,
    remote_state: State,
    remote_diagnostic: Diagnostic,
    remote_min_rx: u64,
    remote_min_tx: u64,
    remote_multiplier: u8,
    remote_demand: bool,
    state: State,
    diagnostic: Diagnostic,
    /// What we say we would like to send at: slow until the session is up.
    desired_tx: u64,
    /// What we send at: a longer interval than before only when the other end knows of it (RFC 5880 6.8.3).
    used_tx: u64,
    /// What we say we can take; and what holds for detection until the other end has agreed to a lower one.
    required_rx: u64,
    agreed_rx: u64,
    /// A poll sequence runs (RFC 5880 6.5).
    polling: bool,
    /// When the next packet goes (ns).
    next: u64,
    /// Something has changed that the other end is to know at once.
    at_once: bool,
    /// When a packet was last received (ns); nothing before the first, and after the detection time.
    heard: Option<u64>,
    made: u64,
    random: u64,
    /// Packets sent, received and refused, and how often it went down.
    pub counts: Counts,
}

/// What was counted of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets sent.
    pub sent: u64,
    /// Packets received and used.
    pub received: u64,
    /// Packets refused.
    pub refused: u64,
    /// Times that the session went down from up.
    pub downs: u64,
}

impl Session {
    /// A session with this discriminator, which is unique in this box and not 0. `seed`: of the jitter.
    #[must_use]
    pub fn new(timing: Timing, discriminator: u32, seed: u64, now: u64) -> Self {
        Self {
            timing,
            local: discriminator,
            remote: 0,
            remote_state: State::Down,
            remote_diagnostic: Diagnostic::NONE,
            remote_min_rx: US,
            remote_min_tx: 0,
            remote_multiplier: 0,
            remote_demand: false,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            desired_tx: timing.min_tx.max(SLOW_TX),
            used_tx: timing.min_tx.max(SLOW_TX),
            required_rx: timing.min_rx,
            agreed_rx: timing.min_rx,
            polling: false,
            next: now,
            at_once: false,
            heard: None,
            made: now,
            random: seed | 1,
            counts: Counts::default(),
        }
    }

    /// Goes on with other times; the other end is asked to agree (RFC 5880 6.8.3).
    pub fn retime(&mut self, timing: Timing) {
        let before = (self.desired_tx, self.required_rx);
        self.timing = timing;
        self.desired_tx = if self.state == State::Up { timing.min_tx } else { timing.min_tx.max(SLOW_TX) };
        self.required_rx = timing.min_rx;
        // A longer interval is waited for at once; a shorter one when the other end knows of it.
        self.agreed_rx = self.agreed_rx.max(timing.min_rx);
        if self.state != State::Up {
            (self.used_tx, self.agreed_rx) = (self.desired_tx, self.required_rx);
        } else if before != (self.desired_tx, self.required_rx) {
            self.used_tx = self.used_tx.min(self.desired_tx);
            (self.polling, self.at_once) = (true, true);
        }
    }

    /// What the operator wants.
    #[must_use]
    pub const fn timing(&self) -> Timing {
        self.timing
    }

    /// Takes up a packet that came at `now` (ns). The result is the answer to a poll.
    ///
    /// # Errors
    /// [`Refused`]; the packet then changes nothing (RFC 5880 6.8.6).
    pub fn receive(
        &mut self,
        packet: &[u8; LEN],
        len: usize,
        now: u64,
    ) -> Result<Option<[u8; LEN]>, Refused> {
        let result = self.take(packet, len, now);
        match result {
            Ok(_) => self.counts.received += 1,
            Err(_) => self.counts.refused += 1,
        }
        result
    }

    fn take(&mut self, packet: &[u8; LEN], len: usize, now: u64) -> Result<Option<[u8; LEN]>, Refused> {
        let heard = Repr::parse(&Control::new(packet), len)?;
        if heard.your_discriminator != 0 && heard.your_discriminator != self.local {
            return Err(Refused::Discriminator);
        }
        self.remote = heard.my_discriminator;
        self.remote_state = heard.state;
        self.remote_diagnostic = heard.diagnostic;
        self.remote_demand = heard.demand;
        self.remote_min_rx = u64::from(heard.required_min_rx) * US;
        self.remote_min_tx = u64::from(heard.desired_min_tx) * US;
        self.remote_multiplier = heard.multiplier;
        self.heard = Some(now);
        if heard.last && self.polling {
            self.polling = false;
            (self.used_tx, self.agreed_rx) = (self.desired_tx, self.required_rx);
        }
        match (self.state, heard.state) {
            (State::AdminDown, _) => return Ok(None),
            (State::Down, State::AdminDown) => {}
            (_, State::AdminDown) => self.down(Diagnostic::NEIGHBOUR_DOWN),
            (State::Down, State::Down) => self.become_state(State::Init),
            (State::Down | State::Init, State::Init) | (State::Init, State::Up) => self.up(),
            (State::Up, State::Down) => self.down(Diagnostic::NEIGHBOUR_DOWN),
            _ => {}
        }
        // The other end may take packets faster now than those that are due.
        self.next = self.next.min(now + self.interval());
        // An answer goes at once, whatever the rate (RFC 5880 6.8.7).
        Ok(heard.poll.then(|| {
            self.counts.sent += 1;
            Repr { poll: false, last: true, ..self.packet() }.emit()
        }))
    }

    /// Looks at the time: whether the other end was silent for too long.
    pub fn expire(&mut self, now: u64) {
        let Some(heard) = self.heard else { return };
        if now.saturating_sub(heard) < self.detection_time() {
            return;
        }
        self.heard = None;
        // Who is not heard has no name (RFC 5880 6.8.1, bfd.RemoteDiscr).
        self.remote = 0;
        (self.remote_state, self.remote_min_rx, self.remote_demand) = (State::Down, US, false);
        if matches!(self.state, State::Init | State::Up) {
            self.down(Diagnostic::TIME_EXPIRED);
        }
    }

    /// Sends the packet that is due at `now`, if one is. `send` says whether it went.
    pub fn send(&mut self, now: u64, send: impl FnOnce([u8; LEN]) -> bool) {
        if now < self.next && !self.at_once || self.is_quiet() || !send(self.packet().emit()) {
            return;
        }
        self.counts.sent += 1;
        self.at_once = false;
        self.next = now + self.jittered(self.interval());
    }

    /// Takes the session out of service, as the other end is told, or puts it back.
    pub fn set_admin_down(&mut self, is_down: bool) {
        match (is_down, self.state) {
            (true, State::AdminDown) => {}
            (true, _) => self.down_to(State::AdminDown, Diagnostic::ADMIN_DOWN),
            (false, State::AdminDown) => {
                self.diagnostic = Diagnostic::NONE;
                self.become_state(State::Down);
            }
            (false, _) => {}
        }
    }

    /// Whether no periodic packets may go (RFC 5880 6.8.7).
    const fn is_quiet(&self) -> bool {
        let both_up = matches!((self.state, self.remote_state), (State::Up, State::Up));
        self.remote_min_rx == 0 || self.remote_demand && both_up && !self.polling
    }

    fn up(&mut self) {
        self.become_state(State::Up);
        self.diagnostic = Diagnostic::NONE;
        if self.desired_tx != self.timing.min_tx {
            (self.desired_tx, self.used_tx) = (self.timing.min_tx, self.timing.min_tx);
            self.polling = true;
        }
    }

    fn down(&mut self, why: Diagnostic) {
        self.down_to(State::Down, why);
    }

    fn down_to(&mut self, state: State, why: Diagnostic) {
        self.counts.downs += u64::from(self.state == State::Up);
        self.diagnostic = why;
        self.become_state(state);
        self.desired_tx = self.timing.min_tx.max(SLOW_TX);
        self.polling = false;
        (self.used_tx, self.agreed_rx) = (self.desired_tx, self.required_rx);
    }

    fn become_state(&mut self, state: State) {
        self.state = state;
        // What is new is told at once (RFC 5880 6.8.7).
        self.at_once = true;
    }

    /// Between two packets of ours, before jitter.
    fn interval(&self) -> u64 {
        self.used_tx.max(self.remote_min_rx)
    }

    /// Less by a random part of a quarter; with a multiplier of 1 by a tenth at least (RFC 5880 6.8.7).
    fn jittered(&mut self, interval: u64) -> u64 {
        // xorshift64*: any numbers will do.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let random = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        let (least, span) = if self.timing.multiplier == 1 { (75, 15) } else { (75, 25) };
        let part = interval / 100;
        // A random number of 32 bits, of 2^32.
        part * least + ((u128::from(part * span) * u128::from(random)) >> 32) as u64
    }

    /// How long the other end may be silent (ns; RFC 5880 6.8.4).
    #[must_use]
    pub fn detection_time(&self) -> u64 {
        u64::from(self.remote_multiplier) * self.agreed_rx.max(self.remote_min_tx)
    }

    /// The interval that packets go at now (ns).
    #[must_use]
    pub fn transmit_interval(&self) -> u64 {
        self.interval()
    }

    const fn packet(&self) -> Repr {
        Repr {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polling,
            last: false,
            // Workers forward for as long as the control thread that speaks BFD lives, and end with it.
            independent: false,
            demand: false,
            multiplier: self.timing.multiplier,
            my_discriminator: self.local,
            your_discriminator: self.remote,
            desired_min_tx: (self.desired_tx / US) as u32,
            required_min_rx: (self.required_rx / US) as u32,
            required_min_echo_rx: 0,
        }
    }

    /// What the session says of its way at `now`. Until the other end has had time to be heard at all, nothing; and
    /// nothing when an operator took the session down at the other end (RFC 5882 3.2).
    #[must_use]
    pub fn verdict(&self, now: u64) -> Verdict {
        match (self.state, self.remote_state) {
            (State::Up, _) => Verdict::Good,
            (State::AdminDown, _) | (_, State::AdminDown) => Verdict::Unknown,
            _ if self.counts.downs == 0 && now.saturating_sub(self.made) < self.patience() => {
                Verdict::Unknown
            }
            _ => Verdict::Bad(Reason::Bfd),
        }
    }

    /// How long a new session may take to come up: packets go once a second until then.
    fn patience(&self) -> u64 {
        u64::from(self.timing.multiplier) * self.desired_tx.max(SLOW_TX) + 2 * SECOND
    }

    /// Our state, and the other end's as it says.
    #[must_use]
    pub const fn states(&self) -> (State, State) {
        (self.state, self.remote_state)
    }

    /// Why our session went down last, and the other end's.
    #[must_use]
    pub const fn diagnostics(&self) -> (Diagnostic, Diagnostic) {
        (self.diagnostic, self.remote_diagnostic)
    }

    /// Our discriminator, and the other end's.
    #[must_use]
    pub const fn discriminators(&self) -> (u32, u32) {
        (self.local, self.remote)
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
