//! What comes from the counters: summary, interfaces, ports, tunnels, drops, stages.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{
    Facts, Shown,
    sample::Between,
    table::{
        Column::{Number, Text},
        Table, mbps, or_dash, rate, tenth,
    },
};
use crate::{
    control::view::{InterfaceRow, PortRow, Topic, TunnelRow, XdpRow},
    packet::DropReason,
    stats::{WorkerColumn, counters::group},
};

/// Reasons that a summary names.
const BUSIEST: usize = 5;

/// All counters of a row, by column.
fn counters(between: Between<'_>, group: &str, row: &str) -> Map<String, Value> {
    let columns = between.now.columns(group);
    columns.map(|column| (column.to_string(), between.now.get(group, row, column).into())).collect()
}

/// Rates of all columns of a row, where two moments are known.
fn rates(between: Between<'_>, group: &str, row: &str) -> Option<Value> {
    between.seconds()?;
    let columns = between.now.columns(group);
    let rates = columns.filter_map(|c| Some((c.to_string(), between.rate(group, row, c)?.into())));
    Some(Value::Object(rates.collect()))
}

/// Name, counters, rates and facts of a row, as one object.
fn object(between: Between<'_>, group: &str, row: &str, facts: Option<Value>) -> Value {
    let mut object = Map::new();
    object.insert("name".into(), row.into());
    if let Some(Value::Object(facts)) = facts {
        object.extend(facts);
    }
    object.insert("counters".into(), counters(between, group, row).into());
    if let Some(rates) = rates(between, group, row) {
        object.insert("per_second".into(), rates);
    }
    object.into()
}

fn drops_of(between: Between<'_>, interface: &str) -> u64 {
    between.now.columns(group::DROP).map(|reason| between.now.get(group::DROP, interface, reason)).sum()
}

/// Columns of packets and bytes in and out: totals, or rates where they are known.
fn traffic_headings(between: Between<'_>) -> [super::table::Column; 4] {
    if between.before.is_some() {
        [Number("IN/s"), Number("IN Mbps"), Number("OUT/s"), Number("OUT Mbps")]
    } else {
        [Number("IN PACKETS"), Number("IN BYTES"), Number("OUT PACKETS"), Number("OUT BYTES")]
    }
}

fn traffic_cells(between: Between<'_>, group: &str, row: &str) -> [String; 4] {
    let columns = ["in_packets", "in_bytes", "out_packets", "out_bytes"];
    if between.before.is_none() {
        return columns.map(|column| between.now.get(group, row, column).to_string());
    }
    columns.map(|column| {
        let value = between.rate(group, row, column);
        if column.ends_with("bytes") { mbps(value) } else { rate(value) }
    })
}

/// Limits in and out.
fn limit(rates: [Option<u64>; 2]) -> String {
    rates.map(|rate| rate.map_or_else(|| "-".into(), crate::config::rate_text)).join("/")
}

pub fn interfaces(between: Between<'_>, facts: &mut Facts) -> Shown {
    let known: Vec<InterfaceRow> = facts.want(Topic::Interfaces);
    let first = vec![Text("INTERFACE"), Text("PORT"), Text("VLAN"), Text("GATEWAY"), Text("ADDRESSES")];
    let mut last = vec![Number("DROPS")];
    let limited = known.iter().any(|row| row.limit != [None; 2]);
    last.extend(limited.then_some(Text("LIMIT IN/OUT")));
    let mut table = Table::new(first.into_iter().chain(traffic_headings(between)).chain(last).collect());
    let mut list = Vec::new();
    for name in between.now.rows(group::INTERFACE) {
        let facts = known.iter().find(|row| row.name == name);
        let word = |f: fn(&InterfaceRow) -> String| or_dash(facts.map(f));
        let mut cells = vec![
            name.to_string(),
            word(|row| row.port.clone()),
            word(|row| row.vlan.trim_start_matches("VLAN ").into()),
            word(|row| row.gateway.clone()),
            word(|row| row.addresses.join(" ")),
        ];
        cells.extend(traffic_cells(between, group::INTERFACE, name));
        let drops = drops_of(between, name);
        cells.push(drops.to_string());
        cells.extend(limited.then(|| limit(facts.map_or([None; 2], |row| row.limit))));
        table.row(cells);
        let mut value = object(between, group::INTERFACE, name, facts.map(|row| json!(row)));
        value["drops"] = drops.into();
        list.push(value);
    }
    Shown { json: list.into(), text: table.to_string() }
}

pub fn tunnels(between: Between<'_>, facts: &mut Facts) -> Shown {
    let known: Vec<TunnelRow> = facts.want(Topic::Tunnels);
    let first = vec![
        Text("TUNNEL"),
        Text("GATEWAY"),
        Text("LOCAL"),
        Text("REMOTE"),
        Text("VIA"),
        Text("STATE"),
        Number("MTU"),
        Number("PATH MTU"),
    ];
    let limited = known.iter().any(|row| row.limit != [None; 2]);
    let last = limited.then_some(Text("LIMIT IN/OUT"));
    let mut table = Table::new(first.into_iter().chain(traffic_headings(between)).chain(last).collect());
    let mut list = Vec::new();
    for name in between.now.rows(group::TUNNEL) {
        let facts = known.iter().find(|row| row.name == name);
        let word = |f: fn(&TunnelRow) -> String| or_dash(facts.map(f));
        let mut cells = vec![
            name.to_string(),
            word(|row| row.gateway.clone()),
            word(|row| row.local.to_string()),
            word(|row| row.remote.to_string()),
            or_dash(facts.and_then(|row| row.via)),
            facts.map_or("-".into(), |row| match &row.state {
                Some(_) if row.unreachable => "unreachable".into(),
                Some(state) => state.clone(),
                None => "no route".into(),
            }),
            word(|row| row.mtu.to_string()),
            or_dash(facts.and_then(|row| row.path_mtu)),
        ];
        cells.extend(traffic_cells(between, group::TUNNEL, name));
        cells.extend(limited.then(|| limit(facts.map_or([None; 2], |row| row.limit))));
        table.row(cells);
        list.push(object(between, group::TUNNEL, name, facts.map(|row| json!(row))));
    }
    let text = if table.is_empty() { "the configuration has no tunnel\n".into() } else { table.to_string() };
    Shown { json: list.into(), text }
}

pub fn policies(between: Between<'_>) -> Shown {
    let mut table = Table::new([Text("POLICY")].into_iter().chain(traffic_headings(between)).collect());
    let mut list = Vec::new();
    for name in between.now.rows(group::POLICY) {
        let mut cells = vec![name.to_string()];
        cells.extend(traffic_cells(between, group::POLICY, name));
        table.row(cells);
        list.push(object(between, group::POLICY, name, None));
    }
    let text = if table.is_empty() { "the configuration has no policy\n".into() } else { table.to_string() };
    Shown { json: list.into(), text }
}

pub fn ports(between: Between<'_>, facts: &mut Facts) -> Shown {
    let known: Vec<PortRow> = facts.want(Topic::Ports);
    let xdp: Vec<XdpRow> = facts.want(Topic::Xdp);
    let mut table = Table::new(vec![
        Text("PORT"),
        Text("HEALTH"),
        Number("RX"),
        Number("TX"),
        Number("RX/s"),
        Number("RX Mbps"),
        Number("TX/s"),
        Number("TX Mbps"),
        Number("TX FULL"),
        Number("RING FULL"),
        Number("NO BUFFER"),
        Number("RX DROPPED"),
        Number("INVALID"),
    ]);
    let mut opened = String::new();
    let mut list = Vec::new();
    for name in between.now.rows(group::PORT) {
        let facts = known.iter().find(|row| row.name == name);
        let count = |column: &str| between.now.get(group::PORT, name, column);
        let per_second = |column: &str| between.rate(group::PORT, name, column);
        let health = match count("health") {
            0 => "up",
            1 => "down",
            _ => "gone",
        };
        table.row(vec![
            name.into(),
            health.into(),
            count("rx_packets").to_string(),
            count("tx_packets").to_string(),
            rate(per_second("rx_packets")),
            mbps(per_second("rx_bytes")),
            rate(per_second("tx_packets")),
            mbps(per_second("tx_bytes")),
            count("tx_full").to_string(),
            count("rx_ring_full").to_string(),
            count("rx_fill_empty").to_string(),
            count("rx_dropped").to_string(),
            count("invalid_descriptors").to_string(),
        ]);
        if let Some(facts) = facts {
            opened += &format!("{name}: {}, {}, MTU {}\n", facts.description, facts.mac, facts.mtu);
        }
        let mut value = object(between, group::PORT, name, facts.map(|row| json!(row)));
        value["health"] = health.into();
        let verdicts = xdp.iter().filter(|row| row.port == name);
        let verdicts: Map<String, Value> =
            verdicts.map(|row| (row.verdict.clone(), row.frames.into())).collect();
        if !verdicts.is_empty() {
            value["xdp"] = verdicts.into();
        }
        list.push(value);
    }
    let mut decided = Table::new(vec![Text("XDP"), Text("VERDICT"), Number("FRAMES")]);
    for row in xdp.iter().filter(|row| row.frames > 0) {
        decided.row(vec![row.port.clone(), row.verdict.clone(), row.frames.to_string()]);
    }
    let mut text = table.to_string();
    if !opened.is_empty() {
        text += &format!("\n{opened}");
    }
    if !decided.is_empty() {
        text += &format!("\n{decided}");
    }
    Shown { json: list.into(), text }
}

fn explanation(reason: &str) -> &'static str {
    let known = DropReason::ALL.iter().find(|known| known.name() == reason);
    known.map_or("", |known| known.explanation().trim())
}

pub fn drops(between: Between<'_>, explain: bool, by_interface: bool, all: bool) -> Shown {
    let mut columns = vec![Text("REASON"), Number("PACKETS"), Number("PACKETS/s")];
    if by_interface {
        columns.insert(0, Text("INTERFACE"));
    }
    if explain {
        columns.push(Text("MEANING"));
    }
    let mut table = Table::new(columns);
    let mut list = Vec::new();
    let mut add = |interface: Option<&str>, reason: &str, count: u64, per_second: Option<f64>| {
        let mut value = json!({ "reason": reason, "packets": count, "explanation": explanation(reason) });
        if let Some(interface) = interface {
            value["interface"] = interface.into();
        }
        if let Some(per_second) = per_second {
            value["per_second"] = per_second.into();
        }
        list.push(value);
        if count == 0 && !all {
            return;
        }
        let mut cells = vec![reason.to_string(), count.to_string(), rate(per_second)];
        if let Some(interface) = interface {
            cells.insert(0, interface.into());
        }
        if explain {
            cells.push(explanation(reason).into());
        }
        table.row(cells);
    };
    for reason in between.now.columns(group::DROP) {
        if by_interface {
            for interface in between.now.rows(group::DROP) {
                let count = between.now.get(group::DROP, interface, reason);
                add(Some(interface), reason, count, between.rate(group::DROP, interface, reason));
            }
        } else {
            let count = between.now.sum(group::DROP, reason);
            add(None, reason, count, between.rate_of_sum(group::DROP, reason));
        }
    }
    let text = if table.is_empty() { "nothing was dropped\n".into() } else { table.to_string() };
    Shown { json: list.into(), text }
}

pub fn stages(between: Between<'_>) -> Shown {
    let hz = between.now.layout().tick_hz.max(1) as f64;
    let names: Vec<&str> = between.now.rows(group::STAGE).collect();
    let of = |name: &str, column: &str| between.recent(group::STAGE, name, column);
    let all: u64 = names.iter().map(|name| of(name, "ticks")).sum();
    let mut table = Table::new(vec![
        Text("STAGE"),
        Number("PACKETS"),
        Number("BURSTS"),
        Number("PACKETS/BURST"),
        Number("ns/PACKET"),
        Number("CYCLES/PACKET"),
        Number("SHARE %"),
    ]);
    let mut list = Vec::new();
    for name in names {
        let (packets, bursts, ticks) = (of(name, "packets"), of(name, "bursts"), of(name, "ticks"));
        let each = |what: f64, of: u64| (of > 0).then(|| what / of as f64);
        let ns = each(ticks as f64 * 1e9 / hz, packets);
        let cycles = each(ticks as f64, packets);
        let share = each(ticks as f64 * 100.0, all);
        table.row(vec![
            name.into(),
            packets.to_string(),
            bursts.to_string(),
            tenth(each(packets as f64, bursts)),
            tenth(ns),
            tenth(cycles),
            tenth(share),
        ]);
        list.push(json!({
            "name": name,
            "packets": packets,
            "bursts": bursts,
            "ticks": ticks,
            "packets_per_burst": each(packets as f64, bursts),
            "ns_per_packet": ns,
            "cycles_per_packet": cycles,
            "share_percent": share,
        }));
    }
    let (load, workers) = load(between);
    let json = json!({ "tick_hz": between.now.layout().tick_hz, "stages": list, "workers": workers });
    Shown { json, text: format!("{table}\n{load}") }
}

/// How busy each worker is.
fn load(between: Between<'_>) -> (Table, Vec<Value>) {
    let hz = between.now.layout().tick_hz.max(1) as f64;
    let seconds = between.seconds().unwrap_or_else(|| counting_for(between) as f64);
    let mut table = Table::new(vec![
        Text("WORKER"),
        Number("BUSY %"),
        Number("IDLE ROUNDS %"),
        Number("PACKETS"),
        Number("PACKETS/BURST"),
    ]);
    let mut list = Vec::new();
    for number in 0..between.now.workers().len() {
        let of = |column: WorkerColumn| between.recent_of_worker(number, column as usize);
        let share = |part: f64, all: f64| (all > 0.0).then(|| (100.0 * part / all).min(100.0));
        let busy = share(of(WorkerColumn::BusyTicks) as f64, seconds * hz);
        let idle = share(of(WorkerColumn::IdleRounds) as f64, of(WorkerColumn::Rounds) as f64);
        let (packets, bursts) = (of(WorkerColumn::Received), of(WorkerColumn::Bursts));
        let burst = (bursts > 0).then(|| packets as f64 / bursts as f64);
        table.row(vec![number.to_string(), tenth(busy), tenth(idle), packets.to_string(), tenth(burst)]);
        list.push(json!({
            "worker": number,
            "busy_percent": busy,
            "idle_rounds_percent": idle,
            "packets": packets,
            "packets_per_burst": burst,
        }));
    }
    (table, list)
}

/// Seconds since the counters began.
fn counting_for(between: Between<'_>) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    now.saturating_sub(between.now.layout().started)
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

pub fn summary(between: Between<'_>) -> Shown {
    let layout = between.now.layout();
    let count = |column: &str| between.now.get(group::WORKER, "all", column);
    let up = counting_for(between);
    let mut reasons: Vec<(&str, u64)> = between
        .now
        .columns(group::DROP)
        .map(|reason| (reason, between.now.sum(group::DROP, reason)))
        .filter(|(_, count)| *count > 0)
        .collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let dropped: u64 = reasons.iter().map(|(_, count)| count).sum();
    let [received, originated, sent, delivered, waiting] =
        ["received", "originated", "sent", "delivered", "waiting"].map(count);
    let difference = i128::from(received) + i128::from(originated)
        - i128::from(sent)
        - i128::from(delivered)
        - i128::from(waiting)
        - i128::from(dropped);
    let balance = match difference {
        0 => "every packet is accounted for".into(),
        n => format!("{n} under way while this was read"),
    };
    let [rounds, idle] = ["rounds", "idle_rounds"].map(|c| between.recent(group::WORKER, "all", c));
    let idle_share = (rounds > 0).then(|| idle as f64 * 100.0 / rounds as f64);
    let port_rates = ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"]
        .map(|column| between.rate_of_sum(group::PORT, column));

    let mut text = format!(
        "gateway  {}: process {}, {} worker(s), counting for {}\n",
        layout.name,
        layout.pid,
        layout.workers,
        duration(up)
    );
    text += &format!(
        "packets  received {received} + originated {originated} = sent {sent} + delivered {delivered} + waiting {waiting} + dropped {dropped}: {balance}\n"
    );
    if let [rx, rx_bytes, tx, tx_bytes] = port_rates
        && between.before.is_some()
    {
        text += &format!(
            "rates    in {} packets/s, {} Mbps; out {} packets/s, {} Mbps\n",
            rate(rx),
            mbps(rx_bytes),
            rate(tx),
            mbps(tx_bytes)
        );
    }
    text += &format!("workers  {} % of rounds found nothing to do\n", tenth(idle_share));
    let busiest: Vec<String> =
        reasons.iter().take(BUSIEST).map(|(reason, count)| format!("{reason} {count}")).collect();
    text += &format!("drops    {}\n", if busiest.is_empty() { "none".into() } else { busiest.join(", ") });

    let columns: Vec<&str> = between.now.columns(group::WORKER).collect();
    let workers: Vec<Value> = between
        .now
        .workers()
        .iter()
        .map(|values| columns.iter().zip(values).map(|(c, v)| ((*c).to_string(), Value::from(*v))).collect())
        .map(Value::Object)
        .collect();
    let mut json = json!({
        "name": layout.name,
        "pid": layout.pid,
        "started": layout.started,
        "counting_seconds": up,
        "balance": {
            "received": received,
            "originated": originated,
            "sent": sent,
            "delivered": delivered,
            "waiting": waiting,
            "dropped": dropped,
            "difference": i64::try_from(difference).unwrap_or(i64::MAX),
        },
        "idle_percent": idle_share,
        "workers": workers,
        "drops": reasons.iter().map(|(r, n)| ((*r).to_string(), Value::from(*n))).collect::<Map<_, _>>(),
    });
    if between.seconds().is_some() {
        json["per_second"] = json!({
            "rx_packets": port_rates[0],
            "rx_bytes": port_rates[1],
            "tx_packets": port_rates[2],
            "tx_bytes": port_rates[3],
        });
    }
    Shown { json, text }
}
