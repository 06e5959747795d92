//! `causeway show routes`.

use serde_json::json;

use super::{
    Facts, PATIENCE, Shown,
    table::{
        Column::{Number, Text},
        Table,
    },
};
use crate::{
    config::Prefix,
    control::{
        routes::{ListRoutes, RoutePage, RouteRow},
        socket_client::Client,
        view::Request,
    },
};

/// Rows that are shown without `--all`.
const MOST: usize = 1000;

pub fn routes(
    facts: &Facts,
    gateway: Option<String>,
    within: Option<Prefix>,
    all: bool,
) -> Result<Shown, String> {
    let most = if all { usize::MAX } else { MOST };
    let mut client = Client::connect(&facts.socket, PATIENCE).map_err(|error| error.to_string())?;
    let mut request = ListRoutes { list_routes: gateway.unwrap_or_default(), within, after: None };
    let mut rows: Vec<RouteRow> = Vec::new();
    let (more, prefixes) = loop {
        let answer = client.ask(&Request::ListRoutes(request.clone())).map_err(|error| error.to_string())?;
        let page: RoutePage = serde_json::from_value(answer).map_err(|error| error.to_string())?;
        rows.extend(page.rows);
        request.after = page.next;
        if request.after.is_none() || rows.len() > most {
            break (request.after.is_some() || rows.len() > most, page.prefixes);
        }
    };
    rows.truncate(most);
    let mut table = Table::new(vec![
        Text("GATEWAY"),
        Text("PREFIX"),
        Text("NEXT HOP"),
        Text("SOURCE"),
        Number("PRIORITY"),
        Number("WEIGHT"),
        Text("STATE"),
    ]);
    for row in &rows {
        let source = if row.learned { format!("{}, learned", row.source) } else { row.source.clone() };
        let state = match (&row.why, &row.state) {
            (Some(why), _) => format!("not used: {why}"),
            (None, Some(state)) => format!("used, {state}"),
            (None, None) => "used".into(),
        };
        table.row(vec![
            row.gateway.clone(),
            format!("{}/{}", row.address, row.length),
            next_hop(row),
            source,
            row.priority.to_string(),
            row.weight.to_string(),
            state,
        ]);
    }
    let mut text = if table.is_empty() { "no routes\n".into() } else { table.to_string() };
    if more {
        text += &format!(
            "the first {MOST} routes of {prefixes} prefixes; --all shows the others, --prefix those of one prefix\n"
        );
    }
    Ok(Shown { json: json!(rows), text })
}

fn next_hop(row: &RouteRow) -> String {
    let to = row.to.as_deref().unwrap_or("-");
    match (row.kind.as_str(), row.via) {
        (_, Some(via)) => format!("via {via} on {to}"),
        ("connected", _) => format!("connected on {to}"),
        ("tunnel" | "gateway", _) => format!("{} {to}", row.kind),
        (kind, _) => kind.into(),
    }
}
