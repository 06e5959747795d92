//! Keys of a running tunnel replaced while the kernels' own stacks send through it. Needs root.

mod netns_common;

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use causeway::cli::demo::network::Process;
use netns_common::{Site, causeway, echoes, is_root, until};

#[test]
fn pings_pass_a_rekey_by_command_without_a_loss() {
    if !is_root() {
        return;
    }
    let mut site = Site::new(str::to_string);
    let keys = tempfile::tempdir().unwrap();
    let key = |spi: u32| {
        let path = keys.path().join(format!("{spi:x}.key"));
        let bytes: String =
            (0..20u32).map(|n| format!("{:02x}", (spi * 7 + spi / 256 * 13 + n * 31) & 0xff)).collect();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let sa = |gateway: &str, step: &str, tunnel: &str, spi: u32, with_key: bool| {
        let file = if with_key { format!("--key-file {}", key(spi)) } else { String::new() };
        let dir = site.run_dir(gateway);
        site.ok(
            gateway,
            &format!(
                "{} sa {step} {tunnel} --spi {spi:#x} {file} --run-dir {}",
                causeway().display(),
                dir.display()
            ),
        );
    };
    site.pings("idc-host", 1, "203.0.113.10");
    let ping = echoes::steady(2000, 0.002, "203.0.113.10");
    thread::scope(|scope| {
        let pings = scope.spawn(|| site.echoes("idc-host", 2000, &ping));
        for step in 1..=5 {
            let (out, back) = (0x1001 + step, 0x2001 + step);
            thread::sleep(Duration::from_millis(50));
            sa("cloud", "add", "idc", out, true);
            sa("idc", "add", "cloud", back, true);
            sa("idc", "switch", "cloud", out, true);
            sa("cloud", "switch", "idc", back, true);
            // What was sealed before is long there.
            thread::sleep(Duration::from_millis(100));
            sa("cloud", "retire", "idc", out - 1, false);
            sa("idc", "retire", "cloud", back - 1, false);
        }
        pings.join().unwrap();
    });
    for name in ["idc", "cloud"] {
        let shown = site.ok(
            name,
            &format!("{} show sa --run-dir {}", causeway().display(), site.run_dir(name).display()),
        );
        assert!(shown.contains("0x1006") && shown.contains("0x2006") && !shown.contains("0x1005"), "{shown}");
        assert!(shown.contains("current"), "{shown}");
        site.read_again(name);
        assert_eq!(site.drops(name).get("no-sa").copied().unwrap_or(0), 0);
    }
    site.end();
}

/// SPI and sequence number of an ESP packet in a frame, in UDP or not, behind tags or not.
fn sealed(frame: &[u8]) -> Option<(u32, u32)> {
    let mut at = 12;
    while matches!(frame.get(at..at + 2)?, [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    let ip = frame.get(at + 2..)?;
    let esp = match (frame.get(at..at + 2)?, ip.get(9)?) {
        ([8, 0], 50) => ip.get(20..)?,
        ([8, 0], 17) if ip.get(20..24)? == [0x11, 0x94, 0x11, 0x94] => ip.get(28..)?,
        _ => return None,
    };
    let word = |at: usize| Some(u32::from_be_bytes(esp.get(at..at + 4)?.try_into().ok()?));
    Some((word(0)?, word(4)?))
}

/// A gateway is killed again and again while it seals, and started with what it left. Whoever records the line sees no
/// number twice under any key, and each life goes on beyond the one before.
#[test]
fn a_gateway_that_is_killed_under_load_uses_no_number_twice() {
    const LIVES: usize = 6;
    if !is_root() {
        return;
    }
    let mut site = Site::recorded();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let commands: Vec<_> = (0..4).map(|_| site.network.command(causeway(), "idc-host", true)).collect();
        for mut command in commands {
            // What is lost while nobody is there is lost: the load does not stop for it.
            command.args("ping -n -q -i 0.001 -c 1000000 -W 1 203.0.113.10".split(' '));
            let (pings, over) = (Process::start(command.stdout(Stdio::null())).unwrap(), &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(10));
                }
                pings.terminate();
            });
        }
        let count = |site: &Site| {
            let frames = site.wire.as_ref().unwrap().frames();
            frames.iter().filter(|(from_idc, frame)| *from_idc && sealed(frame).is_some()).count()
        };
        for life in 0..LIVES {
            // Not always after the same number of packets, but always amid them.
            let (before, wanted) = (count(&site), 150 + 97 * life);
            until("the gateway seals nothing", || count(&site) >= before + wanted);
            let name = if life % 3 == 2 { "cloud" } else { "idc" };
            site.kill(name);
            site.start_again(name);
        }
        let before = count(&site);
        until("the gateway seals nothing after its last start", || count(&site) >= before + 300);
        over.store(true, Ordering::Relaxed);
    });
    let frames = site.wire.as_ref().unwrap().frames();
    let mut seen = HashMap::<u32, (u32, HashSet<u32>)>::new();
    for (_, frame) in &frames {
        let Some((spi, number)) = sealed(frame) else { continue };
        let (newest, numbers) = seen.entry(spi).or_default();
        assert!(numbers.insert(number), "number {number} twice under SPI {spi:#x}");
        // One worker: what leaves later has a greater number, over kills as well.
        assert!(number > *newest, "{number} after {newest} under SPI {spi:#x}");
        *newest = number;
    }
    assert_eq!(seen.len(), 2, "one key for each direction");
    for (spi, (newest, numbers)) in &seen {
        let gap = *newest as usize - numbers.len();
        assert!(
            numbers.len() > 1000 && gap > 0,
            "{spi:#x}: a kill skips what was reserved; {} sealed",
            numbers.len()
        );
    }
    site.end();
}
