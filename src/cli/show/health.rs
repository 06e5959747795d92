//! Whether interfaces and tunnels can be used.

use serde_json::json;

use super::{
    Facts, Shown,
    table::{
        Column::{Number, Text},
        Table, or_dash,
    },
};
use crate::control::{
    health::view::HealthRow,
    view::{Show, Topic},
};

pub fn health(facts: &mut Facts) -> Result<Shown, String> {
    let rows: Vec<HealthRow> = facts.need(&Show::first(Topic::Health))?;
    let mut table = Table::new(vec![
        Text("WAY"),
        Text("STATE"),
        Number("FOR s"),
        Text("TRAFFIC"),
        Text("BFD"),
        Number("RTT ms"),
        Number("P50 ms"),
        Number("P99 ms"),
        Number("LOST 1 min %"),
        Number("LOST 1 h %"),
        Number("SWITCHES"),
        Text("WHY"),
    ]);
    for row in &rows {
        let probe = row.probe.as_ref();
        let ms = |us: Option<u64>| or_dash(us.map(|us| format!("{:.3}", us as f64 / 1000.0)));
        let percent = |value: Option<f64>| or_dash(value.map(|value| format!("{value:.2}")));
        table.row(vec![
            format!("{} {}", row.kind.name(), row.name),
            row.state.clone(),
            format!("{:.1}", row.since),
            if row.usable { "yes" } else { "no" }.into(),
            or_dash(row.bfd.as_ref().map(|bfd| &bfd.state)),
            ms(probe.and_then(|probe| probe.last_us)),
            ms(probe.and_then(|probe| probe.p50_us)),
            ms(probe.and_then(|probe| probe.p99_us)),
            percent(probe.map(|probe| probe.loss_minute)),
            percent(probe.map(|probe| probe.loss_hour)),
            row.switches.to_string(),
            why(row),
        ]);
    }
    let text = if table.is_empty() { "no interfaces and no tunnels\n".into() } else { table.to_string() };
    Ok(Shown { json: json!(rows), text })
}

/// What keeps traffic away, in words.
fn why(row: &HealthRow) -> String {
    let drained = row.drained.then(|| "drained".to_string());
    let held = row.held_for.map(|left| format!("held for {left:.1} s more"));
    let words: Vec<String> = [drained, row.reason.clone(), held].into_iter().flatten().collect();
    if words.is_empty() { "-".into() } else { words.join("; ") }
}
