//! What runs beside the workers: neighbours, ports, reload, the control socket.

pub mod apply;
pub mod drained;
mod durable;
pub mod explain;
#[doc(hidden)]
pub mod fuzz;
pub mod gateway;
pub mod health;
pub mod history;
pub mod host_neighbours;
pub mod lifetimes;
pub mod limits;
pub mod nat;
pub mod nat_log;
pub mod neighbours;
pub mod ports;
pub mod rekey;
pub mod replay;
pub mod request;
pub mod routes;
pub mod run_dir;
pub mod single;
pub mod socket;
pub mod socket_client;
pub mod tunnel_care;
pub mod unconfirmed;
pub mod view;
