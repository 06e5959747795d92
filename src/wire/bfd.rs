//! Bidirectional Forwarding Detection: control packets without authentication (RFC 5880 4.1, RFC 5881).

use std::borrow::Borrow;

/// Bytes of a control packet without authentication.
pub const LEN: usize = 24;
/// The UDP port of single-hop sessions (RFC 5881 4).
pub const UDP_PORT: u16 = 3784;
/// The first of the UDP ports that packets may come from (RFC 5881 4).
pub const FIRST_SOURCE_PORT: u16 = 49_152;
/// TTL and hop limit of every packet: one that is less has passed a router (RFC 5881 5, RFC 5082).
pub const TTL: u8 = 255;

const VERSION: u8 = 1;
/// Length of a control packet with the least authentication section (RFC 5880 6.8.6).
const LEAST_AUTHENTICATED: u8 = 26;

header! {
    /// A control packet without its authentication section.
    Control: 24 {
        /// Version in the high three bits, diagnostic in the low five.
        version_diagnostic, set_version_diagnostic: u8 = 0;
        /// State in the high two bits, then poll, final, control plane independent, authenticated, demand, multipoint.
        state_flags, set_state_flags: u8 = 1;
        /// Detection time multiplier.
        multiplier, set_multiplier: u8 = 2;
        /// Bytes of the packet.
        length, set_length: u8 = 3;
        /// The sender's discriminator.
        my_discriminator, set_my_discriminator: u32 = 4;
        /// The receiver's discriminator, as the sender knows it; 0 when it does not.
        your_discriminator, set_your_discriminator: u32 = 8;
        /// The least interval that the sender would like to send at, in microseconds.
        desired_min_tx, set_desired_min_tx: u32 = 12;
        /// The least interval between packets that the sender can receive, in microseconds; 0: it wants none.
        required_min_rx, set_required_min_rx: u32 = 16;
        /// The least interval between echo packets that the sender can receive; 0: it does not do echo.
        required_min_echo_rx, set_required_min_echo_rx: u32 = 20;
    }
}

/// The state of a session (RFC 5880 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Taken out of service by an operator.
    AdminDown,
    /// Down, or just made.
    Down,
    /// The other end is heard, but does not hear us yet as far as we know.
    Init,
    /// Both ends hear each other.
    Up,
}

impl State {
    /// The word for it, as RFC 5880 spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AdminDown => "AdminDown",
            Self::Down => "Down",
            Self::Init => "Init",
            Self::Up => "Up",
        }
    }

    const fn of(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }
}

/// Why a session went down last (RFC 5880 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// None.
    pub const NONE: Self = Self(0);
    /// Nothing came within the detection time.
    pub const TIME_EXPIRED: Self = Self(1);
    /// The other end said that its session is down.
    pub const NEIGHBOUR_DOWN: Self = Self(3);
    /// An operator took it down.
    pub const ADMIN_DOWN: Self = Self(7);

    /// What it means.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbour signalled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            _ => "reserved",
        }
    }
}

/// Why bytes are no control packet that may be used (RFC 5880 6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer than 24 bytes.
    #[error("BFD packet truncated")]
    Truncated,
    /// A version other than 1.
    #[error("BFD version is not 1")]
    Version,
    /// The length field is less than a packet has, or more than there is.
    #[error("BFD length wrong")]
    Length,
    /// The detection time multiplier is 0.
    #[error("BFD multiplier is 0")]
    Multiplier,
    /// The multipoint bit is set.
    #[error("BFD multipoint bit set")]
    Multipoint,
    /// The sender's discriminator is 0.
    #[error("BFD discriminator is 0")]
    MyDiscriminator,
    /// The sender does not know our discriminator, though in its state it must.
    #[error("BFD packet names no session")]
    YourDiscriminator,
    /// It is authenticated, and no session here is.
    #[error("BFD packet is authenticated")]
    Authenticated,
}

/// What a control packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Why the sender's session went down last.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender asks for an answer at once.
    pub poll: bool,
    /// It is such an answer.
    pub last: bool,
    /// The sender's BFD goes on when its control plane does not.
    pub independent: bool,
    /// The sender wants no periodic packets while both are up.
    pub demand: bool,
    /// Intervals without a packet after which the receiver is to call the session down.
    pub multiplier: u8,
    /// The sender's discriminator.
    pub my_discriminator: u32,
    /// The receiver's discriminator, or 0.
    pub your_discriminator: u32,
    /// In microseconds.
    pub desired_min_tx: u32,
    /// In microseconds; 0: no periodic packets.
    pub required_min_rx: u32,
    /// In microseconds.
    pub required_min_echo_rx: u32,
}

const POLL: u8 = 1 << 5;
const FINAL: u8 = 1 << 4;
const INDEPENDENT: u8 = 1 << 3;
const AUTHENTICATED: u8 = 1 << 2;
const DEMAND: u8 = 1 << 1;
const MULTIPOINT: u8 = 1;

impl Repr {
    /// Reads a control packet whose UDP payload has `payload_len` bytes, with every check of RFC 5880 6.8.6 that needs no
    /// session. Authentication is not spoken here.
    pub fn parse<T: Borrow<[u8; LEN]>>(packet: &Control<T>, payload_len: usize) -> Result<Self, Error> {
        if payload_len < LEN {
            return Err(Error::Truncated);
        }
        if packet.version_diagnostic() >> 5 != VERSION {
            return Err(Error::Version);
        }
        let (flags, length) = (packet.state_flags(), packet.length());
        let has = |flag: u8| flags & flag != 0;
        let least = if has(AUTHENTICATED) { LEAST_AUTHENTICATED } else { LEN as u8 };
        if length < least || usize::from(length) > payload_len {
            return Err(Error::Length);
        }
        if packet.multiplier() == 0 {
            return Err(Error::Multiplier);
        }
        if has(MULTIPOINT) {
            return Err(Error::Multipoint);
        }
        if packet.my_discriminator() == 0 {
            return Err(Error::MyDiscriminator);
        }
        let state = State::of(flags >> 6);
        if packet.your_discriminator() == 0 && state >= State::Init {
            return Err(Error::YourDiscriminator);
        }
        if has(AUTHENTICATED) {
            return Err(Error::Authenticated);
        }
        Ok(Self {
            diagnostic: Diagnostic(packet.version_diagnostic() & 0x1f),
            state,
            poll: has(POLL),
            last: has(FINAL),
            independent: has(INDEPENDENT),
            demand: has(DEMAND),
            multiplier: packet.multiplier(),
            my_discriminator: packet.my_discriminator(),
            your_discriminator: packet.your_discriminator(),
            desired_min_tx: packet.desired_min_tx(),
            required_min_rx: packet.required_min_rx(),
            required_min_echo_rx: packet.required_min_echo_rx(),
        })
    }

    /// The packet.
    #[must_use]
    pub fn emit(&self) -> [u8; LEN] {
        let mut packet = Control::new([0; LEN]);
        packet.set_version_diagnostic(VERSION << 5 | self.diagnostic.0 & 0x1f);
        let state = match self.state {
            State::AdminDown => 0,
            State::Down => 1,
            State::Init => 2,
            State::Up => 3_u8,
        };
        let flag = |holds: bool, flag: u8| if holds { flag } else { 0 };
        packet.set_state_flags(
            state << 6
                | flag(self.poll, POLL)
                | flag(self.last, FINAL)
                | flag(self.independent, INDEPENDENT)
                | flag(self.demand, DEMAND),
        );
        packet.set_multiplier(self.multiplier);
        packet.set_length(LEN as u8);
        packet.set_my_discriminator(self.my_discriminator);
        packet.set_your_discriminator(self.your_discriminator);
        packet.set_desired_min_tx(self.desired_min_tx);
        packet.set_required_min_rx(self.required_min_rx);
        packet.set_required_min_echo_rx(self.required_min_echo_rx);
        *packet.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn good() -> Repr {
        Repr {
            diagnostic: Diagnostic::TIME_EXPIRED,
            state: State::Up,
            poll: true,
            last: false,
            independent: false,
            demand: false,
            multiplier: 3,
            my_discriminator: 0x0102_0304,
            your_discriminator: 0x0a0b_0c0d,
            desired_min_tx: 50_000,
            required_min_rx: 100_000,
            required_min_echo_rx: 0,
        }
    }

    fn parse(bytes: [u8; LEN], len: usize) -> Result<Repr, Error> {
        Repr::parse(&Control::new(bytes), len)
    }

    #[test]
    fn a_packet_byte_by_byte() {
        let bytes = good().emit();
        let expected = [
            0x21, 0xe0, 3, 24, 1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d, 0, 0, 0xc3, 0x50, 0, 1, 0x86, 0xa0, 0, 0,
            0, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(parse(bytes, LEN), Ok(good()));
    }

    #[test]
    fn every_kind_of_malformed_packet_is_refused_for_its_reason() {
        let with = |at: usize, byte: u8| {
            let mut bytes = good().emit();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(parse(good().emit(), 23), Err(Error::Truncated));
        assert_eq!(parse(with(0, 0x01), 24), Err(Error::Version));
        assert_eq!(parse(with(0, 0x41), 24), Err(Error::Version));
        assert_eq!(parse(with(3, 23), 24), Err(Error::Length));
        assert_eq!(parse(with(3, 25), 24), Err(Error::Length));
        assert_eq!(parse(with(3, 0), 24), Err(Error::Length));
        assert_eq!(parse(with(2, 0), 24), Err(Error::Multiplier));
        assert_eq!(parse(with(1, 0xc1), 24), Err(Error::Multipoint));
        let nobody = Repr { my_discriminator: 0, ..good() };
        assert_eq!(parse(nobody.emit(), 24), Err(Error::MyDiscriminator));
        for (state, result) in [
            (State::Up, Err(Error::YourDiscriminator)),
            (State::Init, Err(Error::YourDiscriminator)),
            (State::Down, Ok(())),
            (State::AdminDown, Ok(())),
        ] {
            let stranger = Repr { your_discriminator: 0, state, ..good() };
            assert_eq!(parse(stranger.emit(), 24).map(|_| ()), result, "{state:?}");
        }
        // With the authentication bit a packet must have a section, and here it is refused all the same.
        assert_eq!(parse(with(1, 0xc4), 24), Err(Error::Length));
        let mut authenticated = with(1, 0xc4);
        authenticated[3] = 28;
        assert_eq!(parse(authenticated, 28), Err(Error::Authenticated));
        // What follows the packet's own length is nobody's business.
        assert!(parse(good().emit(), 60).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(mut bytes: [u8; LEN], len in 0_usize..64) {
            bytes[0] = 0x20 | bytes[0] & 0x1f;
            if let Ok(repr) = parse(bytes, len) {
                let mut again = repr.emit();
                again[3] = bytes[3];
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
