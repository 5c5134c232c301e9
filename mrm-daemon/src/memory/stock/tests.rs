use super::super::smaps;
use super::blanks::wanted;
use super::*;
use crate::memory::{HUGE_PAGE_BYTES, HostSegment, charge_for};
use std::fs;

const MIB: u64 = 1 << 20;
const ROOM: u64 = 1 << 40;

fn stock(bytes_max: u64) -> Stock {
    Stock::start(bytes_max, &Degraded::new()).expect("a thread")
}

fn sizes(stock: &Stock) -> Vec<u64> {
    let mut sizes: Vec<_> = stock
        .shared
        .lock()
        .blanks
        .0
        .iter()
        .map(Blank::bytes)
        .collect();
    sizes.sort_unstable();
    sizes
}

fn told(bytes_max: u64, room_bytes: u64, loads: usize) -> Stock {
    let stock = stock(bytes_max);
    stock.tell(room_bytes, loads);
    stock.settle();
    stock
}

fn inode(segment: &HostSegment) -> u64 {
    rustix::fs::fstat(segment.fd()).expect("fstat").st_ino
}

#[test]
fn blanks_are_made_within_the_bounds_and_not_beside_loads() {
    assert_eq!(
        sizes(&stock(100 * MIB)),
        [0; 0],
        "before it is told of room"
    );
    assert_eq!(
        sizes(&told(100 * MIB, ROOM, 0)),
        [16 * MIB, 16 * MIB, 64 * MIB]
    );
    assert_eq!(sizes(&told(ROOM, 40 * MIB, 0)), [16 * MIB, 16 * MIB]);
    assert_eq!(sizes(&told(100 * MIB, ROOM, 1)), [0; 0]);
    assert_eq!(sizes(&told(15 * MIB, ROOM, 0)), [0; 0]);
    let stock = told(100 * MIB, ROOM, 0);
    assert_eq!(stock.bytes(), 96 * MIB);
    stock.tell(20 * MIB, 0);
    stock.settle();
    assert_eq!(sizes(&stock), [16 * MIB], "the room fell");
}

#[test]
fn a_small_blank_is_wanted_and_the_largest_that_fit_beside_it() {
    for (room_mib, mib) in [
        (0, vec![]),
        (15, vec![]),
        (79, vec![16, 16, 16, 16]),
        (100, vec![16, 16, 64]),
        (160, vec![16, 16, 128]),
        (290, vec![16, 16, 256]),
        (512, vec![16, 16, 16, 16, 64, 128, 256]),
        (1024, vec![16, 16, 16, 16, 64, 128, 256, 512]),
        (1400, vec![16, 16, 16, 64, 256, 1024]),
        (5000, vec![16, 16, 16, 16, 64, 256, 512, 4096]),
        (
            9000,
            vec![16, 16, 16, 16, 64, 128, 256, 512, 1024, 2048, 4096],
        ),
    ] {
        let all = wanted(room_mib * MIB);
        let all = all.flat_map(|(bytes, count)| std::iter::repeat_n(bytes / MIB, count));
        assert_eq!(all.collect::<Vec<_>>(), mib, "{room_mib} MiB");
    }
    let all: u64 = wanted(u64::MAX)
        .map(|(bytes, count)| bytes * count as u64)
        .sum();
    assert_eq!(all, STOCK_BYTES_MAX);
}

#[test]
fn with_more_room_small_blanks_give_way_to_a_large_one() {
    let stock = told(ROOM, 160 * MIB, 0);
    assert_eq!(sizes(&stock), [16 * MIB, 16 * MIB, 128 * MIB]);
    stock.tell(290 * MIB, 0);
    stock.settle();
    assert_eq!(sizes(&stock), [16 * MIB, 16 * MIB, 256 * MIB]);
    stock.tell(100 * MIB, 0);
    stock.settle();
    assert_eq!(sizes(&stock), [16 * MIB, 16 * MIB, 64 * MIB]);
}

#[test]
fn what_a_load_was_charged_for_is_left_to_it() {
    let degraded = Degraded::new();
    let stock = told(ROOM, 300 * MIB, 0);
    assert_eq!(stock.bytes(), 288 * MIB);
    // 240 MiB are charged, and taken a while later.
    stock.tell(60 * MIB, 1);
    stock.settle();
    assert_eq!(sizes(&stock), [16 * MIB, 16 * MIB, 256 * MIB]);
    assert_eq!(stock.bytes(), 60 * MIB, "the rest is charged");
    let bytes = 240 * MIB;
    let segment = stock.allocate(bytes, charge_for(bytes), &degraded);
    assert_eq!(
        segment.expect("a segment").as_mut_slice().len() as u64,
        bytes
    );
    assert_eq!(sizes(&stock), [16 * MIB, 16 * MIB]);
    // Once no load comes for it, it is given back.
    let stock = told(ROOM, 300 * MIB, 0);
    stock.tell(60 * MIB, 1);
    stock.tell(60 * MIB, 0);
    stock.settle();
    assert!(stock.bytes() <= 60 * MIB, "{:?}", sizes(&stock));
}

#[test]
fn a_load_takes_what_was_made_so_far() {
    let degraded = Degraded::new();
    let asked = std::cell::Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        asked.get() <= 3
    };
    let part = usize::try_from(PART_BYTES).expect("fits");
    let blank = Blank::make((256 * MIB, part), go_on, &degraded).expect("memory");
    let blank = blank.expect("three parts");
    assert_eq!(blank.bytes(), 3 * PART_BYTES);
    let none = Blank::make((256 * MIB, part), || false, &degraded).expect("memory");
    assert!(none.is_none());

    let stock = stock(ROOM);
    stock.shared.lock().blanks.push(blank);
    stock.tell(ROOM, 1);
    let bytes = 70 * MIB + 5;
    let mut segment = stock
        .allocate(bytes, charge_for(bytes), &degraded)
        .expect("a segment");
    assert_eq!(sizes(&stock), [0; 0], "it was taken");
    assert!(*segment.as_mut_slice() == vec![0; bytes as usize]);
    let huge = segment.huge_pages();
    assert_eq!(huge.cause.is_some(), huge.huge_bytes < huge.requested_bytes);

    // In the midst of a blank, or before or after it: nothing is being made once the load has the stock.
    stock.tell(300 * MIB, 0);
    for bytes in [200 * MIB, 240 * MIB] {
        let state = stock.shared.what_is_being_made(bytes);
        let best = state.blanks.best(bytes).map_or(0, |(_, size)| size);
        assert!(best >= state.making_bytes.min(bytes), "{best}: {state:?}");
        assert_eq!(state.waiters, 0);
    }
    stock.settle();
    assert_eq!(sizes(&stock), [16 * MIB, 16 * MIB, 256 * MIB]);
}

#[test]
fn what_is_cut_grown_or_fresh_is_like_any_segment() {
    let degraded = Degraded::new();
    let cases = [
        (1, 0),
        (2 * MIB - 1, 0),
        (3 * MIB + 5, 16 * MIB),
        (4 * MIB, 16 * MIB),
        (5 * MIB + 4097, 16 * MIB),
        (16 * MIB - 1, 16 * MIB),
        (16 * MIB, 16 * MIB),
        (17 * MIB + 77, 64 * MIB),
        (64 * MIB - 4096, 64 * MIB),
        (70 * MIB + 1, 64 * MIB),
    ];
    for (bytes, used) in cases {
        let stock = told(100 * MIB, ROOM, 0);
        stock.tell(ROOM, 1);
        let before = stock.bytes();
        let segment = stock.allocate(bytes, charge_for(bytes), &degraded);
        let mut segment = segment.unwrap_or_else(|error| panic!("{bytes}: {error}"));
        assert_eq!(before - stock.bytes(), used, "{bytes}");
        assert_eq!(segment.as_mut_slice().len() as u64, bytes);
        assert!(
            *segment.as_mut_slice() == vec![0; bytes as usize],
            "{bytes}"
        );
        let huge = segment.huge_pages().clone();
        assert_eq!(huge.requested_bytes, bytes - bytes % HUGE_PAGE_BYTES);
        assert_eq!(huge.cause.is_some(), huge.huge_bytes < huge.requested_bytes);
        // What was ready is not asked for again: it must be what it is said to be.
        let start = segment.as_mut_slice().as_ptr().addr();
        let mapped = smaps::huge_bytes(start).map_or(0, |bytes| bytes as u64);
        assert!(
            bytes < 2 * MIB || mapped >= huge.huge_bytes,
            "{bytes}: {mapped}, {huge:?}"
        );
        segment.as_mut_slice().fill(7);
        let segment = segment.seal(&degraded).expect("sealed");
        assert_eq!(segment.allocated_bytes(), charge_for(bytes), "{bytes}");
        let fd = segment.fd().try_clone_to_owned().expect("a duplicate");
        let map = memmap2::MmapOptions::new()
            .map_if_safe(&fd)
            .expect("sealed");
        assert!(map[..] == vec![7; bytes as usize]);
    }
    assert!(
        degraded.list().iter().all(|path| path.id != "stock"),
        "{:?}",
        degraded.list()
    );
}

#[test]
fn what_is_still_to_be_made_is_told_until_it_is() {
    assert_eq!(Blanks::default().missing_bytes(100 * MIB), 96 * MIB);
    let stock = told(100 * MIB, ROOM, 0);
    assert_eq!((stock.bytes(), stock.pending_bytes()), (96 * MIB, 0));
    stock.tell(ROOM, 1);
    assert!(stock.give_up());
    assert_eq!(stock.pending_bytes(), 0, "nothing is made beside a load");
}

#[test]
fn what_was_lent_does_not_come_back() {
    let degraded = Degraded::new();
    let stock = told(16 * MIB, ROOM, 0);
    let mut seen = Vec::new();
    for round in 0..3 {
        let mut unsealed = stock
            .allocate(16 * MIB, 16 * MIB, &degraded)
            .expect("a segment");
        assert!(
            *unsealed.as_mut_slice() == vec![0; 16 << 20],
            "round {round}"
        );
        unsealed.as_mut_slice().fill(round + 1);
        let segment = unsealed.seal(&degraded).expect("sealed");
        assert!(!seen.contains(&inode(&segment)), "round {round}");
        seen.push(inode(&segment));
        // Made again, and from nothing: the segment is still there.
        stock.settle();
        assert_eq!(sizes(&stock), [16 * MIB]);
        drop(segment);
    }
}

#[test]
fn a_load_gives_back_what_the_stock_has_no_room_for() {
    let stock = told(100 * MIB, ROOM, 0);
    {
        // As if the maker were slow to hear of it.
        let mut state = stock.shared.lock();
        (state.room_bytes, state.loads) = (20 * MIB, 1);
    }
    let segment = stock
        .allocate(64 * MIB, 64 * MIB, &Degraded::new())
        .expect("a segment");
    assert_eq!(sizes(&stock), [16 * MIB]);
    drop(segment);
    assert!(stock.give_up() && !stock.give_up());
    assert_eq!(stock.bytes(), 0);
}

#[test]
fn a_node_that_runs_short_gets_it_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let meminfo = |free_kib: u64| {
        let text = format!("MemTotal: 16777216 kB\nMemAvailable: {free_kib} kB\n");
        fs::write(dir.path().join("meminfo"), text).expect("written");
    };
    meminfo(8 << 20);
    let probe = Probe::at(dir.path(), dir.path());
    let stock = Stock::start_with(100 * MIB, probe, &Degraded::new()).expect("a thread");
    stock.tell(ROOM, 0);
    stock.settle();
    assert_eq!(stock.bytes(), 96 * MIB);
    // A sixteenth of 16 GiB is to be free, and 50 MiB of that are not.
    meminfo((1 << 20) - (50 << 10));
    stock.tell(ROOM - 1, 0);
    stock.settle();
    // This account does not rise when memory is given back, so all of it is, and nothing is made.
    assert_eq!(stock.bytes(), 0);
    meminfo(8 << 20);
    stock.tell(ROOM, 0);
    stock.settle();
    assert_eq!(stock.bytes(), 96 * MIB);
}

#[test]
fn a_charge_that_is_too_small_is_refused_here_too() {
    let stock = told(16 * MIB, ROOM, 0);
    let degraded = Degraded::new();
    let error = stock
        .allocate(16 * MIB, MIB, &degraded)
        .expect_err("over its charge");
    assert!(matches!(error, MemoryError::Allocated { .. }), "{error}");
    let error = stock
        .allocate(u64::MAX, u64::MAX, &degraded)
        .expect_err("too large");
    assert!(matches!(error, MemoryError::TooLarge { .. }), "{error}");
}

#[test]
fn what_was_loaded_in_small_pages_is_put_together_while_nothing_is_loaded() {
    let bytes = 37 * MIB + 4097;
    let image: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    let segment = Arc::new(HostSegment::scattered(&image).expect("memory"));
    // Somebody has it mapped meanwhile.
    let fd = segment.fd().try_clone_to_owned().expect("a duplicate");
    let map = memmap2::MmapOptions::new();
    let map = map.map_if_safe(&fd).expect("sealed, so safe to map");
    assert_eq!(&map[..], &image[..]);
    let taken = segment.allocated_bytes();

    let stock = stock(0);
    stock.tell(ROOM, 1);
    stock.put_together(&segment);
    stock.settle();
    assert_eq!(segment.huge_bytes(), 0, "beside a load");
    stock.tell(ROOM, 0);
    stock.settle();
    let huge = segment.huge_pages();
    let other = Arc::new(HostSegment::holding(&image, &Degraded::new()).expect("memory"));
    if other.huge_bytes() < 36 * MIB {
        println!("not judged: {:?}", other.huge_pages().cause);
        return;
    }
    assert_eq!(
        (huge.huge_bytes, huge.is_put_off),
        (36 * MIB, false),
        "{huge:?}"
    );
    assert_eq!(huge.cause, None);
    let stat = rustix::fs::fstat(segment.fd()).expect("fstat");
    assert_eq!(stat.st_blocks as u64 * 512, taken);
    assert_eq!(&map[..], &image[..], "who has it mapped sees the same");
    assert_eq!(stock.pending_bytes(), 0);

    // What is gone before its turn is passed over.
    let gone = Arc::new(HostSegment::scattered(&image).expect("memory"));
    stock.tell(ROOM, 1);
    stock.put_together(&gone);
    drop(gone);
    stock.tell(ROOM, 0);
    stock.settle();
    assert!(stock.shared.lock().scattered.is_empty());
}

#[test]
fn what_another_daemon_left_is_looked_at_and_put_together() {
    let image = vec![7; usize::try_from(20 * MIB).expect("fits")];
    let whole = HostSegment::holding(&image, &Degraded::new()).expect("memory");
    let small = HostSegment::scattered(&image).expect("memory");
    let stock = stock(0);
    stock.tell(ROOM, 0);
    for left in [&whole, &small] {
        let fd = left.fd().try_clone_to_owned().expect("a duplicate");
        let adopted = Arc::new(HostSegment::adopted(fd, 20 * MIB).expect("known"));
        assert_eq!(adopted.huge_bytes(), 0, "nobody looked yet");
        stock.put_together(&adopted);
        stock.settle();
        if whole.huge_bytes() < 20 * MIB {
            println!("not judged: {:?}", whole.huge_pages().cause);
            continue;
        }
        assert_eq!(adopted.huge_bytes(), 20 * MIB, "{:?}", adopted.huge_pages());
        assert_eq!(adopted.huge_pages().cause, None);
    }
}

#[test]
fn what_is_left_to_put_together_is_told_until_it_is() {
    let image = vec![7; usize::try_from(300 * MIB).expect("fits")];
    let segment = Arc::new(HostSegment::scattered(&image).expect("memory"));
    let stock = stock(0);
    stock.tell(ROOM, 0);
    stock.put_together(&segment);
    // At no time is nothing left before it is done.
    while stock.pending_bytes() > 0 {
        std::thread::yield_now();
    }
    let huge = segment.huge_pages();
    assert!(!huge.is_put_off, "{huge:?}");
}
