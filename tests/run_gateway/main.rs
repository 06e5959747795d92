//! The real program, run as an operator runs it, in network namespaces. Needs root.

mod apply;
#[path = "../netns_common/echoes.rs"]
mod echoes;
mod host;
mod hostile;
mod lab;
mod lifecycle;
mod limits;
mod refused;
mod routes;
mod shared;
mod show;
