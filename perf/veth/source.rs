//! The kernel as source and sink of frames.

use std::{os::fd::AsFd, sync::Mutex, time::Duration};

use af_xdp::{Device, Hook, XdpLink};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, PerCpuArray},
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp},
};

use super::lab::Result;

static TRAFFIC: &[u8] = aya::include_bytes_aligned!("../traffic.bpf.o");

/// Longest frame, in bytes.
pub const FRAME: usize = 1536;
/// Parts of a nanosecond in which the BPF program counts time.
const PARTS: f64 = 1024.0;
/// About how long the program takes when it has nothing to send, in ns.
const IDLE_ROUND: u128 = 20;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// Index of the device to send through.
    pub device: u32,
    /// Bytes of a frame.
    pub length: usize,
    /// Frames to take in turn, of those that were filled in.
    pub frames: usize,
    /// Millions of frames a second; as fast as it goes where there is none.
    pub rate: Option<f64>,
    /// Frames to send.
    pub most: u64,
}

/// A source of frames in the kernel (BPF live frames), and a sink for the far end.
pub struct Source {
    bpf: Ebpf,
    order: Array<MapData, [u64; 8]>,
    frames: Array<MapData, [u8; FRAME]>,
    received: PerCpuArray<MapData, u64>,
    stop: Mutex<Array<MapData, u32>>,
    length: usize,
}

impl Source {
    /// A source with room for so many different frames.
    pub fn load(frames: usize) -> Result<Self> {
        let mut bpf = EbpfLoader::new().map_max_entries("FRAMES", frames as u32).load(TRAFFIC)?;
        for name in ["source", "sink"] {
            let program: &mut Xdp = bpf.program_mut(name).ok_or("no such program")?.try_into()?;
            program.load()?;
        }
        let mut map = |name| bpf.take_map(name).ok_or("no such map");
        let order = Array::try_from(map("ORDER")?)?;
        let frames = Array::try_from(map("FRAMES")?)?;
        let received = PerCpuArray::try_from(map("RECEIVED")?)?;
        let stop = Mutex::new(Array::try_from(map("STOP")?)?);
        Ok(Self { bpf, order, frames, received, stop, length: 0 })
    }

    /// Sets one of the frames.
    pub fn set(&mut self, number: usize, bytes: &[u8]) -> Result<()> {
        let mut frame = [0; FRAME];
        frame.get_mut(..bytes.len()).ok_or("a frame is too long")?.copy_from_slice(bytes);
        Ok(self.frames.set(number as u32, frame, 0)?)
    }

    /// Says what the next [`Source::run`] sends. Nothing counts as sent any more.
    pub fn order(&mut self, order: &Order) -> Result<()> {
        let pace = order.rate.map_or(0.0, |rate| (1e3 / rate * PARTS).round());
        self.length = order.length;
        let parts =
            [order.device.into(), order.length as u64, order.frames as u64, pace as u64, order.most, 0, 0, 0];
        Ok(self.order.set(0, parts, 0)?)
    }

    /// Frames sent on this order.
    pub fn sent(&self) -> Result<u64> {
        let [_, _, _, _, _, sent, ..] = self.order.get(&0, 0)?;
        Ok(sent)
    }

    /// Millions of frames a second that were sent on this order, which had a rate.
    pub fn rate(&self) -> Result<f64> {
        let [_, _, _, _, _, sent, due, begun] = self.order.get(&0, 0)?;
        Ok(sent as f64 * 1e3 * PARTS / due.saturating_sub(begun).max(1) as f64)
    }

    /// Sends until all of the order is done, or until [`Source::stop`]. `time` is how long it may take.
    pub fn run(&self, time: Duration, most: u64) -> Result<()> {
        let program: &Xdp = self.bpf.program("source").ok_or("no source")?.try_into()?;
        let room = [0; FRAME];
        let stopped = || -> Result<bool> {
            Ok(self.stop.lock().map_err(|_| "another thread panicked")?.get(&0, 0)? != 0)
        };
        // As few calls as can be: each makes and destroys a pool of pages, which takes milliseconds.
        let repeat = u32::try_from(time.as_nanos() / IDLE_ROUND).unwrap_or(u32::MAX);
        while self.sent()? < most && !stopped()? {
            program.test_run(TestRunOptions {
                data_in: room.get(..self.length),
                repeat,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::new()
            })?;
        }
        Ok(())
    }

    /// Ends a run of another thread, and lets another begin.
    pub fn stop(&self, stop: bool) -> Result<()> {
        let mut map = self.stop.lock().map_err(|_| "another thread panicked")?;
        Ok(map.set(0, u32::from(stop), 0)?)
    }

    /// Lets a device count and drop what it receives in an XDP program, for as long as the result lives.
    pub fn attach_sink(&self, device: &Device) -> Result<XdpLink> {
        let sink: &Xdp = self.bpf.program("sink").ok_or("no sink")?.try_into()?;
        Ok(XdpLink::attach(sink.fd()?.as_fd(), device, Hook::Native)?)
    }

    /// Frames that reached sinks.
    pub fn in_sinks(&self) -> Result<u64> {
        Ok(self.received.get(&0, 0)?.iter().sum())
    }
}
