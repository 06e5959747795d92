//! Taking up files while a gateway runs: one after the other, none that is wrong, and with a way back.
//!
//! A file is read, checked and compared on a thread of its own, so that the control thread goes on meanwhile; only to
//! build and publish the tables is its part. A request is answered when what it asked for has come to its end.

mod messages;

use std::{
    collections::VecDeque,
    fmt::Write,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    gateway::{Basis, Gateway},
    history::{self, Entry, How},
    socket::{Asker, Ticket},
    unconfirmed::{Kept, Mark},
    view::{Request, Word, refusal},
};
use crate::config::{Config, Diagnostics, FileText, diff::Difference};
pub use messages::{ApplyFile, Came, Configuration, Extent, History, Outcome, Rollback};

/// Changes that an answer lists.
const LISTED: usize = 2000;
/// How long to wait until what nobody confirmed is taken back once more, when that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest time to confirm a change in.
const LONGEST_CONFIRM: u64 = 24 * 60 * 60;

/// What to do with a text.
#[derive(Debug)]
struct Job {
    from: From,
    how: How,
    again: Option<u64>,
    dry_run: bool,
    confirm: Option<u64>,
    digest: Option<String>,
    generation: Option<u64>,
    asker: Option<Asker>,
}

/// Where a text comes from.
#[derive(Debug, Clone)]
enum From {
    File(PathBuf),
    Text(FileText),
}

/// What the thread beside has found.
enum Found {
    /// It can be compared, and may be taken up.
    Good(Box<Good>),
    /// One sentence, and what is wrong with its places.
    Bad(String, Option<String>),
}

struct Good {
    text: FileText,
    config: Config,
    warnings: Diagnostics,
    difference: Difference,
    basis: Basis,
}

/// A change that will be taken back.
#[derive(Debug)]
struct Unconfirmed {
    due: Instant,
    /// What was in force before.
    before: FileText,
    before_file: PathBuf,
    before_generation: u64,
}

/// Takes up files, one after the other.
pub struct Applier {
    /// What a reload reads.
    file: PathBuf,
    /// What the gateway was started with, and will be again.
    started_with: PathBuf,
    /// What is in force.
    text: FileText,
    generation: u64,
    history: Option<history::History>,
    waiting: VecDeque<Job>,
    checking: Option<(Job, JoinHandle<Found>)>,
    showing: Vec<(Ticket, JoinHandle<String>)>,
    unconfirmed: Option<Unconfirmed>,
    /// That nobody has confirmed a change, over the end of the process.
    mark: Kept,
}

/// What was found in a file as text, where there is something.
fn text_of(found: &Diagnostics) -> Option<String> {
    let theme = miette::GraphicalTheme::unicode_nocolor();
    let mut text = String::new();
    let rendered = miette::GraphicalReportHandler::new_themed(theme).render_report(&mut text, found);
    rendered.ok().filter(|()| !found.problems.is_empty()).map(|()| text)
}

/// Reads, checks and compares. Runs beside the control thread.
fn check(from: From, basis: Basis) -> Found {
    let named = match &from {
        From::File(path) => path.display().to_string(),
        From::Text(text) => text.path().display().to_string(),
    };
    let bad = |errors: &Diagnostics| {
        Found::Bad(format!("{named} has errors: nothing has changed"), text_of(errors))
    };
    let text = match from {
        From::Text(text) => text,
        From::File(path) => match FileText::read(&path) {
            Ok(text) => text,
            Err(errors) => return bad(&errors),
        },
    };
    let (config, warnings) = match text.check(Some(basis.config().system.name.as_str())) {
        Ok(good) => good,
        Err(errors) => return bad(&errors),
    };
    match basis.compare(&config) {
        Ok(difference) => Found::Good(Box::new(Good { text, config, warnings, difference, basis })),
        Err(error) => Found::Bad(format!("{named} is not taken up: {error}"), text_of(&warnings)),
    }
}

impl Applier {
    /// For a gateway that has started with this text. `in_place_of`: the file that it was to start with, where that
    /// says what nobody has confirmed.
    #[must_use]
    pub fn new(gateway: &Gateway, text: FileText, in_place_of: Option<&Path>) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let file = absolute(text.path());
        let dir = history::directory(&gateway.config().system.state.value.0);
        let opened = history::History::open(&dir);
        let history = opened.map_err(|error| {
            tracing::error!(
                "there will be no way back: the history {} cannot be used: {error}",
                dir.display()
            );
        });
        let mut applier = Self {
            started_with: in_place_of.map_or_else(|| file.clone(), absolute),
            file,
            text,
            generation: 1,
            history: history.ok(),
            waiting: VecDeque::new(),
            checking: None,
            showing: Vec::new(),
            unconfirmed: None,
            mark: Kept::read(dir),
        };
        applier.text = FileText::new(
            applier.file.clone(),
            zeroize::Zeroizing::new(applier.text.bytes().to_vec()),
            applier.text.mode(),
        );
        // A gateway that is started again and again with one file does not push the others out.
        let newest = applier.history.as_ref().and_then(|history| history.entries().last());
        let before = applier.mark.get().filter(|_| in_place_of.is_some()).map(|mark| mark.before);
        match newest {
            Some(newest) if newest.digest == applier.text.digest() && newest.file == applier.file => {
                applier.generation = newest.generation;
            }
            _ if before.is_some() => drop(applier.record(How::Unconfirmed, before, None, 0)),
            _ => drop(applier.record(How::Start, None, None, 0)),
        }
        if let Some(mark) = applier.mark.get().filter(|_| in_place_of.is_none()) {
            tracing::warn!(
                "generation {} of {} was never confirmed; {} says something else and is in force",
                mark.generation,
                mark.file.display(),
                applier.file.display()
            );
            applier.mark.forget();
        }
        applier
    }

    /// Says over the end of the process that nobody has confirmed this text. The result is what is to be said about it.
    fn set_mark(&mut self, text: &FileText) -> Option<String> {
        let kept = self.history.as_ref().map(|history| (history.next(), history.entries()));
        let Some((generation, _)) =
            kept.filter(|(_, entries)| entries.iter().any(|entry| entry.generation == self.generation))
        else {
            return Some(
                "a restart before it is confirmed does not take it back: there is no history".into(),
            );
        };
        let (file, digest) = (text.path().into(), text.digest());
        let mark = Mark { generation, file, digest, before: self.generation };
        self.mark
            .set(mark)
            .map(|error| format!("a restart before it is confirmed does not take it back: {error}"))
    }

    /// Keeps what is in force now. The result is what is to be said about it.
    fn record(&mut self, how: How, again: Option<u64>, uid: Option<u32>, changes: usize) -> Option<String> {
        let entry = Entry {
            generation: 0,
            time: history::now(),
            uid,
            how,
            again,
            file: self.text.path().into(),
            mode: self.text.mode(),
            digest: self.text.digest(),
            changes,
        };
        let Some(history) = &mut self.history else {
            self.generation += 1;
            return Some("it is not kept: there is no history, see the gateway's log".into());
        };
        match history.record(entry, self.text.bytes()) {
            Ok(entry) => {
                self.generation = entry.generation;
                None
            }
            Err(error) => {
                self.generation = self.generation.max(history.next().saturating_sub(1)) + 1;
                tracing::error!("what is in force is not kept in the history: {error}");
                Some(format!("it is not kept in the history: {error}"))
            }
        }
    }

    /// Takes a request. `None`: the answer comes later, from [`Applier::tick`]. A request of another kind is refused.
    pub fn ask(&mut self, gateway: &Gateway, request: &Request, asker: Asker) -> Option<Value> {
        let job = match request {
            Request::Word(Word::Reload) => Job::new(From::File(self.file.clone()), How::Reload),
            Request::Word(Word::Confirm) => return Some(self.confirm()),
            Request::Word(Word::History) => return Some(self.tell_history()),
            Request::Configuration(wanted) => {
                let (basis, all) = (gateway.basis(), wanted.config == Extent::All);
                self.showing.push((asker.ticket, thread::spawn(move || basis.config().to_toml(all))));
                return None;
            }
            Request::Apply(wanted) => {
                if !wanted.apply.is_absolute() {
                    return Some(refusal(&"the path of the file is not absolute"));
                }
                let mut job = Job::new(From::File(wanted.apply.clone()), How::Apply);
                (job.dry_run, job.confirm) = (wanted.dry_run, wanted.confirm);
                (job.digest, job.generation) = (wanted.digest.clone(), wanted.generation);
                job
            }
            Request::Rollback(wanted) => match self.kept(wanted.rollback) {
                Ok((generation, text)) => {
                    let mut job = Job::new(From::Text(text), How::Rollback);
                    job.again = Some(generation);
                    (job.dry_run, job.confirm) = (wanted.dry_run, wanted.confirm);
                    (job.digest, job.generation) = (wanted.digest.clone(), wanted.generation);
                    job
                }
                Err(why) => return Some(refusal(&why)),
            },
            _ => return Some(refusal(&"this does not concern the file")),
        };
        if job.confirm.is_some_and(|seconds| !(1..=LONGEST_CONFIRM).contains(&seconds)) {
            return Some(refusal(&format!("the time to confirm goes from 1 to {LONGEST_CONFIRM} seconds")));
        }
        self.waiting.push_back(Job { asker: Some(asker), ..job });
        None
    }

    /// Reads the file again, as a signal asks for.
    pub fn reload(&mut self) {
        let waits = self.waiting.iter().any(|job| job.how == How::Reload && job.asker.is_none());
        if !waits {
            self.waiting.push_back(Job::new(From::File(self.file.clone()), How::Reload));
        }
    }

    fn kept(&self, generation: u64) -> Result<(u64, FileText), String> {
        let history = self.history.as_ref().ok_or("there is no history: see the gateway's log")?;
        let wanted = match generation {
            0 => history.before(self.generation).ok_or("nothing is kept from before")?,
            generation => generation,
        };
        let kept: Vec<String> = history.entries().iter().map(|entry| entry.generation.to_string()).collect();
        let missing = |error: std::io::Error| match kept.contains(&wanted.to_string()) {
            true => format!("generation {wanted} cannot be read: {error}"),
            false => format!("generation {wanted} is not kept; there are {}", kept.join(", ")),
        };
        history.read(wanted).map(|(entry, text)| (entry.generation, text)).map_err(missing)
    }

    /// Seconds left to confirm.
    fn left(&self) -> Option<u64> {
        let due = self.unconfirmed.as_ref()?.due;
        Some(due.saturating_duration_since(Instant::now()).as_secs_f64().ceil() as u64)
    }

    fn confirm(&mut self) -> Value {
        match self.unconfirmed.take() {
            Some(_) => {
                self.mark.forget();
                tracing::info!("generation {} is confirmed", self.generation);
                json!({ "ok": { "generation": self.generation } })
            }
            None => match self.mark.get() {
                Some(mark) => {
                    let generation = mark.generation;
                    refusal(&format!("nothing waits to be confirmed: generation {generation} was taken back"))
                }
                None => refusal(&"nothing waits to be confirmed"),
            },
        }
    }

    fn tell_history(&self) -> Value {
        let entries = self.history.as_ref().map(|history| history.entries().to_vec()).unwrap_or_default();
        let history =
            History { entries, generation: self.generation, file: self.file.clone(), confirm: self.left() };
        json!({ "ok": history })
    }

    /// Goes on with what there is to do, and gives the answers that are ready.
    pub fn tick(&mut self, gateway: &mut Gateway) -> Vec<(Ticket, Value)> {
        let mut answers = Vec::new();
        for (ticket, thread) in std::mem::take(&mut self.showing) {
            if thread.is_finished() {
                let text = thread.join().map_err(|_| refusal(&"a bug: the text could not be written"));
                answers.push((ticket, text.map_or_else(|error| error, |text| json!({ "ok": text }))));
            } else {
                self.showing.push((ticket, thread));
            }
        }
        self.take_back();
        if self.checking.is_none()
            && let Some(mut job) = self.waiting.pop_front()
        {
            if job.how == How::Reload {
                // Another may have become the file since this was asked.
                job.from = From::File(self.file.clone());
            }
            match self.may_begin(&job) {
                Ok(()) => {
                    let (from, basis) = (job.from.clone(), gateway.basis());
                    let thread =
                        thread::Builder::new().name("check".into()).spawn(move || check(from, basis));
                    match thread {
                        Ok(thread) => self.checking = Some((job, thread)),
                        Err(error) => answers.extend(job.answer(refusal(&error))),
                    }
                }
                Err(why) => {
                    tracing::error!("{why}");
                    answers.extend(job.answer(refusal(&why)));
                }
            }
        }
        if self.checking.as_ref().is_some_and(|(_, thread)| thread.is_finished())
            && let Some((job, thread)) = self.checking.take()
        {
            match thread.join() {
                Ok(found) => answers.extend(self.finish(gateway, job, found)),
                Err(_) => answers.extend(job.answer(refusal(&"a bug: the check of the file failed"))),
            }
        }
        answers
    }

    /// While a change waits to be confirmed only a way back may be gone.
    fn may_begin(&self, job: &Job) -> Result<(), String> {
        match self.left() {
            Some(left) if !job.dry_run && !matches!(job.how, How::Rollback | How::Unconfirmed) => {
                Err(format!(
                    "generation {} waits {left} s more for `causeway confirm`: confirm it, or roll it back, before another",
                    self.generation
                ))
            }
            _ => Ok(()),
        }
    }

    /// Takes back what nobody has confirmed in time.
    fn take_back(&mut self) {
        let is_under_way = |job: &Job| job.how == How::Unconfirmed;
        let begun = self.checking.as_ref().is_some_and(|(job, _)| is_under_way(job));
        if let Some(unconfirmed) = &self.unconfirmed
            && Instant::now() >= unconfirmed.due
            && !begun
            && !self.waiting.iter().any(is_under_way)
        {
            tracing::warn!("generation {} was not confirmed: it is taken back", self.generation);
            let job = Job::new(From::Text(unconfirmed.before.clone()), How::Unconfirmed);
            self.waiting.push_front(Job { again: Some(unconfirmed.before_generation), ..job });
        }
    }

    /// Takes up what was found good.
    fn finish(&mut self, gateway: &mut Gateway, mut job: Job, found: Found) -> Option<(Ticket, Value)> {
        if job.how == How::Unconfirmed && self.unconfirmed.is_none() {
            // It was confirmed at the last moment.
            return None;
        }
        let Good { text, config, warnings, difference, basis } = match found {
            Found::Bad(message, report) => return self.refuse(&job, message, report, None),
            Found::Good(good) => *good,
        };
        if !gateway.is_still(&basis) {
            // A key was changed meanwhile: compare again.
            job.from = From::Text(text);
            self.waiting.push_front(job);
            return None;
        }
        let (named, report) = (text.path().display().to_string(), text_of(&warnings));
        let digest = text.digest();
        if job.digest.as_ref().is_some_and(|wanted| *wanted != digest) {
            let why = format!("{named} is not what it was when it was looked at: nothing has changed");
            return self.refuse(&job, why, None, None);
        }
        if job.generation.is_some_and(|wanted| wanted != self.generation) {
            let why = format!(
                "generation {} has come into force since this was looked at: nothing has changed",
                self.generation
            );
            return self.refuse(&job, why, None, None);
        }
        let restart = difference.needs_restart().next().is_some();
        let count = difference.changes.len();
        let mut outcome = Outcome {
            result: match (count, restart) {
                (0, _) => Came::Unchanged,
                (_, true) => Came::NeedsRestart,
                _ => Came::WouldBeInForce,
            },
            generation: self.generation,
            file: text.path().into(),
            digest,
            difference: difference.shortened(LISTED),
            confirm: None,
            report,
            notes: Vec::new(),
        };
        if job.dry_run {
            return job.answer(json!({ "ok": outcome }));
        }
        if restart {
            let mut why =
                format!("{named} is not taken up: what follows needs a restart; nothing has changed");
            outcome.difference.needs_restart().take(20).for_each(|change| {
                let _ = write!(why, "\n  {change}");
            });
            return self.refuse(&job, why, outcome.report, Some(&outcome.difference));
        }
        let former = self.mark.get().cloned();
        if job.confirm.is_some() && count > 0 {
            // Before the change is made, which may be what ends this process.
            outcome.notes.extend(self.set_mark(&text));
        }
        if count == 0 {
            gateway.follow(&config);
        } else if let Err(error) = gateway.reload(config) {
            if self.mark.get() != former.as_ref() {
                match former {
                    Some(former) => drop(self.mark.set(former)),
                    None => self.mark.forget(),
                }
            }
            let why = format!("{named} is not taken up: {error}");
            return self.refuse(&job, why, outcome.report, Some(&outcome.difference));
        }
        let before = std::mem::replace(&mut self.text, text);
        self.take_over(&job, before, count, &mut outcome);
        if let Some(report) = &outcome.report {
            tracing::warn!("{report}");
        }
        job.answer(json!({ "ok": outcome }))
    }

    /// Remembers what is in force now, and how it came to be.
    fn take_over(&mut self, job: &Job, before: FileText, count: usize, outcome: &mut Outcome) {
        let before_generation = self.generation;
        let before_file = std::mem::replace(&mut self.file, self.text.path().into());
        let uid = job.asker.and_then(|asker| asker.uid);
        if count > 0 {
            outcome.result = Came::InForce;
            outcome.notes.extend(self.record(job.how, job.again, uid, count));
            outcome.generation = self.generation;
        }
        match (self.mark.get(), job.how) {
            _ if job.confirm.is_some() && count > 0 => {}
            // Nor does a start take it up after this. Unless that is what was returned to.
            (Some(mark), How::Unconfirmed | How::Rollback) if mark.digest != self.text.digest() => {
                let mark = Mark { before: self.generation, ..mark.clone() };
                self.mark.set(mark);
            }
            _ => self.mark.forget(),
        }
        if let How::Unconfirmed | How::Rollback = job.how {
            let undone = self.unconfirmed.take();
            if let Some(undone) = undone.filter(|_| job.how == How::Unconfirmed) {
                self.file = undone.before_file;
            }
            outcome.notes.push(format!(
                "{} was not written: correct it before the next reload{}",
                self.file.display(),
                if self.mark.get().is_some() { "" } else { " or restart" }
            ));
        } else if self.file != self.started_with {
            outcome.notes.push(format!(
                "a reload reads {} from now on, but a restart {}: put it there to keep it",
                self.file.display(),
                self.started_with.display()
            ));
        }
        if let (Some(seconds), true) = (job.confirm, count > 0) {
            let due = Instant::now() + Duration::from_secs(seconds);
            self.unconfirmed = Some(Unconfirmed { due, before, before_file, before_generation });
            outcome.confirm = Some(seconds);
        }
        let by = uid.map_or(String::new(), |uid| format!(" by user {uid}"));
        let file = self.text.path().display();
        match count {
            0 => tracing::info!("{file} is in force already: it changes nothing"),
            count => {
                tracing::info!("{file} is in force{by}: generation {}, {count} changes", self.generation)
            }
        }
    }

    /// Says that nothing has changed, and why.
    fn refuse(
        &mut self,
        job: &Job,
        message: String,
        report: Option<String>,
        difference: Option<&Difference>,
    ) -> Option<(Ticket, Value)> {
        if !job.dry_run {
            tracing::error!(
                "{message}{}",
                report.as_ref().map_or(String::new(), |report| format!("\n{report}"))
            );
        }
        if job.how == How::Unconfirmed
            && let Some(unconfirmed) = &mut self.unconfirmed
        {
            unconfirmed.due = Instant::now() + AGAIN;
        }
        job.answer(json!({ "error": message, "report": report, "difference": difference }))
    }

    /// The file that a reload reads.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Job {
    fn new(from: From, how: How) -> Self {
        Self {
            from,
            how,
            again: None,
            dry_run: false,
            confirm: None,
            digest: None,
            generation: None,
            asker: None,
        }
    }

    fn answer(&self, reply: Value) -> Option<(Ticket, Value)> {
        self.asker.map(|asker| (asker.ticket, reply))
    }
}
