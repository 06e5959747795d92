//! The control socket: one JSON request a line, one JSON answer a line.
//!
//! The control thread serves it between its other work, so nothing here waits for a client: all sockets are
//! non-blocking, and what one call does, and what clients can make this process hold, is bounded.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use thiserror::Error;

use super::view::{Request, refusal};

/// Clients at once; the one that has been silent for longest makes room for another.
const MAX_CLIENTS: usize = 32;
/// New clients taken in one round.
const ACCEPTS: usize = 16;
/// Requests answered in one round.
const ANSWERS: usize = 4;
/// Nobody gets a second answer in a round that has taken so long.
const SHARE: Duration = Duration::from_millis(2);
/// Bytes of a request at most.
pub const MAX_LINE: usize = 1 << 16;
/// Bytes written to a client in one round.
const WRITE: usize = 1 << 18;
/// For how long a client may neither finish a request nor take an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("another process serves the control socket {0}")]
    Taken(PathBuf),
    /// The socket cannot be made.
    #[error("cannot make the control socket {path}: {source}")]
    Make {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The server's side.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// What file we made: at the end no other's is removed.
    identity: (u64, u64),
    clients: Vec<Client>,
    /// The client that is served first in this round.
    turn: usize,
    /// The ticket of the next client.
    ticket: u64,
}

/// Names a client whose request is answered later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// For an answer that comes later.
    pub ticket: Ticket,
    /// The user, as the kernel knows it (`SO_PEERCRED`).
    pub uid: Option<u32>,
}

#[derive(Debug)]
struct Client {
    asker: Asker,
    /// Its request is taken and will be answered later.
    waits: bool,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// When it last finished a request or took a part of an answer.
    active: Instant,
    /// It sends no more.
    ended: bool,
}

/// What became of a client.
#[derive(PartialEq, Eq)]
enum Outcome {
    Keep,
    Answered,
    Drop,
}

impl Server {
    /// A socket that only the owner of this process can use. The file of a process that is gone is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        if UnixStream::connect(path).is_ok() {
            return Err(SocketError::Taken(path.into()));
        }
        let make = || {
            // Made where nobody else can reach it, and moved to its place with its mode: it is never open to others.
            let room = path.with_extension("new");
            let _ = fs::remove_dir_all(&room);
            fs::DirBuilder::new().mode(0o700).create(&room)?;
            let new = room.join("socket");
            let listener = UnixListener::bind(&new)?;
            listener.set_nonblocking(true)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
            fs::rename(&new, path)?;
            fs::remove_dir(&room)?;
            let made = fs::metadata(path)?;
            Ok((listener, (made.dev(), made.ino())))
        };
        let (listener, identity) =
            make().map_err(|source| SocketError::Make { path: path.into(), source })?;
        Ok(Self { listener, path: path.into(), identity, clients: Vec::new(), turn: 0, ticket: 0 })
    }

    /// Takes in new clients, reads requests, has them answered, and writes what can be written.
    pub fn serve(&mut self, answer: &mut dyn FnMut(&Request) -> Value) {
        self.serve_askers(&mut |request, _| Some(answer(request)));
    }

    /// The same, for an answer that may depend on who asks, or comes later, by [`Server::answer`].
    pub fn serve_askers(&mut self, answer: &mut dyn FnMut(&Request, Asker) -> Option<Value>) {
        self.accept();
        if self.clients.is_empty() {
            return;
        }
        let now = Instant::now();
        self.turn = (self.turn + 1) % self.clients.len();
        self.clients.rotate_left(self.turn);
        let mut left = ANSWERS;
        loop {
            let before = left;
            self.clients.retain_mut(|client| match client.round(left > 0, answer, now) {
                Outcome::Keep => true,
                Outcome::Answered => {
                    left -= 1;
                    true
                }
                Outcome::Drop => false,
            });
            // Who sends requests ahead need not wait for a round with each, once all have had their turn.
            if left == 0 || left == before || now.elapsed() > SHARE {
                return;
            }
        }
    }

    /// Answers a request that was put off. A client that has gone gets nothing.
    pub fn answer(&mut self, ticket: Ticket, reply: &Value) {
        let waiting = self.clients.iter_mut().find(|client| client.asker.ticket == ticket && client.waits);
        if let Some(client) = waiting {
            client.waits = false;
            client.active = Instant::now();
            client.put(reply);
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            // Whatever is wrong (no descriptor left, the client gone again): the next round tries again.
            let Ok((stream, _)) = self.listener.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() >= MAX_CLIENTS {
                let idle = self.clients.iter().enumerate().filter(|(_, client)| !client.waits);
                let silent = idle.min_by_key(|(_, client)| client.active);
                let Some((silent, _)) = silent else { continue };
                self.clients.swap_remove(silent);
            }
            self.ticket += 1;
            let uid = rustix::net::sockopt::socket_peercred(&stream).ok().map(|peer| peer.uid.as_raw());
            self.clients.push(Client {
                asker: Asker { ticket: Ticket(self.ticket), uid },
                waits: false,
                stream,
                input: Vec::new(),
                output: Vec::new(),
                sent: 0,
                active: Instant::now(),
                ended: false,
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Client {
    fn round(
        &mut self,
        may_answer: bool,
        answer: &mut dyn FnMut(&Request, Asker) -> Option<Value>,
        now: Instant,
    ) -> Outcome {
        if self.waits {
            return Outcome::Keep;
        }
        if self.write(now).is_err() || now.saturating_duration_since(self.active) > PATIENCE {
            return Outcome::Drop;
        }
        // One answer at a time: who does not take it gets no further one.
        if !self.output.is_empty() {
            return Outcome::Keep;
        }
        if self.read().is_err() {
            return Outcome::Drop;
        }
        let Some(end) = self.input.iter().position(|&byte| byte == b'\n') else {
            if self.input.len() > MAX_LINE {
                self.put(&refusal(&format!("a request has {MAX_LINE} bytes at most")));
                let _ = self.write(now);
                return Outcome::Drop;
            }
            return if self.ended { Outcome::Drop } else { Outcome::Keep };
        };
        if !may_answer {
            return Outcome::Keep;
        }
        let line: Vec<u8> = self.input.drain(..=end).collect();
        self.active = now;
        // A list would pass for the fields of an object.
        let request = Some(&line).filter(|line| !line.trim_ascii_start().starts_with(b"["));
        let reply = match request.and_then(|line| serde_json::from_slice(line).ok()) {
            Some(request) => {
                let Some(reply) = answer(&request, self.asker) else {
                    self.waits = true;
                    return Outcome::Answered;
                };
                reply
            }
            None => refusal(
                &"that is no request: write \"ping\", \"version\", \"reload\", {\"show\": …}, {\"explain\": …}, {\"sa\": …}, {\"limit\": …} or {\"health\": …} as one line of JSON",
            ),
        };
        self.put(&reply);
        if self.write(now).is_err() { Outcome::Drop } else { Outcome::Answered }
    }

    fn put(&mut self, reply: &Value) {
        self.output = reply.to_string().into_bytes();
        self.output.push(b'\n');
        self.sent = 0;
    }

    /// Reads until there is a line, no more than a line may have.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 1 << 14];
        while !self.ended && self.input.len() <= MAX_LINE && !self.input.contains(&b'\n') {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        let end = self.output.len().min(self.sent + WRITE);
        while self.sent < end {
            match self.stream.write(&self.output[self.sent..end]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.sent += n;
                    self.active = now;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
