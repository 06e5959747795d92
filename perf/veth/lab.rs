//! The devices under measurement, and what is read of them and of our thread.

use std::process::Command;

/// Anything that goes wrong ends the measurement.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The core of the source of frames.
pub const SOURCE_CORE: usize = 0;
/// The core of what is measured.
pub const OUR_CORE: usize = 1;

/// Makes a pair of veth devices of one queue, both up.
pub fn veth(ours: &str, far: &str) -> Result<()> {
    shell(&format!(
        "ip link add {ours} numrxqueues 1 numtxqueues 1 type veth peer name {far} numrxqueues 1 numtxqueues 1 &&
         ip link set {ours} up && ip link set {far} up"
    ))
}

/// Puts this thread into a network namespace of its own, which goes with it and takes its devices along, and keeps the
/// kernel from sending there what nobody asked for.
pub fn enter() -> Result<()> {
    af_xdp::Namespace::unshare()?;
    pin(OUR_CORE);
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
    Ok(())
}

/// Frames that a device of this namespace has received.
pub fn frames_in(device: &str) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    Ok(line.and_then(|line| line.split_whitespace().nth(1)).ok_or("no such device")?.parse()?)
}

/// One of the counts that a driver keeps, by its name there.
pub fn driver_count(device: &str, name: &str) -> Result<u64> {
    let output = Command::new("ethtool").args(["-S", device]).output();
    let output = output.map_err(|error| format!("ethtool (Debian: ethtool): {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
    Ok(line.ok_or_else(|| format!("{device} counts no {name}"))?.parse()?)
}

/// Seconds that this thread has run.
pub fn processor_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("no schedstat")?.parse::<f64>()? / 1e9)
}

/// Keeps this thread on one core.
pub fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

/// Runs a script, all of which must work.
pub fn shell(script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-ec", script]).status()?;
    if status.success() { Ok(()) } else { Err(format!("failed: {script}").into()) }
}

/// The best and the median of some figures, the more the better.
pub fn best_and_median(figures: &[f64]) -> (f64, f64) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    (at(sorted.len().wrapping_sub(1)), at(sorted.len() / 2))
}
