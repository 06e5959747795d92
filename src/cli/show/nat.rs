//! Sessions, pools and rules of NAT.

use serde_json::json;

use super::{
    Facts, Shown,
    table::{
        Column::{Number, Text},
        Table,
    },
};
use crate::control::{
    nat::{Filter, PoolRow, RuleRow, SessionRow},
    view::{Show, Topic},
};

/// The sessions that a filter lets through, at most `limit` of them.
pub fn sessions(
    facts: &mut Facts,
    gateway: Option<String>,
    filter: Filter,
    limit: usize,
) -> Result<Shown, String> {
    let show = Show { gateway, filter: Some(filter), ..Show::first(Topic::NatSessions) };
    let (rows, more): (Vec<SessionRow>, bool) = facts.some(&show, limit)?;
    let mut table = Table::new(vec![
        Text("SESSION"),
        Text("GATEWAY"),
        Text("RULE"),
        Text("PROTOCOL"),
        Text("INSIDE"),
        Text("OUTSIDE"),
        Text("REMOTE"),
        Text("STATE"),
        Number("AGE s"),
        Number("IDLE s"),
        Number("ENDS IN s"),
        Number("OUT"),
        Number("IN"),
    ]);
    for row in &rows {
        table.row(vec![
            row.id.clone(),
            row.gateway.clone(),
            row.rule.clone(),
            row.protocol.clone(),
            row.inside.to_string(),
            row.outside.to_string(),
            row.remote.to_string(),
            row.state.clone(),
            row.age.to_string(),
            row.idle.to_string(),
            row.expires.to_string(),
            row.packets_out.to_string(),
            row.packets_in.to_string(),
        ]);
    }
    let mut text = if table.is_empty() { "no such sessions\n".into() } else { table.to_string() };
    if more {
        text += &format!("… and more: these are the first {limit}; see --limit\n");
    }
    Ok(Shown { json: json!(rows), text })
}

/// The source pools, and how full they are.
pub fn pools(facts: &mut Facts) -> Result<Shown, String> {
    let rows: Vec<PoolRow> = facts.need(&Show::first(Topic::NatPools))?;
    let mut table = Table::new(vec![
        Text("GATEWAY"),
        Text("RULE"),
        Text("TRANSLATED"),
        Number("ADDRESSES"),
        Number("PORTS EACH"),
        Number("SESSIONS"),
        Number("MADE"),
        Number("EXHAUSTED"),
        Number("PORTS FOUND TAKEN %"),
    ]);
    for row in &rows {
        table.row(vec![
            row.gateway.clone(),
            row.rule.clone(),
            row.translated.clone(),
            row.addresses.to_string(),
            row.ports.to_string(),
            row.sessions.to_string(),
            row.made.to_string(),
            row.exhausted.to_string(),
            format!("{:.1}", row.occupied),
        ]);
    }
    let text = if table.is_empty() { "no source pools\n".into() } else { table.to_string() };
    Ok(Shown { json: json!(rows), text })
}

/// The rules.
pub fn rules(facts: &mut Facts) -> Result<Shown, String> {
    let rows: Vec<RuleRow> = facts.need(&Show::first(Topic::NatRules))?;
    let mut table = Table::new(vec![
        Text("GATEWAY"),
        Text("RULE"),
        Text("KIND"),
        Text("ORIGINAL"),
        Text("TRANSLATED"),
        Text("CONDITIONS"),
    ]);
    for row in &rows {
        table.row(vec![
            row.gateway.clone(),
            row.rule.clone(),
            row.kind.clone(),
            row.original.clone(),
            row.translated.clone(),
            row.conditions.clone(),
        ]);
    }
    let text = if table.is_empty() { "no address mappings\n".into() } else { table.to_string() };
    Ok(Shown { json: json!(rows), text })
}
