//! Every AEAD backend against the `aes-gcm` crate.

use std::collections::BTreeMap;

use causeway::crypto::aead::{self, Aad, Backend, Job, Key, KeyError, TAG_LEN};
use proptest::prelude::*;

/// What the packet's neighbours in memory hold, and must still hold afterwards.
const GUARD: u8 = 0xa5;

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + seed * 17 + (i >> 5) + 3) as u8).collect()
}

fn accelerated() -> Vec<Backend> {
    Backend::available().filter(|b| *b != Backend::Reference).collect()
}

/// One packet of a test burst.
#[derive(Debug, Clone)]
struct Packet {
    key: Vec<u8>,
    salt: [u8; 4],
    iv: [u8; 8],
    aad: Aad,
    text: Vec<u8>,
    alignment: usize,
}

impl Packet {
    fn new(seed: usize, key_bytes: usize, aad_bytes: usize, len: usize, alignment: usize) -> Self {
        let aad = Aad::from_bytes(&bytes(seed + 2, aad_bytes)).unwrap();
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes(seed + 1, 12).first_chunk().unwrap();
        Self {
            key: bytes(seed, key_bytes),
            salt: [a, b, c, d],
            iv: [e, f, g, h, i, j, k, l],
            aad,
            text: bytes(seed + 3, len),
            alignment,
        }
    }

    /// With the key and the salt of this number in place of its own.
    fn under(mut self, number: usize) -> Self {
        self.key = bytes(number + 5, self.key.len());
        self.salt = [number as u8, 1, 2, 3];
        self
    }
}

/// A packet's bytes at its alignment, between guards.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(alignment: usize, content: &[u8]) -> Self {
        let mut memory = vec![GUARD; content.len() + 64 + 64 + 128];
        let start = memory.as_ptr().align_offset(64) + 64 + alignment;
        memory[start..start + content.len()].copy_from_slice(content);
        Self { memory, start, len: content.len() }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    fn check_guards(&self) {
        let end = self.start + self.len;
        let around = self.memory[..self.start].iter().chain(&self.memory[end..]);
        assert!(around.copied().all(|byte| byte == GUARD), "wrote outside its packet");
    }
}

/// Seals or opens the burst; returns each packet's `ok` and bytes.
fn run(backend: Backend, packets: &[Packet], contents: &[Vec<u8>], open: bool) -> Vec<(bool, Vec<u8>)> {
    // One for all packets of an SA, as in a gateway: kernels do more at once for packets in a row that share it.
    let keys: BTreeMap<_, Key> =
        packets.iter().map(|p| ((&p.key, p.salt), Key::new(backend, &p.key, p.salt).unwrap())).collect();
    let mut buffers: Vec<Buffer> =
        packets.iter().zip(contents).map(|(p, content)| Buffer::new(p.alignment, content)).collect();
    let mut jobs: Vec<Job<'_>> = packets
        .iter()
        .zip(&mut buffers)
        .map(|(p, buffer)| Job::new(&keys[&(&p.key, p.salt)], p.iv, p.aad, buffer.get()))
        .collect();
    if open {
        aead::open(&mut jobs)
    } else {
        aead::seal(&mut jobs)
    };
    let ok: Vec<bool> = jobs.iter().map(|job| job.ok).collect();
    buffers.iter().for_each(Buffer::check_guards);
    ok.into_iter().zip(buffers.iter_mut().map(|b| b.get().to_vec())).collect()
}

/// Seals on the reference and on each backend, compares, opens what was sealed, and compares again.
fn compare(packets: &[Packet]) {
    let plain: Vec<Vec<u8>> = packets.iter().map(|p| [&p.text[..], &[0x77; TAG_LEN]].concat()).collect();
    let expected = run(Backend::Reference, packets, &plain, false);
    let sealed: Vec<Vec<u8>> = expected.iter().map(|(_, bytes)| bytes.clone()).collect();
    for backend in accelerated() {
        let got = run(backend, packets, &plain, false);
        for ((packet, expected), got) in packets.iter().zip(&expected).zip(&got) {
            assert!(expected.0 && got.0);
            assert!(expected.1 == got.1, "{backend} seals {} bytes differently", packet.text.len());
        }
        for (packet, (ok, bytes)) in packets.iter().zip(run(backend, packets, &sealed, true)) {
            let len = packet.text.len();
            assert!(ok, "{backend} refuses an authentic packet of {len} bytes");
            assert!(bytes[..len] == packet.text, "{backend} opens {len} bytes differently");
        }
    }
}

#[test]
fn every_length_to_600() {
    for len in 0..=600 {
        for key_bytes in [16, 24, 32] {
            compare(&[Packet::new(len, key_bytes, if len % 2 == 0 { 8 } else { 12 }, len, len % 64)]);
        }
    }
}

/// Packs: as many as a kernel takes together, and so many more that some are left over.
#[test]
fn every_length_to_600_six_at_once() {
    for len in 0..=600 {
        for key_bytes in [16, 24, 32] {
            let packets: Vec<Packet> =
                (0..6).map(|i| Packet::new(len + i, key_bytes, 12, len, (len * 5 + i * 9) % 64)).collect();
            compare(&packets);
        }
    }
}

/// A pack is as long as its longest packet, whichever that is; a key of another size breaks it up.
#[test]
fn packs_of_two_lengths_or_two_key_sizes() {
    for long in [0, 1, 16, 17, 47, 48, 49, 64, 111, 112, 113, 240, 241, 1440] {
        for short in [0, 15, 16, 48, 112] {
            for odd in 0..8 {
                let packet = |i: usize| {
                    let len = if i % 8 == odd { long } else { short };
                    Packet::new(
                        i + long,
                        if short == 15 && i % 8 == odd { 32 } else { 16 },
                        12,
                        len,
                        i * 7 % 64,
                    )
                };
                compare(&(0..9).map(packet).collect::<Vec<_>>());
            }
        }
    }
}

/// Bursts of every size, of one length and of a mix.
#[test]
fn bursts_of_1_to_64() {
    for jobs in 1..=64 {
        for lengths in [&[48][..], &[100], &[556], &[1440], &[48, 48, 48, 48, 556, 100, 48, 1440, 9, 300]] {
            let length = |i: usize| lengths[(i * 7 + i / 4) % lengths.len()];
            let packet = |i: usize| Packet::new(i, [16, 32][jobs % 2], 12, length(i), i % 64);
            compare(&(0..jobs).map(packet).collect::<Vec<_>>());
        }
    }
}

#[test]
fn every_alignment() {
    for alignment in 0..64 {
        for len in [0, 1, 15, 16, 48, 49, 112, 240, 241, 1440] {
            compare(&[Packet::new(alignment, 16, 8, len, alignment)]);
        }
    }
}

/// Every number of blocks, with a last block that is short, whole, and one byte beyond: so every remainder of a
/// kernel's group, and counters that carry into their second byte and their third.
#[test]
fn every_number_of_blocks_to_9200() {
    for (i, len) in (592..=9200).step_by(16).flat_map(|len| [len - 1, len, len + 1]).enumerate() {
        compare(&[Packet::new(len, [16, 24, 32][i / 3 % 3], 12, len, i % 64)]);
    }
}

/// The same lengths, each three times in a row under one key, then once under another: what is kept of a key and of a length, and a
/// tag that is due when the next packet comes, whatever that is.
#[test]
fn every_number_of_blocks_in_a_row() {
    for (i, len) in (16..=9200).step_by(16).flat_map(|len| [len - 1, len, len + 1]).enumerate() {
        let key_bytes = [16, 24, 32][i / 3 % 3];
        let packet = |n: usize, len| Packet::new(len + n, key_bytes, 12, len, (i + 7 * n) % 64);
        let mut burst: Vec<Packet> = (0..3).map(|n| packet(n, len).under(0)).collect();
        burst.push(packet(3, (len * 7) % 1600).under(0));
        burst.push(packet(4, len).under(1));
        burst.push(packet(5, len).under(0));
        compare(&burst);
    }
}

#[test]
fn long_packets() {
    for len in [70_000, 1_048_560, 1_048_576 + 512] {
        for key_bytes in [16, 32] {
            compare(&[Packet::new(len, key_bytes, 12, len, 3)]);
        }
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let len = prop_oneof![4 => 0usize..=120, 2 => 0usize..=1600, 1 => 0usize..=9200];
    let aad = prop_oneof![Just(8usize), Just(12usize), 0usize..=12];
    (0usize..1000, prop::sample::select(vec![16usize, 24, 32]), aad, len, 0usize..64)
        .prop_map(|(seed, key, aad, len, alignment)| Packet::new(seed, key, aad, len, alignment))
}

proptest! {
    #[test]
    fn bursts_that_mix_everything(packets in prop::collection::vec(packet(), 0..=70)) {
        compare(&packets);
    }

    #[test]
    fn bursts_of_few_keys(
        packets in prop::collection::vec((packet(), any::<usize>()), 0..=70),
        keys in 1usize..=3,
    ) {
        let packets: Vec<Packet> =
            packets.into_iter().map(|(packet, number)| packet.under(number % keys)).collect();
        compare(&packets);
    }
}

/// One bit changed anywhere, in the packet or in what is authenticated with it: refused, and no plaintext is left.
#[test]
fn a_flipped_bit_is_refused() {
    for backend in Backend::available() {
        for len in [0, 4, 48, 52, 112, 256, 300, 600, 1440] {
            let packet = Packet::new(len, 16, 12, len, 7);
            let plain = [&packet.text[..], &[0; TAG_LEN]].concat();
            let sealed = run(backend, std::slice::from_ref(&packet), &[plain], false).remove(0).1;
            let refuse = |packet: &Packet, content: &[u8]| {
                let (ok, bytes) =
                    run(backend, std::slice::from_ref(packet), &[content.to_vec()], true).remove(0);
                assert!(!ok, "{backend} accepts a forgery of {len} bytes");
                let text = &bytes[..len];
                assert!(
                    text == &content[..len] || text.iter().all(|byte| *byte == 0),
                    "{backend} left plaintext"
                );
            };
            for bit in (0..8 * sealed.len()).step_by(if len > 52 { 7 } else { 1 }) {
                let mut forged = sealed.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                refuse(&packet, &forged);
            }
            for bit in 0..96 {
                let mut other = packet.clone();
                let mut aad = *packet.aad.as_bytes().first_chunk::<12>().unwrap();
                aad[bit / 8] ^= 1 << (bit % 8);
                other.aad = Aad::from_bytes(&aad).unwrap();
                refuse(&other, &sealed);
            }
            for bit in 0..64 {
                let mut other = packet.clone();
                other.iv[bit / 8] ^= 1 << (bit % 8);
                refuse(&other, &sealed);
            }
            let mut other = packet.clone();
            other.aad = Aad::from_bytes(&packet.aad.as_bytes()[..8]).unwrap();
            refuse(&other, &sealed);
        }
    }
}

/// Forged and short packets in a burst do not touch their neighbours.
#[test]
fn each_packet_of_a_burst_is_judged_alone() {
    for backend in Backend::available() {
        let packets: Vec<Packet> = (0..23)
            .map(|i| Packet::new(i, 16, 8, [48, 300, 48, 1440, 600, 48][i % 6], i).under(i / 12))
            .collect();
        let plain: Vec<Vec<u8>> = packets.iter().map(|p| [&p.text[..], &[0; TAG_LEN]].concat()).collect();
        let mut sealed: Vec<Vec<u8>> =
            run(backend, &packets, &plain, false).into_iter().map(|(_, bytes)| bytes).collect();
        for (i, packet) in sealed.iter_mut().enumerate() {
            match i % 4 {
                1 => packet[i] ^= 0x10,
                2 => packet.truncate(i % 16),
                _ => {}
            }
        }
        for (i, (ok, bytes)) in run(backend, &packets, &sealed, true).into_iter().enumerate() {
            assert_eq!(ok, i % 4 == 0 || i % 4 == 3, "{backend}, packet {i}");
            assert!(!ok || bytes[..packets[i].text.len()] == packets[i].text);
        }
    }
}

#[test]
fn a_text_without_room_for_its_tag_is_refused_untouched() {
    for backend in Backend::available() {
        for open in [false, true] {
            let packets: Vec<Packet> = (0..TAG_LEN).map(|i| Packet::new(i, 32, 8, 0, i)).collect();
            let short: Vec<Vec<u8>> = (0..TAG_LEN).map(|len| bytes(len, len)).collect();
            for ((ok, got), before) in run(backend, &packets, &short, open).iter().zip(&short) {
                assert!(!ok && got == before);
            }
        }
    }
}

#[test]
fn keys_and_names() {
    for backend in Backend::ALL {
        assert_eq!(backend.to_string().parse(), Ok(backend));
        for len in [0, 15, 17, 31, 33] {
            assert_eq!(Key::new(backend, &vec![1; len], [0; 4]).unwrap_err(), KeyError::Length(len));
        }
    }
    assert!("aes".parse::<Backend>().is_err());
    assert!(Backend::Reference.is_available());
    let key = Key::new(Backend::best(), &[0xcd; 24], [0xcd; 4]).unwrap();
    assert_eq!(format!("{key:?}"), format!("Key(AES-192-GCM, {})", Backend::best()));
    assert_eq!(size_of::<Key>(), 1408);
}
