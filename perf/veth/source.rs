//! The kernel as source and sink of frames.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
};

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
/// Runs of the program for each system call. One that has nothing to send takes 20 ns.
const REPEAT: u32 = 1 << 16;

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
        Ok(Self { bpf, order, frames, received, length: 0 })
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

    /// Sends until all of the order is done or it is told to stop.
    pub fn run(&self, most: u64, stop: &AtomicBool) -> Result<()> {
        let program: &Xdp = self.bpf.program("source").ok_or("no source")?.try_into()?;
        let room = [0; FRAME];
        while !stop.load(Ordering::Relaxed) && self.sent()? < most {
            program.test_run(TestRunOptions {
                data_in: room.get(..self.length),
                repeat: REPEAT,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::new()
            })?;
        }
        Ok(())
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
