//! The other side of the control socket, for commands.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::view::{Page, Request, Show};

/// A list that changes while it is read is read again, so often.
const TRIES: usize = 5;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no gateway listens on {0}")]
    Nobody(PathBuf),
    /// The socket is not for this user.
    #[error("the control socket {0} is only for its owner: run this command as root")]
    Permission(PathBuf),
    /// The socket fails.
    #[error("the control socket {path}: {source}")]
    Io {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An answer that cannot be read.
    #[error("the gateway's answer cannot be understood ({0}): it may be of another version")]
    Answer(String),
    /// The gateway refused.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// The whole answer.
        answer: Value,
    },
    /// The list never stood still.
    #[error("the configuration changes again and again while it is read: try again")]
    Changing,
}

/// A connection to a gateway.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the socket in `path`. The control thread may take `patience` for an answer.
    ///
    /// # Errors
    /// [`ClientError::Nobody`], [`ClientError::Permission`], [`ClientError::Io`].
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source: io::Error| match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::Nobody(path.into()),
            ErrorKind::PermissionDenied => ClientError::Permission(path.into()),
            _ => ClientError::Io { path: path.into(), source },
        })?;
        Ok(Self { stream: BufReader::new(stream), path: path.into() })
    }

    /// Asks, and gives what stands behind `ok` in the answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(&mut self, request: &Request) -> Result<Value, ClientError> {
        let line = serde_json::to_string(request).map_err(|e| self.failed(e.into()))?;
        self.send(line)?;
        self.receive()
    }

    fn failed(&self, source: io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }

    /// Sends a request, one line of JSON. Several may be sent before the first answer is received.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn send(&mut self, mut line: String) -> Result<(), ClientError> {
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|source| self.failed(source))
    }

    /// What stands behind `ok` in the answer to the oldest request that has none yet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn receive(&mut self) -> Result<Value, ClientError> {
        let mut text = String::new();
        let read = self.stream.read_line(&mut text).map_err(|source| match source.kind() {
            ErrorKind::WouldBlock => {
                self.failed(io::Error::new(ErrorKind::TimedOut, "the gateway is too busy to answer"))
            }
            _ => self.failed(source),
        })?;
        if read == 0 {
            return Err(self.failed(io::Error::new(ErrorKind::UnexpectedEof, "the gateway hung up")));
        }
        let mut answer: Value =
            serde_json::from_str(&text).map_err(|e| ClientError::Answer(e.to_string()))?;
        if let Some(ok) = answer.get_mut("ok") {
            return Ok(ok.take());
        }
        match answer.get("error").and_then(Value::as_str) {
            Some(message) => Err(ClientError::Refused { message: message.into(), answer }),
            None => Err(ClientError::Answer("neither ok nor error".into())),
        }
    }

    /// A whole list, page after page.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn list<T: DeserializeOwned>(&mut self, show: &Show) -> Result<Vec<T>, ClientError> {
        'again: for _ in 0..TRIES {
            let mut rows = Vec::new();
            let mut generation = None;
            let mut from = Some(0);
            while let Some(at) = from {
                let answer = self.ask(&Request::Show(Show { from: at, ..show.clone() }))?;
                let page: Page<T> =
                    serde_json::from_value(answer).map_err(|e| ClientError::Answer(e.to_string()))?;
                if *generation.get_or_insert(page.generation) != page.generation {
                    continue 'again;
                }
                rows.extend(page.rows);
                from = page.next.filter(|&next| next > at);
            }
            return Ok(rows);
        }
        Err(ClientError::Changing)
    }
}
