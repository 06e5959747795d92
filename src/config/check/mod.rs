//! What must fit together across the file.
//!
//! The checks run over drafts, so that a wrong value in one place does not hide what is wrong in another; a check
//! looks only at values that could be read.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::config::decode::Context;
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::prefix::{InterfaceAddress, Prefix};
use crate::config::span::{At, Span};

mod address;
mod gateway;
mod health;
mod limit;
mod lookup;
mod nat;
mod policy;
mod port;
mod route;
mod security;
mod tunnel;

use lookup::PrefixMap;

/// Runs every check.
pub(crate) fn all(draft: &mut Draft, cx: &mut Context<'_>) {
    let networks = Networks::of(draft);
    route::resolve(draft, &networks, cx);
    let tables = route::tables(draft, &networks, cx);
    route::loops(draft, &tables, cx);
    route::dead_ends(draft, &tables, cx);
    port::check(draft, cx);
    address::check(&networks, cx);
    tunnel::check(draft, &networks, &tables, cx);
    security::check(draft, cx);
    policy::check(draft, cx);
    nat::check(draft, &networks, cx);
    limit::check(draft, cx);
    gateway::check(draft, cx);
    health::check(draft, &networks, cx);
}

/// An address of an interface.
pub(crate) struct Connected {
    pub interface: usize,
    pub address: At<InterfaceAddress>,
}

/// The addresses of one gateway's interfaces and the prefixes they are on.
#[derive(Default)]
pub(crate) struct Network {
    pub connected: Vec<Connected>,
    /// From a connected prefix to an index of `connected`: the first address on it.
    by_prefix: PrefixMap<usize>,
    by_address: HashMap<IpAddr, usize>,
    /// Some interface of the gateway could not be read: it may have had any address.
    pub incomplete: bool,
}

impl Network {
    /// The address of this gateway that shares a prefix with `address`; the longest prefix wins.
    pub fn towards(&self, address: IpAddr) -> Option<&Connected> {
        self.by_prefix.longest(Prefix::host(address)).map(|(_, index)| &self.connected[*index])
    }

    /// The interface address that is exactly this one.
    pub fn own(&self, address: IpAddr) -> Option<&Connected> {
        self.by_address.get(&address).map(|index| &self.connected[*index])
    }
}

/// The networks of all gateways, by gateway.
pub(crate) struct Networks(pub Vec<Network>);

impl Networks {
    fn of(draft: &Draft) -> Self {
        let mut networks: Vec<Network> = draft.gateways.iter().map(|_| Network::default()).collect();
        for (index, interface) in draft.interfaces.iter().enumerate() {
            let Some(gateway) = interface.gateway.get() else {
                networks.iter_mut().for_each(|network| network.incomplete = true);
                continue;
            };
            let Some(network) = networks.get_mut(gateway.value.0) else { continue };
            let Some(addresses) = interface.addresses.get() else {
                network.incomplete = true;
                continue;
            };
            for address in addresses.iter() {
                let place = network.connected.len();
                network.by_prefix.insert_first(address.network(), place);
                network.by_address.entry(address.address).or_insert(place);
                network.connected.push(Connected { interface: index, address: address.clone() });
            }
        }
        Networks(networks)
    }
}

/// Keeps the first of each key; gives back the place of the first when there was one already.
pub(crate) fn seen<K: std::hash::Hash + Eq>(
    places: &mut HashMap<K, Span>,
    key: K,
    place: Span,
) -> Option<Span> {
    match places.entry(key) {
        std::collections::hash_map::Entry::Occupied(first) => Some(*first.get()),
        std::collections::hash_map::Entry::Vacant(free) => {
            free.insert(place);
            None
        }
    }
}

/// The same thing twice.
pub(crate) fn duplicate(code: &'static str, span: Span, first: Span, message: String, help: &str) -> Problem {
    Problem::new(code, span, message).label("again here").also(first, "first here").help(help)
}
