//! An agent as a client of the daemon.

use crate::Anything;
use crate::bare::Bare;
use crate::stats::timed_us;
use mrm_client::device::{Devices, Tier};
use mrm_client::{Client, Model, OpenOptions, Origin};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const CHUNK_BYTES: usize = 32 << 20;
const WAIT: Duration = Duration::from_secs(120);

/// Opens on the first device, or in host memory.
pub(crate) fn open(client: &Client, name: &str, on_device: bool) -> Anything<Model> {
    let tier = if on_device {
        Tier::Device(Devices::Ordinal(0))
    } else {
        Tier::Host
    };
    let options = OpenOptions::new().tier(tier).wait(WAIT);
    Ok(client.open_with(name, &options)?)
}

/// How the open came by the weights.
pub(crate) fn origin(model: &Model) -> &'static str {
    match model.origin() {
        Origin::Hit => "hit",
        Origin::Loaded => "loaded",
        Origin::Joined => "joined",
        Origin::Promoted => "promoted",
    }
}

/// Reads back every tensor from the device, and compares it with the file.
pub(crate) fn compare(model: &Model, bare: &Bare, path: &Path) -> Anything<()> {
    let file = File::open(path)?;
    let (mut read, mut expected) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut compared = 0;
    for tensor in model.tensors()?.iter() {
        let pointer = tensor.device_pointer().ok_or("not on a device")?;
        let mut at = 0;
        while at < tensor.bytes_total() {
            let len = (tensor.bytes_total() - at).min(CHUNK_BYTES as u64);
            let part = ..usize::try_from(len)?;
            bare.copy_out(&mut read[part], pointer + at)?;
            file.read_exact_at(&mut expected[part], tensor.offset_bytes() + at)?;
            if let Some(wrong) = first_difference(&read[part], &expected[part]) {
                let wrong = at + wrong;
                return Err(format!("byte {wrong} of {} is wrong", tensor.name()).into());
            }
            at += len;
        }
        compared += tensor.bytes_total();
    }
    if compared == 0 {
        return Err("there was nothing to compare".into());
    }
    Ok(())
}

/// Where two runs of bytes of one length differ first.
pub(crate) fn first_difference(left: &[u8], right: &[u8]) -> Option<u64> {
    // At once first: that is many times faster, and they seldom differ.
    if left == right {
        return None;
    }
    let at = left
        .iter()
        .zip(right)
        .position(|(left, right)| left != right);
    Some(at.unwrap_or(0) as u64)
}

/// One open, and the close after it; microseconds of each.
pub(crate) fn round(client: &Client, name: &str) -> Anything<(f64, f64)> {
    let (model, open_us) = timed_us(|| open(client, name, true));
    let (closed, close_us) = timed_us(|| model.map(Model::close));
    closed??;
    Ok((open_us, close_us))
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(first_difference(b"same", b"same"), None);
        assert_eq!(first_difference(b"same", b"some"), Some(1));
    }
}
