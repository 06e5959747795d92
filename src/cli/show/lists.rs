//! What comes from the control socket: neighbours, routes, security associations.

use serde_json::json;

use super::{
    Facts, Shown,
    sample::Between,
    table::{
        Column::{Number, Text},
        Table, or_dash,
    },
};
use crate::{
    control::view::{self, NeighbourRow, SaRow, Topic},
    control::{
        apply::{Configuration, Extent},
        socket_client::Client,
    },
    stats::counters::group,
};

pub fn configuration(facts: &mut Facts, defaults: bool) -> Result<Shown, String> {
    // A table of many routes takes its time to write.
    let patience = std::time::Duration::from_secs(60);
    let mut client = Client::connect(&facts.socket, patience).map_err(|error| error.to_string())?;
    let config = if defaults { Extent::All } else { Extent::Given };
    let answer = client.ask(&view::Request::Configuration(Configuration { config }));
    let text = answer.map_err(|error| error.to_string())?.as_str().unwrap_or_default().to_owned();
    Ok(Shown { json: json!({ "config": text }), text })
}

pub fn neighbours(facts: &mut Facts) -> Result<Shown, String> {
    let mut rows: Vec<NeighbourRow> = facts.need(&view::Show::first(Topic::Neighbours))?;
    rows.sort_by(|a, b| (&a.interface, a.address).cmp(&(&b.interface, b.address)));
    let mut table = Table::new(vec![
        Text("INTERFACE"),
        Text("ADDRESS"),
        Text("MAC"),
        Text("STATE"),
        Number("CONFIRMED s AGO"),
        Number("USED s AGO"),
    ]);
    for row in &rows {
        table.row(vec![
            row.interface.clone(),
            row.address.to_string(),
            or_dash(row.mac.as_ref()),
            row.state.clone(),
            or_dash(row.confirmed),
            or_dash(row.used),
        ]);
    }
    let text = if table.is_empty() { "no neighbours yet\n".into() } else { table.to_string() };
    Ok(Shown { json: json!(rows), text })
}

pub fn associations(between: Between<'_>, facts: &mut Facts) -> Shown {
    let rows: Vec<SaRow> = facts.want(Topic::Sa);
    let mut table = Table::new(vec![
        Text("SA"),
        Text("STATE"),
        Number("AGE s"),
        Text("LEFT"),
        Number("PACKETS"),
        Number("BYTES"),
        Number("SEQUENCE"),
        Number("REMAINING"),
        Number("WINDOW"),
        Number("LATENESS"),
        Number("LATE"),
        Number("REPLAYED"),
        Number("INTEGRITY"),
    ]);
    let mut behind = String::new();
    let mut list = Vec::new();
    for name in between.now.rows(group::SA) {
        let count = |column: &str| between.now.get(group::SA, name, column);
        let known = rows.iter().find(|row| row.name == name);
        let opens = name.contains("/in/");
        let inbound = |column: &str| if opens { count(column).to_string() } else { "-".into() };
        table.row(vec![
            name.into(),
            or_dash(known.map(|row| &row.state)),
            or_dash(known.map(|row| row.age)),
            or_dash(
                known.and_then(|row| left(row, count("packets").max(row.used.or(row.newest).unwrap_or(0)))),
            ),
            count("packets").to_string(),
            count("bytes").to_string(),
            or_dash(known.and_then(|row| row.used.or(row.newest))),
            or_dash(known.and_then(|row| row.remaining)),
            or_dash(known.and_then(|row| row.window)),
            inbound("lateness"),
            inbound("late"),
            inbound("replayed"),
            inbound("integrity"),
        ]);
        if opens && count("lateness") > 0 {
            behind += &histogram(name, &|bucket| count(&format!("behind_{bucket}")));
        }
        let mut value = known.map_or_else(|| json!({ "name": name }), |row| json!(row));
        for column in between.now.columns(group::SA) {
            value[column] = count(column).into();
        }
        if let Some(row) = known {
            let packets = count("packets").max(row.used.or(row.newest).unwrap_or(0));
            let [seconds, bytes, packets] = lefts(row, packets);
            value["left"] = json!({ "seconds": seconds, "bytes": bytes, "packets": packets });
        }
        if let Some(rate) = between.rate(group::SA, name, "packets") {
            value["packets_per_second"] = rate.into();
        }
        list.push(value);
    }
    let text = if table.is_empty() {
        "no security associations: the configuration has no tunnel\n".into()
    } else {
        format!("{table}{behind}")
    };
    Shown { json: list.into(), text }
}

/// What an association has left of each of its bounds: seconds, bytes, packets.
fn lefts(row: &SaRow, packets: u64) -> [Option<u64>; 3] {
    let bounds =
        [(row.lifetime, row.age), (row.lifetime_bytes, row.used_bytes), (row.lifetime_packets, packets)];
    bounds.map(|(bound, used)| Some(bound?.saturating_sub(used)))
}

/// The same in words.
fn left(row: &SaRow, packets: u64) -> Option<String> {
    let words = lefts(row, packets).into_iter().zip(["s", "B", "packets"]);
    let words: Vec<String> = words.filter_map(|(left, unit)| Some(format!("{} {unit}", left?))).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// How far behind the newest number packets came: one line for each association that had late ones.
fn histogram(name: &str, count: &dyn Fn(u64) -> u64) -> String {
    let buckets = (0..16).map(|bit| 1u64 << bit).filter(|&from| count(from) > 0);
    let parts: Vec<String> = buckets
        .map(|from| match from {
            1 => format!("1: {}", count(from)),
            32_768 => format!("32768 and more: {}", count(from)),
            _ => format!("{from} to {}: {}", 2 * from - 1, count(from)),
        })
        .collect();
    format!("{name}, packets behind the newest by {}\n", parts.join(", "))
}
