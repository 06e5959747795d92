use super::*;

fn pool(count: usize) -> FramePool {
    Umem::new(count, 2048, HugePages::Never).unwrap().into_pools(1).pop().unwrap()
}

#[test]
fn wrapping_leaves_neither_the_chunk_nor_what_was_asked_for() {
    let mut pools = Umem::new(2, 2048, HugePages::Never).unwrap().into_pools(1);
    let pool = &mut pools[0];
    let umem = Arc::clone(pool.umem());
    let mut frame = pool.alloc_with(b"0123456789").unwrap();
    let (headroom, before) = (frame.headroom(), (frame.headroom(), frame.len()));
    for (at, len, front, behind) in [
        (3, 8, 0, 0),
        (0, 10, headroom + 1, 0),
        (0, 10, 0, 2048 - headroom - 9),
        (usize::MAX, 5, 0, 0),
        (1, usize::MAX, 0, 0),
        (0, 10, 0, usize::MAX),
    ] {
        assert!(!umem.wrap(&mut frame, at, len, front, behind));
    }
    let refused: [((u16, u16), usize, usize); 5] = [
        ((3, 8), 0, 0),
        ((0, 10), 33, 0),
        ((0, 10), 0, 2048 - headroom - 9),
        ((0, u16::MAX), 0, 0),
        ((0, 10), 0, usize::MAX),
    ];
    for (part, front, behind) in refused {
        assert!(umem.wrap_within::<32>(&mut frame, part, front, behind).is_none());
    }
    assert!(umem.wrap_within::<2048>(&mut frame, (0, 10), 0, 0).is_none(), "more than there is in front");
    assert_eq!((frame.headroom(), frame.len()), before);

    let (front, rest) = umem.wrap_within::<32>(&mut frame, (2, 5), 20, 3).unwrap();
    assert_eq!(&rest[..5], b"23456");
    front.fill(1);
    rest[5..].fill(2);
    assert_eq!((frame.headroom(), frame.len()), (headroom + 2 - 20, 28));
    assert_eq!(umem.bytes(&frame), [&[1; 20][..], b"23456", &[2; 3]].concat());
    // To the last byte of the chunk.
    let len = frame.len();
    let room = 2048 - frame.headroom() - len;
    assert!(umem.wrap_within::<32>(&mut frame, (0, len as u16), 0, room).is_some());
    assert_eq!(frame.headroom() + frame.len(), 2048);
    pool.free(frame);
}

#[test]
fn a_packet_keeps_its_bytes() {
    let mut pool = pool(4);
    let umem = Arc::clone(pool.umem());
    let mut a = pool.alloc_with(b"first").unwrap();
    let b = pool.alloc_with(b"second").unwrap();
    umem.bytes_mut(&mut a)[0] = b'F';
    assert_eq!(umem.bytes(&a), b"First");
    assert_eq!(umem.bytes(&b), b"second");
    assert!(umem.grow_back(&mut a, 3));
    assert_eq!(a.len(), 8);
    assert!(!umem.grow_back(&mut a, 2048));
    pool.free(a);
    pool.free(b);
    assert_eq!(pool.available(), 4);
}

#[test]
fn one_packet_goes_behind_another_where_there_is_room() {
    let mut pool = pool(2);
    let umem = Arc::clone(pool.umem());
    let mut a = pool.alloc_with(&[1; 1000]).unwrap();
    let b = pool.alloc_with(&[2; 500]).unwrap();
    assert!(umem.append(&mut a, &b));
    assert_eq!(umem.bytes(&a), [vec![1; 1000], vec![2; 500]].concat());
    assert!(!umem.append(&mut a, &b));
    assert_eq!(a.len(), 1500);
    pool.free(a);
    pool.free(b);
}

#[test]
fn an_empty_pool_gives_nothing_and_a_long_packet_goes_home() {
    let mut pool = pool(1);
    assert!(pool.alloc_with(&[0; 1793]).is_none());
    let frame = pool.alloc_with(&[0; 1792]).unwrap();
    assert!(pool.alloc().is_none());
    pool.free(frame);
    assert_eq!(pool.available(), 1);
}

#[test]
fn pools_divide_all_chunks() {
    let pools = Umem::new(10, 2048, HugePages::Never).unwrap().into_pools(3);
    assert_eq!(pools.iter().map(FramePool::available).sum::<usize>(), 10);
    let mut all: Vec<_> = pools.iter().flat_map(|p| p.free.clone()).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 10);
}

#[test]
fn what_is_lent_comes_back_once() {
    let mut pool = pool(4);
    let mut lender = pool.lender();
    let offset = lender.lend(pool.alloc_with(b"x").unwrap()).unwrap();
    assert_eq!(lender.count(), 1);
    assert!(lender.adopt(offset + 2048, 1).is_none(), "never lent");
    assert!(lender.adopt(offset, 2048).is_none(), "longer than the chunk");
    assert!(lender.adopt(u64::MAX, 1).is_none(), "outside the region");
    let frame = lender.adopt(offset + 3, 7).unwrap();
    assert_eq!((frame.headroom(), frame.len()), (HEADROOM + 3, 7));
    assert!(lender.adopt(offset, 1).is_none(), "twice");
    pool.free(frame);
    let _ = lender.lend(pool.alloc().unwrap());
    let _ = lender.lend(pool.alloc().unwrap());
    lender.recall(&mut pool);
    assert_eq!((lender.count(), pool.available()), (0, 4));
}

#[test]
#[cfg(not(debug_assertions))]
fn a_foreign_frame_shows_nothing() {
    let (mut a, b) = (pool(1), pool(1));
    let frame = a.alloc_with(b"secret").unwrap();
    assert!(b.umem().bytes(&frame).is_empty());
    a.free(frame);
}

#[test]
fn bad_sizes_are_refused() {
    assert!(matches!(Umem::new(1, 1000, HugePages::Never), Err(UmemError::ChunkSize(1000))));
    assert!(matches!(Umem::new(0, 2048, HugePages::Never), Err(UmemError::Count(0))));
    assert!(matches!(Umem::new(usize::MAX, 2048, HugePages::Never), Err(UmemError::Count(_))));
}
