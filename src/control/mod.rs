//! What runs beside the workers: neighbours, reload, the control socket.
