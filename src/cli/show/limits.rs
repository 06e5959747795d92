//! Limits and top talkers.

use serde_json::json;

use super::{
    Facts, Shown,
    table::{
        Column::{Number, Text},
        Table, or_dash, tenth,
    },
};
use crate::{
    config::rate_text,
    control::{
        limits::{LimitRow, TalkerRow, TalkerWay},
        view::{Show, Topic},
    },
};

/// Bits a second in megabits.
fn mbps(bits: u64) -> String {
    format!("{:.2}", bits as f64 / 1e6)
}

fn rate(rate: Option<u64>) -> String {
    rate.map_or_else(|| "none".into(), rate_text)
}

/// Every limit.
pub fn limits(facts: &mut Facts) -> Result<Shown, String> {
    let rows: Vec<LimitRow> = facts.need(&Show::first(Topic::Limits))?;
    let mut table = Table::new(vec![
        Text("OF"),
        Text("NAME"),
        Text("ADDRESS"),
        Text("WAY"),
        Text("RATE"),
        Number("BURST"),
        Text("SET BY"),
        Number("NOW Mbps"),
        Number("USED %"),
        Number("PASSED"),
        Number("BYTES"),
        Number("DROPPED"),
        Number("DROPPED BYTES"),
    ]);
    for row in &rows {
        let of_each = row.kind == "address";
        let count = |n: u64| if of_each { "-".into() } else { n.to_string() };
        table.row(vec![
            row.kind.clone(),
            row.name.clone(),
            row.address.clone().unwrap_or_else(|| if of_each { "each".into() } else { "-".into() }),
            row.way.clone(),
            rate(row.rate),
            or_dash(row.burst),
            if row.by_command { "command".into() } else { "file".into() },
            if of_each { "-".into() } else { mbps(row.bits_per_second) },
            tenth(row.usage_percent),
            count(row.passed_packets),
            count(row.passed_bytes),
            count(row.dropped_packets),
            count(row.dropped_bytes),
        ]);
    }
    let text = if table.is_empty() { "no limits\n".into() } else { table.to_string() };
    Ok(Shown { json: json!(rows), text })
}

/// The addresses with most traffic of late.
pub fn talkers(facts: &mut Facts, gateway: Option<String>, top: usize) -> Result<Shown, String> {
    let (rows, _): (Vec<TalkerRow>, bool) =
        facts.some(&Show { gateway, ..Show::first(Topic::Talkers) }, top)?;
    let mut table = Table::new(vec![
        Text("GATEWAY"),
        Text("ADDRESS"),
        Number("IN Mbps"),
        Text("LIMIT"),
        Number("PACKETS"),
        Number("BYTES"),
        Number("DROPPED"),
        Number("OUT Mbps"),
        Text("LIMIT"),
        Number("PACKETS"),
        Number("BYTES"),
        Number("DROPPED"),
    ]);
    for row in &rows {
        let way = |way: &TalkerWay| {
            [
                mbps(way.bits_per_second),
                rate(way.rate),
                way.passed_packets.to_string(),
                way.passed_bytes.to_string(),
                way.dropped_packets.to_string(),
            ]
        };
        let address = row.address.map_or_else(|| "(no room)".into(), |address| address.to_string());
        let mut cells = vec![row.gateway.clone(), address];
        cells.extend(way(&row.inwards).into_iter().chain(way(&row.outwards)));
        table.row(cells);
    }
    let nobody = "no traffic of addresses yet, or no gateway with an address_limit\n";
    let text = if table.is_empty() { nobody.into() } else { table.to_string() };
    Ok(Shown { json: json!(rows), text })
}
