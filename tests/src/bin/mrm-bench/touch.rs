//! `touch`: opening what is resident, and every page of it mapped or read.

use crate::floor::make_warm;
use crate::miss::free_bytes;
use crate::quiet;
use crate::report::Row;
use memmap2::Mmap;
use mrm_client::{Client, OpenOptions};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::fs::File;
use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// Name, bytes, tensors, and how much of the time of a mapped file it may take.
const TOUCHED: [(&str, u64, u64, f64); 3] = [
    ("98 MB", 98_000_000, 268, 0.4),
    ("1.3 GB", 1_300_000_000, 300, 0.8),
    ("4 GB", 4_000_000_000, 300, 0.5),
];
const POPULATED: [(&str, u64); 2] = [("1 GiB", 1 << 30), ("4 GiB", 4 << 30)];
const POPULATED_MAX: f64 = 1.3;
/// What a node must have free for a model: it is there in the page cache and in the daemon.
const COPIES: u64 = 2;
/// A byte of each is read: the small page.
const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;

pub(crate) fn measure(rounds: usize, most_mb: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let fits = |size: &str, bytes: u64| {
        let fits = bytes <= most_mb * 1_000_000 && bytes * COPIES <= free_bytes();
        if !fits {
            println!("touch: {size} is left out, as --most-mb or the free memory says");
        }
        fits
    };
    for (size, bytes, tensors, limit) in TOUCHED {
        if fits(size, bytes) {
            rows.push(touched(size, (bytes, tensors), limit, rounds));
        }
    }
    for (size, bytes) in POPULATED {
        if fits(size, bytes) {
            rows.push(populated(size, bytes, rounds));
        }
    }
    rows
}

fn touched(size: &str, (bytes, tensors): (u64, u64), limit: f64, rounds: usize) -> Row {
    let dir = tempfile::tempdir().expect("a directory");
    let path = model::write_random(dir.path(), "m/model.safetensors", bytes, tensors);
    let node = Node::start(&Setup::new().model("m", &path));
    let client = node.client();
    drop(client.open("m").expect("loads"));
    quiet::wait(&node);
    make_warm(&path);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        floor.push(milliseconds(|| read_mapped(&path)));
        ours.push(milliseconds(|| read_opened(&client)));
    }
    Row::of(
        "touch",
        format!("open + every page + close, {size}"),
        "ms",
        &mut ours,
        "mmap of the cached file",
        &mut floor,
        Some(limit),
    )
}

/// As whoever is about to read all of it opens it.
fn read_opened(client: &Client) {
    let options = OpenOptions::new().populate(true);
    let model = client.open_with("m", &options).expect("opens");
    sum_of_pages(model.segment(0).expect("one file").bytes());
}

fn read_mapped(path: &Path) {
    let file = File::open(path).expect("opens");
    // SAFETY: nobody but this benchmark has the file, and it is not changed while it runs.
    let map = unsafe { Mmap::map(&file) }.expect("maps");
    sum_of_pages(&map);
}

fn sum_of_pages(bytes: &[u8]) {
    let pages = bytes.iter().step_by(PAGE);
    black_box(pages.fold(0u64, |sum, byte| sum + u64::from(*byte)));
}

/// The same pages: mapped by an open, and by the kernel's own call alone.
fn populated(size: &str, bytes: u64, rounds: usize) -> Row {
    let dir = tempfile::tempdir().expect("a directory");
    let path = model::write_zeros(dir.path(), "m/model.safetensors", bytes, 300);
    let node = Node::start(&Setup::new().model("m", &path));
    let client = node.client();
    let fd = {
        let model = client.open("m").expect("loads");
        let segment = model.segment(0).expect("one file");
        segment.fd().try_clone_to_owned().expect("a descriptor")
    };
    quiet::wait(&node);
    let host = &node.get("/v1/status")["host"];
    let share = host["huge_bytes"].as_f64().expect("a number")
        / host["resident_bytes"].as_f64().expect("a number");
    println!("touch: {size} is in 2 MiB pages to {:.0} %", share * 100.0);
    let options = || OpenOptions::new().populate(true);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        floor.push(populate(&fd, bytes));
        let began = Instant::now();
        let model = client.open_with("m", &options()).expect("opens");
        ours.push(began.elapsed().as_secs_f64() * 1e3);
        drop(model);
    }
    Row::of(
        "touch",
        format!("open with every page mapped, {size}"),
        "ms",
        &mut ours,
        "mmap + MADV_POPULATE_READ",
        &mut floor,
        Some(POPULATED_MAX),
    )
}

/// Milliseconds to map a segment at a 2 MiB boundary with all its pages.
fn populate(fd: &OwnedFd, bytes: u64) -> f64 {
    let len = usize::try_from(bytes).expect("fits").next_multiple_of(HUGE);
    let room = len + HUGE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let reserved = unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        mmap_anonymous(std::ptr::null_mut(), room, ProtFlags::empty(), flags)
    };
    let reserved = reserved.expect("address space");
    let skip = (reserved as usize).next_multiple_of(HUGE) - reserved as usize;
    let start = reserved.wrapping_byte_add(skip);
    let began = Instant::now();
    // SAFETY: within what was reserved above, which nothing refers to.
    let mapped = unsafe {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        mmap(start, len, ProtFlags::READ, flags, fd.as_fd(), 0)
    };
    let mapped = mapped.expect("maps");
    let within = usize::try_from(bytes).expect("fits").next_multiple_of(PAGE);
    // SAFETY: a mapping of this function's own; nothing changes in it.
    unsafe { madvise(mapped, within, Advice::LinuxPopulateRead) }.expect("populates");
    let took = began.elapsed().as_secs_f64() * 1e3;
    // SAFETY: what was reserved above, with the mapping inside it; nothing refers to it.
    unsafe { munmap(reserved, room) }.expect("unmaps");
    took
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1e3
}
