//! What was measured, as a table, as JSON, and beside an earlier result.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    measure::{Cost, Latency, StageCost},
    rfc2544::Throughput,
    rig::COUNTED,
    scaling::Scaling,
};

/// The result of one profile at one size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// The profile.
    pub profile: String,
    /// Size of the frames: L2 with the VLAN tag, without FCS; of a tunnel's traffic that of the frame towards the VPC.
    pub size: String,
    /// Packets of a burst.
    pub burst: usize,
    /// Whether the packets were out of the caches near the core.
    pub cold: bool,
    /// Whether their buffers were in any order of their addresses.
    #[serde(default)]
    pub shuffled: bool,
    /// Time a packet.
    pub cost: Cost,
    /// Million packets a second, in the median run.
    pub mpps: f64,
    /// Gigabits a second of frames, in the median run.
    pub gbps: f64,
    /// The goal in ns, where there is one.
    pub goal: Option<f64>,
    /// More than the goal, in ns.
    pub stretch: Option<f64>,
    /// What another program takes, in ns, on the machine that it was measured on.
    pub peer: Option<f64>,
    /// Which program.
    pub peer_name: Option<String>,
    /// Where the time goes, measured apart.
    pub stages: Vec<StageCost>,
    /// How long bursts take.
    pub latency: Vec<Latency>,
    /// Time a packet that makes a NAT session, in ns: one run over all flows, before the others.
    #[serde(default)]
    pub setup: Option<f64>,
}

/// Where and of what a result was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Setting {
    /// The day, UTC.
    pub date: String,
    /// The processor.
    pub processor: String,
    /// Rate of the time-stamp counter, in MHz.
    pub clock_mhz: f64,
    /// The commit of the repository that the program was run in; with `-dirty` where files differ from it.
    pub commit: String,
    /// The compiler.
    pub rustc: String,
    /// Features of the processor that the whole program was compiled for.
    pub target_features: Vec<String>,
    /// The AES-GCM backend.
    pub cipher: String,
    /// The core that it ran on.
    pub core: usize,
    /// Runs of each row.
    pub runs: usize,
    /// Packets of each run.
    pub packets: usize,
    /// What the program was called with, once for each call whose rows are here.
    #[serde(default)]
    pub commands: Vec<String>,
    /// When it was measured, in seconds since 1970.
    #[serde(default)]
    pub at: u64,
    /// The kernel.
    #[serde(default)]
    pub kernel: String,
    /// Whether the gateway was compiled to count nothing, to see what counting costs.
    #[serde(default)]
    pub uncounted: bool,
}

/// A whole result.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where and of what.
    pub setting: Setting,
    /// Time a packet.
    pub rows: Vec<Row>,
    /// Several workers beside one.
    #[serde(default)]
    pub scaling: Vec<Scaling>,
    /// Throughput without loss, and latency.
    #[serde(default)]
    pub throughput: Vec<Throughput>,
}

/// The compiler's name as it stands in the program itself.
fn compiler() -> String {
    let program = std::fs::read("/proc/self/exe").unwrap_or_default();
    let mark = b"rustc version 1";
    let found = program.windows(mark.len()).position(|window| window == mark);
    let text = found.and_then(|at| program.get(at + "rustc version ".len()..at + 80)).unwrap_or(&[]);
    let end = text.iter().position(|byte| *byte == b')').map_or(0, |at| at + 1);
    text.get(..end).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or("unknown").to_string()
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split(':').nth(1)).map_or("?", str::trim).to_string()
    };
    format!("{} (family {}, model {})", field("model name"), field("cpu family"), field("model"))
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".into() };
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| text.is_empty());
    if clean { commit } else { format!("{commit}-dirty") }
}

/// Year, month and day of a number of days since 1970 (the proleptic Gregorian calendar).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

impl Setting {
    /// As it is here and now.
    #[must_use]
    pub fn here(clock_hz: u64, core: usize, runs: usize, packets: usize) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (year, month, day) = civil((seconds / 86_400) as i64);
        let features = [
            ("sse4.2", cfg!(target_feature = "sse4.2")),
            ("avx2", cfg!(target_feature = "avx2")),
            ("bmi2", cfg!(target_feature = "bmi2")),
            ("avx512f", cfg!(target_feature = "avx512f")),
            ("vaes", cfg!(target_feature = "vaes")),
        ];
        let debug = cfg!(debug_assertions).then(|| "debug assertions".to_string());
        Self {
            date: format!("{year:04}-{month:02}-{day:02}"),
            processor: processor(),
            clock_mhz: (clock_hz as f64 / 1e5).round() / 10.0,
            commit: commit(),
            rustc: compiler(),
            target_features: (features.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_string()))
                .chain(debug)
                .collect(),
            cipher: crate::crypto::aead::Backend::best().to_string(),
            core,
            runs,
            packets,
            commands: vec![std::env::args().skip(1).collect::<Vec<_>>().join(" ")],
            at: seconds,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
            uncounted: !COUNTED,
        }
    }

    /// The lines above a table.
    #[must_use]
    pub fn text(&self) -> String {
        let features =
            if self.target_features.is_empty() { "baseline".into() } else { self.target_features.join(" ") };
        format!(
            "{}, counter {} MHz, core {}\ncommit {}, rustc {}, compiled for {features}, AES-GCM {}{}",
            self.processor,
            self.clock_mhz,
            self.core,
            self.commit,
            self.rustc,
            self.cipher,
            if self.uncounted {
                "\nNOTHING IS COUNTED: no ledger was balanced, packets that came out were"
            } else {
                ""
            },
        )
    }
}

/// The lines above the table.
#[must_use]
pub fn heading(setting: &Setting) -> String {
    format!(
        "{} runs of {} packets; ns and clocks of the counter a packet, frames in to frames queued, no I/O\n\n\
         {:<16} {:>5} {:>5} {:>8} {:>8} {:>7} {:>8} {:>7} {:>7} {:>6}   {}",
        setting.runs,
        setting.packets,
        "profile",
        "size",
        "burst",
        "ns best",
        "median",
        "worst",
        "clk best",
        "median",
        "Mpps",
        "Gbps",
        "goal"
    )
}

impl Row {
    /// The row of the table, and below it stages and latency when they are wanted.
    #[must_use]
    pub fn text(&self, details: bool) -> String {
        let cost = &self.cost;
        let goal = self.goal.map(|goal| {
            let reached = if cost.ns_best <= goal { "reached" } else { "missed" };
            format!("≤ {goal} {reached}")
        });
        let stretch = self.stretch.map(|stretch| format!("stretch {stretch}"));
        let peer = self.peer.zip(self.peer_name.as_ref()).map(|(ns, name)| format!("{name}: {ns}"));
        let beside: Vec<String> = [goal, stretch, peer].into_iter().flatten().collect();
        let name = self.name();
        let mut text = format!(
            "{name:<16} {:>5} {:>5} {:>8.1} {:>8.1} {:>7.1} {:>8.1} {:>7.1} {:>7.2} {:>6.1}   {}",
            self.size,
            self.burst,
            cost.ns_best,
            cost.ns_median,
            cost.ns_worst,
            cost.clocks_best,
            cost.clocks_median,
            self.mpps,
            self.gbps,
            beside.join(", ")
        );
        if let Some(ns) = self.setup {
            let _ = write!(text, "\n    new sessions: {ns:.1} ns, {:.2} M/s", 1e3 / ns);
        }
        if details {
            let stages: Vec<String> =
                self.stages.iter().map(|stage| format!("{} {:.1}", stage.stage, stage.ns)).collect();
            if !stages.is_empty() {
                let _ = write!(text, "\n    stages, ns: {}", stages.join(", "));
            }
            for latency in &self.latency {
                let _ = write!(
                    text,
                    "\n    a burst of {}, ns: p50 {}, p90 {}, p99 {}, p99.9 {}, p99.99 {}",
                    latency.burst, latency.p50, latency.p90, latency.p99, latency.p99_9, latency.p99_99
                );
            }
        }
        text
    }

    fn is_of(&self, other: &Self) -> bool {
        (&self.profile, &self.size, self.burst, self.cold, self.shuffled)
            == (&other.profile, &other.size, other.burst, other.cold, other.shuffled)
    }

    /// The profile, and what was particular about the packets.
    fn name(&self) -> String {
        let words = [(self.cold, " cold"), (self.shuffled, " shuffled")];
        let words = words.into_iter().filter(|(is, _)| *is).map(|(_, word)| word);
        std::iter::once(self.profile.as_str()).chain(words).collect()
    }
}

fn changed(old: f64, new: f64, unit: &str) -> String {
    format!("{old:.1} → {new:.1} {unit} ({:+.1} %)", (new / old - 1.0) * 100.0)
}

impl Report {
    /// Writes the result to `folder`, under the day and the commit. What stands there of the same day and commit stays,
    /// but for the rows that were measured again.
    ///
    /// # Errors
    /// The folder cannot be made or the file cannot be written.
    pub fn save(&self, folder: &Path) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let kind = if self.setting.uncounted { "-uncounted" } else { "" };
        let path = folder.join(format!("{}-{}{kind}.json", self.setting.date, self.setting.commit));
        let mut whole = self.clone();
        if let Ok(earlier) = Self::load(&path)
            && earlier.setting.processor == self.setting.processor
        {
            whole.add(earlier);
        }
        let mut text = serde_json::to_string_pretty(&whole)?;
        text.push('\n');
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Puts an earlier result's rows before these, but for those that are here too.
    fn add(&mut self, earlier: Self) {
        fn before<T>(new: &mut Vec<T>, mut old: Vec<T>, same: impl Fn(&T, &T) -> bool) {
            old.retain(|old| !new.iter().any(|new| same(old, new)));
            new.splice(0..0, old);
        }
        before(&mut self.rows, earlier.rows, Row::is_of);
        before(&mut self.scaling, earlier.scaling, Scaling::is_of);
        before(&mut self.throughput, earlier.throughput, Throughput::is_of);
        before(&mut self.setting.commands, earlier.setting.commands, String::eq);
    }

    /// The newest result in `folder` that was not measured without counting.
    ///
    /// # Errors
    /// A sentence that says that there is none, or what is wrong with one.
    pub fn newest(folder: &Path) -> Result<Self, String> {
        let list = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let paths = list.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let mut all = Vec::new();
        for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            all.push(Self::load(&path)?);
        }
        all.retain(|report| !report.setting.uncounted);
        let newest = all.into_iter().max_by_key(|report| (report.setting.date.clone(), report.setting.at));
        newest.ok_or_else(|| format!("there is no result in {}", folder.display()))
    }

    /// Reads a result that was saved.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The changes since an earlier result, row by row; rows that it has not are left out.
    #[must_use]
    pub fn compared(&self, earlier: &Self) -> String {
        let mut text = format!("since {} ({}):", earlier.setting.commit, earlier.setting.date);
        if earlier.setting.processor != self.setting.processor {
            let _ = write!(text, "\n    measured on another machine: {}", earlier.setting.processor);
        }
        for row in &self.rows {
            let Some(old) = earlier.rows.iter().find(|old| old.is_of(row)) else { continue };
            let change = |old, new| changed(old, new, "ns");
            let name = row.name();
            let _ = write!(
                text,
                "\n{name:<16} {:>5} {:>5}   best {}, median {}",
                row.size,
                row.burst,
                change(old.cost.ns_best, row.cost.ns_best),
                change(old.cost.ns_median, row.cost.ns_median)
            );
        }
        for row in &self.scaling {
            let Some(old) = earlier.scaling.iter().find(|old| old.is_of(row)) else { continue };
            let _ = write!(
                text,
                "\n{:<16} {:>5}   {} workers, {}: {}, ratio {:.3} → {:.3}",
                row.profile,
                row.size,
                row.workers,
                row.sharing.text(),
                changed(old.together, row.together, "Mpps"),
                old.ratio,
                row.ratio
            );
        }
        for row in &self.throughput {
            let Some(old) = earlier.throughput.iter().find(|old| old.is_of(row)) else { continue };
            let _ = write!(
                text,
                "\n{:<16} {:>5}   without loss {}, 0.5 % {}",
                row.profile,
                row.size,
                changed(old.no_loss, row.no_loss, "Mpps"),
                changed(old.some_loss, row.some_loss, "Mpps"),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{super::scaling::Sharing, *};

    #[test]
    fn days_have_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(59), (1970, 3, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
    }

    #[test]
    fn a_result_is_compared_with_what_was_saved() {
        let cost =
            Cost { ns_best: 20.0, ns_median: 22.0, ns_worst: 30.0, clocks_best: 46.0, clocks_median: 50.0 };
        let row = Row {
            profile: "forward-16".into(),
            size: "64".into(),
            burst: 64,
            cold: false,
            shuffled: false,
            cost,
            mpps: 45.0,
            gbps: 23.0,
            goal: Some(20.0),
            stretch: None,
            peer: Some(28.6),
            peer_name: Some("VPP".into()),
            stages: vec![StageCost { stage: "parse".into(), ns: 3.0, clocks: 7.0 }],
            latency: vec![Latency { burst: 1, p50: 1, p90: 2, p99: 3, p99_9: 4, p99_99: 5 }],
            setup: None,
        };
        let mut report = Report {
            setting: Setting::here(2_300_000_000, 0, 1, 1),
            rows: vec![row],
            scaling: vec![Scaling {
                profile: "seal-1".into(),
                size: "64".into(),
                workers: 2,
                sharing: Sharing::OneTunnel,
                one: 10.0,
                alone: 9.9,
                together: 19.0,
                ratio: 1.9,
                ratio_best: 1.91,
                apart: 2.0,
                goal: 1.8,
            }],
            throughput: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = report.save(folder.path()).unwrap();
        let mut earlier = Report::load(&path).unwrap();
        earlier.rows[0].cost.ns_best = 40.0;
        assert!(report.compared(&earlier).contains("best 40.0 → 20.0 ns (-50.0 %)"));
        assert!(report.compared(&earlier).contains("one tunnel: 19.0 → 19.0 Mpps (+0.0 %), ratio 1.900"));
        assert!(report.rows[0].text(true).contains("≤ 20 reached, VPP: 28.6"));
        assert!(report.scaling[0].text().contains("≥ 1.8 reached"));
        // A second call on the same day adds its rows, and replaces those that it measured again.
        report.rows[0].cost.ns_best = 19.0;
        report.rows.push(Row { burst: 1, ..report.rows[0].clone() });
        report.scaling.clear();
        assert_eq!(report.save(folder.path()).unwrap(), path);
        let both = Report::newest(folder.path()).unwrap();
        let bursts: Vec<_> = both.rows.iter().map(|row| (row.burst, row.cost.ns_best)).collect();
        assert_eq!((bursts, both.scaling.len()), (vec![(64, 19.0), (1, 19.0)], 1));
        assert!(report.setting.rustc.starts_with("1."), "{}", report.setting.rustc);
    }
}
