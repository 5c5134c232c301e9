//! The floors of `miss`: reading a file into memory with as little as can be.

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use rustix::fs::{Advice as FileAdvice, OFlags, fadvise, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const BLOCK: usize = 4096;
const PIECE: usize = 4 << 20;
/// How many bytes of a file are looked for in the page cache.
const LOOKS: u64 = 8;
const DROPS_MAX: u32 = 100;
const DROP_PAUSE: Duration = Duration::from_millis(50);

/// Memory in huge pages, all there.
pub(crate) fn populated(bytes: u64) -> MmapMut {
    let len = usize::try_from(bytes)
        .expect("fits")
        .next_multiple_of(2 << 20);
    let map = MmapMut::map_anon(len).expect("memory");
    map.advise(Advice::HugePage).expect("advised");
    map.advise(Advice::PopulateWrite).expect("populated");
    map
}

/// Reads the whole file past the page cache, 4 MiB at a time.
pub(crate) fn read_direct(path: &Path, bytes: u64, into: &mut [u8]) {
    let file = File::open(path).expect("opens");
    fcntl_setfl(&file, OFlags::DIRECT).expect("direct IO");
    let len = usize::try_from(bytes).expect("fits");
    let whole = &mut into[..len.next_multiple_of(BLOCK)];
    let mut at = 0;
    while at < len {
        let end = whole.len().min(at + PIECE);
        at += file.read_at(&mut whole[at..end], at as u64).expect("reads");
    }
}

/// Copies the whole file from the page cache with two threads.
pub(crate) fn copy_mapped(path: &Path, bytes: u64, into: &mut [u8]) {
    let file = File::open(path).expect("opens");
    // SAFETY: nobody but this benchmark has the file, and it is not changed while it runs.
    let map = unsafe { Mmap::map(&file) }.expect("maps");
    let into = &mut into[..usize::try_from(bytes).expect("fits")];
    let half = into.len() / 2;
    let (first, second) = into.split_at_mut(half);
    std::thread::scope(|scope| {
        scope.spawn(|| first.copy_from_slice(&map[..half]));
        second.copy_from_slice(&map[half..]);
    });
}

/// Maps what a descriptor refers to, without a look at it.
pub(crate) fn map_unchecked(fd: &OwnedFd, bytes: u64) -> Mmap {
    let len = usize::try_from(bytes).expect("fits");
    // SAFETY: what the floor passes is sealed, and it passes nothing else.
    unsafe { MmapOptions::new().len(len).map(fd) }.expect("maps")
}

/// Takes a file out of the page cache, and makes sure that it is.
pub(crate) fn make_cold(path: &Path, bytes: u64) {
    let file = File::open(path).expect("opens");
    fadvise(&file, 0, None, FileAdvice::Random).expect("advised");
    // What is not on the disk yet is not dropped.
    file.sync_all().expect("written");
    for _ in 0..DROPS_MAX {
        fadvise(&file, 0, None, FileAdvice::DontNeed).expect("dropped");
        let is_there = |look: u64| {
            let mut byte = [0];
            let mut into = [IoSliceMut::new(&mut byte)];
            let at = (bytes - 1) / LOOKS * look;
            match preadv2(&file, &mut into, at, ReadWriteFlags::NOWAIT) {
                Ok(_) => true,
                Err(Errno::AGAIN) => false,
                Err(errno) => panic!("{errno}"),
            }
        };
        let cold = !(0..=LOOKS).any(is_there);
        // The looks brought a page each.
        fadvise(&file, 0, None, FileAdvice::DontNeed).expect("dropped");
        if cold {
            return;
        }
        // Somebody has a page in hand: a processor that counts it, a process that ends.
        std::thread::sleep(DROP_PAUSE); // Nobody tells when they are let go.
    }
    panic!("{} stays in the page cache", path.display());
}

/// Brings a file out of the page cache, or into it.
pub(crate) fn make_file(path: &Path, bytes: u64, cold: bool) {
    match cold {
        true => make_cold(path, bytes),
        false => make_warm(path),
    }
}

/// Brings a file into the page cache.
pub(crate) fn make_warm(path: &Path) {
    let mut file = File::open(path).expect("opens");
    std::io::copy(&mut file, &mut std::io::sink()).expect("reads");
}
