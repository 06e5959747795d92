//! Security associations: keys, numbers, windows, and how they are found.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
};

use super::{BuildError, Built, Fingerprint, Kept, Sequences, backend, table_error};
use crate::{
    config::{Config, Encapsulation, SecurityAssociation, Tunnel},
    crypto::{
        aead::{Backend, Key},
        replay::Window,
    },
    table::{
        sad::Sad,
        tables::Tables,
        tunnel::{Former, SaIn, SaOut, address_bits},
    },
};

/// One association, for whoever watches over it.
#[derive(Debug, Clone)]
pub struct Association {
    /// Names its key, and with it its numbers or its window.
    pub fingerprint: Fingerprint,
    /// Place of its tunnel in the configuration.
    pub tunnel: usize,
    /// What names it in the packet.
    pub spi: u32,
    /// Its row in the counters.
    pub row: u32,
    /// Its name in the counters.
    pub name: String,
    /// What workers have of it.
    pub half: Half,
}

/// What workers have of an association.
#[derive(Debug, Clone)]
pub enum Half {
    /// It seals.
    Out(Arc<SaOut>),
    /// It opens.
    In(Arc<SaIn>),
}

impl Association {
    /// The newest sequence number: the last one used or accepted; 0 before the first.
    #[must_use]
    pub fn newest(&self) -> u64 {
        match &self.half {
            Half::Out(sa) => sa.sequence.next().saturating_sub(1),
            Half::In(sa) => sa.window.newest(),
        }
    }

    /// Ends it, or lets it live again.
    pub fn set_ended(&self, ended: bool) {
        let flag = match &self.half {
            Half::Out(sa) => &sa.ended,
            Half::In(sa) => &sa.ended,
        };
        flag.store(ended, std::sync::atomic::Ordering::Relaxed);
    }
}

/// All associations of a configuration.
pub(super) struct Associations {
    pub all: Vec<Association>,
    /// By number.
    pub opening: Vec<Arc<SaIn>>,
    pub v4: Sad<u32>,
    pub v6: Sad<u128>,
    pub windows: Windows,
    /// By what keys are expanded.
    pub cipher: Backend,
}

impl Associations {
    /// The one that each tunnel seals with, by its place in the configuration.
    pub fn sealing(&self) -> HashMap<usize, Arc<SaOut>> {
        let sealing = self.all.iter().filter_map(|association| match &association.half {
            Half::Out(sa) => Some((association.tunnel, Arc::clone(sa))),
            Half::In(_) => None,
        });
        sealing.collect()
    }
}

fn fingerprint(sa: &SecurityAssociation) -> Fingerprint {
    Fingerprint::of(sa.spi.value.0, sa.key.value.aes(), sa.key.value.salt())
}

/// Builds them. `tunnels` and `gateways`: the number of each, in the order of the configuration.
pub(super) fn associations(
    config: &Config,
    kept: &mut Kept,
    sequences: &mut dyn Sequences,
    tunnels: &[u16],
    gateways: &[u16],
) -> Result<Associations, BuildError> {
    let backend = backend(config.system.cipher.value)?;
    let same_cipher = kept.cipher == Some(backend);
    let expand = |tunnel: &Tunnel, sa: &SecurityAssociation| {
        let key = &sa.key.value;
        let what = || format!("key of tunnel {}", tunnel.name.value.as_str());
        Key::new(backend, key.aes(), key.salt()).map_err(|error| table_error(what())(error))
    };
    let outbound: Vec<_> = config.tunnels.iter().map(|t| (fingerprint(&t.outbound), *t.esn)).collect();
    let inbound: Vec<_> = config.tunnels.iter().flat_map(|t| &t.inbound).map(fingerprint).collect();
    let sequence_error = |tunnel: &str| {
        let tunnel = tunnel.to_string();
        |source| BuildError::Sequence { tunnel, source }
    };
    sequences.prepare(&outbound, &inbound).map_err(sequence_error("all"))?;
    let names: Vec<String> = config
        .tunnels
        .iter()
        .flat_map(|tunnel| {
            let name = tunnel.name.value.as_str();
            let inbound = tunnel.inbound.iter().map(move |sa| format!("{name}/in/{:#x}", sa.spi.value.0));
            std::iter::once(format!("{name}/out/{:#x}", tunnel.outbound.spi.value.0)).chain(inbound)
        })
        .collect();
    let mut rows = kept.associations.assign(names.iter().map(String::as_str)).into_iter().zip(names);
    let mut next_row = || rows.next().unwrap_or_default();
    let (mut all, mut opening, mut windows) = (Vec::new(), Vec::new(), HashMap::new());
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (place, tunnel) in config.tunnels.iter().enumerate() {
        let (row, name) = next_row();
        let (sa, fingerprint) = (&tunnel.outbound, fingerprint(&tunnel.outbound));
        let sequence = sequences
            .sequence(fingerprint, *tunnel.esn)
            .map_err(sequence_error(tunnel.name.value.as_str()))?;
        let (spi, row) = (sa.spi.value.0, row as u32);
        let known = match kept.halves.get(&(fingerprint, false)) {
            // As it is, its key need not be expanded again.
            Some(Half::Out(known)) if same_cipher => Some(known).filter(|known| {
                known.index == row && known.esn == *tunnel.esn && Arc::ptr_eq(&known.sequence, &sequence)
            }),
            _ => None,
        };
        let half = match known {
            Some(known) => Arc::clone(known),
            None => Arc::new(SaOut {
                index: row,
                spi,
                key: expand(tunnel, sa)?,
                esn: *tunnel.esn,
                sequence,
                ended: AtomicBool::new(false),
            }),
        };
        all.push(Association { fingerprint, tunnel: place, spi, row, name, half: Half::Out(half) });
        for sa in &tunnel.inbound {
            let (row, name) = next_row();
            let fingerprint = self::fingerprint(sa);
            let seen = window(kept, sequences, fingerprint, tunnel)?;
            let (spi, row) = (sa.spi.value.0, row as u32);
            let (number, gateway) = (tunnels[place], gateways[tunnel.gateway.value.0]);
            let underlay = gateways[tunnel.underlay.value.0];
            let remote = address_bits(tunnel.remote.value);
            let udp = *tunnel.encapsulation == Encapsulation::Udp;
            let known = match kept.halves.get(&(fingerprint, true)) {
                Some(Half::In(known)) if same_cipher => Some(known).filter(|known| {
                    (known.index, known.esn, known.udp, known.remote) == (row, *tunnel.esn, udp, remote)
                        && (known.tunnel, known.gateway, known.underlay) == (number, gateway, underlay)
                        && Arc::ptr_eq(&known.window, &seen.window)
                        && known.former.is_some() == seen.former.is_some()
                }),
                _ => None,
            };
            let half = match known {
                Some(known) => Arc::clone(known),
                None => Arc::new(SaIn {
                    index: row,
                    spi,
                    key: expand(tunnel, sa)?,
                    esn: *tunnel.esn,
                    window: Arc::clone(&seen.window),
                    former: seen.former.clone(),
                    tunnel: number,
                    gateway,
                    underlay,
                    ended: AtomicBool::new(false),
                    remote,
                    udp,
                }),
            };
            windows.insert(fingerprint, seen);
            let number = opening.len() as u32;
            match tunnel.local.value {
                IpAddr::V4(local) => v4.push(((spi, local.to_bits()), number)),
                IpAddr::V6(local) => v6.push(((spi, local.to_bits()), number)),
            }
            opening.push(Arc::clone(&half));
            all.push(Association { fingerprint, tunnel: place, spi, row, name, half: Half::In(half) });
        }
    }
    let error = || "security associations".to_string();
    let v4 = Sad::build(&v4, kept.seed).map_err(table_error(error()))?;
    let v6 = Sad::build(&v6, kept.seed).map_err(table_error(error()))?;
    Ok(Associations { all, opening, v4, v6, windows, cipher: backend })
}

/// The window of an inbound association.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    window: Arc<Window>,
    /// As the configuration has it.
    size: u32,
    /// The one before, while it still counts.
    former: Option<Arc<Former>>,
}

/// The window of an inbound association: the one it has, or one that goes on where another ended.
fn window(
    kept: &Kept,
    sequences: &mut dyn Sequences,
    fingerprint: Fingerprint,
    tunnel: &Tunnel,
) -> Result<Seen, BuildError> {
    let size = tunnel.replay_window.0;
    let known = kept.windows.get(&fingerprint);
    let before = known.and_then(|known| known.former.clone()).filter(|former| !former.is_over());
    if let Some(known) = known.filter(|known| known.size == size) {
        return Ok(Seen { former: before, ..known.clone() });
    }
    let window = match size {
        0 => Window::disabled(),
        // What another has seen is added by the control thread, while a worker uses it.
        size => Window::new(size, !kept.shared && known.is_none()),
    };
    let former = known.map(|known| {
        window.absorb(&known.window);
        Arc::new(Former::new(Arc::clone(&known.window), before))
    });
    if known.is_none() {
        window.raise(sequences.received(fingerprint));
    }
    let window = Arc::new(window);
    sequences.watch(fingerprint, &window);
    Ok(Seen { window, size, former })
}

/// Windows that still count though others have taken their places, with these.
pub type Replaced = Vec<(Arc<Former>, Arc<Window>)>;

/// Windows by the associations they are of.
pub(super) type Windows = HashMap<Fingerprint, Seen>;

/// Keeps windows and keys for the next time. The result is the windows that were replaced.
pub(super) fn keep(windows: Windows, cipher: Backend, all: &[Association], kept: &mut Kept) -> Replaced {
    (kept.windows, kept.cipher) = (windows, Some(cipher));
    kept.halves =
        all.iter().map(|a| ((a.fingerprint, matches!(a.half, Half::In(_))), a.half.clone())).collect();
    let replaced = |seen: &Seen| Some((seen.former.clone()?, Arc::clone(&seen.window)));
    kept.windows.values().filter_map(replaced).collect()
}

/// What a change of associations alone makes new.
pub struct Rekeyed {
    tables: Arc<Tables>,
    associations: Vec<Association>,
    rows: Vec<String>,
    replaced: Replaced,
}

impl Rekeyed {
    /// Puts it in the place of what is in force, and takes that up; twice changes nothing.
    pub fn exchange(&mut self, built: &mut Built) {
        std::mem::swap(&mut self.tables, &mut built.tables);
        std::mem::swap(&mut self.associations, &mut built.associations);
        std::mem::swap(&mut self.rows, &mut built.rows.sas);
        std::mem::swap(&mut self.replaced, &mut built.replaced);
    }
}

/// Builds only the associations of a configuration that differs in nothing else from the one in force, and the
/// tables with them; everything else is shared with the tables before.
///
/// # Errors
/// [`BuildError`]; what was kept is unchanged then, but for rows given to new names.
pub fn rekey(
    config: &Config,
    kept: &mut Kept,
    sequences: &mut dyn Sequences,
    built: &Built,
) -> Result<Rekeyed, BuildError> {
    let Associations { all, opening, v4, v6, windows, cipher } =
        associations(config, kept, sequences, &built.tunnels, &built.gateways)?;
    let old = &built.tables;
    let mut tunnels = old.tunnels.clone();
    for association in &all {
        if let Half::Out(sa) = &association.half
            && let Some(tunnel) = tunnels.get_mut(usize::from(built.tunnels[association.tunnel]))
        {
            tunnel.sa = Some(Arc::clone(sa));
        }
    }
    let (sealing_v4, sealing_v6) = super::tunnels::sealing(&tunnels, kept.seed);
    kept.generation += 1;
    let tables = Arc::new(Tables {
        features: old.features,
        generation: kept.generation,
        demux: Arc::clone(&old.demux),
        interfaces: Arc::clone(&old.interfaces),
        gateways: Arc::clone(&old.gateways),
        next_hops: Arc::clone(&old.next_hops),
        sealing_v4,
        sealing_v6,
        trouble: Arc::clone(&old.trouble),
        liveness: Arc::clone(&old.liveness),
        limits: Arc::clone(&old.limits),
        tunnels,
        sad_v4: v4,
        sad_v6: v6,
        sas: opening,
        neighbours: Arc::clone(&old.neighbours),
    });
    let rows = kept.associations.0.clone();
    let replaced = keep(windows, cipher, &all, kept);
    Ok(Rekeyed { tables, associations: all, rows, replaced })
}
