//! What ports and pipeline do on veth devices: `cargo bench --bench veth [-- WORD...]`. Needs root.
//!
//! The kernel is the source (BPF live frames, core 0) and the sink; our side runs on core 1. There are four groups of
//! rows, of which words choose: a row is measured when its name contains every word.
//!
//! | group | what it says |
//! |---|---|
//! | `ports` | what the ports cost by themselves |
//! | `rate` | a worker with the whole pipeline, beside a forwarder that only moves frames |
//! | `loss` | the highest rate without any loss, and with 0.5 % (RFC 2544, RFC 9971) |
//! | `latency` | how long a lone packet takes, beside the kernel's own forwarding |
//!
//! Rates are millions of frames a second, best and median of several runs, counted where they count: frames received
//! for "rx", frames that reached the far end for the others. "per CPU" is the best rate for each second of our thread's
//! own processor time, which other programs on the machine disturb less. "plain" means that the far end is an ordinary
//! veth, "XDP" that it runs an XDP program, which makes the kernel copy each frame once more. veth measures the kernel:
//! an skb for each frame sent, and the far end's receive path, are on our core.
//!
//! With `--peers=perf/peers/dpdk` DPDK's programs take turns with ours, see `perf/peers/README.md`.
//! `--busy-poll=MICROSECONDS` and `--defer-interrupts` say how the kernel is to poll the devices of ours.
//!
//! On a machine that others use too: `chrt -f 50 cargo bench --bench veth -- rate`. After each run there is a pause of
//! 60 ms, so that others go on.

mod bare;
mod contest;
mod lab;
mod latency;
mod loss;
mod peer;
mod source;
mod subject;
mod trial;

fn main() -> lab::Result<()> {
    let (options, words): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    if let Some(program) = options.iter().find_map(|option| option.strip_prefix("--peers=")) {
        peer::started_by(program.into());
    }
    if let Some(micros) = options.iter().find_map(|option| option.strip_prefix("--busy-poll=")) {
        subject::busy_poll(micros.parse()?);
    }
    if options.iter().any(|option| option == "--defer-interrupts") {
        subject::defer_interrupts();
    }
    let wanted =
        |group: &str, row: &str| words.iter().all(|word| format!("{group} {row}").contains(word.as_str()));
    bare::rows(&|row| wanted("ports", row))?;
    contest::rates(&|row| wanted("rate", row))?;
    loss::rates(&|row| wanted("loss", row))?;
    latency::rows(&|row| wanted("latency", row))
}
