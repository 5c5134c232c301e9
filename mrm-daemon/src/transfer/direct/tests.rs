use super::*;
use crate::source::FileSource;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

const BYTES: usize = 6 << 20;

fn model() -> (tempfile::TempDir, FileSource, Identity) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut file = File::create(dir.path().join("weights")).expect("a file");
    file.write_all(&vec![7; BYTES]).expect("written");
    file.sync_all().expect("on disk");
    let source = FileSource::registered(dir.path(), Path::new("weights")).expect("opened");
    let identity = source.identity().expect("an identity");
    (dir, source, identity)
}

fn name_and_paths(
    source: &FileSource,
    identity: &Identity,
    means: &Means,
) -> (ReadWay, Vec<String>) {
    let degraded = Degraded::new();
    let way = choose(source, identity, means, &degraded).name();
    let told = degraded.list().into_iter();
    (
        way,
        told.map(|path| format!("{}: {}", path.id, path.cause))
            .collect(),
    )
}

const COLD: Means = Means {
    is_cached: |_, _| Ok(false),
    ..Means::KERNEL
};

#[test]
fn what_the_page_cache_has_is_copied_and_what_it_lacks_is_not() {
    let (dir, source, identity) = model();
    let magic = fs::fstatfs(source.fd().expect("a descriptor"))
        .expect("statfs")
        .f_type;
    if magic == 0x0102_1994 {
        eprintln!("not tested: a tmpfs has no file that is not in the page cache");
        return;
    }
    let mut file = File::open(dir.path().join("weights")).expect("opened");
    file.read_to_end(&mut Vec::new()).expect("read");
    let (way, told) = name_and_paths(&source, &identity, &Means::KERNEL);
    assert_eq!((way, told), (ReadWay::Cached, vec![]));
    fs::fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
    let (way, _) = name_and_paths(&source, &identity, &Means::KERNEL);
    assert!(
        [ReadWay::DirectRing, ReadWay::DirectThreads].contains(&way),
        "{way:?}"
    );
    // Looking for it did not bring it.
    let (way, _) = name_and_paths(&source, &identity, &Means::KERNEL);
    assert_ne!(way, ReadWay::Cached);
}

#[test]
fn the_flags_of_whoever_opened_the_file_stay() {
    let (_dir, source, identity) = model();
    let fd = source.fd().expect("a descriptor");
    let before = fs::fcntl_getfl(fd).expect("flags");
    let Ok(Some(own)) = prepare(fd, &identity, &COLD) else {
        panic!("no direct IO below the directory for temporary files");
    };
    let flags = fs::fcntl_getfl(own.fd()).expect("flags");
    assert!(flags.contains(OFlags::DIRECT) && !flags.contains(OFlags::NONBLOCK));
    assert_eq!(fs::fcntl_getfl(fd).expect("flags"), before);
    assert!(4096_usize.is_multiple_of(own.block()));
}

#[test]
fn what_is_refused_is_said_and_the_next_way_taken() {
    let (_dir, source, identity) = model();
    let (way, told) = name_and_paths(
        &source,
        &identity,
        &Means {
            ring: |_| Err(io::Error::from(Errno::PERM)),
            ..COLD
        },
    );
    assert_eq!(way, ReadWay::DirectThreads);
    assert!(
        told.len() == 1 && told[0].contains("io_uring: setting up io_uring"),
        "{told:?}"
    );
    let refusals: [(Means, &str); 4] = [
        (
            Means {
                go_direct: |_| Err(Errno::INVAL),
                ..COLD
            },
            "refuses O_DIRECT",
        ),
        (
            Means {
                reopen: |_| Err(Errno::ACCESS),
                ..COLD
            },
            "opening it once more",
        ),
        (
            Means {
                reopen: |_| {
                    File::open("/dev/null")
                        .map(Into::into)
                        .map_err(|_| Errno::IO)
                },
                ..COLD
            },
            "another file",
        ),
        (
            Means {
                reopen: |_| Err(Errno::AGAIN),
                ..COLD
            },
            "opening it once more",
        ),
    ];
    for (means, word) in refusals {
        let (way, told) = name_and_paths(&source, &identity, &means);
        assert_eq!(way, ReadWay::Buffered, "{word}");
        assert!(
            told.len() == 1 && told[0].starts_with("direct_io"),
            "{told:?}"
        );
        assert!(
            told[0].contains(word) && told[0].contains("weights"),
            "{told:?}"
        );
    }
}

#[test]
fn some_missing_pages_make_no_cold_file() {
    let (_dir, source, identity) = model();
    let some = |_: BorrowedFd<'_>, at: u64| Ok(at >= (BYTES / 8) as u64);
    let (way, _) = name_and_paths(
        &source,
        &identity,
        &Means {
            is_cached: some,
            ..COLD
        },
    );
    assert_eq!(way, ReadWay::Cached);
    let half = |_: BorrowedFd<'_>, at: u64| Ok(at >= (BYTES / 2) as u64);
    let (way, _) = name_and_paths(
        &source,
        &identity,
        &Means {
            is_cached: half,
            ..COLD
        },
    );
    assert_ne!(way, ReadWay::Cached);
    let unknown = |_: BorrowedFd<'_>, _| Err(Errno::OPNOTSUPP);
    let (way, _) = name_and_paths(
        &source,
        &identity,
        &Means {
            is_cached: unknown,
            ..COLD
        },
    );
    assert!(
        [ReadWay::DirectRing, ReadWay::DirectThreads].contains(&way),
        "{way:?}"
    );
}
