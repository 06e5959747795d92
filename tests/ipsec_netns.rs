//! Keys of a running tunnel replaced while the kernels' own stacks send through it. Needs root.

mod netns_common;

use std::{fs, os::unix::fs::PermissionsExt, thread, time::Duration};

use netns_common::{Site, causeway, is_root};

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
    thread::scope(|scope| {
        let pings = scope.spawn(|| site.ok("idc-host", "ping -n -q -c 2000 -i 0.002 -W 10 203.0.113.10"));
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
        let text = pings.join().unwrap();
        assert!(text.contains("2000 packets transmitted, 2000 received"), "{text}");
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
