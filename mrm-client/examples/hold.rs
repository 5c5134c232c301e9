//! Opens a model, touches every page of it, says so in one line of JSON, and holds it until its
//! standard input ends:
//!
//! ```json
//! {"open_us": 113.2, "origin": "hit", "tensors": 103, "bytes": 90868376, "checksum": 1234567}
//! ```
//!
//! `open_us` is the time of the open alone, from a connected client to the first byte read. The
//! checksum is the sum of the first byte of each 4 KiB page.

use mrm_client::{Client, Origin};
use std::error::Error;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

const PAGE_BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("usage: hold MODEL")?;
    let client = Client::connect()?;
    let start = Instant::now();
    let model = client.open(&name)?;
    let image = model.segments().next().map_or(&[][..], |file| file.bytes());
    black_box(image.first());
    let open_us = start.elapsed().as_secs_f64() * 1e6;

    let origin = match model.origin() {
        Origin::Hit => "hit",
        Origin::Loaded => "loaded",
        Origin::Joined => "joined",
        Origin::Promoted => "promoted",
    };
    let checksum: u64 = model
        .segments()
        .flat_map(|file| file.bytes().iter().step_by(PAGE_BYTES))
        .map(|&byte| u64::from(byte))
        .sum();
    let (tensors, bytes) = (model.tensors()?.len(), model.bytes_total());
    writeln!(
        io::stdout(),
        "{{\"open_us\": {open_us:.1}, \"origin\": \"{origin}\", \"tensors\": {tensors}, \
         \"bytes\": {bytes}, \"checksum\": {checksum}}}"
    )?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
