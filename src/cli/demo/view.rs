//! What crosses, live: in place on a terminal, a line a second elsewhere.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{Report, mbps};
use crate::stats::{Reader, counters::group};

/// Between two pictures on a terminal, and two lines elsewhere.
const IN_PLACE: Duration = Duration::from_millis(200);
const LINES: Duration = Duration::from_secs(1);

/// Counts of an interface or tunnel, and what they were at the last picture.
#[derive(Debug, Clone, Copy, Default)]
struct Traffic {
    packets: [u64; 2],
    bytes: [u64; 2],
    mbps: [f64; 2],
}

/// The live picture.
#[derive(Debug)]
pub struct View {
    bar: Option<ProgressBar>,
    silent: bool,
    interval: Duration,
    start: Instant,
    last: Instant,
    traffic: BTreeMap<(usize, &'static str, usize), Traffic>,
}

impl View {
    /// A picture below `title`, on the standard error where that is a terminal; lines on the standard output
    /// otherwise; nothing where `silent`.
    #[must_use]
    pub fn new(title: &str, silent: bool) -> Self {
        let terminal = io::stderr().is_terminal() && !silent;
        let bar = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        });
        if !silent {
            say(title);
        }
        let now = Instant::now();
        let interval = if terminal { IN_PLACE } else { LINES };
        Self { bar, silent, interval, start: now, last: now, traffic: BTreeMap::new() }
    }

    /// Shows how it stands, when it is time to.
    pub fn show(&mut self, readers: &[&Reader], report: &Report) {
        let since = self.last.elapsed();
        if self.silent || since < self.interval {
            return;
        }
        self.last = Instant::now();
        self.count(readers, since.as_secs_f64());
        match &self.bar {
            Some(bar) => bar.set_message(self.picture(readers, report)),
            None => say(&self.line(readers, report)),
        }
    }

    /// Leaves the last picture as it is.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }

    fn count(&mut self, readers: &[&Reader], seconds: f64) {
        for (number, reader) in readers.iter().enumerate() {
            for name in [group::INTERFACE, group::TUNNEL] {
                let rows = reader.layout().group(name).map_or(0, |group| group.rows.len());
                for row in 0..rows {
                    let old = self.traffic.entry((number, name, row)).or_default();
                    let packets = ["in_packets", "out_packets"].map(|column| reader.total(name, row, column));
                    let bytes = ["in_bytes", "out_bytes"].map(|column| reader.total(name, row, column));
                    let rate = |way: usize| mbps(bytes[way].saturating_sub(old.bytes[way]), seconds);
                    *old = Traffic { packets, bytes, mbps: [rate(0), rate(1)] };
                }
            }
        }
    }

    fn picture(&self, readers: &[&Reader], report: &Report) -> String {
        let mut text = String::new();
        let seconds = self.start.elapsed().as_secs_f64();
        let _ = writeln!(text, "\n{seconds:5.1} s{:>33}{:>27}", "in", "out");
        for (number, reader) in readers.iter().enumerate() {
            let gateway = &reader.layout().name;
            for (name, kind) in [(group::INTERFACE, "interface"), (group::TUNNEL, "tunnel")] {
                let rows = reader.layout().group(name).map_or(&[][..], |group| &group.rows);
                for (row, label) in rows.iter().enumerate() {
                    let traffic = self.traffic.get(&(number, name, row)).copied().unwrap_or_default();
                    let label = format!("{gateway} {kind} {label}");
                    let _ = write!(text, "  {label:<22}");
                    for (packets, mbps) in traffic.packets.iter().zip(traffic.mbps) {
                        let _ = write!(text, "{:>13}{mbps:>9.1} Mbps", grouped(*packets));
                    }
                    text.push('\n');
                }
            }
        }
        for reader in readers {
            let _ = writeln!(text, "  {} dropped {}", reader.layout().name, drops_text(&drops(reader)));
        }
        for line in hosts(report) {
            let _ = write!(text, "  {line}\n");
        }
        text.trim_end().to_string()
    }

    fn line(&self, readers: &[&Reader], report: &Report) -> String {
        let mut text = format!("{:5.1} s", self.start.elapsed().as_secs_f64());
        for (number, reader) in readers.iter().enumerate() {
            let traffic = self.traffic.get(&(number, group::TUNNEL, 0)).copied().unwrap_or_default();
            let ([came, went], [rate_in, rate_out]) = (traffic.packets, traffic.mbps);
            let dropped: u64 = drops(reader).values().sum();
            let _ = write!(
                text,
                " · {}: tunnel in {} ({rate_in:.0} Mbps) out {} ({rate_out:.0} Mbps), dropped {dropped}",
                reader.layout().name,
                grouped(came),
                grouped(went),
            );
        }
        let ping = &report.ping;
        let _ = write!(text, " · ping {}/{} {:.2} ms", ping.answered, ping.sent, ping.mean_us / 1e3);
        if let Some(now) = hosts(report).pop().filter(|_| report.tcp.len() + report.udp.len() > 0) {
            let _ = write!(text, " · {now}");
        }
        text
    }
}

/// Prints a line. Nobody may be reading any more, which is not for this program to complain about.
pub fn say(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Drops by reason, as far as there are any.
#[must_use]
pub fn drops(reader: &Reader) -> BTreeMap<String, u64> {
    let columns = reader.layout().group(group::DROP).map_or(&[][..], |group| &group.columns);
    let count = |reason: &String| (reason.clone(), reader.sum(group::DROP, reason));
    columns.iter().map(count).filter(|(_, count)| *count > 0).collect()
}

/// Drops by reason, in words.
#[must_use]
pub fn drops_text(drops: &BTreeMap<String, u64>) -> String {
    if drops.is_empty() {
        return "nothing".into();
    }
    let each = drops.iter().map(|(reason, count)| format!("{} {reason}", grouped(*count)));
    each.collect::<Vec<_>>().join(", ")
}

/// A number with its thousands set apart.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What the hosts saw, a line each.
#[must_use]
pub fn hosts(report: &Report) -> Vec<String> {
    let ping = &report.ping;
    let mut lines = vec![format!(
        "ping  idc ↔ cloud  {} of {} answered, round trip {:.3} / {:.3} / {:.3} ms (least, mean, most)",
        ping.answered,
        ping.sent,
        ping.min_us / 1e3,
        ping.mean_us / 1e3,
        ping.max_us / 1e3
    )];
    for tcp in &report.tcp {
        let rate = mbps(tcp.received.unwrap_or(tcp.progress), tcp.seconds);
        let end = match tcp.intact {
            None => String::new(),
            Some(true) => ", every byte as it was sent".into(),
            Some(false) => ", NOT as it was sent".into(),
        };
        let megabytes = tcp.received.unwrap_or(tcp.progress) as f64 / 1e6;
        lines.push(format!("TCP   {}  {rate:.0} Mbps, {megabytes:.1} MB{end}", tcp.way.arrow()));
    }
    for udp in &report.udp {
        let count = udp.received.unwrap_or(udp.progress);
        let rate = mbps(count * udp.size, udp.seconds);
        let end = match (udp.sent, udp.received) {
            (Some(sent), Some(received)) => {
                let lost = sent.saturating_sub(received);
                let share = lost as f64 * 100.0 / sent.max(1) as f64;
                format!(" of {}, {} lost ({share:.2} %)", grouped(sent), grouped(lost))
            }
            _ => String::new(),
        };
        lines.push(format!("UDP   {}  {rate:.0} Mbps, {} datagrams{end}", udp.way.arrow(), grouped(count)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let cases = [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }
}
