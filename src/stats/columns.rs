//! What is counted: the columns of each group, and the rows that a gateway has.

use super::Layout;
use crate::packet::DropReason;

/// Declares the columns of a group once: variant and name.
macro_rules! columns {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every column, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The column's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

columns! {
    /// What a worker counts of itself. The first five balance:
    /// received + originated = sent + delivered + waiting + all drops.
    WorkerColumn {
        /// Packets taken from ports and host TAPs.
        Received = "received",
        /// Packets made here: ICMP, ARP, fragments beyond the first.
        Originated = "originated",
        /// Packets handed to ports.
        Sent = "sent",
        /// Packets handed to the host.
        Delivered = "delivered",
        /// Packets that wait now (for a neighbour). A gauge.
        Waiting = "waiting",
        /// Rounds over all ports.
        Rounds = "rounds",
        /// Rounds that found nothing.
        IdleRounds = "idle_rounds",
        /// Bursts that went through the pipeline.
        Bursts = "bursts",
        /// Times the worker slept on its rings.
        Sleeps = "sleeps",
        /// Ticks of rounds that found something to do. The others went by in idle rounds and in sleep.
        BusyTicks = "busy_ticks",
        /// ICMP errors that were due but may not be sent (RFC 1812 4.3.2.7), or whose rate was spent.
        IcmpSuppressed = "icmp_suppressed",
        /// Events lost because the control thread takes no more.
        EventsLost = "events_lost",
        /// Snapshots of tables taken up.
        Snapshots = "snapshots",
        /// NAT keepalives sent (RFC 3948 2.3).
        Keepalives = "keepalives",
        /// Dummy packets sent (RFC 4303 2.6).
        Dummies = "dummies",
        /// Packets on UDP port 4500 that are not ESP: IKE behind its marker (RFC 3948 2.2), for the host.
        NonEsp = "non_esp",
        /// TCP connections whose MSS was lowered, each way.
        MssClamped = "mss_clamped",
        /// NAT sessions now. A gauge.
        NatSessions = "nat_sessions",
        /// NAT sessions made.
        NatMade = "nat_made",
        /// NAT sessions that ended.
        NatEnded = "nat_ended",
        /// Packets handed to the worker that has their NAT session.
        HandedOver = "handed_over",
        /// Packets that other workers handed to this one.
        TakenOver = "taken_over",
        /// Beginnings and ends of NAT sessions that the log took no more of.
        NatLogLost = "nat_log_lost",
        /// Probes of health sent: ICMP echo requests and BFD packets.
        Probes = "probes",
        /// Answers to them, and BFD packets of other ends; these count as drops, `local-consumed`, in the balance.
        ProbesHeard = "probes_heard",
        /// Echo requests of other ends answered in their tunnels.
        ProbesAnswered = "probes_answered",
    }
}

columns! {
    /// What is counted of a stage, in the bursts that are timed.
    StageColumn {
        /// Packets that were in the burst when the stage was timed.
        Packets = "packets",
        /// Bursts that were timed.
        Bursts = "bursts",
        /// Ticks that the stage took.
        Ticks = "ticks",
    }
}

columns! {
    /// What is counted of an interface, a tunnel or a policy. In is towards the gateway.
    TrafficColumn {
        /// Packets that came in.
        InPackets = "in_packets",
        /// Bytes that came in (interface: frames; tunnel: inner packets).
        InBytes = "in_bytes",
        /// Packets that went out.
        OutPackets = "out_packets",
        /// Bytes that went out.
        OutBytes = "out_bytes",
    }
}

columns! {
    /// What is counted of a port, beside what its interfaces count.
    PortColumn {
        /// Frames taken from the port.
        RxPackets = "rx_packets",
        /// Bytes of them.
        RxBytes = "rx_bytes",
        /// Frames handed to the port.
        TxPackets = "tx_packets",
        /// Bytes of them.
        TxBytes = "tx_bytes",
        /// Frames the port did not take.
        TxFull = "tx_full",
        /// Frames lost in the device or kernel because the receive ring was full.
        RxRingFull = "rx_ring_full",
        /// Frames lost because there was no buffer to receive into.
        RxFillEmpty = "rx_fill_empty",
        /// Frames lost on receive for other reasons.
        RxDropped = "rx_dropped",
        /// Descriptors the kernel refused.
        InvalidDescriptors = "invalid_descriptors",
        /// System calls to make the kernel send.
        TxKicks = "tx_kicks",
        /// System calls to make the kernel receive.
        RxWakeups = "rx_wakeups",
        /// 0 up, 1 down, 2 gone.
        Health = "health",
    }
}

columns! {
    /// What is counted of a security association.
    SaColumn {
        /// Packets sealed or opened.
        Packets = "packets",
        /// Bytes of ESP payload sealed or opened.
        Bytes = "bytes",
        /// Packets refused for their ICV.
        Integrity = "integrity",
        /// Packets refused as replayed.
        Replayed = "replayed",
        /// Packets refused as older than the window.
        Late = "late",
        /// Packets that came from or to another place, or in another encapsulation, than the SA says.
        Outer = "outer",
        /// Authentic packets whose padding, next header or inner packet is wrong.
        Malformed = "malformed",
        /// Packets refused because the SA's lifetime is over.
        Expired = "expired",
        /// Packets that found no sequence number.
        Exhausted = "exhausted",
        /// Greatest distance that an accepted packet lay behind the newest.
        Lateness = "lateness",
        /// Accepted packets that lay one behind the newest.
        Behind1 = "behind_1",
        /// Accepted packets that lay 2 to 3 behind the newest.
        Behind2 = "behind_2",
        /// Accepted packets that lay 4 to 7 behind the newest.
        Behind4 = "behind_4",
        /// Accepted packets that lay 8 to 15 behind the newest.
        Behind8 = "behind_8",
        /// Accepted packets that lay 16 to 31 behind the newest.
        Behind16 = "behind_16",
        /// Accepted packets that lay 32 to 63 behind the newest.
        Behind32 = "behind_32",
        /// Accepted packets that lay 64 to 127 behind the newest.
        Behind64 = "behind_64",
        /// Accepted packets that lay 128 to 255 behind the newest.
        Behind128 = "behind_128",
        /// Accepted packets that lay 256 to 511 behind the newest.
        Behind256 = "behind_256",
        /// Accepted packets that lay 512 to 1023 behind the newest.
        Behind512 = "behind_512",
        /// Accepted packets that lay 1024 to 2047 behind the newest.
        Behind1024 = "behind_1024",
        /// Accepted packets that lay 2048 to 4095 behind the newest.
        Behind2048 = "behind_2048",
        /// Accepted packets that lay 4096 to 8191 behind the newest.
        Behind4096 = "behind_4096",
        /// Accepted packets that lay 8192 to 16383 behind the newest.
        Behind8192 = "behind_8192",
        /// Accepted packets that lay 16384 to 32767 behind the newest.
        Behind16384 = "behind_16384",
        /// Accepted packets that lay 32768 or more behind the newest.
        Behind32768 = "behind_32768",
        /// Packets whose inner and outer ECN fields form a combination that no sender makes (RFC 6040 4.2).
        EcnAlarms = "ecn_alarms",
    }
}

columns! {
    /// What is known of the health of an interface or tunnel. All are gauges of the control thread's.
    HealthColumn {
        /// 0 init, 1 up, 2 down, 3 held down, 4 waiting for an operator.
        State = "state",
        /// 1 while traffic may go this way.
        Usable = "usable",
        /// How often it went down or came back.
        Switches = "switches",
        /// Probes sent.
        Sent = "sent",
        /// Probes that no answer came to in time.
        Lost = "lost",
        /// Probes lost in the last minute, of a million.
        LossMinute = "loss_minute_ppm",
        /// Probes lost in the last hour, of a million.
        LossHour = "loss_hour_ppm",
        /// Round trip of the last answer, in microseconds.
        Delay = "delay_us",
        /// Median of the round trips, in microseconds.
        Delay50 = "delay_p50_us",
        /// 99th percentile of the round trips, in microseconds.
        Delay99 = "delay_p99_us",
        /// Whether the BFD session is up: 0 AdminDown, 1 Down, 2 Init, 3 Up.
        BfdState = "bfd_state",
        /// BFD packets refused: malformed, or of no session.
        BfdRefused = "bfd_refused",
    }
}

columns! {
    /// What is counted of a NAT pool.
    PoolColumn {
        /// Sessions now. A gauge.
        Sessions = "sessions",
        /// Sessions made.
        Made = "made",
        /// Packets dropped because no port was free.
        Exhausted = "exhausted",
        /// Of 1000 ports that were tried of late for new sessions, how many were taken: exhaustion comes when this
        /// nears 1000. A gauge.
        Occupied = "occupied",
    }
}

columns! {
    /// What is counted where a gateway, an interface or a tunnel has a limit: IP packets and their bytes.
    LimitColumn {
        /// Packets in that passed.
        InPackets = "in_packets",
        /// Bytes of them.
        InBytes = "in_bytes",
        /// Packets in that were dropped.
        InDropped = "in_dropped",
        /// Bytes of them.
        InDroppedBytes = "in_dropped_bytes",
        /// Packets out that passed.
        OutPackets = "out_packets",
        /// Bytes of them.
        OutBytes = "out_bytes",
        /// Packets out that were dropped.
        OutDropped = "out_dropped",
        /// Bytes of them.
        OutDroppedBytes = "out_dropped_bytes",
    }
}

/// Names of a segment's groups.
pub mod group {
    /// [`WorkerColumn`](super::WorkerColumn)s; one row.
    pub const WORKER: &str = "worker";
    /// Drop reasons as columns; one row for each interface, and a first one for packets of none.
    pub const DROP: &str = "drop";
    /// [`StageColumn`](super::StageColumn)s.
    pub const STAGE: &str = "stage";
    /// [`PortColumn`](super::PortColumn)s.
    pub const PORT: &str = "port";
    /// [`TrafficColumn`](super::TrafficColumn)s of interfaces.
    pub const INTERFACE: &str = "interface";
    /// [`TrafficColumn`](super::TrafficColumn)s of tunnels.
    pub const TUNNEL: &str = "tunnel";
    /// [`TrafficColumn`](super::TrafficColumn)s of policies: what each decided about.
    pub const POLICY: &str = "policy";
    /// [`SaColumn`](super::SaColumn)s.
    pub const SA: &str = "sa";
    /// [`PoolColumn`](super::PoolColumn)s.
    pub const POOL: &str = "pool";
    /// [`HealthColumn`](super::HealthColumn)s of `interface NAME` and `tunnel NAME`, in the block of the first worker.
    pub const HEALTH: &str = "health";
    /// [`LimitColumn`](super::LimitColumn)s of gateways, interfaces and tunnels, each with that word before its name.
    pub const LIMIT: &str = "limit";
}

/// The row of drops of packets that belong to no interface and came by no port.
pub const NO_INTERFACE: &str = "-";

/// The row of drops of packets that came by a port and belong to none of its interfaces.
#[must_use]
pub fn port_row(port: &str) -> String {
    format!("port {port}")
}

/// The row of the health of an interface or tunnel: `kind` says which.
#[must_use]
pub fn health_row(kind: &str, name: &str) -> String {
    format!("{kind} {name}")
}

/// What rows the segment of a gateway has.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Names of stages.
    pub stages: Vec<String>,
    /// Names of ports.
    pub ports: Vec<String>,
    /// Names of interfaces.
    pub interfaces: Vec<String>,
    /// Names of tunnels.
    pub tunnels: Vec<String>,
    /// Names of policies, each with its gateway's before it.
    pub policies: Vec<String>,
    /// Names of security associations.
    pub sas: Vec<String>,
    /// Names of NAT pools.
    pub pools: Vec<String>,
    /// Names of interfaces and tunnels, by [`health_row`].
    pub health: Vec<String>,
    /// Gateways, interfaces and tunnels, which may have limits.
    pub limits: Vec<String>,
}

impl Rows {
    /// The layout of a gateway's segment.
    #[must_use]
    pub fn layout(self, name: &str, workers: usize, tick_hz: u64) -> Layout {
        let columns = |names: &mut dyn Iterator<Item = &'static str>| names.map(String::from).collect();
        let traffic: Vec<String> = columns(&mut TrafficColumn::ALL.iter().map(|c| c.name()));
        let mut drop_rows = vec![NO_INTERFACE.to_string()];
        drop_rows.extend_from_slice(&self.interfaces);
        drop_rows.extend(self.ports.iter().map(|port| port_row(port)));
        let groups = vec![
            (group::WORKER, vec!["all".into()], columns(&mut WorkerColumn::ALL.iter().map(|c| c.name()))),
            (group::DROP, drop_rows, columns(&mut DropReason::ALL.iter().map(|r| r.name()))),
            (group::STAGE, self.stages, columns(&mut StageColumn::ALL.iter().map(|c| c.name()))),
            (group::PORT, self.ports, columns(&mut PortColumn::ALL.iter().map(|c| c.name()))),
            (group::INTERFACE, self.interfaces, traffic.clone()),
            (group::TUNNEL, self.tunnels, traffic.clone()),
            (group::POLICY, self.policies, traffic),
            (group::SA, self.sas, columns(&mut SaColumn::ALL.iter().map(|c| c.name()))),
            (group::HEALTH, self.health, columns(&mut HealthColumn::ALL.iter().map(|c| c.name()))),
            (group::POOL, self.pools, columns(&mut PoolColumn::ALL.iter().map(|c| c.name()))),
            (group::LIMIT, self.limits, columns(&mut LimitColumn::ALL.iter().map(|c| c.name()))),
        ];
        Layout::new(name, workers, tick_hz, groups)
    }
}
