//! Taking up changes while packets flow: reload and rekey.

use std::{io, sync::Arc};

use thiserror::Error;

use super::{
    super::{
        ports,
        rekey::{Change, Overlay, RekeyError},
    },
    Gateway, Persistent, segment_path, to_first,
};
use crate::{
    config::{
        Config,
        build::{self, BuildError},
        diff::{self, Difference},
    },
    runtime::{Command, Snapshot},
    stats::{Segment, SegmentError, WorkerCounters},
};

/// Why a new configuration is not taken up. Nothing has changed then.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// What can change only with a restart.
    #[error("this cannot change while the gateway runs, so restart it for:\n{}", list(.0))]
    NeedsRestart(Difference),
    /// The tables.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The statistics segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Security associations.
    #[error("{0}")]
    Associations(RekeyError),
    /// No memory for NAT sessions.
    #[error("no memory for NAT sessions: {0}")]
    Nat(io::Error),
    /// A worker does not take the new tables.
    #[error("a worker has not taken up earlier changes; try again")]
    Busy,
}

impl Gateway {
    /// Takes up a new configuration. Packets, sequence numbers and replay windows of what has not changed go on, and
    /// so do associations that were added, switched to or retired by command, until the file says the same.
    ///
    /// # Errors
    /// [`ReloadError`]; the old configuration stays in force.
    pub fn reload(&mut self, mut config: Config) -> Result<(), ReloadError> {
        let mut overlay = self.overlay.clone();
        overlay.follow(&config);
        overlay.apply(&mut config).map_err(ReloadError::Associations)?;
        self.check_reload(&config)?;
        self.can_publish()?;
        let now = self.clock.now();
        let built = build::build(&config, &self.macs, &mut self.kept, &mut Persistent(&mut self.state), now)?;
        let old = std::mem::replace(&mut self.built, built);
        let config = std::mem::replace(&mut self.config, Arc::new(config));
        // Workers must not find, with the new tables, what was said of others that had the same numbers before. Nothing
        // fails behind this.
        if let Err(error) =
            self.publish_after(|gateway| gateway.health.renew(&gateway.config, &gateway.built, now))
        {
            self.kept.go_back();
            (self.built, self.config) = (old, config);
            self.renew_lifetimes();
            return Err(error);
        }
        let unpin = self.kept.commit();
        self.built.limits.apply();
        self.overlay = overlay;
        // What cannot be written is in the log.
        let _ = self.keep_drained();
        if let Err(error) = self.log_sessions() {
            tracing::error!("{error}");
        }
        self.unpin.push((self.epoch, unpin));
        for (port, device) in self.devices.iter_mut().enumerate() {
            if let Some(device) = device
                && let Err(error) = device.program.set_addresses(&ports::own_prefixes(&self.config, port))
            {
                tracing::error!(%error, "the XDP program did not take the new addresses");
            }
        }
        let mailboxes = &self.mailboxes;
        let mut send = |t| to_first(mailboxes, t);
        self.resolver.announce(&self.built.tables, &mut self.kept.neighbours, now, &mut send);
        Ok(())
    }

    /// Adds, switches to or retires an association of a tunnel; all else goes on as it is. No packet is lost by it.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    pub fn rekey(&mut self, change: Change) -> Result<(), ReloadError> {
        let mut overlay = self.overlay.clone();
        let mut config = Config::clone(&self.config);
        overlay.change(&mut config, change).map_err(ReloadError::Associations)?;
        self.can_publish()?;
        let mut other = build::rekey(&config, &mut self.kept, &mut Persistent(&mut self.state), &self.built)?;
        other.exchange(&mut self.built);
        let config = std::mem::replace(&mut self.config, Arc::new(config));
        if let Err(error) = self.publish() {
            other.exchange(&mut self.built);
            self.config = config;
            return Err(error);
        }
        self.overlay = overlay;
        Ok(())
    }

    /// Either all workers take up new tables or none does: whether all can.
    pub(super) fn can_publish(&self) -> Result<(), ReloadError> {
        if self.mailboxes.iter().all(|mailbox| mailbox.has_room()) { Ok(()) } else { Err(ReloadError::Busy) }
    }

    /// Hands the tables that were built to the workers, with new counters where the rows are others.
    pub(super) fn publish(&mut self) -> Result<(), ReloadError> {
        self.publish_after(|_| {})
    }

    /// The same, with something to do when all is ready and no worker has anything yet.
    fn publish_after(&mut self, before: impl FnOnce(&mut Self)) -> Result<(), ReloadError> {
        self.can_publish()?;
        self.renew_lifetimes();
        let rows = self.built.rows.clone();
        let name = self.config.system.name.value.as_str();
        let mut layout = rows.layout(name, self.mailboxes.len(), self.clock.tick_hz());
        let segment = if layout.groups == self.segment.layout().groups {
            None
        } else {
            // The counts go on, so they are as old as they were.
            layout.started = self.segment.layout().started;
            Some(Arc::new(Segment::hidden(&segment_path(&self.config.system.run_dir.value.0), layout)?))
        };
        let mut nat = self.nat.make(&self.built.tables).map_err(ReloadError::Nat)?.into_iter();
        let taking_over = |worker| {
            segment.as_ref().map(|new| Box::new(WorkerCounters::taking_over(new, worker, &self.segment)))
        };
        let counters: Vec<_> = (0..self.mailboxes.len()).map(taking_over).collect();
        if let Some(segment) = &segment {
            segment.show()?;
        }
        before(self);
        for (mailbox, counters) in self.mailboxes.iter().zip(counters) {
            let tables = Arc::clone(&self.built.tables);
            let snapshot = Snapshot { tables, counters, nat: nat.next().flatten() };
            mailbox.send(Command::Snapshot(snapshot)).map_err(|_| ReloadError::Busy)?;
        }
        self.epoch += 1;
        self.mailboxes.iter().for_each(|mailbox| mailbox.want(self.epoch));
        self.routes_passed = false;
        self.replaced.push((self.epoch, std::mem::take(&mut self.built.replaced)));
        if let Some(segment) = segment {
            self.segment = segment;
        }
        Ok(())
    }

    /// What a reload cannot change: the machine, and the ports.
    fn check_reload(&self, new: &Config) -> Result<(), ReloadError> {
        let fixed = diff::needing_restart(&self.config, new);
        if fixed.is_empty() { Ok(()) } else { Err(ReloadError::NeedsRestart(fixed)) }
    }

    /// What a new file is compared with.
    #[must_use]
    pub fn basis(&self) -> Basis {
        Basis { config: Arc::clone(&self.config), overlay: self.overlay.clone() }
    }

    /// Whether nothing has changed since.
    #[must_use]
    pub fn is_still(&self, basis: &Basis) -> bool {
        Arc::ptr_eq(&self.config, &basis.config)
    }

    /// Remembers that a file says what is in force already: what it now says itself is no longer there by command.
    pub fn follow(&mut self, file: &Config) {
        self.overlay.follow(file);
    }
}

/// What was in force at some time, to compare with it elsewhere.
#[derive(Debug, Clone)]
pub struct Basis {
    config: Arc<Config>,
    overlay: Overlay,
}

impl Basis {
    /// What a file would change.
    ///
    /// # Errors
    /// It does not go together with changes made by command.
    pub fn compare(&self, file: &Config) -> Result<Difference, ReloadError> {
        let mut overlay = self.overlay.clone();
        overlay.follow(file);
        if overlay.is_empty() {
            return Ok(diff::compare(&self.config, file));
        }
        let mut file = file.clone();
        overlay.apply(&mut file).map_err(ReloadError::Associations)?;
        Ok(diff::compare(&self.config, &file))
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn list(difference: &Difference) -> String {
    difference.changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
