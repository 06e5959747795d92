//! What the hosts saw of the traffic that crossed.

use serde::{Deserialize, Serialize};

/// What the hosts saw. The same for hosts of the kernel's and for those in memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Echo requests from the data centre's host to the cloud's, all the time.
    pub ping: Ping,
    /// TCP streams.
    pub tcp: Vec<Tcp>,
    /// UDP streams.
    pub udp: Vec<Udp>,
    /// Path MTU that the kernel of the data centre's host found out, in bytes.
    pub path_mtu: Option<u32>,
    /// Whether all is sent.
    pub done: bool,
}

/// Echo requests and their round trips.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// Requests sent.
    pub sent: u64,
    /// Answers.
    pub answered: u64,
    /// Shortest round trip, in microseconds.
    pub min_us: f64,
    /// Mean round trip, in microseconds.
    pub mean_us: f64,
    /// Longest round trip, in microseconds.
    pub max_us: f64,
}

impl Ping {
    /// Takes up an answer.
    pub fn answer(&mut self, round_trip: std::time::Duration) {
        let us = round_trip.as_secs_f64() * 1e6;
        self.min_us = if self.answered == 0 { us } else { self.min_us.min(us) };
        self.max_us = self.max_us.max(us);
        self.answered += 1;
        self.mean_us += (us - self.mean_us) / self.answered as f64;
    }
}

/// A way through the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From the data centre to the cloud.
    ToCloud,
    /// From the cloud to the data centre.
    ToIdc,
}

impl Way {
    /// An arrow, where the data centre stands on the left.
    #[must_use]
    pub const fn arrow(self) -> &'static str {
        match self {
            Self::ToCloud => "idc → cloud",
            Self::ToIdc => "idc ← cloud",
        }
    }
}

/// A TCP stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tcp {
    /// Its way.
    pub way: Way,
    /// Bytes that the sender's program wrote; known at the end.
    pub sent: Option<u64>,
    /// Bytes that the receiver's program read; of a stream to the cloud known at the end.
    pub received: Option<u64>,
    /// Bytes that have gone so far, as the data centre's host sees it.
    pub progress: u64,
    /// How long it took so far, in seconds.
    pub seconds: f64,
    /// Whether every byte came as it was sent; known at the end.
    pub intact: Option<bool>,
}

/// A UDP stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Udp {
    /// Its way.
    pub way: Way,
    /// Datagrams sent; known at the end.
    pub sent: Option<u64>,
    /// Datagrams received.
    pub received: Option<u64>,
    /// Datagrams that came damaged or from an address that the other host is not known by.
    pub wrong: u64,
    /// Datagrams that have gone so far, as the data centre's host sees it.
    pub progress: u64,
    /// Bytes of data in each.
    pub size: u64,
    /// How long it took so far, in seconds.
    pub seconds: f64,
}

/// Megabits a second.
#[must_use]
pub fn mbps(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 * 8.0 / seconds / 1e6 } else { 0.0 }
}

impl Report {
    /// What is not well about it, for a finished report: one sentence each.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.ping.answered == 0 {
            all.push("no echo request was answered".to_string());
        }
        for tcp in &self.tcp {
            if tcp.intact != Some(true) {
                all.push(format!("the TCP stream {} did not come through intact", tcp.way.arrow()));
            }
        }
        for udp in &self.udp {
            if udp.received.unwrap_or(0) == 0 {
                all.push(format!("no UDP datagram came through {}", udp.way.arrow()));
            }
            if udp.wrong > 0 {
                all.push(format!("{} UDP datagrams {} came damaged", udp.wrong, udp.way.arrow()));
            }
        }
        all
    }
}
