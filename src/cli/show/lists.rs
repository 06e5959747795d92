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
    control::view::{self, NeighbourRow, RouteRow, SaRow, Topic},
    stats::counters::group,
};

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

pub fn routes(facts: &mut Facts, gateway: Option<String>) -> Result<Shown, String> {
    let mut rows: Vec<RouteRow> = facts.need(&view::Show { gateway, ..view::Show::first(Topic::Routes) })?;
    rows.sort_by(|a, b| (&a.gateway, a.address, a.length).cmp(&(&b.gateway, b.address, b.length)));
    let mut table = Table::new(vec![Text("GATEWAY"), Text("PREFIX"), Text("NEXT HOP"), Text("STATE")]);
    for row in &rows {
        let to = row.to.as_deref().unwrap_or("-");
        let hop = match (row.kind.as_str(), row.via) {
            (_, Some(via)) => format!("via {via} on {to}"),
            ("connected", _) => format!("connected on {to}"),
            ("tunnel" | "gateway", _) => format!("{} {to}", row.kind),
            (kind, _) => kind.into(),
        };
        table.row(vec![
            row.gateway.clone(),
            format!("{}/{}", row.address, row.length),
            hop,
            or_dash(row.state.as_ref()),
        ]);
    }
    let text = if table.is_empty() { "no routes\n".into() } else { table.to_string() };
    Ok(Shown { json: json!(rows), text })
}

pub fn associations(between: Between<'_>, facts: &mut Facts) -> Shown {
    let rows: Vec<SaRow> = facts.want(Topic::Sa);
    let mut table = Table::new(vec![
        Text("SA"),
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
    let mut list = Vec::new();
    for name in between.now.rows(group::SA) {
        let count = |column: &str| between.now.get(group::SA, name, column);
        let known = rows.iter().find(|row| row.name == name);
        let opens = name.contains("/in/");
        let inbound = |column: &str| if opens { count(column).to_string() } else { "-".into() };
        table.row(vec![
            name.into(),
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
        let mut value = known.map_or_else(|| json!({ "name": name }), |row| json!(row));
        for column in between.now.columns(group::SA) {
            value[column] = count(column).into();
        }
        if let Some(rate) = between.rate(group::SA, name, "packets") {
            value["packets_per_second"] = rate.into();
        }
        list.push(value);
    }
    let text = if table.is_empty() {
        "no security associations: the configuration has no tunnel\n".into()
    } else {
        table.to_string()
    };
    Shown { json: list.into(), text }
}
