//! What runs beside the workers: neighbours, ports, reload, the control socket.

pub mod gateway;
pub mod host_neighbours;
pub mod neighbours;
pub mod ports;
pub mod replay;
pub mod single;
pub mod socket;
pub mod socket_client;
pub mod view;
