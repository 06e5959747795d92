//! What several workers on several cores do beside one.

use std::{thread, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    crew::{Amount, Crew, Deal, Done, turn},
    port::Pace,
    profile::{Direction, Profile, Size},
    rig::RigError,
    topology::Topology,
};

/// How long a turn is.
const TIME: Duration = Duration::from_millis(20);
/// Between two turns others get the processor.
const PAUSE: Duration = Duration::from_millis(6);
/// Packets that each worker is given for a turn where none may come again, a little more than it takes.
const NEW: usize = 150_000;
/// Packets that are compared with what they should be, all workers at once.
const VALIDATED: usize = 20_000;

/// What packets of different workers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// There is no tunnel.
    NoTunnel,
    /// Each worker has a tunnel of its own.
    OwnTunnels,
    /// One tunnel's packets are spread over all.
    OneTunnel,
    /// As many tunnels as the profile has, each one's packets spread over all.
    AllTunnels,
}

impl Sharing {
    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoTunnel => "no tunnel",
            Self::OwnTunnels => "own tunnels",
            Self::OneTunnel => "one tunnel",
            Self::AllTunnels => "all tunnels",
        }
    }

    /// At least so many times one worker's throughput is the goal, for each worker.
    const fn goal(self) -> f64 {
        match self {
            Self::NoTunnel | Self::OwnTunnels => 0.95,
            Self::OneTunnel | Self::AllTunnels => 0.9,
        }
    }
}

/// Throughput of several workers beside that of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// The profile.
    pub profile: String,
    /// Size of the frames.
    pub size: String,
    /// Workers.
    pub workers: usize,
    /// What their packets share.
    pub sharing: Sharing,
    /// Million packets a second of a gateway of one worker, the median turn.
    pub one: f64,
    /// Of the gateway of several, with one of them at work.
    pub alone: f64,
    /// Of all workers at once.
    pub together: f64,
    /// `together` as times `one`, turn by turn: the median.
    pub ratio: f64,
    /// The best turn of all as times the best of one.
    pub ratio_best: f64,
    /// As many gateways of one worker each at once, as times `one`: what the machine itself allows.
    pub apart: f64,
    /// What the ratio is to be.
    pub goal: f64,
}

/// The line above the rows.
#[must_use]
pub fn heading() -> String {
    format!(
        "{:<16} {:>5} {:<12} {:>8} {:>8} {:>8}  {:>6} {:>6} {:>6}   goal",
        "profile", "size", "shared", "one", "alone", "all", "ratio", "best", "apart"
    )
}

impl Scaling {
    /// The row of the table.
    #[must_use]
    pub fn text(&self) -> String {
        let reached = if self.ratio >= self.goal { "reached" } else { "missed" };
        format!(
            "{:<16} {:>5} {:<12} {:>8.2} {:>8.2} {:>8.2}  {:>6.3} {:>6.3} {:>6.3}   ≥ {} {reached}",
            self.profile,
            self.size,
            self.sharing.text(),
            self.one,
            self.alone,
            self.together,
            self.ratio,
            self.ratio_best,
            self.apart,
            self.goal
        )
    }

    /// Whether another row is about the same.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.profile, &self.size, self.workers, self.sharing)
            == (&other.profile, &other.size, other.workers, other.sharing)
    }
}

/// What a profile's packets can share, of so many workers, and the profile that shows it.
fn kinds(profile: &Profile, workers: usize) -> Vec<(Sharing, Profile, Deal)> {
    if profile.direction == Direction::Forward {
        return vec![(Sharing::NoTunnel, profile.clone(), Deal::Flows)];
    }
    if profile.tunnels > 1 {
        return vec![(Sharing::AllTunnels, profile.clone(), Deal::Flows)];
    }
    // As many for each worker.
    let whole = |n: usize| n.next_multiple_of(workers).max(workers);
    let own = Profile {
        tunnels: workers,
        routes: whole(profile.routes),
        policies: if profile.policies == 0 { 0 } else { whole(profile.policies) },
        hosts: whole(profile.hosts),
        ..profile.clone()
    };
    vec![(Sharing::OwnTunnels, own, Deal::Tunnels), (Sharing::OneTunnel, profile.clone(), Deal::Flows)]
}

fn mpps(done: &[Done], hz: f64) -> f64 {
    done.iter().map(|done| done.packets as f64 / done.ticks.max(1) as f64 * hz / 1e6).sum()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn best(all: &[f64]) -> f64 {
    all.iter().copied().fold(0.0, f64::max)
}

/// Gives the first `workers` of a gateway packets for a turn.
fn give(crew: &mut Crew, workers: usize) -> Result<(), RigError> {
    let packets = if crew.wants_new_frames() { NEW * workers } else { crew.round() * workers };
    let feeds = crew.feeds(packets, workers, |_, _| ())?;
    crew.order(&feeds, Amount::AtMost(u64::MAX), Pace::Full);
    Ok(())
}

/// Lets the first `workers` of each gateway work at once, on these cores.
fn together(
    crews: &mut [&mut Crew],
    workers: usize,
    cores: &[Option<usize>],
    hz: f64,
) -> Result<f64, RigError> {
    for crew in crews.iter_mut() {
        give(crew, workers)?;
    }
    thread::sleep(PAUSE);
    let shares = cores.chunks(workers);
    let hands = crews.iter_mut().zip(shares).flat_map(|(crew, cores)| crew.hands(cores)).collect();
    Ok(mpps(&turn(hands, Some(TIME)), hz))
}

/// Measures what a profile's packets of one size do with a worker on each of `cores`, in so many rounds.
///
/// # Errors
/// [`RigError`].
pub fn measure(
    profile: &Profile,
    size: Size,
    cores: &[Option<usize>],
    rounds: usize,
    mut tell: impl FnMut(&Scaling),
) -> Result<Vec<Scaling>, RigError> {
    let workers = cores.len();
    let mut rows = Vec::new();
    for (sharing, shared, deal) in kinds(profile, workers) {
        let shared = shared.checked().map_err(RigError::Setup)?;
        let mut all = Crew::new(Topology::new(&shared), size, workers, deal)?;
        // One worker has the profile as it is: with a tunnel of its own it has one tunnel.
        let single = || Crew::new(Topology::new(profile), size, 1, Deal::Flows);
        let mut singles = (0..workers).map(|_| single()).collect::<Result<Vec<_>, _>>()?;
        let hz = all.clock().tick_hz() as f64;
        all.validate(VALIDATED, cores)?;
        for single in &mut singles {
            single.validate(VALIDATED / workers, cores)?;
        }
        let (mut one, mut alone, mut at_once, mut ratio, mut apart) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // The first round warms up.
        for round in 0..=rounds {
            let mut sum = 0.0;
            for (single, core) in singles.iter_mut().zip(cores) {
                sum += together(&mut [single], 1, &[*core], hz)?;
            }
            let mean = sum / workers as f64;
            let both = together(&mut [&mut all], workers, cores, hz)?;
            let mut each: Vec<&mut Crew> = singles.iter_mut().collect();
            let separate = together(&mut each, 1, cores, hz)?;
            let first = together(&mut [&mut all], 1, cores, hz)?;
            if round > 0 {
                one.push(mean);
                alone.push(first);
                at_once.push(both);
                ratio.push(both / mean);
                apart.push(separate / mean);
            }
        }
        all.end()?;
        singles.into_iter().try_for_each(Crew::end)?;
        let row = Scaling {
            profile: profile.name.clone(),
            size: size.label(),
            workers,
            sharing,
            ratio_best: best(&at_once) / best(&one),
            one: median(one),
            alone: median(alone),
            together: median(at_once),
            ratio: median(ratio),
            apart: median(apart),
            goal: sharing.goal() * workers as f64,
        };
        tell(&row);
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::profile::named;

    #[test]
    fn throughputs_of_all_workers_add_up() {
        let done = [Done { packets: 100, ticks: 1000 }, Done { packets: 300, ticks: 2000 }];
        assert!((mpps(&done, 1e9) - 250.0).abs() < 1e-9);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn a_tunnel_is_measured_alone_and_shared() {
        let sharings = |name: &str| {
            let profile: Profile = named(name).unwrap().unwrap();
            let kinds = kinds(&profile, 2);
            kinds.into_iter().map(|(sharing, profile, _)| (sharing, profile.tunnels)).collect::<Vec<_>>()
        };
        assert_eq!(sharings("forward-16"), [(Sharing::NoTunnel, 0)]);
        assert_eq!(sharings("gateway"), [(Sharing::OwnTunnels, 2), (Sharing::OneTunnel, 1)]);
        assert_eq!(sharings("seal-1024"), [(Sharing::AllTunnels, 1024)]);
    }

    #[test]
    fn a_row_of_two_workers_is_whole() {
        let profile: Profile = named("gateway").unwrap().unwrap();
        let mut told = 0;
        let rows = measure(&profile, Size::Bytes(64), &[None, None], 1, |_| told += 1).unwrap();
        assert_eq!((rows.len(), told), (2, 2));
        for row in rows {
            let all = [row.one, row.alone, row.together, row.ratio, row.ratio_best, row.apart];
            assert!(all.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{row:?}");
        }
    }
}
