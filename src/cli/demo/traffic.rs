//! `causeway demo-host`: the programs of the demo's hosts, on their kernels' own sockets.
//!
//! The cloud's host serves: a TCP connection starts with one line of JSON, a `Request`, and what follows is by its
//! kind. UDP has the same port. The data centre's host asks, and prints a [`Report`] a line, ten times a second.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::{
    pattern::Pattern,
    report::{Report, Tcp, Udp, Way},
};
use crate::{
    cli::{NOT_WELL, fail},
    wire::checksum::Sum,
};

/// Port of the server, TCP and UDP.
pub const PORT: u16 = 5201;
/// Bytes of data in a UDP datagram: with its headers just within the tunnel's 1446.
const DATAGRAM: usize = 1400;
/// What a program writes at once to a TCP socket.
const PIECE: usize = 128 << 10;
/// Between two pings, and two lines of the report.
const INTERVAL: Duration = Duration::from_millis(100);
/// Pings that may be on their way at once.
const OUTSTANDING: usize = 256;
/// How long stragglers may take.
const GRACE: Duration = Duration::from_millis(300);

/// Be a host of the demo.
#[derive(Debug, Args)]
pub struct Host {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve.
    Serve,
    /// Talk to a server, and report.
    Talk {
        /// The server's address.
        server: IpAddr,
        /// For how long, in milliseconds.
        #[arg(long)]
        millis: u64,
        /// Megabits a second of UDP.
        #[arg(long, default_value_t = 100)]
        udp_mbps: u64,
    },
    /// Send so many bytes over TCP, one way, check them, and print the report.
    Copy {
        /// The server's address.
        server: IpAddr,
        /// How many.
        bytes: u64,
        /// From the server, not to it.
        #[arg(long)]
        back: bool,
    },
}

/// What a client asks the server for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    /// The client sends until it shuts its side; the answer is a [`Received`].
    Upload,
    /// The server sends until time or bytes are spent, and then closes.
    Download { millis: u64, bytes: u64 },
    /// The client is going to send datagrams.
    UdpUpload,
    /// The server sends datagrams to this port of the client.
    UdpDownload { port: u16, millis: u64, mbps: u64 },
    /// What the server has counted: the answer is a [`Counted`].
    Count,
}

/// What the server got of an upload.
#[derive(Debug, Serialize, Deserialize)]
struct Received {
    bytes: u64,
    intact: bool,
}

/// What the server counted since the last request that started something.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Counted {
    tcp_sent: u64,
    udp_sent: u64,
    udp_received: u64,
    udp_wrong: u64,
}

/// Runs the command.
#[must_use]
pub fn run(args: &Host) -> ExitCode {
    let result = match args.role {
        Role::Serve => serve(),
        Role::Talk { server, millis, udp_mbps } => talk(server, Duration::from_millis(millis), udp_mbps),
        Role::Copy { server, bytes, back } => copy(server, bytes, back),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("the demo's host: {error}"), NOT_WELL),
    }
}

/// Nothing that is locked here can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn any_address() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT))
}

/// Binds to the port for both versions of IP, or for IPv4 where the kernel has no other.
fn bind<T>(how: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    how(any_address()).or_else(|_| how(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))))
}

fn serve() -> io::Result<()> {
    let listener = bind(TcpListener::bind)?;
    let udp = bind(UdpSocket::bind)?;
    let counted = Arc::new(Mutex::new(Counted::default()));
    let (counter, socket) = (Arc::clone(&counted), udp.try_clone()?);
    thread::spawn(move || count_datagrams(&socket, &counter));
    // The harness waits for this line.
    println!("ready");
    for connection in listener.incoming() {
        let (connection, udp, counted) = (connection?, udp.try_clone()?, Arc::clone(&counted));
        // A client that goes away is its own affair.
        thread::spawn(move || answer(connection, &udp, &counted));
    }
    Ok(())
}

fn count_datagrams(socket: &UdpSocket, counted: &Mutex<Counted>) {
    let mut buffer = [0; 2048];
    // An ICMP error about what was sent is reported by the next call, and nothing to end for.
    loop {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let good = is_datagram(buffer.get_mut(..length).unwrap_or_default());
        let mut counted = lock(counted);
        if good {
            counted.udp_received += 1;
        } else {
            counted.udp_wrong += 1;
        }
    }
}

fn answer(mut connection: TcpStream, udp: &UdpSocket, counted: &Mutex<Counted>) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new(connection.try_clone()?);
    reader.read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Request::Upload => {
            let received = read_pattern(&mut reader, |_| ())?;
            writeln!(connection, "{}", serde_json::to_string(&received)?)
        }
        Request::Download { millis, bytes } => {
            lock(counted).tcp_sent = 0;
            let sent = write_pattern(&mut connection, Duration::from_millis(millis), bytes, |_| ())?;
            lock(counted).tcp_sent = sent;
            connection.shutdown(Shutdown::Write)?;
            // Until the client has closed, so that the end of the stream does not overtake the count.
            reader.read(&mut [0]).map(drop)
        }
        Request::UdpUpload => {
            *lock(counted) = Counted::default();
            writeln!(connection, "{{}}")
        }
        Request::UdpDownload { port, millis, mbps } => {
            let to = SocketAddr::new(connection.peer_addr()?.ip(), port);
            let sent = send_datagrams(Duration::from_millis(millis), mbps, |d| udp.send_to(d, to), |_| ())?;
            lock(counted).udp_sent = sent;
            writeln!(connection, "{{}}")
        }
        Request::Count => {
            let counted = lock(counted).clone();
            writeln!(connection, "{}", serde_json::to_string(&counted)?)
        }
    }
}

/// Writes the pattern until time or bytes are spent.
fn write_pattern(to: &mut impl Write, time: Duration, bytes: u64, progress: impl Fn(u64)) -> io::Result<u64> {
    let (mut pattern, mut buffer) = (Pattern::new(0), vec![0; PIECE]);
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time && sent < bytes {
        let piece = (bytes - sent).min(PIECE as u64) as usize;
        let piece = buffer.get_mut(..piece).unwrap_or_default();
        pattern.fill(piece);
        to.write_all(piece)?;
        sent += piece.len() as u64;
        progress(sent);
    }
    Ok(sent)
}

/// Reads to the end, and compares with the pattern.
fn read_pattern(from: &mut impl Read, progress: impl Fn(u64)) -> io::Result<Received> {
    let (mut pattern, mut buffer) = (Pattern::new(0), vec![0; PIECE]);
    let mut received = Received { bytes: 0, intact: true };
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(received);
        }
        received.bytes += length as u64;
        received.intact &= pattern.matches(buffer.get_mut(..length).unwrap_or_default());
        progress(received.bytes);
    }
}

/// Sends datagrams at a rate: each its number, and a pattern by it.
fn send_datagrams(
    time: Duration,
    mbps: u64,
    send: impl Fn(&[u8]) -> io::Result<usize>,
    progress: impl Fn(u64),
) -> io::Result<u64> {
    let mut datagram = [0; DATAGRAM];
    let per_second = (mbps * 1_000_000 / 8 / DATAGRAM as u64).max(1);
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok(sent);
        }
        let due = elapsed.as_micros() as u64 * per_second / 1_000_000 + 1;
        while sent < due {
            let (number, rest) = datagram.split_at_mut(8);
            number.copy_from_slice(&sent.to_be_bytes());
            Pattern::new(sent).fill(rest);
            send(&datagram)?;
            sent += 1;
        }
        progress(sent);
        thread::sleep(Duration::from_millis(1));
    }
}

fn is_datagram(bytes: &mut [u8]) -> bool {
    let Some((number, rest)) = bytes.split_first_chunk_mut::<8>() else { return false };
    rest.len() == DATAGRAM - 8 && Pattern::new(u64::from_be_bytes(*number)).matches(rest)
}

fn ask(server: IpAddr, request: &Request) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect((server, PORT))?;
    writeln!(connection, "{}", serde_json::to_string(request)?)?;
    Ok(connection)
}

fn answer_of<T: for<'a> Deserialize<'a>>(connection: TcpStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// The client's view of the whole, printed by a thread of its own.
#[derive(Clone)]
struct Progress(Arc<Mutex<Report>>);

impl Progress {
    fn change(&self, how: impl FnOnce(&mut Report)) {
        how(&mut lock(&self.0));
    }

    fn print(&self) -> io::Result<()> {
        let line = serde_json::to_string(&*lock(&self.0))?;
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }
}

fn talk(server: IpAddr, time: Duration, udp_mbps: u64) -> io::Result<()> {
    let progress = Progress(Arc::default());
    let over = Arc::new(AtomicBool::new(false));
    let printer = {
        let (progress, over) = (progress.clone(), Arc::clone(&over));
        thread::spawn(move || {
            // Whoever read it is gone when it cannot be printed.
            while !over.load(Ordering::Relaxed) && progress.print().is_ok() {
                thread::sleep(INTERVAL);
            }
        })
    };
    let pinger = {
        let (progress, over) = (progress.clone(), Arc::clone(&over));
        thread::spawn(move || match server {
            IpAddr::V4(server) => ping(server, &progress, &over),
            IpAddr::V6(_) => Ok(()),
        })
    };
    let each = time / 4;
    let result = tcp(server, Way::ToCloud, each, u64::MAX, &progress)
        .and_then(|()| tcp(server, Way::ToIdc, each, u64::MAX, &progress))
        .and_then(|()| udp_to_cloud(server, each, udp_mbps, &progress))
        .and_then(|()| udp_to_idc(server, each, udp_mbps, &progress));
    over.store(true, Ordering::Relaxed);
    let _ = printer.join();
    match pinger.join() {
        Ok(pinged) => pinged?,
        Err(_) => return Err(io::Error::other("the pinging thread panicked")),
    }
    result?;
    progress.change(|report| report.done = true);
    progress.print()
}

fn copy(server: IpAddr, bytes: u64, back: bool) -> io::Result<()> {
    let progress = Progress(Arc::default());
    let way = if back { Way::ToIdc } else { Way::ToCloud };
    tcp(server, way, Duration::MAX, bytes, &progress)?;
    progress.change(|report| report.done = true);
    progress.print()
}

fn tcp(server: IpAddr, way: Way, time: Duration, bytes: u64, progress: &Progress) -> io::Result<()> {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let request = match way {
        Way::ToCloud => Request::Upload,
        Way::ToIdc => Request::Download { millis, bytes },
    };
    let stream = Tcp { way, sent: None, received: None, progress: 0, seconds: 0.0, intact: None };
    progress.change(|report| report.tcp.push(stream));
    let start = Instant::now();
    let update = |how: &dyn Fn(&mut Tcp)| {
        progress.change(|report| {
            if let Some(stream) = report.tcp.last_mut() {
                stream.seconds = start.elapsed().as_secs_f64();
                how(stream);
            }
        });
    };
    let count = |bytes| update(&|stream| stream.progress = bytes);
    let mut connection = ask(server, &request)?;
    let (sent, received) = match way {
        Way::ToCloud => {
            let sent = write_pattern(&mut connection, time, bytes, count)?;
            connection.shutdown(Shutdown::Write)?;
            let mtu = path_mtu(&connection);
            let received: Received = answer_of(connection)?;
            progress.change(|report| report.path_mtu = mtu.or(report.path_mtu));
            (sent, received)
        }
        Way::ToIdc => {
            let received = read_pattern(&mut connection, count)?;
            let counted: Counted = answer_of(ask(server, &Request::Count)?)?;
            (counted.tcp_sent, received)
        }
    };
    update(&|stream| {
        stream.sent = Some(sent);
        stream.received = Some(received.bytes);
        stream.intact = Some(received.intact && received.bytes == sent && sent > 0);
    });
    Ok(())
}

/// What the kernel knows of the path's MTU.
fn path_mtu(connection: &TcpStream) -> Option<u32> {
    rustix::net::sockopt::ip_mtu(connection).or_else(|_| rustix::net::sockopt::ipv6_mtu(connection)).ok()
}

fn udp_stream(progress: &Progress, way: Way) {
    let size = DATAGRAM as u64;
    let stream = Udp { way, sent: None, received: None, wrong: 0, progress: 0, size, seconds: 0.0 };
    progress.change(|report| report.udp.push(stream));
}

fn udp_change(progress: &Progress, start: Instant, how: impl FnOnce(&mut Udp)) {
    progress.change(|report| {
        if let Some(stream) = report.udp.last_mut() {
            stream.seconds = start.elapsed().as_secs_f64();
            how(stream);
        }
    });
}

fn udp_socket(server: IpAddr) -> io::Result<UdpSocket> {
    let any = match server {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    UdpSocket::bind((any, 0))
}

fn udp_to_cloud(server: IpAddr, time: Duration, mbps: u64, progress: &Progress) -> io::Result<()> {
    udp_stream(progress, Way::ToCloud);
    let socket = udp_socket(server)?;
    socket.connect((server, PORT))?;
    answer_of::<serde_json::Value>(ask(server, &Request::UdpUpload)?)?;
    let start = Instant::now();
    let sent = send_datagrams(
        time,
        mbps,
        |d| socket.send(d),
        |n| udp_change(progress, start, |stream| stream.progress = n),
    )?;
    udp_change(progress, start, |stream| stream.sent = Some(sent));
    thread::sleep(GRACE);
    let counted: Counted = answer_of(ask(server, &Request::Count)?)?;
    progress.change(|report| {
        if let Some(stream) = report.udp.last_mut() {
            stream.received = Some(counted.udp_received);
            stream.wrong = counted.udp_wrong;
        }
    });
    Ok(())
}

fn udp_to_idc(server: IpAddr, time: Duration, mbps: u64, progress: &Progress) -> io::Result<()> {
    udp_stream(progress, Way::ToIdc);
    let socket = udp_socket(server)?;
    socket.set_read_timeout(Some(GRACE / 10))?;
    let millis = time.as_millis() as u64;
    let connection = ask(server, &Request::UdpDownload { port: socket.local_addr()?.port(), millis, mbps })?;
    let (start, mut received, mut wrong) = (Instant::now(), 0, 0);
    let mut buffer = [0; 2048];
    // By the receiver's clock: the sender's answer comes while the last ones are still on their way.
    while start.elapsed() < time + GRACE {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        // The other host is known by the address that it was spoken to, whatever it has itself: that is NAT.
        if from == SocketAddr::new(server, PORT) && is_datagram(buffer.get_mut(..length).unwrap_or_default())
        {
            received += 1;
        } else {
            wrong += 1;
        }
        udp_change(progress, start, |stream| (stream.progress, stream.wrong) = (received, wrong));
    }
    answer_of::<serde_json::Value>(connection)?;
    let counted: Counted = answer_of(ask(server, &Request::Count)?)?;
    progress.change(|report| {
        if let Some(stream) = report.udp.last_mut() {
            (stream.sent, stream.received, stream.wrong) = (Some(counted.udp_sent), Some(received), wrong);
            stream.seconds = time.as_secs_f64();
        }
    });
    Ok(())
}

/// ICMP header and data of an echo request: identifier, sequence number, and the pattern.
fn echo_request(identifier: u16, sequence: u16) -> [u8; 64] {
    let mut message = [0; 64];
    Pattern::new(u64::from(sequence)).fill(&mut message[8..]);
    message[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 0, 0]);
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    let checksum = !Sum::of(&message).get();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// Pings ten times a second, and measures each round trip, until it is over.
fn ping(server: Ipv4Addr, progress: &Progress, over: &AtomicBool) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    // A raw socket is used like one of UDP, with port 0.
    let socket = UdpSocket::from(raw);
    socket.connect((server, 0))?;
    let identifier = std::process::id() as u16;
    let (receiver, started) = (socket.try_clone()?, Instant::now());
    // When each request was sent, in ns, by its sequence number; 0 when it is answered.
    let sent_at: Arc<Vec<AtomicU64>> = Arc::new((0..OUTSTANDING).map(|_| AtomicU64::new(0)).collect());
    let listening = Arc::new(AtomicBool::new(true));
    receiver.set_read_timeout(Some(GRACE))?;
    let (sent, still, report) = (Arc::clone(&sent_at), Arc::clone(&listening), progress.clone());
    let listener = thread::spawn(move || {
        let mut packet = [0; 256];
        while still.load(Ordering::Relaxed) {
            let Ok(length) = receiver.recv(&mut packet) else { continue };
            let now = started.elapsed().as_nanos() as u64;
            let packet = packet.get(..length).unwrap_or_default();
            let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
            let answer = packet.get(header..).unwrap_or_default();
            let Some(&[0, _, _, _, _, _, high, low]) = answer.first_chunk::<8>() else { continue };
            let sequence = u16::from_be_bytes([high, low]);
            // The answer is the request but for type and checksum.
            if answer.get(4..) != echo_request(identifier, sequence).get(4..) {
                continue;
            }
            let slot = sent.get(usize::from(sequence) % OUTSTANDING);
            let since = slot.map_or(0, |slot| slot.swap(0, Ordering::Relaxed));
            if since != 0 {
                report.change(|report| report.ping.answer(Duration::from_nanos(now.saturating_sub(since))));
            }
        }
    });
    let mut sequence = 0_u16;
    while !over.load(Ordering::Relaxed) {
        sequence = sequence.wrapping_add(1);
        if let Some(slot) = sent_at.get(usize::from(sequence) % OUTSTANDING) {
            slot.store(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        // It says what the last one met with (unreachable): then this one is not sent, nor counted.
        if socket.send(&echo_request(identifier, sequence)).is_ok() {
            progress.change(|report| report.ping.sent += 1);
        }
        thread::sleep(INTERVAL);
    }
    // The last answer.
    thread::sleep(GRACE);
    listening.store(false, Ordering::Relaxed);
    let _ = listener.join();
    Ok(())
}
