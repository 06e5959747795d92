//! `causeway demo`: two gateways, two hosts, and real traffic between them.
//!
//! | file | what |
//! |---|---|
//! | `network` | namespaces, devices, VLAN tags, and processes in them |
//! | `gateways` | the two configurations, and `causeway run` in a namespace |
//! | `traffic` | the hosts' programs, on their kernels' sockets |
//! | `machine` | the demo on namespaces and AF_XDP |
//! | `memory` | the demo in memory |
//! | `report`, `view`, `summary` | what the hosts saw, the live picture, and the end |

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use thiserror::Error;

use super::{CANNOT, NOT_WELL, fail};

pub mod gateways;
pub mod inside;
pub mod machine;
pub mod memory;
pub mod network;
pub mod pattern;
pub mod place;
pub mod report;
pub mod summary;
pub mod traffic;
pub mod view;

/// See it work: two gateways and two hosts, each in a network namespace, and real traffic between them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway demo                   # as root: namespaces, AF_XDP sockets, and the kernels' own TCP, UDP and ping
  causeway demo --memory          # by anyone: the same gateways, joined by memory
  causeway demo --keep            # leaves the network up and says how to use it
  causeway demo --clean           # removes what was kept")]
pub struct Demo {
    /// Needs no privilege: the gateways are joined by memory, and small hosts are built in.
    #[arg(long)]
    memory: bool,
    /// Leave the network up, and say how to use it.
    #[arg(long, conflicts_with = "memory")]
    keep: bool,
    /// Remove networks that were left up, and do nothing else.
    #[arg(long, conflicts_with_all = ["memory", "keep"])]
    clean: bool,
    /// How long traffic is sent.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Print the summary as JSON, and nothing else.
    #[arg(long)]
    json: bool,
}

/// Why the demo does not come to its end.
#[derive(Debug, Error)]
pub enum DemoError {
    /// It cannot be done here.
    #[error("{0}")]
    Cannot(String),
    /// The network.
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    /// A gateway.
    #[error(transparent)]
    Gateway(#[from] gateways::GatewayError),
    /// A gateway in memory.
    #[error(transparent)]
    Start(#[from] crate::control::gateway::StartError),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
    /// A signal.
    #[error("interrupted before any traffic was sent")]
    Interrupted,
}

impl DemoError {
    const fn code(&self) -> u8 {
        match self {
            Self::Cannot(_)
            | Self::Network(network::NetworkError::NoTool | network::NetworkError::Tags { .. })
            | Self::Gateway(gateways::GatewayError::Network(network::NetworkError::NoTool)) => CANNOT,
            _ => NOT_WELL,
        }
    }
}

/// Whether a signal asked for the end. All that would end the process are caught, so that it can tidy up.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn catch() -> std::io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    /// Whether it did.
    #[must_use]
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on only if it did not.
    ///
    /// # Errors
    /// [`DemoError::Interrupted`].
    pub fn check(&self) -> Result<(), DemoError> {
        if self.came() { Err(DemoError::Interrupted) } else { Ok(()) }
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &Demo) -> ExitCode {
    let interrupt = match Interrupt::catch() {
        Ok(interrupt) => interrupt,
        Err(error) => return fail(&format!("cannot receive signals: {error}"), CANNOT),
    };
    let result = if args.clean {
        machine::clean(args.json)
    } else if args.memory {
        memory::run(args, &interrupt)
    } else {
        machine::run(args, &interrupt)
    };
    match result {
        Ok(code) => code,
        // What an interrupt broke is not worth a word of its own.
        Err(_) if interrupt.came() => fail(&DemoError::Interrupted, NOT_WELL),
        Err(error) => fail(&error, error.code()),
    }
}
