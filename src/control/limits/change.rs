//! Requests to change a limit, which operators make of a running gateway.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{caps_of, of_file, of_file_addresses, things};
use crate::{
    config::{Burst, Config, LimitRate, Prefix, build::key_of, cap, rate_text, read_burst, read_rate},
    control::{gateway::Gateway, view::refusal},
    table::limit::{Cap, Level},
};

/// A request to change a limit: of exactly one of gateway, interface and tunnel; with a gateway perhaps of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitRequest {
    /// What to do.
    pub limit: LimitChange,
    /// Of this gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Of this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Of this tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// With a gateway: an address or prefix of its VPC, each of whose addresses has the limit; `each` for all that have
    /// none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The rate in, as the file writes it.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    pub inwards: Option<String>,
    /// The rate out.
    #[serde(default, rename = "out", skip_serializing_if = "Option::is_none")]
    pub outwards: Option<String>,
    /// The burst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<String>,
}

/// What can be done with a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitChange {
    /// Put other rates in force, until the next reload.
    #[default]
    Set,
    /// Put in force what the file says.
    Clear,
}

impl LimitRequest {
    /// What is in force after the change, where `now` is before. What would never let the longest packet pass is refused.
    fn over(&self, now: [Option<Cap>; 2], longest: u64) -> Result<[Option<Cap>; 2], String> {
        let rate = |text: &Option<String>| text.as_deref().map(read_rate).transpose();
        let burst: Option<Burst> = self.burst.as_deref().map(read_burst).transpose()?;
        let (inwards, outwards): (Option<LimitRate>, Option<LimitRate>) =
            (rate(&self.inwards)?, rate(&self.outwards)?);
        if inwards.is_none() && outwards.is_none() && burst.is_none() {
            return Err("say what to set: in, out or burst".into());
        }
        let only_burst = inwards.is_none() && outwards.is_none();
        let [now_in, now_out] = now;
        let caps = [(inwards, now_in), (outwards, now_out)].map(|(wanted, now)| match (wanted, burst) {
            (Some(rate), burst) => cap(Some(rate), burst),
            (None, Some(Burst(burst))) if only_burst => now.map(|now| Cap { burst, ..now }),
            (None, _) => now,
        });
        match caps.iter().flatten().find(|cap| cap.burst < longest) {
            Some(cap) => Err(format!(
                "with a burst of {} bytes packets of {longest}, the MTU of a port, would never pass: say a burst of {}KiB \
                 or more",
                cap.burst,
                longest.div_ceil(1024)
            )),
            None => Ok(caps),
        }
    }
}

/// The MTU of the port that has the largest.
fn longest_packet(config: &Config) -> u64 {
    config.ports.iter().map(|port| u64::from(port.mtu.get())).max().unwrap_or(0)
}

/// Changes a limit as asked for. It is in force with every worker's next burst.
pub fn change(gateway: &mut Gateway, request: &LimitRequest) -> Value {
    match try_change(gateway, request) {
        Ok((what, [inwards, outwards])) => {
            let word = |cap: Option<Cap>| cap.map_or_else(|| "none".into(), |cap| rate_text(cap.rate));
            tracing::info!("limit of {what}: in {}, out {}", word(inwards), word(outwards));
            json!({ "ok": "in force" })
        }
        Err(error) => refusal(&error),
    }
}

fn try_change(gateway: &mut Gateway, request: &LimitRequest) -> Result<(String, [Option<Cap>; 2]), String> {
    let named = [
        (Level::Gateway, &request.gateway),
        (Level::Interface, &request.interface),
        (Level::Tunnel, &request.tunnel),
    ];
    let named: Vec<(Level, &String)> =
        named.into_iter().filter_map(|(level, name)| Some((level, name.as_ref()?))).collect();
    let [(level, name)] = named.as_slice() else {
        return Err("name one of gateway, interface and tunnel".into());
    };
    let (level, name) = (*level, name.as_str());
    let all = things(gateway.config(), gateway.built());
    let found = all.iter().find(|thing| thing.0 == level && thing.1 == name);
    let &(_, _, place, number) = found.ok_or_else(|| format!("there is no {} {name:?}", level.name()))?;
    if let Some(address) = &request.address {
        if level != Level::Gateway {
            return Err("addresses have limits in gateways".into());
        }
        let caps = change_addresses(gateway, request, (place, number), address)?;
        return Ok((format!("address {address} of gateway {name}"), caps));
    }
    let built = &gateway.built().limits;
    let (pair, _) = built.limits.of(level, number).ok_or("it has no limits")?;
    let caps = match request.limit {
        LimitChange::Set => request.over(caps_of(pair), longest_packet(gateway.config()))?,
        LimitChange::Clear => of_file(gateway.config(), level, place),
    };
    let [inwards, outwards] = caps;
    pair.inwards.rate.set(inwards);
    pair.outwards.rate.set(outwards);
    built.refresh();
    Ok((format!("{} {name}", level.name()), caps))
}

fn change_addresses(
    gateway: &mut Gateway,
    request: &LimitRequest,
    (place, number): (usize, u16),
    address: &str,
) -> Result<[Option<Cap>; 2], String> {
    let prefix = match address {
        "each" => None,
        text => Some(read_prefix(text)?),
    };
    let file = of_file_addresses(gateway.config(), place, prefix);
    let limits = Arc::clone(&gateway.built().limits.limits);
    let Some(known) = limits.addresses_of(number) else {
        let name = gateway.config().gateways.get(place).map_or("", |g| g.name.value.as_str());
        return Err(format!(
            "addresses of this gateway are not counted: write [gateway.{name}.address_limit] into the file, and reload"
        ));
    };
    // What the addresses have now.
    let class = match prefix {
        None => Some(0),
        Some(prefix) => known.class_of(key_of(prefix.address())),
    };
    let class = class.and_then(|class| known.classes.get(class as usize));
    let class = class.ok_or_else(|| format!("{address} is not in the gateway's `prefixes`"))?;
    let now = [class.inwards.cap(), class.outwards.cap()];
    let longest = longest_packet(gateway.config());
    let built = &mut gateway.built_mut().limits;
    match (request.limit, prefix, file) {
        (LimitChange::Set, None, _) => {
            let caps = request.over(now, longest)?;
            class.set(caps);
            built.refresh();
            Ok(caps)
        }
        (LimitChange::Set, Some(prefix), _) => {
            let caps = request.over(now, longest)?;
            built.set_addresses(number, prefix, caps)?;
            Ok(caps)
        }
        (LimitChange::Clear, None, file) => {
            let caps = file.unwrap_or_default();
            class.set(caps);
            built.refresh();
            Ok(caps)
        }
        (LimitChange::Clear, Some(prefix), Some(file)) => {
            built.set_addresses(number, prefix, file)?;
            Ok(file)
        }
        (LimitChange::Clear, Some(prefix), None) => {
            built.clear_addresses(number, prefix);
            let class =
                known.class_of(key_of(prefix.address())).and_then(|class| known.classes.get(class as usize));
            Ok(class.map_or([None; 2], |class| [class.inwards.cap(), class.outwards.cap()]))
        }
    }
}

fn read_prefix(text: &str) -> Result<Prefix, String> {
    let wrong = || format!("{text:?} is neither an address nor a prefix, nor \"each\"");
    let (address, length) = match text.split_once('/') {
        None => (text, None),
        Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| wrong())?)),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(width);
    let prefix = Prefix::of(address, length.min(width));
    if length > width || prefix.address() != address { Err(wrong()) } else { Ok(prefix) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_never_lets_the_longest_packet_pass_is_refused() {
        let set = |rate: &str, burst: Option<&str>, longest| {
            let inwards = Some(rate.to_string());
            let request = LimitRequest { inwards, burst: burst.map(String::from), ..LimitRequest::default() };
            request.over([None; 2], longest)
        };
        assert_eq!(set("1Mbps", None, 1500), Ok([Some(Cap { rate: 1_000_000, burst: 4096 }), None]));
        let refused = set("1Mbps", None, 9001).unwrap_err();
        assert!(refused.contains("packets of 9001") && refused.contains("9KiB or more"), "{refused}");
        assert!(set("1Gbps", Some("9000B"), 9001).is_err());
        assert_eq!(set("1Mbps", Some("9KiB"), 9001), Ok([Some(Cap { rate: 1_000_000, burst: 9216 }), None]));
        assert_eq!(set("none", None, 9001), Ok([None; 2]));
    }
}
