//! TCP and UDP between two hosts, both ways at once, watched for gaps.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use causeway::cli::demo::network::Network;

/// A datagram a millisecond, and a chunk of the stream.
const PACE: Duration = Duration::from_millis(1);
const CHUNK: usize = 1000;

/// What is watched of one direction of one protocol.
#[derive(Debug, Default)]
struct Watch {
    /// Nanoseconds after the start at which something last arrived, and the longest gap since the mark.
    last: AtomicU64,
    gap: AtomicU64,
    /// What arrived: datagrams, or parts of the stream.
    received: AtomicU64,
    /// UDP: one more than the highest number that arrived.
    newest: AtomicU64,
}

impl Watch {
    fn arrived(&self, start: Instant) {
        let now = start.elapsed().as_nanos() as u64;
        let last = self.last.swap(now, Ordering::Relaxed);
        self.gap.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Milliseconds that nothing came beyond the pace.
    fn outage(&self) -> f64 {
        (self.gap.load(Ordering::Relaxed) as f64 / 1e6 - 1.0).max(0.0)
    }
}

/// Longest times without anything, in milliseconds, there and back; and datagrams lost.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    pub udp: [f64; 2],
    pub tcp: [f64; 2],
    pub lost: i64,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([u0, u1], [t0, t1]) = (self.udp, self.tcp);
        write!(f, "UDP {u0:.0} and {u1:.0} ms ({} datagrams lost), TCP {t0:.0} and {t1:.0} ms", self.lost)
    }
}

/// The byte at a place of the stream: any that shows when one is lost, doubled or moved.
fn byte_at(place: u64) -> u8 {
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// The flows: UDP there, UDP back, TCP there, TCP back.
pub struct Load {
    watches: [Arc<Watch>; 4],
    over: Arc<AtomicBool>,
    /// Senders are to stop; receivers take what is on its way.
    closing: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    lost_before: Mutex<i64>,
    start: Instant,
}

impl Load {
    /// Starts all flows between two hosts, each a namespace and its address.
    pub fn start(network: &Network, one: (&str, &str), other: (&str, &str)) -> Self {
        let start = Instant::now();
        let (over, closing): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let watches: [Arc<Watch>; 4] = Default::default();
        let mut threads = Vec::new();
        for (number, (from, to)) in [(one, other), (other, one)].into_iter().enumerate() {
            let sender = network.inside(from.0, || UdpSocket::bind((from.1, 0)).unwrap()).unwrap();
            let receiver = network.inside(to.0, || UdpSocket::bind((to.1, 7001)).unwrap()).unwrap();
            sender.connect((to.1, 7001)).unwrap();
            receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            threads.extend(datagrams(sender, receiver, Arc::clone(&watches[number]), &over, &closing, start));
            let listener = network.inside(to.0, || TcpListener::bind((to.1, 7002)).unwrap()).unwrap();
            let sender = network.inside(from.0, || connect(to.1)).unwrap();
            let (receiver, _) = listener.accept().unwrap();
            threads.extend(stream(sender, receiver, Arc::clone(&watches[2 + number]), &closing, start));
        }
        let load = Self { watches, over, closing, threads, lost_before: Mutex::new(0), start };
        load.wait_for_progress(Duration::from_secs(10));
        load
    }

    /// From now on gaps and losses count.
    pub fn mark(&self) {
        for watch in &self.watches {
            watch.gap.store(0, Ordering::Relaxed);
        }
        *self.lost_before.lock().unwrap() = self.lost();
    }

    /// What was seen since the mark.
    pub fn take(&self) -> Outage {
        let [u0, u1, t0, t1] = [0, 1, 2, 3].map(|n| self.watches[n].outage());
        let lost = self.lost() - *self.lost_before.lock().unwrap();
        Outage { udp: [u0, u1], tcp: [t0, t1], lost }
    }

    /// Datagrams that did not come, though later ones did.
    fn lost(&self) -> i64 {
        let missing = |watch: &Arc<Watch>| {
            let received = watch.received.load(Ordering::Relaxed);
            watch.newest.load(Ordering::Relaxed) as i64 - received as i64
        };
        self.watches[..2].iter().map(missing).sum()
    }

    /// Waits until something comes of every flow, from now on.
    #[track_caller]
    pub fn wait_for_progress(&self, patience: Duration) {
        let marks: Vec<u64> = self.watches.iter().map(|w| w.received.load(Ordering::Relaxed)).collect();
        let since = Instant::now();
        loop {
            let now: Vec<u64> = self.watches.iter().map(|w| w.received.load(Ordering::Relaxed)).collect();
            if now.iter().zip(&marks).all(|(now, before)| now > before) {
                return;
            }
            assert!(since.elapsed() < patience, "flows stand still: {marks:?}, then {now:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends all flows: every byte of both streams must have come, as it was sent.
    #[track_caller]
    pub fn end(self) {
        self.closing.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(100));
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a flow failed");
        }
        for (number, watch) in self.watches.iter().enumerate() {
            let received = watch.received.load(Ordering::Relaxed);
            // Of a stream: reads, each of as much as there was.
            assert!(received > 20, "flow {number}: {received} in {:?}", self.start.elapsed());
        }
    }
}

/// Connects; on a busy machine a way may be down for a moment, which is what TCP itself would not mind.
fn connect(address: &str) -> TcpStream {
    let since = Instant::now();
    loop {
        match TcpStream::connect((address, 7002)) {
            Ok(stream) => return stream,
            Err(error) => assert!(since.elapsed() < Duration::from_secs(60), "{address}: {error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn datagrams(
    sender: UdpSocket,
    receiver: UdpSocket,
    watch: Arc<Watch>,
    over: &Arc<AtomicBool>,
    closing: &Arc<AtomicBool>,
    start: Instant,
) -> [JoinHandle<()>; 2] {
    let (closing, over) = (Arc::clone(closing), Arc::clone(over));
    let send = thread::spawn(move || {
        let (mut number, mut next) = (0_u64, Instant::now());
        while !closing.load(Ordering::Relaxed) {
            // An ICMP error that came back is no reason to stop.
            number += u64::from(sender.send(&number.to_be_bytes()).is_ok());
            next += PACE;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
    let receive = thread::spawn(move || {
        let mut buffer = [0; 64];
        while !over.load(Ordering::Relaxed) {
            if let Ok(8) = receiver.recv(&mut buffer) {
                let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                watch.newest.fetch_max(number + 1, Ordering::Relaxed);
                watch.arrived(start);
            }
        }
    });
    [send, receive]
}

fn stream(
    mut sender: TcpStream,
    mut receiver: TcpStream,
    watch: Arc<Watch>,
    closing: &Arc<AtomicBool>,
    start: Instant,
) -> [JoinHandle<()>; 2] {
    let closing = Arc::clone(closing);
    let total = Arc::new(AtomicU64::new(0));
    let sum = Arc::clone(&total);
    sender.set_nodelay(true).unwrap();
    let send = thread::spawn(move || {
        let (mut place, mut next) = (0_u64, Instant::now());
        while !closing.load(Ordering::Relaxed) {
            let chunk: Vec<u8> = (0..CHUNK as u64).map(|n| byte_at(place + n)).collect();
            sender.write_all(&chunk).expect("the connection breaks");
            place += CHUNK as u64;
            next += PACE;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        sum.store(place, Ordering::Relaxed);
        // The other end learns of the end of the stream.
        sender.shutdown(std::net::Shutdown::Write).expect("the connection breaks");
    });
    let receive = thread::spawn(move || {
        receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (mut buffer, mut place) = (vec![0; 1 << 16], 0_u64);
        loop {
            match receiver.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    for byte in &buffer[..n] {
                        assert_eq!(*byte, byte_at(place), "byte {place}");
                        place += 1;
                    }
                    watch.arrived(start);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the stream stands still at {place}: {error}"),
            }
        }
        assert_eq!(place, total.load(Ordering::Relaxed), "bytes are missing");
    });
    [send, receive]
}
