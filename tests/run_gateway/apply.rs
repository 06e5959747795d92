//! `apply`, `diff --live`, `history`, `rollback`, `confirm`: changes while packets flow, and the way back.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    echoes,
    lab::{CAUSEWAY, Lab, Running, is_root},
};

fn command(gateway: &Running, words: &[&str]) -> Command {
    let mut command = Command::new(CAUSEWAY);
    command.args(words).arg("--run-dir").arg(&gateway.run_dir);
    command
}

fn causeway(gateway: &Running, words: &[&str]) -> Output {
    command(gateway, words).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn good(gateway: &Running, words: &[&str]) -> String {
    let output = causeway(gateway, words);
    assert!(output.status.success(), "{words:?}: {output:?}\n{}", gateway.log());
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(gateway: &Running, words: &[&str]) -> String {
    let output = causeway(gateway, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn history(gateway: &Running) -> Value {
    serde_json::from_str(&good(gateway, &["history", "--json"])).unwrap()
}

fn generation(gateway: &Running) -> u64 {
    history(gateway)["generation"].as_u64().unwrap()
}

/// The way to the network behind the data centre's host.
const ROUTE: &str = "[[gateway.vpc.route]]\nto = \"10.9.0.0/16\"\nvia = \"10.1.0.2\"\n";

/// A file with `more` behind the lab's configuration.
fn file(lab: &Lab, name: &str, more: &str) -> String {
    let path = lab.dir.path().join(name);
    fs::write(&path, lab.config("dc", more)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Sends pings until it is told to end; then all must have been answered, but for those still on their way.
struct Pings {
    ping: Child,
    // A pipe would be full soon.
    said: File,
}

impl Pings {
    fn start(lab: &Lab) -> Self {
        let said = tempfile::tempfile().unwrap();
        let mut ping = lab.vpc.command("ping");
        ping.args(["-n", "-i", "0.002", "10.1.0.2"]).stdout(said.try_clone().unwrap());
        Self { ping: ping.spawn().unwrap(), said }
    }

    #[track_caller]
    fn all_answered(mut self) {
        // As Ctrl-C does: it waits for no more.
        assert!(Command::new("kill").args(["-INT", &self.ping.id().to_string()]).status().unwrap().success());
        self.ping.wait().unwrap();
        let mut text = String::new();
        self.said.rewind().unwrap();
        self.said.read_to_string(&mut text).unwrap();
        let (answered, lost) = echoes::answered(&text);
        assert!(answered > 0 && lost == 0, "{answered} answered, {lost} lost");
    }
}

#[test]
fn changes_come_and_go_while_packets_flow() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let first = generation(&gateway);
    let plain = file(&lab, "plain.toml", "");
    let pings = Pings::start(&lab);
    for round in 0..16u64 {
        let more = format!(
            "{ROUTE}[interface.extra]\nport = \"d\"\nvlan = {}\ngateway = \"vpc\"\nside = \"peer\"\naddresses = [\"10.3.0.1/24\"]\n",
            30 + round
        );
        let new = file(&lab, "new.toml", &more);
        let dry = good(&gateway, &["apply", &new, "--dry-run"]);
        assert!(
            dry.contains("+ gateway.vpc route 10.9.0.0/16: to = \"10.9.0.0/16\", via = \"10.1.0.2\"\n"),
            "{dry}"
        );
        assert!(dry.contains(&format!("+ interface.extra: port = \"d\", vlan = {}", 30 + round)), "{dry}");
        assert!(dry.ends_with("2 changes, all take effect live\n"), "{dry}");
        assert_eq!(generation(&gateway), first + 2 * round, "that was only a rehearsal");
        let done = good(&gateway, &["apply", &new, "--yes"]);
        assert!(done.contains(&format!("in force: generation {}\n", first + 2 * round + 1)), "{done}");
        assert!(lab.vpc.pings("10.9.0.1", 1));
        good(&gateway, &["apply", &plain, "--yes"]);
        assert!(lab.vpc.silent("10.9.0.1", 1));
    }
    pings.all_answered();
    // Nobody is asked here, so nothing is done without a word.
    let new = file(&lab, "new.toml", ROUTE);
    assert!(refused(&gateway, &["apply", &new]).contains("say --yes"));
    assert!(lab.vpc.silent("10.9.0.1", 1));
    gateway.stop();
}

#[test]
fn the_same_in_other_words_changes_nothing_and_says_so() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut gateway = lab.start();
    let before = history(&gateway);
    let segment = fs::metadata(lab.run_dir().join("stats")).unwrap();
    let text = lab.config("dc", "# a remark\n").replace("huge_pages", "burst = 64\nhuge_pages");
    let other = lab.dir.path().join("other.toml");
    fs::write(&other, text).unwrap();
    let diff = causeway(&gateway, &["diff", other.to_str().unwrap(), "--live"]);
    assert_eq!((diff.status.code(), &diff.stdout[..]), (Some(0), &b"no difference\n"[..]), "{diff:?}");
    let said = good(&gateway, &["apply", other.to_str().unwrap(), "--yes"]);
    assert!(said.contains("in force already"), "{said}");
    let after = history(&gateway);
    assert_eq!(before["entries"], after["entries"]);
    assert_eq!(after["file"], other.to_str().unwrap(), "but from now on this is the file");
    assert_eq!(
        segment.modified().unwrap(),
        fs::metadata(lab.run_dir().join("stats")).unwrap().modified().unwrap()
    );

    // A signal goes the same way.
    gateway.signal("-HUP");
    gateway.until(|g| g.log().matches("it changes nothing").count() == 2);
    fs::write(&other, lab.config("dc", ROUTE)).unwrap();
    let diff = causeway(&gateway, &["diff", other.to_str().unwrap(), "--live", "--json"]);
    assert_eq!(diff.status.code(), Some(1));
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
    assert_eq!((&diff["changes"][0]["kind"], &diff["changes"][0]["live"]), (&"added".into(), &true.into()));
    gateway.signal("-HUP");
    let generation = before["generation"].as_u64().unwrap() + 1;
    gateway.until(|g| g.log().contains(&format!("generation {generation}")));
    assert!(lab.vpc.pings("10.9.0.1", 2));
    let entries = history(&gateway)["entries"].clone();
    let last = entries.as_array().unwrap().last().unwrap();
    assert_eq!((&last["how"], &last["uid"]), (&"reload".into(), &Value::Null));
    gateway.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_is_not_the_file_then() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let (before, routes) = (history(&gateway), gateway.json("routes"));
    let bad = lab.dir.path().join("bad.toml");
    let name = bad.to_str().unwrap();
    let cases: [(&str, &str, &str); 4] = [
        ("10.1.0.1/24", "10.1.0.1/99", "bad.toml:"),
        ("device = \"gd\"", "device = \"gd2\"", "~ port.d: device \"gd\" → \"gd2\"  [restart]"),
        ("buffers = 16384", "buffers = 32768", "~ system: buffers 16384 → 32768  [restart]"),
        ("[port.v]", "[port.v", "bad.toml:"),
    ];
    let pings = Pings::start(&lab);
    for (from, to, said) in cases {
        fs::write(&bad, lab.config("dc", ROUTE).replace(from, to)).unwrap();
        for words in [&["apply", name, "--yes"][..], &["apply", name, "--dry-run"]] {
            let output = causeway(&gateway, words);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let all = [output.stdout, output.stderr].concat();
            assert!(
                String::from_utf8_lossy(&all).contains(said),
                "{said}: {}",
                String::from_utf8_lossy(&all)
            );
        }
    }
    assert!(refused(&gateway, &["apply", "/nonexistent/file.toml", "--yes"]).contains("cannot open"));
    assert!(refused(&gateway, &["rollback", "77"]).contains("generation 77 is not kept"));
    assert!(refused(&gateway, &["confirm"]).contains("nothing waits"));
    assert_eq!(causeway(&gateway, &["diff", "/nonexistent/file.toml", "--live"]).status.code(), Some(2));
    pings.all_answered();
    assert_eq!((history(&gateway), gateway.json("routes")), (before, routes));
    gateway.stop();
}

#[test]
fn the_last_ten_are_kept_and_each_can_be_returned_to() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let first = generation(&gateway);
    let route = |n: u64| format!("[[gateway.vpc.route]]\nto = \"10.{n}.0.0/16\"\nvia = \"10.1.0.2\"\n");
    let mut last = String::new();
    for n in 100..113 {
        last = file(&lab, "new.toml", &route(n));
        good(&gateway, &["apply", &last, "--yes"]);
    }
    let told = history(&gateway);
    let entries = told["entries"].as_array().unwrap().clone();
    assert_eq!(entries.len(), 10);
    assert_eq!(told["generation"], first + 13);
    assert_eq!(entries[9]["generation"], first + 13);
    assert_eq!((&entries[9]["uid"], &entries[9]["how"]), (&0.into(), &"apply".into()));
    let dir = lab.dir.path().join("lab.history");
    let files: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 10);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(mode(&dir) == 0o700 && files.iter().all(|file| mode(file) == 0o600));
    assert!(refused(&gateway, &["rollback", &first.to_string(), "--yes"]).contains("is not kept"));

    let routes = |gateway: &Running| -> Vec<String> {
        let all = gateway.json("routes");
        let all = all.as_array().unwrap();
        all.iter()
            .filter_map(|row| row["address"].as_str())
            .filter(|a| a.starts_with("10.1") && a.ends_with(".0.0") && *a != "10.1.0.0")
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(routes(&gateway), ["10.112.0.0"]);
    let wanted = (first + 6).to_string();
    let pings = Pings::start(&lab);
    let dry = good(&gateway, &["rollback", &wanted, "--dry-run"]);
    assert!(
        dry.contains("+ gateway.vpc route 10.105.0.0/16")
            && dry.contains("- gateway.vpc route 10.112.0.0/16"),
        "{dry}"
    );
    let said = good(&gateway, &["rollback", &wanted, "--yes"]);
    assert!(said.contains(&format!("{last} was not written")), "{said}");
    assert_eq!(routes(&gateway), ["10.105.0.0"]);
    // Again and again: further back, and not to and fro.
    good(&gateway, &["rollback", "--yes"]);
    assert_eq!(routes(&gateway), ["10.104.0.0"]);
    good(&gateway, &["rollback", "--yes"]);
    assert_eq!(routes(&gateway), ["10.103.0.0"]);
    pings.all_answered();
    let text = good(&gateway, &["history"]);
    assert!(text.contains("rollback to"), "{text}");
    // The file still says what it said.
    let said = good(&gateway, &["reload"]);
    assert!(said.contains("- gateway.vpc route 10.103.0.0/16"), "{said}");
    assert_eq!(routes(&gateway), ["10.112.0.0"]);
    let count = generation(&gateway);
    gateway.stop();

    // All of it outlives the gateway; a start with the same file is no new entry.
    fs::write(lab.file(), lab.config("dc", &route(7))).unwrap();
    let again = || Running::start(&lab.gateway, &lab.file(), &lab.run_dir());
    let gateway = again();
    assert_eq!(generation(&gateway), count + 1);
    gateway.stop();
    let gateway = again();
    assert_eq!(generation(&gateway), count + 1);
    good(&gateway, &["rollback", "--yes"]);
    assert_eq!(routes(&gateway), ["10.112.0.0"]);
    gateway.stop();
}

#[test]
fn what_nobody_confirms_is_taken_back() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut gateway = lab.start();
    let first = generation(&gateway);
    let new = file(&lab, "new.toml", ROUTE);
    let pings = Pings::start(&lab);
    let said = good(&gateway, &["apply", &new, "--yes", "--confirm", "8s"]);
    assert!(said.contains("taken back in 8 s"), "{said}");
    assert!(lab.vpc.pings("10.9.0.1", 1));
    assert!(good(&gateway, &["history"]).contains("unless `causeway confirm` comes"));
    // No other change meanwhile.
    let other = file(&lab, "other.toml", "");
    assert!(refused(&gateway, &["apply", &other, "--yes"]).contains("causeway confirm"));
    gateway.until(|g| generation(g) == first + 2);
    assert!(lab.vpc.silent("10.9.0.1", 1));
    let told = history(&gateway);
    let last = told["entries"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["how"], &last["again"]), (&"unconfirmed".into(), &first.into()));
    assert_eq!(told["file"], lab.file().to_str().unwrap(), "the file is the one before, too");
    assert!(refused(&gateway, &["confirm"]).contains("nothing waits"));

    // Confirmed, it stays.
    good(&gateway, &["apply", &new, "--yes", "--confirm", "4s"]);
    good(&gateway, &["confirm"]);
    let since = Instant::now();
    gateway.until(|_| since.elapsed() > Duration::from_millis(4500));
    assert!(lab.vpc.pings("10.9.0.1", 1));
    assert_eq!(generation(&gateway), first + 3);

    // A way back may be gone before the time is over, and ends the waiting.
    good(&gateway, &["apply", &other, "--yes", "--confirm", "1h"]);
    assert!(lab.vpc.silent("10.9.0.1", 1));
    good(&gateway, &["rollback", "--yes"]);
    assert!(lab.vpc.pings("10.9.0.1", 1));
    assert!(refused(&gateway, &["confirm"]).contains("nothing waits"));
    pings.all_answered();
    gateway.stop();
}

/// Ends a gateway as a crash does.
fn kill(mut gateway: Running) {
    gateway.signal("-KILL");
    gateway.wait();
}

fn again(lab: &Lab) -> Running {
    Running::start(&lab.gateway, &lab.file(), &lab.run_dir())
}

#[test]
fn what_nobody_confirmed_is_not_taken_up_after_a_crash() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let first = generation(&gateway);
    let mark = lab.dir.path().join("lab.history/unconfirmed");
    // The file itself is edited and applied, as most do.
    fs::write(lab.file(), lab.config("dc", ROUTE)).unwrap();
    let name = lab.file().to_str().unwrap().to_owned();
    good(&gateway, &["apply", &name, "--yes", "--confirm", "1h"]);
    assert!(lab.vpc.pings("10.9.0.1", 1));
    assert_eq!(fs::metadata(&mark).unwrap().permissions().mode() & 0o777, 0o600);
    kill(gateway);
    // Not once, and not later: whoever starts it, it is what nobody has confirmed.
    for round in 0..2 {
        let gateway = again(&lab);
        assert!(!lab.vpc.pings("10.9.0.1", 1), "{}", gateway.log());
        assert!(lab.vpc.pings("10.1.0.2", 1));
        assert!(gateway.log().contains("says what nobody has confirmed"), "{}", gateway.log());
        let told = history(&gateway);
        let last = told["entries"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&last["how"], &last["again"]), (&"unconfirmed".into(), &first.into()));
        assert_eq!(told["generation"], first + 2, "one entry, however often it starts");
        assert!(refused(&gateway, &["confirm"]).contains("was taken back"));
        if round == 0 { kill(gateway) } else { gateway.stop() }
    }
    // Nor in other words.
    fs::write(lab.file(), lab.config("dc", &format!("# a remark\n{ROUTE}"))).unwrap();
    let gateway = again(&lab);
    assert!(!lab.vpc.pings("10.9.0.1", 1), "{}", gateway.log());
    // Whoever wants it says so.
    good(&gateway, &["reload"]);
    assert!(lab.vpc.pings("10.9.0.1", 1));
    assert!(!mark.exists());
    kill(gateway);
    let gateway = again(&lab);
    assert!(lab.vpc.pings("10.9.0.1", 1), "{}", gateway.log());

    // Confirmed, it stays.
    fs::write(lab.file(), lab.config("dc", "")).unwrap();
    good(&gateway, &["apply", &name, "--yes", "--confirm", "1h"]);
    good(&gateway, &["confirm"]);
    assert!(!mark.exists());
    kill(gateway);
    let gateway = again(&lab);
    assert!(!lab.vpc.pings("10.9.0.1", 1), "{}", gateway.log());

    // What was taken back by its time is not taken up by a start either, but a file that says something else is.
    fs::write(lab.file(), lab.config("dc", ROUTE)).unwrap();
    let count = generation(&gateway);
    good(&gateway, &["apply", &name, "--yes", "--confirm", "1s"]);
    let mut gateway = gateway;
    gateway.until(|g| generation(g) == count + 2);
    kill(gateway);
    let gateway = again(&lab);
    assert!(!lab.vpc.pings("10.9.0.1", 1), "{}", gateway.log());
    kill(gateway);
    let other = ROUTE.replace("10.9.0.0/16", "10.9.0.1/32");
    fs::write(lab.file(), lab.config("dc", &other)).unwrap();
    let gateway = again(&lab);
    assert!(lab.vpc.pings("10.9.0.1", 1), "{}", gateway.log());
    assert!(!mark.exists() && gateway.log().contains("was never confirmed"), "{}", gateway.log());
    gateway.stop();
}

#[test]
fn a_start_with_another_file_than_the_unconfirmed_one_takes_that_file() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let new = file(&lab, "new.toml", ROUTE);
    good(&gateway, &["apply", &new, "--yes", "--confirm", "1h"]);
    assert!(lab.vpc.pings("10.9.0.1", 1));
    kill(gateway);
    let gateway = again(&lab);
    assert!(!lab.vpc.pings("10.9.0.1", 1), "{}", gateway.log());
    assert_eq!(history(&gateway)["file"], lab.file().to_str().unwrap());
    gateway.stop();
}

#[test]
fn what_was_drained_stays_so_over_a_crash_and_until_it_is_put_back() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let kept = lab.dir.path().join("lab.drained");
    let drained = |gateway: &Running, name: &str| gateway.row("health", name)["drained"] == true;
    assert!(lab.vpc.pings("10.1.0.2", 1));
    assert_eq!(good(&gateway, &["drain", "interface", "dc"]), "drained\n");
    assert!(!lab.vpc.pings("10.1.0.2", 1));
    // Over a reload, an apply, a crash and an end.
    let new = file(&lab, "new.toml", ROUTE);
    good(&gateway, &["apply", &new, "--yes"]);
    assert!(drained(&gateway, "dc") && !lab.vpc.pings("10.1.0.2", 1));
    kill(gateway);
    let gateway = again(&lab);
    assert!(drained(&gateway, "dc") && !lab.vpc.pings("10.1.0.2", 1), "{}", gateway.log());
    assert!(gateway.text("health").contains("drained"));
    gateway.stop();
    let gateway = again(&lab);
    assert!(drained(&gateway, "dc"), "{}", gateway.log());
    assert_eq!(good(&gateway, &["undrain", "interface", "dc"]), "in service\n");
    assert!(lab.vpc.pings("10.1.0.2", 1) && !kept.exists());
    kill(gateway);
    let gateway = again(&lab);
    assert!(!drained(&gateway, "dc") && lab.vpc.pings("10.1.0.2", 1));

    // What the file has no more is forgotten, with a word; also when it comes back.
    good(&gateway, &["drain", "interface", "dc"]);
    kill(gateway);
    fs::write(lab.file(), lab.config("other", "")).unwrap();
    let gateway = again(&lab);
    assert!(gateway.log().contains("interface dc was drained, and is not in the file"), "{}", gateway.log());
    assert!(lab.vpc.pings("10.1.0.2", 1) && !kept.exists());
    good(&gateway, &["drain", "interface", "other"]);
    fs::write(lab.file(), lab.config("dc", "")).unwrap();
    good(&gateway, &["reload"]);
    assert!(
        gateway.log().contains("interface other was drained, and is not in the file"),
        "{}",
        gateway.log()
    );
    assert!(lab.vpc.pings("10.1.0.2", 1) && !kept.exists());
    gateway.stop();
}

#[test]
fn many_at_once_go_one_after_the_other() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let first = generation(&gateway);
    let files: Vec<String> = (1..=8)
        .map(|n| {
            let more = format!("[[gateway.vpc.route]]\nto = \"10.{}.0.0/16\"\nvia = \"10.1.0.2\"\n", 100 + n);
            file(&lab, &format!("{n}.toml"), &more)
        })
        .collect();
    let pings = Pings::start(&lab);
    // Without a word on what they were compared with: all are taken up, in some order.
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let (gateway, spawn) = (&gateway, |file: String| format!("{{\"apply\": \"{file}\"}}"));
        let threads: Vec<_> = files
            .iter()
            .map(|file| spawn(file.clone()))
            .map(|request| scope.spawn(move || gateway.ask(&request).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut generations: Vec<u64> = answers.iter().map(|a| a["ok"]["generation"].as_u64().unwrap()).collect();
    generations.sort_unstable();
    assert_eq!(generations, (first + 1..=first + 8).collect::<Vec<_>>());
    // What is in force is the last of them, whole.
    let last = answers.iter().find(|a| a["ok"]["generation"] == first + 8).unwrap();
    let diff = causeway(&gateway, &["diff", last["ok"]["file"].as_str().unwrap(), "--live"]);
    assert_eq!(diff.status.code(), Some(0), "{diff:?}");

    // By the command each is made as it was shown, or not at all.
    let children: Vec<Child> = files
        .iter()
        .map(|file| {
            let mut apply = command(&gateway, &["apply", file, "--yes"]);
            apply.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let in_force =
        outputs.iter().filter(|o| String::from_utf8_lossy(&o.stdout).contains("in force: generation"));
    let in_force = in_force.count() as u64;
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(why.contains("has come into force since this was looked at"), "{why}");
    }
    assert!(in_force >= 1);
    assert_eq!(generation(&gateway), first + 8 + in_force);
    pings.all_answered();
    gateway.stop();
}

#[test]
fn the_live_configuration_is_shown_without_keys() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let secret = "00112233445566778899aabbccddeeff01020304";
    let tunnel = |key: &str| {
        format!(
            "[tunnel.dc]\ngateway = \"vpc\"\nlocal = \"10.1.0.1\"\nremote = \"10.1.0.9\"\nout = {{ spi = 0x2001, key = {{ hex = \"{key}\" }} }}\nin = [{{ spi = 0x1001, key = {{ hex = \"ffeeddccbbaa99887766554433221100a1b2c3d4\" }} }}]\n{ROUTE}[[gateway.vpc.route]]\nto = \"10.8.0.0/16\"\ntunnel = \"dc\"\n"
        )
    };
    fs::write(lab.file(), lab.config("dc", &tunnel(secret))).unwrap();
    fs::set_permissions(lab.file(), fs::Permissions::from_mode(0o600)).unwrap();
    let gateway = Running::start(&lab.gateway, &lab.file(), &lab.run_dir());
    let shown = gateway.text("config --defaults");
    assert!(shown.contains("[tunnel.dc]") && shown.contains("key = { hidden = \"AES-128-GCM\" }"), "{shown}");
    assert!(shown.contains("# esn = true"), "{shown}");
    // Another key is a change, and is told as that alone.
    let other = "99112233445566778899aabbccddeeff01020304";
    let new = lab.dir.path().join("new.toml");
    fs::write(&new, lab.config("dc", &tunnel(other))).unwrap();
    let name = new.to_str().unwrap();
    assert!(refused(&gateway, &["apply", name, "--yes"]).contains("chmod 600"));
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    let diff = causeway(&gateway, &["diff", name, "--live"]);
    assert_eq!(
        String::from_utf8_lossy(&diff.stdout).lines().next(),
        Some("~ tunnel.dc out: key changed (not shown)")
    );
    let two = causeway(&gateway, &["history"]);
    for text in [&shown, &gateway.log(), &String::from_utf8_lossy(&two.stdout).into_owned()] {
        assert!(!text.contains("00112233") && !text.contains("ffeeddcc"), "{text}");
    }
    gateway.stop();
}
