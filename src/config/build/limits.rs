//! Limits: the same buckets for the same names over all reloads.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{BuildError, Numbering, table_error};
use crate::{
    config::{AddressLimit, Config, Prefix},
    table::{
        address::Address,
        hash::Seed,
        limit::{Active, AddressTable, Cap, Class, GatewayAddresses, Level, Limits, Pair, key_v4},
        lpm::{Lpm, LpmWriter},
    },
};

/// Limits of addresses that can be set beside those of the file, in each gateway.
pub const SPARE: usize = 256;

/// What outlives a reload.
#[derive(Debug, Default)]
pub(super) struct KeptLimits {
    pairs: HashMap<(Level, String), Arc<Pair>>,
    /// By the gateway's name: who is known, and the numbers of prefixes with limits of their own.
    addresses: HashMap<String, (Arc<AddressTable>, Numbering)>,
    active: Arc<Active>,
}

/// Limits, and what the control thread needs to put them in force and to change them.
#[derive(Debug, Default)]
pub struct BuiltLimits {
    /// For the workers.
    pub limits: Arc<Limits>,
    /// What the file says.
    changes: Vec<(Arc<Pair>, [Option<Cap>; 2])>,
    /// Of gateways that limit their addresses.
    pub addresses: Vec<BuiltAddresses>,
}

/// The limits of a gateway's addresses.
#[derive(Debug)]
pub struct BuiltAddresses {
    /// The gateway's number.
    pub gateway: u16,
    /// Its place in the configuration.
    pub place: usize,
    /// After how many ns without a packet an address is forgotten.
    pub idle: u64,
    /// Prefixes with limits of their own, by class; none has class 0.
    pub sections: Vec<Option<Prefix>>,
    v4: LpmWriter<u32>,
    v6: LpmWriter<u128>,
}

impl BuiltLimits {
    /// Puts what the file says in force, in place of whatever was set by command. What was earned and counted stays.
    pub fn apply(&self) {
        for (pair, [inwards, outwards]) in &self.changes {
            for (rate, cap) in [(&pair.inwards.rate, inwards), (&pair.outwards.rate, outwards)] {
                if rate.cap() != *cap {
                    rate.set(*cap);
                }
            }
        }
        for addresses in &self.addresses {
            if let Some(known) = self.limits.addresses_of(addresses.gateway) {
                classify(known);
            }
        }
        self.refresh();
    }

    /// Says what limits there are now: to be called after each change.
    pub fn refresh(&self) {
        self.limits.addresses.iter().flatten().for_each(GatewayAddresses::renew);
        self.limits.active.set(self.limits.present());
    }

    /// Gives a prefix of a gateway limits of its own, or other ones.
    ///
    /// # Errors
    /// There is no room for more.
    pub fn set_addresses(
        &mut self,
        gateway: u16,
        prefix: Prefix,
        caps: [Option<Cap>; 2],
    ) -> Result<(), String> {
        let limits = Arc::clone(&self.limits);
        let known = limits.addresses_of(gateway).ok_or("the gateway does not limit its addresses")?;
        let built = self.addresses.iter_mut().find(|built| built.gateway == gateway);
        let built = built.ok_or("the gateway does not limit its addresses")?;
        if let Some(class) = built.class(prefix).and_then(|class| known.classes.get(class)) {
            class.set(caps);
            self.refresh();
            return Ok(());
        }
        let vacant = built.sections.iter().skip(1).position(Option::is_none).map(|place| place + 1);
        let class = vacant.unwrap_or(built.sections.len());
        let Some(entry) = known.classes.get(class) else {
            return Err(format!(
                "{SPARE} limits that are not in the file are the most: write some into it, and reload"
            ));
        };
        entry.set(caps);
        built.insert(prefix, class as u32).map_err(|error| error.to_string())?;
        built.sections.resize(built.sections.len().max(class + 1), None);
        built.sections[class] = Some(prefix);
        classify(known);
        self.refresh();
        Ok(())
    }

    /// Takes from a prefix the limits that it has beside the file.
    pub fn clear_addresses(&mut self, gateway: u16, prefix: Prefix) {
        let limits = Arc::clone(&self.limits);
        let Some(known) = limits.addresses_of(gateway) else { return };
        let Some(built) = self.addresses.iter_mut().find(|built| built.gateway == gateway) else { return };
        let Some(class) = built.class(prefix) else { return };
        let removed = match prefix.address() {
            IpAddr::V4(a) => {
                built.v4.remove(a.to_bits(), prefix.length()).map(drop).and_then(|()| built.v4.publish())
            }
            IpAddr::V6(a) => {
                built.v6.remove(a.to_bits(), prefix.length()).map(drop).and_then(|()| built.v6.publish())
            }
        };
        if removed.is_ok() {
            built.sections[class] = None;
            classify(known);
            self.refresh();
        }
    }
}

impl BuiltAddresses {
    /// The class of a prefix with limits of its own.
    #[must_use]
    pub fn class(&self, prefix: Prefix) -> Option<usize> {
        self.sections.iter().position(|known| *known == Some(prefix))
    }

    fn insert(&mut self, prefix: Prefix, class: u32) -> Result<(), BuildError> {
        let what = || "limits of addresses".to_string();
        match prefix.address() {
            IpAddr::V4(a) => {
                add(&mut self.v4, a.to_bits(), prefix.length(), class).map_err(table_error(what()))
            }
            IpAddr::V6(a) => {
                add(&mut self.v6, a.to_bits(), prefix.length(), class).map_err(table_error(what()))
            }
        }
    }
}

fn add<A: Address>(
    writer: &mut LpmWriter<A>,
    address: A,
    length: u8,
    class: u32,
) -> Result<(), crate::table::lpm::LpmError> {
    writer.insert(address, length, class)?;
    writer.publish()
}

/// Puts every known address into the class that it has now; forgets who has none any more.
fn classify(known: &GatewayAddresses) {
    for entry in 0..known.table.common() {
        let Some(key) = known.table.key(entry) else { continue };
        match known.class_of(key) {
            Some(class) => known.table.set_class(entry, class),
            None => known.table.remove(key, known.hash(key)),
        }
    }
}

/// The key of an address.
#[must_use]
pub fn key_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => key_v4(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// Names of the rows in the counters, by level and number.
pub(super) fn rows(names: [(Level, &[String]); 3]) -> Vec<String> {
    let row = |level: Level, name: &String| match name.as_str() {
        "" => String::new(),
        name => format!("{} {name}", level.name()),
    };
    names.into_iter().flat_map(|(level, names)| names.iter().map(move |name| row(level, name))).collect()
}

/// Builds limits. `names`: gateways, interfaces and tunnels, by number; a free number has none.
pub(super) fn limits(
    config: &Config,
    kept: &mut KeptLimits,
    names: [&[String]; 3],
    gateways: &[u16],
    workers: usize,
    seed: Seed,
) -> Result<BuiltLimits, BuildError> {
    let [gateway_names, interface_names, tunnel_names] = names;
    let mut pairs = HashMap::new();
    let mut of = |level: Level, names: &[String]| -> Box<[Arc<Pair>]> {
        let pair = |name: &String| {
            let key = (level, name.clone());
            let pair = kept.pairs.get(&key).cloned().unwrap_or_else(|| Arc::new(Pair::new(workers)));
            if !name.is_empty() {
                pairs.insert(key, Arc::clone(&pair));
            }
            pair
        };
        names.iter().map(pair).collect()
    };
    let mut limits = Limits {
        gateways: of(Level::Gateway, gateway_names),
        interfaces: of(Level::Interface, interface_names),
        tunnels: of(Level::Tunnel, tunnel_names),
        addresses: gateway_names.iter().map(|_| None).collect(),
        active: Arc::clone(&kept.active),
        first_rows: (gateway_names.len(), gateway_names.len() + interface_names.len()),
    };
    let name_of = |name: &crate::config::At<crate::config::Name>| name.value.as_str().to_string();
    let sections = (config.gateways.iter().map(|g| ((Level::Gateway, name_of(&g.name)), g.limit.as_ref())))
        .chain(config.interfaces.iter().map(|i| ((Level::Interface, name_of(&i.name)), i.limit.as_ref())))
        .chain(config.tunnels.iter().map(|t| ((Level::Tunnel, name_of(&t.name)), t.limit.as_ref())));
    let changes = sections.filter_map(|(key, limit)| {
        let caps = limit.map_or([None; 2], |limit| limit.caps());
        Some((Arc::clone(pairs.get(&key)?), caps))
    });
    let changes = changes.collect();
    let mut addresses = Vec::new();
    let mut tables = HashMap::new();
    for (place, gateway) in config.gateways.iter().enumerate() {
        let (Some(limit), Some(&number)) = (&gateway.address_limit, gateways.get(place)) else { continue };
        let name = name_of(&gateway.name);
        let capacity = limit.addresses.get() as usize;
        let known = kept.addresses.get(&name).cloned().filter(|(table, _)| table.capacity() == capacity);
        let (table, mut numbering) =
            known.unwrap_or_else(|| (Arc::new(AddressTable::new(capacity, workers)), Numbering::default()));
        let (rules, built) =
            gateway_addresses(config, (place, number), limit, Arc::clone(&table), &mut numbering, seed)?;
        if let Some(entry) = limits.addresses.get_mut(usize::from(number)) {
            *entry = Some(rules);
        }
        addresses.push(built);
        tables.insert(name, (table, numbering));
    }
    kept.pairs = pairs;
    kept.addresses = tables;
    Ok(BuiltLimits { limits: Arc::new(limits), changes, addresses })
}

fn gateway_addresses(
    config: &Config,
    (place, gateway): (usize, u16),
    limit: &AddressLimit,
    table: Arc<AddressTable>,
    numbering: &mut Numbering,
    seed: Seed,
) -> Result<(GatewayAddresses, BuiltAddresses), BuildError> {
    let own: Vec<(Prefix, [Option<Cap>; 2])> = limit
        .own
        .iter()
        .flat_map(|own| own.address.value.iter().map(move |address| (address.value.0, own.caps(limit))))
        .collect();
    let names: Vec<String> = own.iter().map(|(prefix, _)| prefix.to_string()).collect();
    let numbers = numbering.assign(names.iter().map(String::as_str));
    let used = 1 + numbers.iter().map(|number| number + 1).max().unwrap_or(0);
    let classes: Arc<[Class]> = (0..used + SPARE).map(|_| Class::default()).collect();
    classes[0].set(limit.caps());
    let ((v4, writer_v4), (v6, writer_v6)) = (Lpm::new(), Lpm::new());
    let mut built = BuiltAddresses {
        gateway,
        place,
        idle: limit.idle.value.0.as_nanos() as u64,
        sections: vec![None; used],
        v4: writer_v4,
        v6: writer_v6,
    };
    let prefixes = &config.gateways[place].prefixes.value;
    for prefix in prefixes.iter().map(|prefix| prefix.value) {
        built.insert(prefix, 0)?;
    }
    if prefixes.is_empty() {
        for any in [IpAddr::from([0_u8; 4]), IpAddr::from([0_u8; 16])] {
            built.insert(Prefix::of(any, 0), 0)?;
        }
    }
    for ((prefix, caps), number) in own.into_iter().zip(numbers) {
        classes[number + 1].set(caps);
        built.insert(prefix, number as u32 + 1)?;
        built.sections[number + 1] = Some(prefix);
    }
    Ok((GatewayAddresses::new(table, classes, (v4, v6), seed), built))
}
