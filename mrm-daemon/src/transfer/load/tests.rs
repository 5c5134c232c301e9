use super::super::read::CHUNK_BYTES;
use super::*;
use crate::device::{FeedWriter, HostFeed};
use crate::memory::charge_for;
use crate::source::{FileSource, SourceError, settle};
use mrm_proto::error::ErrorCode;
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(20);

/// Bytes of which no two chunks are the same.
fn pattern(bytes: usize) -> Vec<u8> {
    let mut pattern = (0..253).collect::<Vec<u8>>().repeat(bytes / 253 + 1);
    pattern.truncate(bytes);
    pattern
}

/// What goes wrong with a [`FaultSource`].
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    /// No read gives more than this.
    read_bytes_max: Option<usize>,
    /// The read with this number fails.
    broken_read: Option<usize>,
    /// From this read on the file is this long.
    resized: Option<(usize, usize)>,
    /// From this read on another file has its place.
    replaced_at: Option<usize>,
    /// From this read on its times are later.
    written_at: Option<usize>,
    /// The read with this number waits until the source is released.
    hanging_read: Option<usize>,
    /// The read with this number panics.
    panicking_read: Option<usize>,
}

/// A file in memory with faults by the number of the read.
struct FaultSource {
    content: Vec<u8>,
    faults: Faults,
    reads: AtomicUsize,
    hangs: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl FaultSource {
    fn new(bytes: usize, faults: Faults) -> Self {
        Self {
            content: pattern(bytes),
            faults,
            reads: AtomicUsize::new(0),
            hangs: Mutex::new((false, false)),
            changed: Condvar::new(),
        }
    }

    fn after(&self, read: Option<usize>) -> bool {
        read.is_some_and(|read| self.reads.load(Ordering::SeqCst) >= read)
    }

    fn len(&self) -> usize {
        match self.faults.resized {
            Some((read, bytes)) if self.after(Some(read)) => bytes,
            _ => self.content.len(),
        }
    }

    /// Waits until the hanging read began.
    fn wait_hanging(&self) {
        let guard = self.hangs.lock().expect("the lock");
        let wait = self
            .changed
            .wait_timeout_while(guard, SOON, |(hanging, _)| !*hanging);
        assert!(!wait.expect("the lock").1.timed_out(), "no read hangs");
    }

    fn release(&self) {
        self.hangs.lock().expect("the lock").1 = true;
        self.changed.notify_all();
    }

    fn hang(&self) {
        let mut guard = self.hangs.lock().expect("the lock");
        guard.0 = true;
        self.changed.notify_all();
        let wait = self
            .changed
            .wait_timeout_while(guard, SOON, |(_, released)| !*released);
        assert!(!wait.expect("the lock").1.timed_out(), "never released");
    }
}

impl Source for FaultSource {
    fn label(&self) -> &str {
        "faulty.safetensors"
    }

    fn identity(&self) -> Result<Identity, SourceError> {
        Ok(Identity {
            dev: 1,
            ino: if self.after(self.faults.replaced_at) {
                3
            } else {
                2
            },
            bytes: self.len() as u64,
            mtime_ns: 4,
            ctime_ns: if self.after(self.faults.written_at) {
                6
            } else {
                5
            },
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        let read = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
        if self.faults.broken_read == Some(read) {
            let name = self.label().to_owned();
            return Err(SourceError::Unreadable {
                name,
                action: "read",
                errno: Errno::IO,
            });
        }
        if self.faults.hanging_read == Some(read) {
            self.hang();
        }
        assert_ne!(self.faults.panicking_read, Some(read), "told to panic");
        let rest = self.len().saturating_sub(offset as usize);
        let count = buf
            .len()
            .min(rest)
            .min(self.faults.read_bytes_max.unwrap_or(usize::MAX));
        let content = self.content.get(offset as usize..).unwrap_or_default();
        let real = content.len().min(count);
        buf[..real].copy_from_slice(&content[..real]);
        buf[real..count].fill(0);
        Ok(count)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct Watch {
    progress: AtomicU64,
    cancel: AtomicBool,
    header: Option<HeaderCheck>,
}

fn watch() -> Watch {
    Watch {
        progress: AtomicU64::new(0),
        cancel: AtomicBool::new(false),
        header: None,
    }
}

fn load_as_it_was(source: &FaultSource, watch: &Watch) -> Result<Loaded, LoadError> {
    let bytes = source.content.len() as u64;
    let identity = Identity {
        dev: 1,
        ino: 2,
        bytes,
        mtime_ns: 4,
        ctime_ns: 5,
    };
    let order = Order {
        header: watch.header,
        ..Order::new(source, identity, &watch.progress, &watch.cancel)
    };
    load(&order, &Degraded::new())
}

fn assert_is_image(source: &FaultSource, loaded: &Loaded) {
    let fd = loaded
        .segment
        .fd()
        .try_clone_to_owned()
        .expect("a duplicate");
    let map = memmap2::MmapOptions::new()
        .map_if_safe(&fd)
        .expect("sealed");
    assert!(map[..] == source.content[..], "the image differs");
    assert_eq!(
        loaded.digest,
        Some(*blake3::hash(&source.content).as_bytes())
    );
    assert_eq!(loaded.read_bytes, source.content.len() as u64);
}

/// The error of a load of 9 MiB with these faults; its message names the file.
fn error(faults: Faults) -> LoadError {
    let source = FaultSource::new(9 * MIB, faults);
    let error = load_as_it_was(&source, &watch()).expect_err("a fault");
    assert!(error.to_string().contains("faulty.safetensors"), "{error}");
    error
}

#[test]
fn the_image_and_its_digest_are_exact_at_every_size() {
    let chunk = CHUNK_BYTES;
    for bytes in [
        1,
        4096,
        chunk - 1,
        chunk,
        chunk + 1,
        2 * chunk,
        3 * chunk + 77,
    ] {
        let source = FaultSource::new(bytes, Faults::default());
        let watch = watch();
        let loaded = load_as_it_was(&source, &watch).expect("loaded");
        assert_is_image(&source, &loaded);
        assert_eq!(watch.progress.load(Ordering::Relaxed), bytes as u64);
    }
}

#[test]
fn short_reads_are_continued() {
    let faults = Faults {
        read_bytes_max: Some(99_991),
        ..Faults::default()
    };
    let source = FaultSource::new(9 * MIB + 5, faults);
    assert_is_image(&source, &load_as_it_was(&source, &watch()).expect("loaded"));
}

#[test]
fn a_read_error_anywhere_is_the_outcome() {
    for read in 1..=4 {
        let error = error(Faults {
            broken_read: Some(read),
            ..Faults::default()
        });
        assert_eq!(
            error.code(),
            ErrorCode::SourceUnreadable,
            "read {read}: {error}"
        );
    }
}

#[test]
fn a_file_that_shrinks_is_changed() {
    for read in 0..=3 {
        let error = error(Faults {
            resized: Some((read, 8 * MIB)),
            ..Faults::default()
        });
        assert_eq!(
            error.code(),
            ErrorCode::SourceChanged,
            "from read {read}: {error}"
        );
    }
}

#[test]
fn a_file_that_grows_is_changed() {
    for read in 0..=4 {
        let error = error(Faults {
            resized: Some((read, 10 * MIB)),
            ..Faults::default()
        });
        assert_eq!(
            error.code(),
            ErrorCode::SourceChanged,
            "from read {read}: {error}"
        );
    }
}

#[test]
fn a_file_that_is_replaced_or_written_is_changed() {
    for read in 0..=4 {
        let replaced = error(Faults {
            replaced_at: Some(read),
            ..Faults::default()
        });
        assert_eq!(
            replaced.code(),
            ErrorCode::SourceChanged,
            "from read {read}"
        );
        let written = error(Faults {
            written_at: Some(read),
            ..Faults::default()
        });
        assert_eq!(written.code(), ErrorCode::SourceChanged, "from read {read}");
    }
}

#[test]
fn a_cancel_ends_a_slow_load_at_its_next_read() {
    let faults = Faults {
        read_bytes_max: Some(MIB),
        hanging_read: Some(3),
        ..Faults::default()
    };
    let source = FaultSource::new(64 * MIB, faults);
    let watch = watch();
    let error = std::thread::scope(|scope| {
        let loader = scope.spawn(|| load_as_it_was(&source, &watch).expect_err("cancelled"));
        source.wait_hanging();
        watch.cancel.store(true, Ordering::Relaxed);
        source.release();
        loader.join().expect("the loader")
    });
    assert_eq!(error.code(), ErrorCode::Cancelled);
    assert_eq!(source.reads.load(Ordering::SeqCst), 3);
}

#[test]
fn the_header_must_be_the_one_that_was_parsed() {
    let source = FaultSource::new(100_000, Faults::default());
    let check = HeaderCheck::of(&source.content[..1000]);
    let with = |header| {
        load_as_it_was(
            &source,
            &Watch {
                header: Some(header),
                ..watch()
            },
        )
    };
    with(check).expect("the same header");
    let other = with(HeaderCheck {
        bytes: 1001,
        ..check
    })
    .expect_err("another header");
    assert_eq!(other.code(), ErrorCode::SourceChanged);
    let beyond = with(HeaderCheck {
        bytes: 100_001,
        ..check
    })
    .expect_err("longer than the file");
    assert_eq!(beyond.code(), ErrorCode::SourceChanged);
}

#[test]
fn memory_errors_keep_their_code_and_name_the_file() {
    let source = FaultSource::new(0, Faults::default());
    let error = load_as_it_was(&source, &watch()).expect_err("nothing to load");
    assert_eq!(error.code(), ErrorCode::EmptyFile);
    assert!(error.to_string().contains("faulty.safetensors"), "{error}");
}

#[test]
fn a_panic_while_reading_ends_the_hash_thread_too() {
    let faults = Faults {
        panicking_read: Some(2),
        ..Faults::default()
    };
    let source = FaultSource::new(9 * MIB, faults);
    let load = std::panic::AssertUnwindSafe(|| load_as_it_was(&source, &watch()));
    assert!(std::panic::catch_unwind(load).is_err());
}

#[test]
fn a_real_file_is_loaded_until_it_is_written_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("weights");
    let content = pattern(5 * MIB + 3);
    std::fs::write(&path, &content).expect("written");
    let source = FileSource::registered(dir.path(), Path::new("weights")).expect("opened");
    // As the catalogue does, so that a write right afterwards has another time.
    let identity = settle(&[&source]).expect("left alone")[0];
    let watch = watch();
    let order = Order::new(&source, identity, &watch.progress, &watch.cancel);
    let loaded = load(&order, &Degraded::new()).expect("loaded");
    assert_eq!(loaded.digest, Some(*blake3::hash(&content).as_bytes()));

    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("opened for writing");
    file.write_all_at(b"x", 1).expect("written");
    let error = load(&order, &Degraded::new()).expect_err("written to");
    assert_eq!(error.code(), ErrorCode::SourceChanged, "{error}");
    file.set_len(5).expect("shrunk");
    let error = load(&order, &Degraded::new()).expect_err("shrunk");
    assert!(error.to_string().contains("has 5 now"), "{error}");
    // What was lent is what was loaded.
    let fd = loaded
        .segment
        .fd()
        .try_clone_to_owned()
        .expect("a duplicate");
    let map = memmap2::MmapOptions::new()
        .map_if_safe(&fd)
        .expect("sealed");
    assert!(map[..] == content[..], "the image differs");
}

fn loading(source: &FaultSource) -> (Arc<HostFeed>, FeedWriter) {
    HostFeed::loading("faulty.safetensors", source.content.len() as u64)
}

fn load_feeding(source: &FaultSource, feed: &FeedWriter) -> Result<Loaded, LoadError> {
    let (watch, bytes) = (watch(), source.content.len() as u64);
    let order = Order {
        charge_bytes: charge_for(bytes),
        feed: Some(feed),
        ..Order::new(
            source,
            source.identity().expect("an identity"),
            &watch.progress,
            &watch.cancel,
        )
    };
    load(&order, &Degraded::new())
}

#[test]
fn what_is_loaded_can_be_read_before_the_rest_is() {
    let hanging_read = Some(2);
    let source = FaultSource::new(
        9 * MIB,
        Faults {
            hanging_read,
            ..Faults::default()
        },
    );
    let (feed, writer) = loading(&source);
    let go_on = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load_feeding(&source, &writer));
        source.wait_hanging();
        let mut first = vec![0; CHUNK_BYTES];
        feed.wait_for(first.len() as u64, &go_on)
            .expect("the first chunk is there");
        feed.read_at(0, &mut first).expect("read");
        assert!(first == source.content[..CHUNK_BYTES]);
        assert!(!feed.is_complete());
        source.release();
        let loaded = load.join().expect("no panic").expect("loaded");
        assert_eq!(feed.digest(&go_on).ok(), loaded.digest);
        feed.adopt(Arc::new(loaded.segment));
    });
    let mut whole = vec![0; source.content.len()];
    feed.read_at(0, &mut whole).expect("read");
    assert!(whole == source.content);
}

#[test]
fn a_failed_load_fails_its_feed_with_the_same_code() {
    for broken_read in [1, 2, 3] {
        let source = FaultSource::new(
            9 * MIB,
            Faults {
                broken_read: Some(broken_read),
                ..Faults::default()
            },
        );
        let (feed, writer) = loading(&source);
        let error = load_feeding(&source, &writer).expect_err("a broken read");
        let go_on = AtomicBool::new(false);
        let told = feed.wait_for(1, &go_on).expect_err("a failed feed");
        assert_eq!(told.code(), error.code());
        assert_eq!(told.to_string(), error.to_string());
    }
}

/// Is lent the memory, and keeps the first page of it in a pipe.
#[derive(Default)]
struct Pinner {
    begun: AtomicUsize,
    thrown_away: AtomicUsize,
    pinned: Mutex<Vec<(std::io::PipeReader, std::io::PipeWriter)>>,
    lent: Mutex<Option<OwnedFd>>,
}

impl Onlooker for Pinner {
    fn begun(&self, fd: BorrowedFd<'_>) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let lent = crate::memory::lend_unfilled(fd).expect("lent");
        *self.lent.lock().expect("the lock") = Some(lent);
    }

    fn filled(&self, bytes: Range<u64>) {
        if bytes.start > 0 {
            return;
        }
        let lent = self.lent.lock().expect("the lock");
        let lent = lent.as_ref().expect("begun before");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let moved = rustix::fs::sendfile(&writer, lent, Some(&mut 0), 4096);
        assert_eq!(moved, Ok(4096));
        let mut pinned = self.pinned.lock().expect("the lock");
        pinned.push((reader, writer));
    }

    fn thrown_away(&self) {
        self.thrown_away.fetch_add(1, Ordering::SeqCst);
        *self.lent.lock().expect("the lock") = None;
    }
}

#[test]
fn who_pins_what_he_was_lent_early_makes_a_load_longer_and_not_fail() {
    let source = FaultSource::new(9 * MIB, Faults::default());
    let (watch, pinner) = (watch(), Pinner::default());
    let (feed, writer) = loading(&source);
    let degraded = Degraded::new();
    let order = Order {
        charge_bytes: charge_for(source.content.len() as u64),
        feed: Some(&writer),
        onlooker: Some(&pinner),
        ..Order::new(
            &source,
            source.identity().expect("known"),
            &watch.progress,
            &watch.cancel,
        )
    };
    let loaded = load(&order, &degraded).expect("loaded into other memory");
    assert_is_image(&source, &loaded);
    let seen = [&pinner.begun, &pinner.thrown_away].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(seen, [1, 1]);
    assert_eq!(pinner.pinned.lock().expect("the lock").len(), 1);
    let reported = degraded.list();
    assert!(
        reported.iter().any(|path| path.id == "early_pinned"),
        "{reported:?}"
    );
    let mut first = [0; 100];
    feed.read_at(0, &mut first).expect("there");
    assert!(first == source.content[..100]);
    assert_eq!(
        Some(feed.digest(&watch.cancel).expect("ended well")),
        loaded.digest
    );
}
