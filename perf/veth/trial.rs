//! One run of frames through a subject, with the balance of every frame.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use af_xdp::XdpLink;

use super::{
    lab::{Result, SOURCE_CORE, driver_count, frames_in, pin},
    source::{Order, Source},
    subject::{Counts, Kind, Subject},
};

/// Different frames where frames may come again.
pub const DIFFERENT: usize = 1024;
/// How long a source may take to send its first frame.
const START: Duration = Duration::from_secs(1);
/// How long a peer may take until a frame comes through it.
pub const PEER_START: Duration = Duration::from_secs(60);
/// How long nothing must move for a run to be over.
const QUIET: Duration = Duration::from_millis(2);
/// Between two runs others get the processor: they may need it, and the kernel would take it in the middle of a run.
const PAUSE: Duration = Duration::from_millis(60);

/// What is sent, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// Millions of frames a second.
    pub rate: f64,
    /// Before it counts.
    pub warm_up: Duration,
    /// For so long it counts.
    pub time: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Millions of frames a second that reached the far end while it counted.
    pub rate: f64,
    /// The same for each second of our thread's processor time.
    pub of_processor: f64,
    /// Frames that the source sent, the time before it counted included.
    pub offered: u64,
    /// Millions of frames a second that the source sent.
    pub offered_rate: f64,
    /// Frames of those that did not reach the far end.
    pub lost: u64,
    /// Frames of those that our rings had no room for; the others did not fit into the device's. Unknown (0) of peers.
    pub lost_in_rings: u64,
    /// Frames sent for each call that makes the kernel send. Unknown (NaN) of peers.
    pub batch: f64,
}

/// A subject and the far end it sends to.
pub struct Bench {
    /// What is measured.
    pub subject: Subject,
    /// Bytes of a frame as it goes in.
    length: usize,
    sink: Option<XdpLink>,
}

impl Bench {
    /// Lets the far end count in an XDP program, where `sink` says so.
    pub fn new(mut subject: Subject, source: &Source, sink: bool) -> Result<Self> {
        let far = af_xdp::Device::by_name(&subject.far[1])?;
        let sink = sink.then(|| source.attach_sink(&far)).transpose()?;
        let mut length = 0;
        subject.frames.each(1, |_, bytes| {
            length = bytes.len();
            Ok(())
        })?;
        Ok(Self { subject, length, sink })
    }

    fn delivered(&self, source: &Source) -> Result<u64> {
        if self.sink.is_some() { source.in_sinks() } else { frames_in(&self.subject.far[1]) }
    }

    /// Waits for a peer until frames come through it, and lets it rest.
    pub fn start(&mut self, source: &mut Source) -> Result<()> {
        if !matches!(self.subject.kind, Kind::Peer(_)) {
            return Ok(());
        }
        let (since, device) = (Instant::now(), self.subject.source_device()?.index());
        let before = self.delivered(source)?;
        while self.delivered(source)? == before {
            if since.elapsed() > PEER_START {
                return Err(format!("no frame comes through {}", self.subject.kind.name()).into());
            }
            self.subject.wake(true)?;
            self.subject.frames.each(1, |number, bytes| source.set(number, bytes))?;
            source.order(&Order { device, length: self.length, frames: 1, rate: None, most: 1 })?;
            source.stop(false)?;
            source.run(QUIET, 1)?;
            thread::sleep(PAUSE);
        }
        self.subject.wake(false)
    }

    /// Sends frames through. `room` is how many different ones the source holds.
    ///
    /// Fails if any frame is neither at the far end nor counted as lost somewhere.
    pub fn run(&mut self, source: &mut Source, room: usize, trial: &Trial) -> Result<Outcome> {
        let mut trial = *trial;
        if self.subject.kind.wants_new_frames() {
            // No longer than the frames last.
            let last = Duration::from_secs_f64(room as f64 / (trial.rate * 1e6));
            trial.time = trial.time.min(last.saturating_sub(trial.warm_up));
        }
        let most = (trial.rate * (trial.warm_up + trial.time).as_micros() as f64) as u64;
        let (frames, most) = if self.subject.kind.wants_new_frames() {
            (room, most.min(room as u64))
        } else {
            (DIFFERENT.min(room), most)
        };
        self.subject.frames.each(frames.min(most as usize), |number, bytes| source.set(number, bytes))?;
        let device = self.subject.source_device()?.index();
        source.order(&Order { device, length: self.length, frames, rate: Some(trial.rate), most })?;
        let source = &*source;
        thread::sleep(PAUSE);

        let before = self.subject.counts();
        let (at_far_end, refused) = (self.delivered(source)?, self.entrance_drops()?);
        let done = AtomicBool::new(false);
        source.stop(false)?;
        self.subject.wake(true)?;
        let ready = Barrier::new(2);
        let (rate, of_processor) = thread::scope(|scope| -> Result<_> {
            // On its own core before this one is busy: this one would not let it go.
            let sending = scope.spawn(|| {
                pin(SOURCE_CORE);
                ready.wait();
                let result = source.run(trial.warm_up + trial.time, most);
                done.store(true, Ordering::Release);
                result
            });
            ready.wait();
            let measured = self.measure(source, &trial, &done);
            source.stop(true)?;
            self.drain(&done);
            sending.join().map_err(|_| "the source panicked")??;
            measured
        })?;
        self.drain(&done);
        self.subject.wake(false)?;

        let (after, offered) = (self.subject.counts(), source.sent()?);
        let delivered = self.delivered(source)? - at_far_end;
        let refused = self.entrance_drops()? - refused;
        let mut outcome = Outcome {
            rate,
            of_processor,
            offered,
            offered_rate: source.rate()?,
            lost: offered.saturating_sub(delivered),
            lost_in_rings: 0,
            batch: f64::NAN,
        };
        let (Some(before), Some(after)) = (before, after) else { return Ok(outcome) };
        let gained = |of: fn(&Counts) -> u64| of(&after) - of(&before);
        let (received, sent, dropped) = (gained(|c| c.received), gained(|c| c.sent), gained(|c| c.dropped));
        let in_rings = gained(|c| c.refused);
        if received + in_rings + refused != offered || sent + dropped != received || delivered != sent {
            return Err(format!(
                "{}: {offered} frames offered, {refused} refused by the device, {in_rings} by our rings, {received} \
                 received, {dropped} dropped, {sent} sent, {delivered} delivered",
                self.subject.kind.name()
            )
            .into());
        }
        outcome.lost_in_rings = in_rings;
        outcome.batch = sent as f64 / gained(|c| c.kicks).max(1) as f64;
        Ok(outcome)
    }

    /// Frames that the device at the entrance did not take from the source.
    fn entrance_drops(&self) -> Result<u64> {
        driver_count(&self.subject.far[0], "tx_queue_0_xdp_xmit_errors")
    }

    fn measure(&mut self, source: &Source, trial: &Trial, done: &AtomicBool) -> Result<(f64, f64)> {
        // The source starts when the kernel has made its pool of pages, which takes as long as its grace periods do.
        let since = Instant::now();
        let none = self.delivered(source)?;
        let is_peer = matches!(self.subject.kind, Kind::Peer(_));
        while self.subject.round() == 0 && since.elapsed() < START {
            if is_peer && self.delivered(source)? > none {
                break;
            }
        }
        self.work(trial.warm_up, done);
        let (before, used) = (self.delivered(source)?, self.subject.processor_time()?);
        let time = self.work(trial.time, done).as_secs_f64();
        let millions = (self.delivered(source)? - before) as f64 / 1e6;
        Ok((millions / time, millions / (self.subject.processor_time()? - used)))
    }

    /// Works for so long, or until the source is done.
    fn work(&mut self, time: Duration, done: &AtomicBool) -> Duration {
        let rounds = if matches!(self.subject.kind, Kind::Peer(_)) { 1 } else { 16 };
        let since = Instant::now();
        while since.elapsed() < time && !done.load(Ordering::Relaxed) {
            for _ in 0..rounds {
                self.subject.round();
            }
        }
        since.elapsed()
    }

    /// Goes on until the source is done and nothing has moved for a while.
    fn drain(&mut self, done: &AtomicBool) {
        // Nobody says when a peer's rings are empty.
        let quiet = if matches!(self.subject.kind, Kind::Peer(_)) { 5 * QUIET } else { QUIET };
        let mut last = Instant::now();
        while !done.load(Ordering::Acquire) || last.elapsed() < quiet {
            if self.subject.round() > 0 {
                last = Instant::now();
            }
        }
    }
}
