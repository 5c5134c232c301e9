//! Every way to read, on real files and with what can happen to them.

use super::super::direct::{Means, ReadWay};
use super::super::load::{Loaded, Onlooker, load_by};
use super::*;
use crate::source::{FileSource, Identity};
use mrm_proto::error::ErrorCode;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

const MIB: usize = 1 << 20;

const CACHED: Means = Means {
    is_cached: |_, _| Ok(true),
    ..Means::KERNEL
};
const RING: Means = Means {
    is_cached: |_, _| Ok(false),
    ..Means::KERNEL
};
const THREADS: Means = Means {
    ring: |_| Err(std::io::ErrorKind::PermissionDenied.into()),
    ..RING
};
const BUFFERED: Means = Means {
    go_direct: |_| Err(Errno::INVAL),
    ..RING
};
const WAYS: [(&str, Means); 4] = [
    ("cached", CACHED),
    ("ring", RING),
    ("threads", THREADS),
    ("buffered", BUFFERED),
];

/// A real file that claims to be what it was when it was made, and does odd things on the way.
struct Odd {
    _dir: tempfile::TempDir,
    file: FileSource,
    content: Vec<u8>,
    was: Identity,
    /// What becomes of each read through the page cache, by its number.
    on_read: Box<dyn Fn(usize) -> Result<(), SourceError> + Send + Sync>,
    reads: AtomicUsize,
    /// Whether it tells that it was written to.
    tells: bool,
}

fn odd(bytes: usize) -> Odd {
    let dir = tempfile::tempdir().expect("a directory");
    let mut content = (0..253).collect::<Vec<u8>>().repeat(bytes / 253 + 1);
    content.truncate(bytes);
    std::fs::write(dir.path().join("weights"), &content).expect("written");
    let file = FileSource::registered(dir.path(), Path::new("weights")).expect("opened");
    Odd {
        was: file.identity().expect("an identity"),
        _dir: dir,
        file,
        content,
        on_read: Box::new(|_| Ok(())),
        reads: AtomicUsize::new(0),
        tells: false,
    }
}

impl Odd {
    fn on_read(
        self,
        on_read: impl Fn(usize) -> Result<(), SourceError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            on_read: Box::new(on_read),
            ..self
        }
    }

    fn resize(&self, bytes: usize) {
        let path = self._dir.path().join("weights");
        let file = std::fs::File::options().write(true).open(path);
        file.expect("opened")
            .set_len(bytes as u64)
            .expect("resized");
    }

    fn load(&self, means: &Means) -> (Result<Loaded, LoadError>, Vec<&'static str>, u64) {
        self.load_until(means, &AtomicBool::new(false))
    }

    fn load_until(
        &self,
        means: &Means,
        cancel: &AtomicBool,
    ) -> (Result<Loaded, LoadError>, Vec<&'static str>, u64) {
        let (progress, degraded) = (AtomicU64::new(0), Degraded::new());
        let order = Order::new(self, self.was, &progress, cancel);
        let loaded = load_by(&order, means, None, &degraded);
        let told = degraded.list().into_iter().map(|path| path.id);
        let told = told.filter(|id| ["direct_io", "io_uring"].contains(id));
        (loaded, told.collect(), progress.load(Ordering::Relaxed))
    }

    #[track_caller]
    fn code(&self, means: &Means) -> ErrorCode {
        let error = self.load(means).0.expect_err("a fault");
        assert!(error.to_string().contains("weights"), "{error}");
        error.code()
    }
}

impl Source for Odd {
    fn label(&self) -> &str {
        self.file.label()
    }

    fn identity(&self) -> Result<Identity, SourceError> {
        let later = self.tells && self.reads.load(Ordering::SeqCst) > 0;
        Ok(Identity {
            ctime_ns: self.was.ctime_ns + i128::from(later),
            ..self.was
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        (self.on_read)(self.reads.fetch_add(1, Ordering::SeqCst) + 1)?;
        self.file.read_at(offset, buf)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.fd()
    }
}

fn broken() -> SourceError {
    SourceError::Unreadable {
        name: "weights".to_owned(),
        action: "read",
        errno: Errno::IO,
    }
}

#[test]
fn every_way_gives_the_exact_image_and_digest() {
    let sizes = [
        MIB,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES,
        5 * CHUNK_BYTES + 12_345,
    ];
    for bytes in sizes {
        let odd = odd(bytes);
        for (name, means) in &WAYS {
            let (loaded, told, progress) = odd.load(means);
            let loaded = loaded.unwrap_or_else(|error| panic!("{name}, {bytes}: {error}"));
            let (way, said) = match *name {
                "cached" => (ReadWay::Cached, vec![]),
                "buffered" => (ReadWay::Buffered, vec!["direct_io"]),
                "ring" if bytes > CHUNK_BYTES && told.is_empty() => (ReadWay::DirectRing, vec![]),
                _ if bytes > CHUNK_BYTES => (ReadWay::DirectThreads, vec!["io_uring"]),
                _ => (ReadWay::DirectThreads, vec![]),
            };
            assert_eq!((loaded.way, &told), (way, &said), "{name}, {bytes}");
            assert_eq!(progress, bytes as u64, "{name}, {bytes}");
            let whole = *blake3::hash(&odd.content).as_bytes();
            assert_eq!(loaded.digest, Some(whole), "{name}, {bytes}");
            let fd = loaded
                .segment
                .fd()
                .try_clone_to_owned()
                .expect("a duplicate");
            let map = memmap2::MmapOptions::new()
                .map_if_safe(&fd)
                .expect("sealed");
            assert!(
                map[..] == odd.content[..],
                "{name}, {bytes}: the image differs"
            );
        }
    }
}

/// Notes what it is told, and reads each piece as it comes.
#[derive(Default)]
struct Watcher {
    fd: Mutex<Option<OwnedFd>>,
    told: Mutex<Vec<(Range<u64>, Vec<u8>)>>,
}

impl Onlooker for Watcher {
    fn begun(&self, fd: BorrowedFd<'_>) {
        *lock(&self.fd) = Some(fd.try_clone_to_owned().expect("a duplicate"));
    }

    fn filled(&self, bytes: Range<u64>) {
        let mut piece = vec![0; usize::try_from(bytes.end - bytes.start).expect("small")];
        let fd = lock(&self.fd);
        let fd = fd.as_ref().expect("begun before");
        let count = rustix::io::pread(fd, &mut piece, bytes.start).expect("reads");
        assert_eq!(count, piece.len());
        lock(&self.told).push((bytes, piece));
    }

    fn thrown_away(&self) {
        panic!("nobody pins it");
    }
}

#[test]
fn an_onlooker_hears_of_each_piece_once_when_it_is_there_and_in_the_order_asked_for() {
    let bytes = 5 * CHUNK_BYTES + 12_345;
    let odd = odd(bytes);
    for (name, means) in &WAYS {
        let watcher = Watcher::default();
        let (progress, degraded) = (AtomicU64::new(0), Degraded::new());
        let cancel = AtomicBool::new(false);
        let order = Order {
            onlooker: Some(&watcher),
            first: &[5, 3],
            ..Order::new(&odd, odd.was, &progress, &cancel)
        };
        let loaded = load_by(&order, means, None, &degraded).expect("loads");
        assert_eq!(
            loaded.digest,
            Some(*blake3::hash(&odd.content).as_bytes()),
            "{name}"
        );
        let mut told = std::mem::take(&mut *lock(&watcher.told));
        if *name == "buffered" {
            let starts = told
                .iter()
                .map(|(range, _)| range.start / CHUNK_BYTES as u64);
            assert_eq!(starts.collect::<Vec<_>>(), [5, 3, 0, 1, 2, 4]);
        }
        told.sort_unstable_by_key(|(range, _)| range.start);
        let seen: Vec<u8> = told.into_iter().flat_map(|(_, piece)| piece).collect();
        assert!(
            seen == odd.content,
            "{name}: pieces were told of before they were there"
        );
    }
}

#[test]
fn memory_that_was_made_ready_is_filled_like_any() {
    let degraded = Degraded::new();
    let stock = crate::memory::stock::Stock::start(64 << 20, &degraded).expect("a thread");
    stock.tell(1 << 30, 0);
    let odd = odd(9 * MIB + 5);
    let (progress, cancel) = (AtomicU64::new(0), AtomicBool::new(false));
    let order = Order::new(&odd, odd.was, &progress, &cancel);
    for _ in 0..3 {
        let loaded = super::super::load::load_from(&order, &stock, &degraded).expect("loaded");
        assert_eq!(loaded.digest, Some(*blake3::hash(&odd.content).as_bytes()));
    }
}

#[test]
fn what_comes_at_once_can_be_hashed_later() {
    for bytes in [MIB, 5 * CHUNK_BYTES + 12_345, SHORT_BYTES + 1] {
        let odd = odd(bytes);
        for (name, means) in &WAYS {
            let (progress, cancel) = (AtomicU64::new(0), AtomicBool::new(false));
            let order = Order {
                hash_later: true,
                ..Order::new(&odd, odd.was, &progress, &cancel)
            };
            let loaded = load_by(&order, means, None, &Degraded::new()).expect("loaded");
            let whole = *blake3::hash(&odd.content).as_bytes();
            let hashed = match *name {
                "cached" => false,
                "buffered" => true,
                _ => bytes > SHORT_BYTES,
            };
            let expected = hashed.then_some(whole);
            assert_eq!(loaded.digest, expected, "{name}, {bytes}");
            let (feed, writer) = crate::device::HostFeed::loading("weights", bytes as u64);
            let fed = Order {
                feed: Some(&writer),
                ..order
            };
            let fed = load_by(&fed, means, None, &Degraded::new()).expect("loaded");
            assert_eq!(
                fed.digest,
                Some(whole),
                "{name}, {bytes}: what is fed from it needs it"
            );
            assert_eq!(feed.digest(&cancel), Ok(whole));
            let memory = Arc::new(loaded.segment);
            let digest = |go_on| {
                let progress = AtomicU64::new(0);
                crate::integrity::digest_of(&Arc::downgrade(&memory), &progress, &|| go_on)
            };
            assert_eq!((digest(true), digest(false)), (Some(whole), None));
        }
    }
}

#[test]
fn small_files_are_read_as_they_come() {
    for bytes in [1, 4096, 100_000] {
        let odd = odd(bytes);
        for (name, means) in &WAYS {
            let (loaded, told, _) = odd.load(means);
            let loaded = loaded.expect("loaded");
            assert_eq!((loaded.way, told), (ReadWay::Buffered, vec![]), "{name}");
            assert_eq!(loaded.digest, Some(*blake3::hash(&odd.content).as_bytes()));
        }
    }
}

#[test]
fn a_file_that_ends_early_or_late_is_changed() {
    for (name, means) in &WAYS {
        for bytes in [0, 4096, 5 * MIB + 77, 9 * MIB - 1, 9 * MIB + 4, 10 * MIB] {
            let odd = odd(9 * MIB + 3);
            odd.resize(bytes);
            assert_eq!(odd.code(means), ErrorCode::SourceChanged, "{name}, {bytes}");
        }
    }
}

#[test]
fn a_file_that_was_written_to_meanwhile_is_changed() {
    for (name, means) in &WAYS {
        let odd = Odd {
            tells: true,
            ..odd(9 * MIB)
        };
        assert_eq!(odd.code(means), ErrorCode::SourceChanged, "{name}");
    }
}

#[test]
fn a_read_error_is_the_outcome() {
    // A description that cannot be read at all is the nearest thing to a broken disk.
    fn write_only(fd: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd, Errno> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }
    for means in [RING, THREADS] {
        let means = Means {
            reopen: write_only,
            ..means
        };
        assert_eq!(odd(9 * MIB).code(&means), ErrorCode::SourceUnreadable);
        assert_eq!(odd(MIB).code(&means), ErrorCode::SourceUnreadable);
    }
    for read in [1, 5, 17] {
        let odd = odd(9 * MIB).on_read(move |n| if n == read { Err(broken()) } else { Ok(()) });
        assert_eq!(
            odd.code(&CACHED),
            ErrorCode::SourceUnreadable,
            "read {read}"
        );
    }
}

#[test]
fn what_direct_reads_refuse_is_read_through_the_page_cache() {
    let odd = odd(MIB + 1);
    let (progress, cancel, degraded) = (AtomicU64::new(0), AtomicBool::new(false), Degraded::new());
    let order = Order {
        charge_bytes: 0,
        ..Order::new(&odd, odd.was, &progress, &cancel)
    };
    let own = odd
        .fd()
        .expect("a descriptor")
        .try_clone_to_owned()
        .expect("a duplicate");
    let file = DirectFile::of(own, 4096);
    for (refusal, says) in [
        (Err(Errno::INVAL), 1),
        (Err(Errno::OPNOTSUPP), 1),
        (Ok(777), 0),
        (Ok(0), 0),
    ] {
        let degraded = Degraded::new();
        let mut pages = vec![0; 2 * MIB];
        pages[..777].copy_from_slice(&odd.content[..777]);
        let mut piece = pieces_from(&mut pages, odd.content.len(), &[])
            .next()
            .expect("one");
        let next = note(&order, &file, &mut piece, refusal, &degraded);
        assert_eq!(next.expect("no error"), Next::Rest, "{refusal:?}");
        assert_eq!(degraded.list().len(), says, "{refusal:?}");
        finish(&order, &mut piece).expect("read");
        assert!(piece.into_bytes() == &odd.content[..], "{refusal:?}");
    }
    let mut pages = vec![0; 2 * MIB];
    let mut piece = pieces_from(&mut pages, odd.content.len(), &[])
        .next()
        .expect("one");
    let next = note(&order, &file, &mut piece, Err(Errno::INTR), &degraded);
    assert_eq!(next.expect("no error"), Next::On);
    let broken = note(&order, &file, &mut piece, Err(Errno::IO), &degraded);
    assert_eq!(
        broken.expect_err("broken").code(),
        ErrorCode::SourceUnreadable
    );
}

#[test]
fn a_cancel_ends_every_way() {
    for (name, means) in &WAYS {
        let odd = odd(24 * MIB);
        let (loaded, _, progress) = odd.load_until(means, &AtomicBool::new(true));
        assert_eq!(
            loaded.expect_err("cancelled").code(),
            ErrorCode::Cancelled,
            "{name}"
        );
        assert_eq!(progress, 0, "{name}");
    }
    let cancel = std::sync::Arc::new(AtomicBool::new(false));
    let sets = std::sync::Arc::clone(&cancel);
    let odd = odd(24 * MIB).on_read(move |read| {
        sets.fetch_or(read == 5, Ordering::SeqCst);
        Ok(())
    });
    let (loaded, _, _) = odd.load_until(&CACHED, &cancel);
    assert_eq!(loaded.expect_err("cancelled").code(), ErrorCode::Cancelled);
    let reads = odd.reads.load(Ordering::SeqCst);
    assert!((5..5 + COPIERS_MAX).contains(&reads), "{reads} reads");
}

#[test]
fn a_panic_while_reading_is_one_of_the_load() {
    let odd = odd(20 * MIB).on_read(|read| {
        assert_ne!(read, 3, "told to panic");
        Ok(())
    });
    let load = std::panic::AssertUnwindSafe(|| odd.load(&CACHED));
    assert!(std::panic::catch_unwind(load).is_err());
}

#[test]
fn progress_has_no_gap_before_it() {
    let odd = odd(1);
    let (progress, cancel) = (AtomicU64::new(0), AtomicBool::new(false));
    let order = Order {
        charge_bytes: 0,
        ..Order::new(&odd, odd.was, &progress, &cancel)
    };
    let bytes = 3 * CHUNK_BYTES + 5;
    let filled = Filled::new(&order, bytes);
    let after = |index| {
        filled.add(index, 0..0);
        progress.load(Ordering::Relaxed)
    };
    assert_eq!([after(1), after(3)], [0, 0]);
    assert_eq!(after(0), 2 * CHUNK_BYTES as u64);
    assert_eq!(after(2), bytes as u64);
}
