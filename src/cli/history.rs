//! `causeway history`: which configurations were in force.

use std::process::ExitCode;

use clap::Args;

use super::{
    CANNOT,
    apply::{Refused, connect},
    fail, print,
    show::find::Which,
};
use crate::control::{
    apply::History as Told,
    history::{Entry, How},
    socket_client::ClientError,
    view::{Request, Word},
};

/// List the configurations that were in force last: when, by whom, from which file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  causeway history\n  causeway history --json")]
pub struct History {
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
#[must_use]
pub fn run(args: &History) -> ExitCode {
    let mut client = match connect(&args.which) {
        Ok(client) => client,
        Err(error) => return fail(&error, CANNOT),
    };
    let answer = match client.ask(&Request::Word(Word::History)) {
        Ok(answer) => answer,
        Err(error) => return Refused::from(error).fail(),
    };
    if args.json {
        print(&format!("{answer:#}\n"));
        return ExitCode::SUCCESS;
    }
    match serde_json::from_value::<Told>(answer) {
        Ok(told) => {
            print(&list(&told));
            ExitCode::SUCCESS
        }
        Err(error) => Refused::from(ClientError::Answer(error.to_string())).fail(),
    }
}

fn list(told: &Told) -> String {
    let mut text = String::new();
    for entry in &told.entries {
        let now = if entry.generation == told.generation { '*' } else { ' ' };
        let by = entry.uid.map_or("-".to_owned(), |uid| format!("user {uid}"));
        text += &format!(
            "{now} {:>6}  {}  {:<9} {:<24} {:>5} changes  {}  {}\n",
            entry.generation,
            utc(entry.time),
            by,
            way(entry),
            entry.changes,
            entry.digest.get(..12).unwrap_or_default(),
            entry.file.display()
        );
    }
    text += &format!("a reload reads {}\n", told.file.display());
    if let Some(seconds) = told.confirm {
        text += &format!(
            "generation {} is taken back in {seconds} s, unless `causeway confirm` comes before\n",
            told.generation
        );
    }
    text
}

fn way(entry: &Entry) -> String {
    let again = entry.again.map_or(String::new(), |again| format!(" to {again}"));
    match entry.how {
        How::Start => "start".into(),
        How::Reload => "reload".into(),
        How::Apply => "apply".into(),
        How::Rollback => format!("rollback{again}"),
        How::Unconfirmed => format!("unconfirmed: back{again}"),
    }
}

/// Seconds since 1970 as date and time (the civil calendar, days counted from 1 March of year 0).
fn utc(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hours, minutes) = (of_day / 3600, of_day / 60 % 60);
    format!(
        "{:04}-{month:02}-{date:02}T{hours:02}:{minutes:02}:{:02}Z",
        era * 400 + year + later,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(utc(1_735_689_600), "2025-01-01T00:00:00Z");
        assert_eq!(utc(4_102_444_799), "2099-12-31T23:59:59Z");
    }
}
