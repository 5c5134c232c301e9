//! Measures how fast a file becomes a sealed segment.
//!
//! `cargo run --release -p mrm-daemon --example load -- FILE [RUNS]`. Each run loads the file once
//! with its pages dropped from the page cache, once with them there, and once so that it is hashed
//! later. Prints, per case, the best and the median rate, and what of the time was taken by the allocation alone.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use mrm_daemon::degraded::Degraded;
use mrm_daemon::memory::{Unsealed, charge_for};
use mrm_daemon::source::{FileSource, Source};
use mrm_daemon::transfer::{Order, load};
use rustix::fs::Advice;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: load FILE [RUNS]")?;
    let runs: usize = args.next().map_or(Ok(5), |runs| runs.parse())?;
    let path = Path::new(&path).canonicalize()?;
    let (root, name) = (
        path.parent().ok_or("a file")?,
        path.file_name().ok_or("a file")?,
    );
    let source = FileSource::registered(root, Path::new(name))?;
    let bytes = source.identity()?.bytes;
    let degraded = Degraded::new();

    let (mut cold, mut hot, mut later) = (Vec::new(), Vec::new(), Vec::new());
    let mut allocate = Vec::new();
    let mut huge_bytes = 0;
    for _ in 0..runs {
        let fd = source.fd().ok_or("a descriptor")?;
        rustix::fs::fadvise(fd, 0, None, Advice::DontNeed)?;
        cold.push(once(&source, false, &degraded)?.0);
        // A load that goes past the page cache leaves nothing there.
        std::io::copy(&mut std::fs::File::open(&path)?, &mut std::io::sink())?;
        let (took, huge) = once(&source, false, &degraded)?;
        hot.push(took);
        huge_bytes = huge;
        later.push(once(&source, true, &degraded)?.0);
        let started = Instant::now();
        drop(Unsealed::allocate(bytes, charge_for(bytes), &degraded)?);
        allocate.push(started.elapsed().as_secs_f64());
    }
    println!("{bytes} bytes, {huge_bytes} of them in huge pages, {runs} runs");
    for (case, mut seconds) in [
        ("cold", cold),
        ("hot", hot),
        ("hot, hashed later", later),
        ("allocate and free", allocate),
    ] {
        seconds.sort_by(f64::total_cmp);
        let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
        let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
        println!(
            "{case}: best {:.2} GB/s ({:.1} ms), median {:.2} GB/s ({:.1} ms)",
            rate(best),
            best * 1e3,
            rate(median),
            median * 1e3
        );
    }
    for path in degraded.list() {
        println!(
            "degraded: {}: {} (cure: {})",
            path.id, path.cause, path.cure
        );
    }
    Ok(())
}

/// Loads the file; returns the seconds and how much of it is in huge pages.
fn once(source: &FileSource, hash_later: bool, degraded: &Degraded) -> Result<(f64, u64)> {
    let identity = source.identity()?;
    let (progress, cancel) = (AtomicU64::new(0), AtomicBool::new(false));
    let order = Order {
        hash_later,
        ..Order::new(source, identity, &progress, &cancel)
    };
    let loaded = load(&order, degraded)?;
    Ok((loaded.took_us as f64 / 1e6, loaded.segment.huge_bytes()))
}
