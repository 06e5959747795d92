//! Security associations: no identifier and no key twice.

use std::collections::HashMap;

use super::{duplicate, seen};
use crate::config::decode::Context;
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{SecurityAssociationDraft, TunnelDraft};
use crate::config::span::Span;

pub(crate) fn check(draft: &Draft, cx: &mut Context<'_>) {
    identifiers(draft, cx);
    keys(draft, cx);
    draft.tunnels.iter().for_each(|tunnel| replay(tunnel, cx));
}

fn associations(tunnel: &TunnelDraft) -> impl Iterator<Item = &SecurityAssociationDraft> {
    tunnel.outbound.iter().chain(&tunnel.inbound)
}

/// The receiver finds the association by the SPI and its own address (RFC 4301 4.1).
fn identifiers(draft: &Draft, cx: &mut Context<'_>) {
    let mut first = HashMap::new();
    for tunnel in &draft.tunnels {
        let Some(underlay) = tunnel.underlay.get() else { continue };
        let outbound = tunnel.outbound.iter().map(|sa| (&tunnel.remote, sa, "to"));
        let inbound = tunnel.inbound.iter().map(|sa| (&tunnel.local, sa, "at"));
        for (receiver, sa, word) in outbound.chain(inbound) {
            let (Some(receiver), Some(spi)) = (receiver.get(), sa.spi.get()) else { continue };
            let key = (underlay.value, receiver.value, spi.value);
            if let Some(first) = seen(&mut first, key, spi.span) {
                let message = format!("SPI {} {word} {} is in use already", spi.value, receiver.value);
                let help = "give every security association of one receiver its own SPI";
                cx.report(duplicate("duplicate-spi", spi.span, first, message, help));
            }
        }
    }
}

/// One AES key for two associations would meet a nonce twice as soon as their sequence numbers do, which gives both
/// away (RFC 4106 9). Salts do not count: they are no reason to use one key twice.
fn keys(draft: &Draft, cx: &mut Context<'_>) {
    let mut keys: Vec<(&[u8], Span)> = draft
        .tunnels
        .iter()
        .flat_map(associations)
        .filter_map(|sa| sa.key.get())
        .map(|key| (key.aes(), key.span))
        .collect();
    keys.sort_by_key(|(aes, span)| (*aes, span.start));
    for same in keys.chunk_by(|a, b| a.0 == b.0) {
        for (_, span) in &same[1..] {
            let help = "every direction of every tunnel has a key of its own; `head -c 20 /dev/urandom | xxd -p` makes one";
            cx.report(duplicate(
                "duplicate-key",
                *span,
                same[0].1,
                "this key is in use already".into(),
                help,
            ));
        }
    }
}

fn replay(tunnel: &TunnelDraft, cx: &mut Context<'_>) {
    let (Some(window), Some(esn)) = (tunnel.replay_window.given(), tunnel.esn.get()) else { return };
    if window.0 != 0 {
        return;
    }
    // The window is what the receiver guesses the high half of the number from (RFC 4303 A2).
    if esn.value {
        cx.report(
            Problem::new("esn-without-window", window.span, "extended sequence numbers need a replay window")
                .help("write replay_window = 1024, or esn = false if both ends can do without")
                .also(esn.span, "extended sequence numbers are on"),
        );
    } else {
        let problem =
            Problem::warning("no-replay-check", window.span, "whoever can copy a packet can send it again");
        cx.report(problem.help("write replay_window = 1024, unless the packets are checked elsewhere"));
    }
}
