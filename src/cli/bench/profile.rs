//! What is measured: a profile says which gateway stands in the way of which traffic.

use std::path::Path;

use serde::Deserialize;

/// Which way packets go, seen from the gateway that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the VPC to a router, in the clear.
    Forward,
    /// From the VPC into tunnels.
    Seal,
    /// Out of tunnels to the VPC.
    Open,
}

/// What the policies do with the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Match {
    /// Each packet comes near some and matches none, so the route table is asked too.
    #[default]
    None,
    /// Each packet matches one, which protects it.
    Protect,
}

/// What has a limit, one that is never reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limited {
    /// The gateway, both ways.
    Gateway,
    /// Each interface, both ways.
    Interface,
    /// Each tunnel, both ways.
    Tunnel,
    /// Each host, both ways.
    Address,
}

/// The size of a frame: L2 with the VLAN tag, without FCS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// All frames are as long as each other.
    Bytes(u16),
    /// Of 48 frames 28 have 64 bytes, 16 have 570 and 4 have 1518.
    Mix(Imix),
}

/// The word for a mix of sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Imix {
    /// The simple IMIX.
    #[serde(rename = "imix")]
    Imix,
}

/// The longest frame.
pub const LARGEST: u16 = 9000;
/// Ports and buffers by the longest frame that is sent through them: that frame, the MTU, with room for what a tunnel
/// puts around it, and the bytes of a buffer. The first are as they are by default.
pub const PORTS: [Ports; 3] = [
    Ports { frame: 1518, mtu: 1600, buffer: 2048 },
    Ports { frame: 3780, mtu: 3822, buffer: 4096 },
    Ports { frame: LARGEST, mtu: 9100, buffer: 16384 },
];

/// One of [`PORTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The longest frame that is sent through them.
    pub frame: u16,
    /// Their MTU.
    pub mtu: u16,
    /// Bytes of a buffer.
    pub buffer: u16,
}

impl Ports {
    /// For all of these sizes.
    #[must_use]
    pub fn of(sizes: &[Size]) -> Self {
        let longest = sizes.iter().flat_map(|size| size.lengths()).max().unwrap_or(0);
        PORTS.into_iter().find(|ports| ports.frame >= longest).unwrap_or(PORTS[PORTS.len() - 1])
    }
}

/// Frames of each length in the simple IMIX.
pub const IMIX: [(usize, u16); 3] = [(28, 64), (16, 570), (4, 1518)];

impl Size {
    /// As it is written.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::Bytes(n) => n.to_string(),
            Self::Mix(Imix::Imix) => "imix".into(),
        }
    }

    /// The lengths of the frames of one round of the mix.
    #[must_use]
    pub fn lengths(self) -> Vec<u16> {
        match self {
            Self::Bytes(n) => vec![n],
            Self::Mix(Imix::Imix) => {
                IMIX.iter().flat_map(|(count, len)| std::iter::repeat_n(*len, *count)).collect()
            }
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "imix" => Ok(Self::Mix(Imix::Imix)),
            Ok(n @ 64..=LARGEST) => Ok(Self::Bytes(n)),
            _ => Err(format!("a frame has 64 to {LARGEST} bytes, or the size is the word imix")),
        }
    }
}

/// What is to be reached, and what others reach, at one size.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// At this size.
    pub size: Size,
    /// Nanoseconds a packet: the goal.
    pub goal: Option<f64>,
    /// Nanoseconds a packet: more than the goal.
    pub stretch: Option<f64>,
    /// Nanoseconds a packet that another program takes for the same.
    pub peer: Option<f64>,
    /// Which program.
    pub peer_name: Option<String>,
}

/// A benchmark.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What it shows, in a line.
    pub description: String,
    /// Which way packets go.
    pub direction: Direction,
    /// Sizes of frames, one row of the result each.
    pub sizes: Vec<Size>,
    /// IP version of the traffic.
    #[serde(default = "four")]
    pub version: u8,
    /// Different flows; each packet is of one at random.
    #[serde(default = "one")]
    pub flows: usize,
    /// Hosts of the VPC that take part in them.
    #[serde(default = "one")]
    pub hosts: usize,
    /// Whether each host is translated, by a 1:1 rule of its own.
    #[serde(default)]
    pub nat: bool,
    /// Whether the hosts share a source pool: each flow has a session, made before anything is measured.
    #[serde(default)]
    pub pool: bool,
    /// Policies.
    #[serde(default)]
    pub policies: usize,
    /// What they do.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// Prefixes with routes.
    #[serde(default = "one")]
    pub routes: usize,
    /// Routers that share the flows of each prefix.
    #[serde(default = "one")]
    pub ways: usize,
    /// Tunnels, each with an SA in each direction.
    #[serde(default)]
    pub tunnels: usize,
    /// Whether each prefix has a second tunnel, which stands by.
    #[serde(default)]
    pub standby: bool,
    /// Limits.
    #[serde(default)]
    pub limits: Vec<Limited>,
    /// Bits of the AES keys.
    #[serde(default = "aes_128")]
    pub key_bits: usize,
    /// Goals.
    #[serde(default, rename = "goal")]
    pub goals: Vec<Goal>,
}

const fn one() -> usize {
    1
}

const fn four() -> u8 {
    4
}

const fn aes_128() -> usize {
    128
}

/// Largest table that a profile may ask for.
const MOST: usize = 1 << 22;

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let profile: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        profile.checked()
    }

    /// The profile, if it makes sense.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn checked(self) -> Result<Self, String> {
        self.check().map(|()| self)
    }

    /// Reads a profile from a file.
    ///
    /// # Errors
    /// As [`Profile::parse`], and when the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn check(&self) -> Result<(), String> {
        let tunnels = self.tunnels > 0;
        let fits = [
            (!self.sizes.is_empty(), "sizes: at least one"),
            (matches!(self.version, 4 | 6), "version: 4 or 6"),
            (self.version == 4 || self.direction == Direction::Forward, "version 6: only direction forward"),
            (self.version == 4 || !self.nat && self.policies == 0, "version 6: no nat and no policies"),
            (self.version == 4 || self.routes <= 1 << 16, "version 6: at most 65536 routes"),
            (
                !self.pool || !self.nat && self.version == 4 && self.direction == Direction::Forward,
                "pool: without nat, in direction forward, IPv4",
            ),
            (tunnels == (self.direction != Direction::Forward), "tunnels: for directions seal and open"),
            ((1..=MOST).contains(&self.flows), "flows: 1 to 4194304"),
            ((1..=1 << 20).contains(&self.hosts), "hosts: 1 to 1048576"),
            ((1..=MOST).contains(&self.routes), "routes: 1 to 4194304"),
            (
                self.ways == 1
                    || (1..=32).contains(&self.ways)
                        && !tunnels
                        && self.version == 4
                        && self.routes <= 1 << 10,
                "ways: 1 to 32, without tunnels, IPv4, at most 1024 routes",
            ),
            (
                !self.standby || self.tunnels > 1 && self.routes <= 1 << 10,
                "standby: two tunnels, at most 1024 routes",
            ),
            (self.policies <= 1 << 16, "policies: at most 65536"),
            (self.tunnels <= 1 << 14, "tunnels: at most 16384"),
            (self.direction != Direction::Open || self.hosts >= self.tunnels, "open: a host for each tunnel"),
            (matches!(self.key_bits, 128 | 192 | 256), "key_bits: 128, 192 or 256"),
            (
                self.matching == Match::None || self.direction == Direction::Seal && self.policies > 0,
                "match = \"protect\": with direction seal and policies",
            ),
            (self.sizes.iter().all(|size| size.lengths().iter().all(|n| self.holds(*n))), "sizes: too short"),
        ];
        fits.into_iter().find(|(good, _)| !good).map_or(Ok(()), |(_, why)| Err(why.into()))
    }

    /// Whether a frame of this length has room for its headers.
    fn holds(&self, len: u16) -> bool {
        len <= LARGEST && usize::from(len) >= super::traffic::least(self.version == 6)
    }

    /// The goal at a size.
    #[must_use]
    pub fn goal(&self, size: Size) -> Option<&Goal> {
        self.goals.iter().find(|goal| goal.size == size)
    }
}

macro_rules! profiles {
    ($($name:literal,)+) => {
        /// The profiles that come with the program, in the order in which they are measured.
        const TEXTS: &[(&str, &str)] = &[$(
            ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/perf/profiles/", $name, ".toml"))),
        )+];
    };
}

profiles! {
    "forward-16",
    "forward-1m",
    "forward-ecmp",
    "v6-forward",
    "nat-1to1",
    "nat-1to1-64k",
    "nat-pool-1k",
    "nat-pool-64k",
    "nat-pool-1m",
    "nat-pool-4m",
    "seal-1",
    "seal-standby",
    "seal-256",
    "seal-1024",
    "seal-10k",
    "open-1",
    "open-256",
    "open-1024",
    "open-10k",
    "spd-1",
    "spd-100",
    "spd-10000",
    "limit-gateway",
    "limit-interface",
    "limit-address",
    "limit-address-64k",
    "limit-tunnel",
    "limit-all",
    "gateway",
    "gateway-aes256",
    "gateway-in",
    "gateway-large",
}

/// Names of the profiles that come with the program.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEXTS.iter().map(|(name, _)| *name)
}

/// The profile of this name that comes with the program.
#[must_use]
pub fn named(name: &str) -> Option<Result<Profile, String>> {
    let (_, text) = TEXTS.iter().find(|(known, _)| *known == name)?;
    Some(Profile::parse(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_right_and_named_as_its_file() {
        for name in names() {
            let profile = named(name).unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(profile.name, name);
            assert!(profile.goals.iter().all(|goal| profile.sizes.contains(&goal.size)), "{name}");
        }
    }

    #[test]
    fn sizes_are_read_from_64_bytes_to_what_a_buffer_holds() {
        assert_eq!("imix".parse(), Ok(Size::Mix(Imix::Imix)));
        assert_eq!("64".parse(), Ok(Size::Bytes(64)));
        assert_eq!("9000".parse(), Ok(Size::Bytes(9000)));
        assert!("63".parse::<Size>().is_err() && "9001".parse::<Size>().is_err());
    }

    #[test]
    fn ports_and_buffers_are_as_large_as_the_frames_need() {
        let buffer = |sizes: &[Size]| Ports::of(sizes).buffer;
        assert_eq!(buffer(&[Size::Mix(Imix::Imix), Size::Bytes(1518)]), 2048);
        assert_eq!(buffer(&[Size::Bytes(1519)]), 4096);
        assert_eq!(buffer(&[Size::Bytes(64), Size::Bytes(3780)]), 4096);
        assert_eq!(buffer(&[Size::Bytes(3781)]), 16384);
        assert_eq!(buffer(&[Size::Bytes(9000), Size::Bytes(64)]), 16384);
    }

    #[test]
    fn every_profile_that_lies_here_comes_with_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/profiles");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let mut there: Vec<String> =
            files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
        there.sort_unstable();
        let mut known: Vec<&str> = names().collect();
        known.sort_unstable();
        assert_eq!(there, known, "add the new one to the list in this file");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let text = |extra: &str| {
            let base = "name = \"x\"\ndescription = \"y\"\ndirection = \"seal\"\nsizes = [64]\n";
            Profile::parse(&format!("{base}{extra}"))
        };
        assert!(text("tunnels = 1").is_ok());
        for wrong in [
            "",
            "tunnels = 1\nhosts = 0",
            "tunnels = 1\nkey_bits = 100",
            "tunnels = 1\nwhat = 1",
            "tunnels = 1\nstandby = true",
            "tunnels = 1\nways = 2",
        ] {
            assert!(text(wrong).is_err(), "{wrong}");
        }
    }
}
