//! `causeway limit`: shows and changes the limits of a running gateway.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{
    CANNOT, NOT_WELL, fail,
    show::{self, find::Which},
};
use crate::control::{
    gateway::socket_path,
    limits::{LimitChange, LimitRequest},
    socket_client::{Client, ClientError},
    view::Request,
};

/// How long the control thread may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Show and change the limits of a running gateway. A change is in force with the next burst, and until the file is read
/// again.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  causeway limit show
  causeway limit set gateway vpc --in 200Mbps --out 200Mbps
  causeway limit set interface line-a --in 1Gbps --burst 1MB
  causeway limit set tunnel dc --out none                      # lifts it
  causeway limit set gateway vpc --address 10.2.0.5 --in 50Mbps
  causeway limit set gateway vpc --address each --in 5Mbps     # every address without a limit of its own
  causeway limit clear gateway vpc                             # what the file says

What was set ends with the next reload, which puts the file in force: write it there as well. See docs/limits.md."
)]
pub struct Limit {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every limit, what it let pass and dropped, and how much of it is used.
    Show {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put other rates in force.
    Set {
        #[command(flatten)]
        target: Target,
        /// The rate in, such as 100Mbps; none lifts the limit.
        #[arg(long = "in", value_name = "RATE")]
        inwards: Option<String>,
        /// The rate out.
        #[arg(long = "out", value_name = "RATE")]
        outwards: Option<String>,
        /// The bytes that may pass at once after a pause, such as 64kB. Without it 8 ms of the rate.
        #[arg(long, value_name = "BYTES")]
        burst: Option<String>,
    },
    /// Put what the file says in force again.
    Clear {
        #[command(flatten)]
        target: Target,
    },
}

/// What the limit is of.
#[derive(Debug, Args)]
struct Target {
    /// Of what.
    kind: Kind,
    /// Its name.
    // Beside --name, which says which running gateway is meant.
    #[arg(id = "limited", value_name = "NAME")]
    name: String,
    /// With a gateway: an address or prefix of its VPC, or "each".
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Gateway,
    Interface,
    Tunnel,
}

impl Target {
    fn request(&self, limit: LimitChange) -> LimitRequest {
        let mut request = LimitRequest { limit, address: self.address.clone(), ..LimitRequest::default() };
        let name = Some(self.name.clone());
        match self.kind {
            Kind::Gateway => request.gateway = name,
            Kind::Interface => request.interface = name,
            Kind::Tunnel => request.tunnel = name,
        }
        request
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &Limit) -> ExitCode {
    let request = match &args.what {
        What::Show { json } => return show::limits_of(args.which.clone(), *json),
        What::Set { target, inwards, outwards, burst } => LimitRequest {
            inwards: inwards.clone(),
            outwards: outwards.clone(),
            burst: burst.clone(),
            ..target.request(LimitChange::Set)
        },
        What::Clear { target } => target.request(LimitChange::Clear),
    };
    let run_dir = match args.which.run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => return fail(&error, CANNOT),
    };
    let answer = Client::connect(&socket_path(&run_dir), PATIENCE)
        .and_then(|mut client| client.ask(&Request::Limit(request)));
    match answer {
        Ok(_) => {
            println!("in force");
            ExitCode::SUCCESS
        }
        Err(ClientError::Refused { message, .. }) => fail(&message, NOT_WELL),
        Err(error) => fail(&error, CANNOT),
    }
}
