//! What workers look up: LPM, SPD, SAD, NAT, neighbours.
