//! Opens a model, touches every page of it, says so in one line of JSON, and holds it until its
//! standard input ends:
//!
//! ```json
//! {"open_us": 113.2, "origin": "hit", "tensors": 103, "bytes": 90868376, "checksum": 1234567}
//! ```
//!
//! `open_us` is the time of the open alone, from a connected client to the first byte read. The
//! checksum is the sum of the first byte of each 4 KiB page. With `--device` and a device (`cuda:0`,
//! a UUID, or `best`) the weights are in its memory, and the line has `device`, a UUID, and
//! `pointers` instead of a checksum.

use mrm_client::{Client, Model, OpenOptions, Origin, Tier};
use std::error::Error;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

const PAGE_BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments
        .next()
        .ok_or("usage: hold MODEL [--device DEVICE]")?;
    let tier = match (arguments.next().as_deref(), arguments.next().as_deref()) {
        (None, None) => Tier::Host,
        (Some("--device"), Some("best")) => Tier::Best(mrm_client::Devices::Visible),
        (Some("--device"), Some(device)) => Tier::Device(device.parse()?),
        _ => return Err("usage: hold MODEL [--device DEVICE]".into()),
    };
    let client = Client::connect()?;
    let start = Instant::now();
    let model = client.open_with(&name, &OpenOptions::new().tier(tier))?;
    let image = model.segments().next().map_or(&[][..], |file| file.bytes());
    black_box(image.first());
    let open_us = start.elapsed().as_secs_f64() * 1e6;

    let origin = match model.origin() {
        Origin::Hit => "hit",
        Origin::Loaded => "loaded",
        Origin::Joined => "joined",
        Origin::Promoted => "promoted",
    };
    let (tensors, bytes) = (model.tensors()?.len(), model.bytes_total());
    writeln!(
        io::stdout(),
        "{{\"open_us\": {open_us:.1}, \"origin\": \"{origin}\", \"tensors\": {tensors}, \
         \"bytes\": {bytes}, {}}}",
        what_was_lent(&model)
    )?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn what_was_lent(model: &Model) -> String {
    if let Some(weights) = model.device() {
        let pointers: Vec<u64> = weights.allocations().iter().map(|(at, _)| *at).collect();
        return format!(
            "\"device\": \"{}\", \"pointers\": {pointers:?}",
            weights.uuid()
        );
    }
    let checksum: u64 = model
        .segments()
        .flat_map(|file| file.bytes().iter().step_by(PAGE_BYTES))
        .map(|&byte| u64::from(byte))
        .sum();
    format!("\"checksum\": {checksum}")
}
