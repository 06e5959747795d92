//! What can be asked of a running gateway over its control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    apply::{ApplyFile, Configuration, Rollback},
    health::view::HealthChange,
    limits::LimitRequest,
    routes::{ChangeRoutes, ListRoutes},
};

/// What can be asked of a gateway: one JSON value a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Request {
    /// `"ping"`, `"version"` or `"reload"`.
    Word(Word),
    /// `{"show": "routes", …}`.
    Show(Show),
    /// `{"sa": "add", "tunnel": "dc", "spi": 8193, "key_file": "/etc/causeway/dc-2.key"}`.
    Sa(Sa),
    /// `{"end_session": "0-17-3"}`.
    EndSession(EndSession),
    /// `{"route": "add", "gateway": "vpc", "source": "ebgp", "routes": [{"to": "10.1.0.0/16", "tunnel": "dc"}]}`.
    Routes(ChangeRoutes),
    /// `{"list_routes": "vpc", …}`.
    ListRoutes(ListRoutes),
    /// `{"health": "drain", "kind": "tunnel", "name": "dc"}`.
    Health(HealthChange),
    /// `{"limit": "set", "gateway": "vpc", "in": "50Mbps"}`.
    Limit(LimitRequest),
    /// `{"explain": "from 10.0.0.5 to 10.2.0.9 tcp 51000>443 in vpc-a"}`.
    Explain(Explain),
    /// `{"apply": "/etc/causeway/gateway.toml", …}`.
    Apply(ApplyFile),
    /// `{"rollback": 12, …}`.
    Rollback(Rollback),
    /// `{"config": "given"}`.
    Configuration(Configuration),
}

/// A question about a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// The packet, in words.
    pub explain: String,
}

/// A request to change the security associations of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sa {
    /// What to do.
    pub sa: SaChange,
    /// The tunnel.
    pub tunnel: String,
    /// What names the association in the packet.
    pub spi: u32,
    /// The file with its key, which the gateway reads; an absolute path. Not to retire one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// What can be done with an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaChange {
    /// Open also by it.
    Add,
    /// Seal by it from now on.
    Switch,
    /// Open by it no more.
    Retire,
}

/// Ends a NAT session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndSession {
    /// What [`SessionRow::id`](super::nat::SessionRow::id) says.
    pub end_session: String,
}

/// Requests without parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Whether it answers.
    Ping,
    /// Version, name and process.
    Version,
    /// To read the configuration file again.
    Reload,
    /// That what was applied last is to stay.
    Confirm,
    /// [`History`](super::apply::History).
    History,
}

/// A request for a page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Show {
    /// Which list.
    pub show: Topic,
    /// NAT sessions, talkers: of this gateway only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// NAT sessions: only these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<super::nat::Filter>,
    /// The first row: what the page before gave as `next`.
    #[serde(default)]
    pub from: usize,
}

impl Show {
    /// The first page of a list.
    #[must_use]
    pub const fn first(show: Topic) -> Self {
        Self { show, gateway: None, filter: None, from: 0 }
    }
}

/// The lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// [`NeighbourRow`](super::view::NeighbourRow)s.
    Neighbours,
    /// [`SaRow`](super::view::SaRow)s.
    Sa,
    /// [`InterfaceRow`](super::view::InterfaceRow)s.
    Interfaces,
    /// [`TunnelRow`](super::view::TunnelRow)s.
    Tunnels,
    /// [`PortRow`](super::view::PortRow)s.
    Ports,
    /// [`XdpRow`](super::view::XdpRow)s.
    Xdp,
    /// [`SessionRow`](super::nat::SessionRow)s.
    #[serde(rename = "nat-sessions")]
    NatSessions,
    /// [`PoolRow`](super::nat::PoolRow)s.
    #[serde(rename = "nat-pools")]
    NatPools,
    /// [`RuleRow`](super::nat::RuleRow)s.
    #[serde(rename = "nat-rules")]
    NatRules,
    /// [`HealthRow`](super::health::view::HealthRow)s.
    Health,
    /// [`LimitRow`](super::limits::LimitRow)s.
    Limits,
    /// [`TalkerRow`](super::limits::TalkerRow)s: one page.
    Talkers,
}
