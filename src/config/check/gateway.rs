//! Gateways that nothing uses.

use crate::config::decode::Context;
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;

/// A gateway without interface, tunnel or a route to it never sees a packet.
pub(crate) fn check(draft: &Draft, cx: &mut Context<'_>) {
    let mut used = vec![false; draft.gateways.len()];
    let mut mark = |index: usize| {
        if let Some(used) = used.get_mut(index) {
            *used = true;
        }
    };
    let interfaces = draft.interfaces.iter().map(|i| &i.gateway);
    let tunnels = draft.tunnels.iter().flat_map(|t| [&t.gateway, &t.underlay]);
    let routes = draft.gateways.iter().flat_map(|g| &g.routes).map(|r| &r.gateway);
    for slot in interfaces.chain(tunnels).chain(routes) {
        match slot.get() {
            Some(gateway) => mark(gateway.value.0),
            // What could not be read may have named any gateway.
            None if slot.is_present() => return,
            None => {}
        }
    }
    for (gateway, _) in draft.gateways.iter().zip(used).filter(|(_, used)| !used) {
        cx.report(
            Problem::warning(
                "unused-gateway",
                gateway.at,
                "no interface, tunnel or route leads into this gateway",
            )
            .help("add an [interface.NAME] with this gateway, or take the gateway out"),
        );
    }
}
