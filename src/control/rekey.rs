//! Changes of security associations by command: add, switch, retire, in this order, so that nothing is lost.
//!
//! The file stays the truth. What a command has changed stands beside it until the file says the same, or something
//! newer, and goes with the process.

use std::collections::HashMap;

use thiserror::Error;

use crate::config::{At, Config, Key, SecurityAssociation, Span, Spi, Tunnel};

/// What to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Open also what comes under a new SPI and key.
    Add(Key),
    /// Seal from now on with another SPI and key.
    Switch(Key),
    /// Open nothing more that comes under an SPI.
    Retire,
}

/// A change of one tunnel's associations.
#[derive(Debug, Clone)]
pub struct Change {
    /// The tunnel's name.
    pub tunnel: String,
    /// The association's SPI.
    pub spi: u32,
    /// What to do.
    pub action: Action,
}

/// Why associations cannot be changed so.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RekeyError {
    /// No such tunnel.
    #[error("there is no tunnel {0:?}")]
    Tunnel(String),
    /// An SPI that none may have.
    #[error("SPI {0:#x} is reserved: use one from 0x100 on (RFC 4303 2.1)")]
    Reserved(u32),
    /// The SPI is not one of the tunnel's that open.
    #[error("tunnel {tunnel} opens nothing under SPI {spi:#x}; it opens {known}")]
    Unknown {
        /// The tunnel.
        tunnel: String,
        /// The SPI.
        spi: u32,
        /// Those that it has.
        known: String,
    },
    /// Nothing would be left to open with.
    #[error("SPI {spi:#x} is the only one that tunnel {tunnel} opens: add another before")]
    Last {
        /// The tunnel.
        tunnel: String,
        /// The SPI.
        spi: u32,
    },
    /// The SPI is in use by the same receiver.
    #[error("SPI {spi:#x} is in use already, by tunnel {tunnel}")]
    Spi {
        /// The tunnel that has it.
        tunnel: String,
        /// The SPI.
        spi: u32,
    },
    /// The key is in use. With one key for two associations a nonce would come twice.
    #[error("the key is in use already, by tunnel {0}: every association needs one of its own")]
    Key(String),
}

/// What commands have changed.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    tunnels: HashMap<String, Edits>,
}

#[derive(Debug, Clone, Default)]
struct Edits {
    added: Vec<SecurityAssociation>,
    /// The outbound one, and the SPI that the file had in its place.
    outbound: Option<(SecurityAssociation, u32)>,
    retired: Vec<u32>,
}

fn spi(sa: &SecurityAssociation) -> u32 {
    sa.spi.value.0
}

impl Overlay {
    /// Makes a change to the configuration in force, and remembers it.
    ///
    /// # Errors
    /// [`RekeyError`]; both are to be thrown away then.
    pub fn change(&mut self, config: &mut Config, change: Change) -> Result<(), RekeyError> {
        let Change { tunnel: name, spi: number, action } = change;
        let found = config.tunnels.iter_mut().find(|tunnel| tunnel.name.value.as_str() == name);
        let tunnel = found.ok_or_else(|| RekeyError::Tunnel(name.clone()))?;
        if number < crate::wire::esp::Spi::FIRST.0 {
            return Err(RekeyError::Reserved(number));
        }
        let edits = self.tunnels.entry(name.clone()).or_default();
        let association = |key| {
            let nowhere = Span::default();
            let (spi, key) = (At::new(Spi(number), nowhere), At::new(key, nowhere));
            SecurityAssociation { at: nowhere, spi, key }
        };
        match action {
            Action::Add(key) => {
                let sa = association(key);
                edits.retired.retain(|retired| *retired != number);
                edits.added.push(sa.clone());
                tunnel.inbound.push(sa);
            }
            Action::Switch(key) => {
                let sa = association(key);
                let before = edits.outbound.as_ref().map_or_else(|| spi(&tunnel.outbound), |(_, file)| *file);
                edits.outbound = Some((sa.clone(), before));
                tunnel.outbound = sa;
            }
            Action::Retire => {
                if !tunnel.inbound.iter().any(|sa| spi(sa) == number) {
                    let known: Vec<String> =
                        tunnel.inbound.iter().map(|sa| format!("{:#x}", spi(sa))).collect();
                    return Err(RekeyError::Unknown { tunnel: name, spi: number, known: known.join(", ") });
                }
                if !edits.added.iter().any(|sa| spi(sa) == number) {
                    edits.retired.push(number);
                }
                edits.added.retain(|sa| spi(sa) != number);
                retire(tunnel, number)?;
            }
        }
        check(config)
    }

    /// Whether no command has changed anything that the file does not say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tunnels.is_empty()
    }

    /// Forgets what a new file says itself, or says newer.
    pub fn follow(&mut self, file: &Config) {
        let tunnels: HashMap<&str, &Tunnel> =
            file.tunnels.iter().map(|t| (t.name.value.as_str(), t)).collect();
        self.tunnels.retain(|name, edits| {
            let Some(tunnel) = tunnels.get(name.as_str()) else { return false };
            let lists = |number: u32| tunnel.inbound.iter().any(|sa| spi(sa) == number);
            edits.added.retain(|sa| !lists(spi(sa)));
            edits.retired.retain(|number| lists(*number));
            edits.outbound.take_if(|(_, before)| spi(&tunnel.outbound) != *before);
            !edits.added.is_empty() || !edits.retired.is_empty() || edits.outbound.is_some()
        });
    }

    /// Changes a configuration just read from the file as commands have changed the one before.
    ///
    /// # Errors
    /// [`RekeyError`], when the file and the commands do not go together.
    pub fn apply(&self, file: &mut Config) -> Result<(), RekeyError> {
        if self.tunnels.is_empty() {
            return Ok(());
        }
        for tunnel in &mut file.tunnels {
            let Some(edits) = self.tunnels.get(tunnel.name.value.as_str()) else { continue };
            tunnel.inbound.extend(edits.added.iter().cloned());
            for number in &edits.retired {
                retire(tunnel, *number)?;
            }
            if let Some((sa, _)) = &edits.outbound {
                tunnel.outbound = sa.clone();
            }
        }
        check(file)
    }
}

fn retire(tunnel: &mut Tunnel, number: u32) -> Result<(), RekeyError> {
    tunnel.inbound.retain(|sa| spi(sa) != number);
    let name = || tunnel.name.value.as_str().to_string();
    if tunnel.inbound.is_empty() { Err(RekeyError::Last { tunnel: name(), spi: number }) } else { Ok(()) }
}

/// No SPI twice at one receiver, and no key twice: as the check of the file has it.
fn check(config: &Config) -> Result<(), RekeyError> {
    let (mut spis, mut keys) = (HashMap::new(), HashMap::new());
    for tunnel in &config.tunnels {
        let name = tunnel.name.value.as_str();
        let outbound = std::iter::once((tunnel.remote.value, &tunnel.outbound));
        for (receiver, sa) in outbound.chain(tunnel.inbound.iter().map(|sa| (tunnel.local.value, sa))) {
            if let Some(other) = spis.insert((tunnel.underlay.value, receiver, spi(sa)), name) {
                return Err(RekeyError::Spi { tunnel: other.into(), spi: spi(sa) });
            }
            if let Some(other) = keys.insert(sa.key.value.aes(), name) {
                return Err(RekeyError::Key(other.into()));
            }
        }
    }
    Ok(())
}
