//! What runs beside the workers: neighbours, ports, reload, the control socket.

pub mod gateway;
pub mod neighbours;
pub mod ports;
pub mod replay;
pub mod single;
