//! Three lines between two real gateways share the flows: each TCP connection keeps to one line, flows spread over all of
//! them, and when a line is lost only its own flows move, and come back with it. Needs root.

mod netns_common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use af_xdp::{
    Device, Namespace,
    packet_socket::{PacketConfig, PacketSocket},
};
use causeway::{
    cli::demo::{
        gateways::cores,
        network::{ip, path_of},
    },
    wire::{
        ethernet::{self, EtherType},
        ip::protocol,
        ipv4, tcp,
        vlan::L2,
    },
};
use netns_common::{PATIENCE, Site, is_root, until};

const LINES: usize = 3;
const CONNECTIONS: usize = 48;
const SERVER_PORT: u16 = 7000;

/// A box with a side of its own and three equal lines to the other.
fn gateway(name: &str, own: u8) -> String {
    let (far, lan) = (3 - own, own * 10);
    let mut text = format!(
        "[system]\nname = \"{name}\"\ncores = [1]\nbuffers = 32768\n[port.lan]\ndriver = \"xdp\"\ndevice = \"lan0\"\n\
         [gateway.g]\nprefixes = [\"10.{own}.0.0/16\"]\n[interface.lan]\nport = \"lan\"\nvlan = {lan}\ngateway = \"g\"\n\
         side = \"local\"\naddresses = [\"10.{own}.0.1/24\"]\n"
    );
    for line in 0..LINES {
        text += &format!(
            "[port.wan{line}]\ndriver = \"xdp\"\ndevice = \"wan{line}\"\n[interface.line{line}]\nport = \"wan{line}\"\n\
             vlan = 100\ngateway = \"g\"\nside = \"peer\"\naddresses = [\"192.0.{line}.{own}/30\"]\n\
             [[gateway.g.route]]\nto = \"10.{far}.0.0/16\"\nvia = \"192.0.{line}.{far}\"\n"
        );
    }
    text
}

fn namespace(line: usize) -> String {
    format!("line{line}")
}

/// Lines on which a connection was seen, by the client's port and whether the data centre's gateway sent.
type Paths = BTreeMap<(u16, bool), BTreeSet<usize>>;

/// Notes which connections pass a line.
struct Watch {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    paths: Arc<Mutex<Paths>>,
}

impl Watch {
    fn new(site: &Site) -> Self {
        let (over, paths): (Arc<AtomicBool>, Arc<Mutex<Paths>>) = Default::default();
        let watch = |line: usize, device: &'static str| {
            let place = path_of(&site.network.full(&namespace(line)));
            let (over, paths) = (Arc::clone(&over), Arc::clone(&paths));
            let (ready, is_ready) = std::sync::mpsc::channel();
            let thread = thread::spawn(move || watch(&place, device, line, &over, &paths, &ready));
            is_ready.recv().unwrap();
            thread
        };
        let threads =
            (0..LINES).flat_map(|line| ["idc", "cloud"].map(|device| watch(line, device))).collect();
        Self { over, threads, paths }
    }

    /// The paths of all connections in both directions, seen from now on while `load` goes on. Each must be one line.
    fn paths(&self, load: &Load) -> Result<BTreeMap<(u16, bool), usize>, String> {
        // What is on its way by an earlier path arrives.
        load.wait_for_progress(3);
        thread::sleep(Duration::from_millis(200));
        self.paths.lock().unwrap().clear();
        load.wait_for_progress(20);
        let paths = self.paths.lock().unwrap().clone();
        assert_eq!(paths.len(), 2 * CONNECTIONS, "each connection both ways");
        let one = |(flow, lines): (_, BTreeSet<usize>)| match Vec::from_iter(lines).as_slice() {
            [line] => Ok((flow, *line)),
            lines => Err(format!("flow {flow:?} is on lines {lines:?}")),
        };
        paths.into_iter().map(one).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn watch(
    place: &Path,
    device: &str,
    line: usize,
    over: &AtomicBool,
    paths: &Mutex<Paths>,
    ready: &std::sync::mpsc::Sender<()>,
) {
    Namespace::open(place).unwrap().enter().unwrap();
    let config = PacketConfig { promiscuous: true, block_timeout: 1, ..PacketConfig::default() };
    let mut socket = PacketSocket::open(&Device::by_name(device).unwrap(), &config).unwrap();
    ready.send(()).unwrap();
    while !over.load(Ordering::Relaxed) {
        let received = socket.receive(64, |received| {
            let mut frame = vec![0; received.len()];
            if received.copy_to(&mut frame)
                && let Some(port) = client_port(&frame)
            {
                paths.lock().unwrap().entry((port, device == "idc")).or_default().insert(line);
            }
            true
        });
        if received == 0 {
            let _ = socket.poll(Some(Duration::from_millis(1)));
        }
    }
}

/// The client's port of a frame of one of our connections.
fn client_port(frame: &[u8]) -> Option<u16> {
    let l2 = L2::parse(frame).ok().filter(|l2| l2.ether_type == EtherType::IPV4)?;
    let packet = ipv4::parse(frame.get(ethernet::HEADER_LEN + l2.tags.len()..)?).ok()?;
    if packet.header.protocol() != protocol::TCP {
        return None;
    }
    let segment = tcp::parse(packet.payload).ok()?;
    let ports = [segment.header.source_port(), segment.header.destination_port()];
    match ports {
        [client, SERVER_PORT] | [SERVER_PORT, client] => Some(client),
        _ => None,
    }
}

/// Connections on which a number goes there and back, again and again.
struct Load {
    over: Arc<AtomicBool>,
    exchanges: Arc<Vec<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(site: &Site) -> Self {
        let over: Arc<AtomicBool> = Arc::default();
        let exchanges: Arc<Vec<AtomicU64>> = Arc::new((0..CONNECTIONS).map(|_| AtomicU64::new(0)).collect());
        let inside = |namespace: &str, address: &'static str| {
            site.network.inside(namespace, || TcpListener::bind((address, SERVER_PORT)).unwrap()).unwrap()
        };
        let listener = inside("vpc-host", "10.2.0.10");
        let mut threads = Vec::new();
        for number in 0..CONNECTIONS {
            let connect = || TcpStream::connect(("10.2.0.10", SERVER_PORT)).unwrap();
            let client = site.network.inside("idc-host", connect).unwrap();
            let (server, _) = listener.accept().unwrap();
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            threads.push(thread::spawn(move || echo(server)));
            let (over, exchanges) = (Arc::clone(&over), Arc::clone(&exchanges));
            threads.push(thread::spawn(move || ask(client, &over, &exchanges[number])));
        }
        Self { over, exchanges, threads }
    }

    /// Waits until each connection has had so many exchanges more.
    #[track_caller]
    fn wait_for_progress(&self, more: u64) {
        let count = |all: &[AtomicU64]| all.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = count(&self.exchanges);
        until("a connection stands still", || {
            count(&self.exchanges).iter().zip(&before).all(|(now, before)| *now >= before + more)
        });
    }

    /// Ends all connections, in order, or the test fails.
    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a connection broke");
        }
    }
}

fn ask(mut stream: TcpStream, over: &AtomicBool, exchanges: &AtomicU64) {
    let mut answer = [0; 8];
    while !over.load(Ordering::Relaxed) {
        let number = exchanges.load(Ordering::Relaxed);
        stream.write_all(&number.to_be_bytes()).expect("the connection breaks");
        stream.read_exact(&mut answer).expect("no answer");
        assert_eq!(u64::from_be_bytes(answer), !number);
        exchanges.store(number + 1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(10));
    }
}

fn echo(mut stream: TcpStream) {
    let mut number = [0; 8];
    while stream.read_exact(&mut number).is_ok() {
        stream.write_all(&(!u64::from_be_bytes(number)).to_be_bytes()).expect("the connection breaks");
    }
}

#[test]
fn connections_keep_their_line_and_only_those_of_a_lost_line_move() {
    if !is_root() {
        return;
    }
    let mut site = Site::empty();
    for namespace in ["idc-host", "idc", "cloud", "vpc-host"] {
        site.network.add(namespace).unwrap();
    }
    site.network.link(("idc-host", "eth0"), ("idc", "lan0")).unwrap();
    site.network.link(("cloud", "lan0"), ("vpc-host", "eth0")).unwrap();
    for line in 0..LINES {
        let (switch, device) = (namespace(line), format!("wan{line}"));
        site.network.add(&switch).unwrap();
        site.network.link(("idc", &device), (&switch, "idc")).unwrap();
        site.network.link((&switch, "cloud"), ("cloud", &device)).unwrap();
        let full = site.network.full(&switch);
        ip(&format!("-n {full} link add bridge type bridge forward_delay 0 mcast_snooping 0")).unwrap();
        for command in ["link set idc master bridge", "link set cloud master bridge", "link set bridge up"] {
            ip(&format!("-n {full} {command}")).unwrap();
        }
        // As a switch of hardware does: tags stay in the frames.
        let off = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];
        let turn_off =
            || ["idc", "cloud"].map(|device| Device::by_name(device).unwrap().turn_off(&off).unwrap());
        site.network.inside(&switch, turn_off).unwrap();
    }
    site.host("idc-host", 10, &["10.1.0.10/24"], &["10.1.0.1"]);
    site.host("vpc-host", 20, &["10.2.0.10/24"], &["10.2.0.1"]);
    for ((name, number), core) in [("idc", 1), ("cloud", 2)].into_iter().zip(cores()) {
        site.start(name, &gateway(name, number), core);
    }
    until("no way", || site.run("idc-host", "ping -n -c 1 -W 1 10.2.0.10").0);

    let watch = Watch::new(&site);
    let load = Load::start(&site);
    let before = watch.paths(&load).unwrap();
    for (from_idc, line) in
        [true, false].into_iter().flat_map(|from| (0..LINES).map(move |line| (from, line)))
    {
        let count = before.iter().filter(|((_, from), on)| *from == from_idc && **on == line).count();
        assert!(count > 0, "no flow is on line {line}: {before:?}");
    }

    // Both boxes lose the carrier. No other sign of health is asked for: a busy machine could give it late.
    let lost = 1;
    let cable = |state: &str| {
        for device in ["idc", "cloud"] {
            ip(&format!("-n {} link set {device} {state}", site.network.full(&namespace(lost)))).unwrap();
        }
    };
    cable("down");
    // A connection of that line goes on only when it has moved.
    let without = watch.paths(&load).unwrap();
    let (mut moved, mut to) = (0, BTreeSet::new());
    for (flow, line) in &before {
        let now = without[flow];
        if *line == lost {
            assert_ne!(now, lost);
            to.insert(now);
            moved += 1;
        } else {
            assert_eq!(now, *line, "flow {flow:?} of a line that works has moved");
        }
    }
    assert_eq!(to.len(), LINES - 1, "flows of the lost line spread over the others: {to:?} has {moved}");

    cable("up");
    until("flows are not where they were", || watch.paths(&load).is_ok_and(|paths| paths == before));
    load.end();
    drop(watch);
    site.end();
}
