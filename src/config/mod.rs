//! The configuration file: its schema, its checks, and what is built from it.
//!
//! [`load`] reads a TOML file into a checked [`Config`], or says everything that is wrong with it at once: syntax,
//! unknown and missing keys, wrong types and values, and what does not fit together, each with its place in the
//! file and what would be right. `model` declares every key once; the decoder, the JSON Schema and the reference in
//! `docs/` all come from there.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub mod build;
mod check;
mod decode;
mod derive;
mod diagnostics;
pub mod diff;
mod document;
mod keys;
mod limit_values;
mod model;
mod prefix;
mod quantity;
mod reader;
mod redact;
pub mod reference;
mod selector;
mod span;
mod suggest;
mod tunnel_values;
mod types;
mod written;

use decode::{Context, Names, Section};
pub use diagnostics::{Diagnostics, MOST_PROBLEMS, Problem, Severity, Source};
pub use keys::{Environment, Key, ProcessEnvironment};
pub use limit_values::{Burst, LimitRate, cap, rate_text, read_burst, read_rate};
pub use model::{
    Action, AddressLimit, Cipher, Config, DontFragment, Driver, Encapsulation, Failback, Gateway, GatewayId,
    HugePages, IcmpErrors, Idle, Interface, InterfaceBfd, InterfaceId, InterfaceProbe, Limit, Nat, NatKind,
    NextHop, OwnLimit, Policy, Port, PortId, Route, SecurityAssociation, Side, System, Tunnel, TunnelBfd,
    TunnelId, TunnelProbe, XdpMode, ZeroCopy,
};
pub use prefix::{AddressRange, AddressRanges, HostOrPrefix, InterfaceAddress, Prefix};
pub use quantity::{BitsPerSecond, Bytes, Interval, Number, PowerOfTwo, Ranged};
pub use selector::{IcmpMatch, PortRange, PortRanges, Protocol};
pub use span::{At, Span};
pub use tunnel_values::{Mss, PacketsPerSecond};
pub use types::{BufferSize, DeviceName, Dscp, Location, Mac, Name, ReplayWindow, Spi, Vlan};

/// How many gateways a packet may pass, by routes from one to the next.
pub const MOST_GATEWAYS: usize = 8;

/// The largest file that is read: some millions of lines.
pub const LARGEST_FILE: u64 = 64 << 20;

/// The text of a file, read but not checked. It may hold keys: it is zeroed when dropped.
#[derive(Clone)]
pub struct FileText {
    path: PathBuf,
    bytes: Zeroizing<Vec<u8>>,
    mode: u32,
}

impl FileText {
    /// A text that was read before from the file `path`, which had this mode.
    #[must_use]
    pub fn new(path: PathBuf, bytes: Zeroizing<Vec<u8>>, mode: u32) -> Self {
        Self { path, bytes, mode }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is too large.
    pub fn read(path: &Path) -> Result<Self, Diagnostics> {
        let name = path.display().to_string();
        let refuse = |code, message: String, help: &str| {
            Err(Diagnostics::unreadable(&name, Problem::new(code, Span::default(), message).help(help)))
        };
        let mut file = match keys::open(path) {
            Ok(file) => file,
            Err(error) => {
                return refuse(
                    "unreadable",
                    format!("cannot open {name}: {error}"),
                    "give the path of a file",
                );
            }
        };
        let metadata = match file.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            _ => {
                let message = format!("{name} is not a regular file");
                return refuse("unreadable", message, "give the path of a file");
            }
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len().min(LARGEST_FILE) as usize + 1));
        if let Err(error) = file.by_ref().take(LARGEST_FILE + 1).read_to_end(&mut bytes) {
            return refuse("unreadable", format!("cannot read {name}: {error}"), "give the path of a file");
        }
        if bytes.len() as u64 > LARGEST_FILE {
            let message = format!("{name} is larger than {} MiB", LARGEST_FILE >> 20);
            return refuse("too-large", message, "a configuration of this size is not meant");
        }
        Ok(Self { path: path.into(), bytes, mode: metadata.mode() & 0o7777 })
    }

    /// The file it is of.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The permission bits of the file.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// Its SHA-256 in hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        Sha256::digest(&self.bytes[..]).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Checks it, keys included. The [`Diagnostics`] beside the configuration hold warnings only. With `name`, a file
    /// that gives the box no name is for the box of this name, whatever the file is called.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn check(&self, name: Option<&str>) -> Result<(Config, Diagnostics), Diagnostics> {
        parse_bytes(&self.path, &self.bytes, &ProcessEnvironment, Some(self.mode), name)
    }
}

impl std::fmt::Debug for FileText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileText({}, {} bytes)", self.path.display(), self.bytes.len())
    }
}

/// Reads and checks a file, keys included. The [`Diagnostics`] beside the configuration hold warnings only.
///
/// # Errors
///
/// Everything that is wrong with the file.
pub fn load(path: &Path) -> Result<(Config, Diagnostics), Diagnostics> {
    FileText::read(path)?.check(None)
}

/// Checks a text as if it stood in the file `path`, which need not exist; relative paths in it start at its directory.
///
/// # Errors
///
/// Everything that is wrong with the text.
pub fn parse(
    path: &Path,
    text: &str,
    environment: &dyn Environment,
) -> Result<(Config, Diagnostics), Diagnostics> {
    parse_bytes(path, text.as_bytes(), environment, None, None)
}

fn parse_bytes(
    path: &Path,
    bytes: &[u8],
    environment: &dyn Environment,
    file_mode: Option<u32>,
    box_name: Option<&str>,
) -> Result<(Config, Diagnostics), Diagnostics> {
    let name = path.display().to_string();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let start = error.valid_up_to();
            let span = Span { start, end: start + '\u{fffd}'.len_utf8() };
            let problem = Problem::new("not-utf-8", span, format!("byte {start} is not UTF-8"));
            let text = String::from_utf8_lossy(bytes);
            return Err(Diagnostics::new(&name, &text, vec![problem.help("save the file as UTF-8")], 0));
        }
    };
    let mut cx = Context {
        base_dir: path.parent().unwrap_or(Path::new("")),
        environment,
        file_mode,
        box_name,
        names: Names::default(),
        incomplete: false,
        problems: Vec::new(),
        left_out: 0,
    };
    let config = config(path, text, &mut cx);
    let failed = cx.left_out > 0 || cx.problems.iter().any(|p| p.severity == Severity::Error);
    let diagnostics = Diagnostics::new(&name, text, cx.problems, cx.left_out);
    match config {
        Some(config) if !failed => Ok((config, diagnostics)),
        _ => Err(diagnostics),
    }
}

/// The configuration, where nothing was wrong. What is wrong goes to the context.
fn config(path: &Path, text: &str, cx: &mut Context<'_>) -> Option<Config> {
    if let Some(problem) = document::too_deep(text) {
        cx.report(problem);
        return None;
    }
    // Of a large file the document is large: nobody needs it any more once it is decoded.
    let mut draft = document::decode(&document::parse(text, cx), path, cx);
    if !cx.incomplete {
        check::all(&mut draft, cx);
    }
    let mut config = Config {
        system: System::finish(draft.system)?,
        ports: draft.ports.into_iter().map(Port::finish).collect::<Option<_>>()?,
        gateways: draft.gateways.into_iter().map(Gateway::finish).collect::<Option<_>>()?,
        interfaces: draft.interfaces.into_iter().map(Interface::finish).collect::<Option<_>>()?,
        tunnels: draft.tunnels.into_iter().map(Tunnel::finish).collect::<Option<_>>()?,
    };
    for gateway in &mut config.gateways {
        // Stable: policies of one priority stay in the order of the file.
        gateway.policies.sort_by_key(|policy| policy.priority.get());
    }
    Some(config)
}
