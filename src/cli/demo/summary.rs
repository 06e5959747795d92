//! The end: every packet accounted for, and what the hosts saw.

use std::{collections::BTreeMap, process::ExitCode};

use serde::Serialize;

use super::{
    report::Report,
    view::{drops, drops_text, grouped, hosts, say},
};
use crate::{
    cli::{NOT_WELL, run::Account},
    stats::{Reader, counters::group},
};

/// One gateway at the end.
#[derive(Debug, Serialize)]
pub struct GatewayEnd {
    /// Where its packets went.
    pub account: Account,
    /// Drops by reason.
    pub drops: BTreeMap<String, u64>,
    /// Frames lost before a port's socket, in the kernel, by port.
    pub lost_before: BTreeMap<String, u64>,
}

impl GatewayEnd {
    /// A gateway that has ended, by its account and its counters.
    #[must_use]
    pub fn new(account: Account, reader: &Reader) -> Self {
        let ports = reader.layout().group(group::PORT).map_or(&[][..], |group| &group.rows);
        let lost = ports.iter().enumerate().map(|(row, name)| {
            let columns = ["rx_ring_full", "rx_fill_empty", "rx_dropped"];
            (name.clone(), columns.iter().map(|column| reader.total(group::PORT, row, column)).sum())
        });
        Self { account, drops: drops(reader), lost_before: lost.filter(|(_, lost)| *lost > 0).collect() }
    }

    fn print(&self) {
        let a = &self.account;
        let verdict =
            if a.balanced { "every packet accounted for, every buffer home" } else { "NOT BALANCED" };
        say(&format!("\ngateway {}: {verdict}", a.gateway));
        say(&format!(
            "  {} received + {} originated = {} sent + {} delivered + {} dropped",
            grouped(a.received),
            grouped(a.originated),
            grouped(a.sent),
            grouped(a.delivered),
            grouped(a.dropped)
        ));
        say(&format!("  dropped: {}", drops_text(&self.drops)));
        if a.buffers_missing > 0 {
            say(&format!("  {} buffers missing", a.buffers_missing));
        }
        for (port, lost) in &self.lost_before {
            say(&format!("  {} lost in the kernel before port {port}: its ring was full", grouped(*lost)));
        }
    }

    /// Whether packets balance, and the drops by reason are all drops.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.account.balanced && self.drops.values().sum::<u64>() == self.account.dropped
    }
}

/// The whole.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Whether everything is well.
    pub well: bool,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// What the hosts saw.
    pub hosts: Report,
    /// The gateways.
    pub gateways: Vec<GatewayEnd>,
    /// What is not well.
    pub complaints: Vec<String>,
}

impl Summary {
    /// Judges.
    #[must_use]
    pub fn new(hosts: Report, gateways: Vec<GatewayEnd>, interrupted: bool) -> Self {
        // What was cut short proves nothing about the traffic, but packets balance at all times.
        let mut complaints = if interrupted { Vec::new() } else { hosts.complaints() };
        for gateway in gateways.iter().filter(|gateway| !gateway.is_well()) {
            complaints.push(format!("the packets of gateway {} do not balance", gateway.account.gateway));
        }
        Self { well: complaints.is_empty(), interrupted, hosts, gateways, complaints }
    }

    /// Prints it.
    #[must_use]
    pub fn print(&self, json: bool) -> ExitCode {
        if json {
            match serde_json::to_string_pretty(self) {
                Ok(text) => say(&text),
                Err(error) => tracing::error!("{error}"),
            }
        } else {
            let end = if self.interrupted { " (ended early)" } else { "" };
            say(&format!("\nwhat the hosts saw{end}:"));
            hosts(&self.hosts).iter().for_each(|line| say(&format!("  {line}")));
            if let Some(mtu) = self.hosts.path_mtu {
                say(&format!("  path MTU that TCP found out by the gateway's ICMP: {mtu}"));
            }
            self.gateways.iter().for_each(GatewayEnd::print);
            say("");
            match self.complaints.as_slice() {
                [] => say("all is well"),
                complaints => complaints.iter().for_each(|complaint| say(&format!("NOT WELL: {complaint}"))),
            }
        }
        if self.well { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) }
    }
}
