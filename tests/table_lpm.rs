//! Route tables of a real size against a model that looks each length up in a hash map.

use std::collections::HashMap;

use causeway::table::address::Address;
use causeway::table::lpm::{Lpm, LpmWriter, NO_ROUTE};

/// A generator that repeats: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

struct Model<A> {
    routes: HashMap<(u8, A), u32>,
    order: Vec<(A, u8)>,
}

impl<A: Address> Model<A> {
    fn insert(&mut self, writer: &mut LpmWriter<A>, address: A, length: u8, value: u32) {
        let address = address & A::mask(length);
        let old = self.routes.insert((length, address), value);
        assert_eq!(writer.insert(address, length, value), Ok(old));
        if old.is_none() {
            self.order.push((address, length));
        }
    }

    fn remove(&mut self, writer: &mut LpmWriter<A>, place: usize) {
        let (address, length) = self.order.swap_remove(place);
        assert_eq!(writer.remove(address, length), Ok(self.routes.remove(&(length, address))));
    }

    fn lookup(&self, address: A) -> u32 {
        let lengths = (0..=A::WIDTH).rev();
        let mut found = lengths.filter_map(|length| self.routes.get(&(length, address & A::mask(length))));
        found.next().copied().unwrap_or(NO_ROUTE)
    }
}

/// Loads `count` routes at once, then changes them in rounds; after each round compares random addresses and
/// addresses inside routes.
fn churn<A: Address>(count: usize, seed: u64, mut prefix: impl FnMut(&mut Random) -> (A, u8)) {
    let mut random = Random(seed);
    let (table, mut writer) = Lpm::<A>::new();
    let mut model = Model { routes: HashMap::new(), order: Vec::new() };
    for value in 0..count as u32 {
        let (address, length) = prefix(&mut random);
        model.insert(&mut writer, address, length, value);
    }
    for round in 0..8u32 {
        writer.publish().unwrap();
        assert_eq!(writer.len(), model.routes.len());
        let mut addresses: Vec<A> = (0..1000).map(|_| A::truncate(random.wide())).collect();
        for _ in 0..2000 {
            let (base, length) = model.order[random.next() as usize % model.order.len()];
            addresses.push(base | A::truncate(random.wide()) & !A::mask(length));
        }
        let mut results = vec![0; addresses.len()];
        table.lookup_burst(&addresses, &mut results);
        for (address, result) in addresses.iter().zip(results) {
            let expected = model.lookup(*address);
            assert_eq!(result, expected, "{address:x?} in round {round}");
            assert_eq!(table.lookup(*address).unwrap_or(NO_ROUTE), expected);
        }
        // All readers are this thread, which is in no burst.
        writer.quiesce();
        for step in 0..2000u32 {
            let place = random.next() as usize % model.order.len();
            model.remove(&mut writer, place);
            let (address, length) = prefix(&mut random);
            model.insert(&mut writer, address, length, round << 16 | step);
            if step % 64 == 0 {
                writer.publish().unwrap();
                writer.quiesce();
            }
        }
    }
    for (address, length) in model.order {
        writer.remove(address, length).unwrap();
    }
    writer.publish().unwrap();
    let mut results = [7; 3];
    table.lookup_burst(&[A::default(), A::MAX, A::truncate(random.wide())], &mut results);
    assert_eq!(results, [NO_ROUTE; 3]);
}

#[test]
fn a_hundred_thousand_ipv4_routes() {
    churn::<u32>(100_000, 1, |random| {
        let length = [8, 16, 19, 20, 22, 23, 24, 24, 24, 24, 24, 32][random.next() as usize % 12];
        (random.next() as u32, length)
    });
}

#[test]
fn thirty_thousand_ipv6_routes() {
    churn::<u128>(30_000, 2, |random| {
        let length = [29, 32, 32, 36, 40, 44, 48, 48, 48, 56, 64, 128][random.next() as usize % 12];
        (0x2000u128 << 112 | random.wide() >> 4, length)
    });
}

#[test]
fn every_host_of_a_subnet_and_the_routes_above() {
    // Nodes filled to the last slot, which are dense, among nodes that hold one route.
    let mut next = 0u32;
    churn::<u32>(70_000, 3, move |random| {
        next = next.wrapping_add(1);
        match next % 16 {
            0 => (random.next() as u32, (random.next() % 33) as u8),
            _ => (0x0A00_0000 | next & 0xFFFF, 32),
        }
    });
}
