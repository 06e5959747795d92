//! `causeway run`: the gateway itself.

use std::{io, path::PathBuf, process::ExitCode, thread, time::Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use serde_json::Value;

use super::{BUG, CANNOT, NOT_WELL, fail};
use crate::{
    config::FileText,
    control::{
        apply::Applier,
        gateway::{Gateway, StartOptions, Summary, TICK, socket_path},
        limits,
        socket::{Asker, Server},
        unconfirmed::{self, Instead},
        view::{self, Request, Word},
    },
};

/// Run the gateway that a file describes, until SIGTERM or SIGINT; SIGHUP reads the file again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway run pipelines/site-to-site/idc.toml
  causeway run --new-state /etc/causeway/gateway.toml   # the first time: all keys are new
  kill -HUP $(pidof causeway)                           # read the file again; or: causeway reload
  causeway show summary                                 # what it does")]
pub struct Run {
    /// The configuration file.
    file: PathBuf,
    /// Declare that no key of the file was ever used, and make the sequence state file. Only where there is none.
    #[arg(long)]
    new_state: bool,
    /// Declare that the sequence state file came here with its disk from another machine, and that nothing else has
    /// its keys.
    #[arg(long, conflicts_with = "new_state")]
    moved_state: bool,
    /// Where to write, at the end, how many packets went which way, as JSON.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

/// Where a gateway's packets went, from its start to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The gateway.
    pub gateway: String,
    /// Packets taken from ports and host TAPs.
    pub received: u64,
    /// Packets made here.
    pub originated: u64,
    /// Packets handed to ports.
    pub sent: u64,
    /// Packets handed to the host.
    pub delivered: u64,
    /// Packets dropped, for all reasons.
    pub dropped: u64,
    /// Buffers that did not come home.
    pub buffers_missing: usize,
    /// Whether received and originated are sent, delivered and dropped, for each worker, and all buffers are home.
    pub balanced: bool,
}

impl Account {
    /// The account of a gateway that has ended.
    #[must_use]
    pub fn of(gateway: &str, summary: &Summary) -> Self {
        let total = summary.total();
        Self {
            gateway: gateway.into(),
            received: total.received,
            originated: total.originated,
            sent: total.sent,
            delivered: total.delivered,
            dropped: total.dropped,
            buffers_missing: summary.frames_missing,
            balanced: summary.balances() && total.waiting == 0,
        }
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &Run) -> ExitCode {
    let loaded = FileText::read(&args.file).and_then(|text| text.check(None).map(|good| (text, good)));
    let (text, config) = match loaded {
        Ok((text, (config, warnings))) => {
            super::check::warn(&warnings);
            (text, config)
        }
        Err(errors) => return super::check::report(errors),
    };
    let started_with = text.path().to_path_buf();
    let instead = unconfirmed::instead_of(&text, &config);
    let in_place_of = instead.is_some().then_some(started_with.as_path());
    let (text, config) = match instead {
        Some(Instead { text, config, warnings, mark }) => {
            tracing::warn!(
                "{} says what nobody has confirmed (generation {}): generation {} is in force in its place. Correct the file, or have it taken up by `causeway reload`",
                started_with.display(),
                mark.generation,
                mark.before
            );
            super::check::warn(&warnings);
            (text, config)
        }
        None => (text, config),
    };
    // Before anything is opened, so that no signal finds the gateway half made.
    let mut signals = match Signals::new([SIGTERM, SIGINT, SIGHUP]) {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot receive signals: {error}"), CANNOT),
    };
    let options =
        StartOptions { new_state: args.new_state, moved_state: args.moved_state, ..StartOptions::default() };
    let mut gateway = match Gateway::start(config, options) {
        Ok(gateway) => gateway,
        Err(error) => return fail(&error, CANNOT),
    };
    let mut server = match Server::bind(&socket_path(&gateway.config().system.run_dir.value.0)) {
        Ok(server) => server,
        Err(error) => {
            gateway.stop();
            return fail(&error, CANNOT);
        }
    };
    for (port, description) in gateway.config().ports.iter().zip(gateway.port_descriptions()) {
        tracing::info!("port {}: {description}", port.name.value.as_str());
    }
    tracing::info!(
        "gateway {} runs with {} AES-GCM",
        gateway.config().system.name.value.as_str(),
        crate::config::build::backend(gateway.config().system.cipher.value)
            .map_or_else(|e| e.to_string(), |b| b.to_string())
    );
    let mut applier = Applier::new(&gateway, text, in_place_of);
    let mut state_reported = Instant::now();
    let mut failing = false;
    let ended = 'running: loop {
        for signal in signals.pending() {
            if signal != SIGHUP {
                break 'running true;
            }
            applier.reload();
        }
        server.serve_askers(&mut |request, asker| answer(&mut gateway, &mut applier, request, asker));
        for (ticket, reply) in applier.tick(&mut gateway) {
            server.answer(ticket, &reply);
        }
        if let Err(error) = gateway.tick() {
            // Once a second at most: it will go on for as long as the disk is full.
            if !failing || state_reported.elapsed().as_secs() >= 1 {
                tracing::error!("the sequence state cannot be written: {error}");
                (failing, state_reported) = (true, Instant::now());
            }
        }
        if gateway.has_failed() {
            break false;
        }
        thread::sleep(TICK);
    };
    let name = gateway.config().system.name.value.as_str().to_string();
    let summary = gateway.stop();
    let total = summary.total();
    if let Some(path) = &args.summary {
        let account = serde_json::to_string(&Account::of(&name, &summary)).map_err(io::Error::from);
        if let Err(error) = account.and_then(|text| std::fs::write(path, text + "\n")) {
            return fail(&format!("cannot write {}: {error}", path.display()), CANNOT);
        }
    }
    tracing::info!(
        "ended: {} received + {} originated = {} sent + {} delivered + {} dropped",
        total.received,
        total.originated,
        total.sent,
        total.delivered,
        total.dropped
    );
    if !ended {
        return fail(&"a worker ended on its own", BUG);
    }
    if !summary.balances() {
        let missing = summary.frames_missing;
        return fail(
            &format!("not every packet is accounted for: {total:?}, {missing} buffers missing"),
            NOT_WELL,
        );
    }
    ExitCode::SUCCESS
}

/// Answers a request, or leaves it to be answered later.
fn answer(gateway: &mut Gateway, applier: &mut Applier, request: &Request, asker: Asker) -> Option<Value> {
    match request {
        Request::Word(Word::Reload | Word::Confirm | Word::History)
        | Request::Apply(_)
        | Request::Rollback(_)
        | Request::Configuration(_) => applier.ask(gateway, request, asker),
        Request::Sa(change) => Some(view::change_associations(gateway, change)),
        Request::Health(change) => Some(view::change_health(gateway, change)),
        Request::Limit(change) => Some(limits::change(gateway, change)),
        Request::Routes(change) => Some(gateway.change_routes(change)),
        request => Some(view::answer(gateway, request)),
    }
}
