//! Whether an image on a device still holds what it was filled with.
//!
//! The digest of an image is that of its files' digests. A file is put together again for it, from
//! the tensors on the device, and what no tensor covers (its header) from where the caller has it.

use super::fill::digest_of;
use super::image::DeviceImage;
use super::plan::{Part, Plan};
use super::shared::Shared;
use crate::integrity::Verdict;
use mrm_cuda::{Sealed, Stream};
use mrm_proto::layout::Granularity;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// How much is copied from the device at once, and therefore for how long memory that is freed may
/// stay.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads bytes of a file that are in no tensor: of which file, from where on.
pub type Rest<'r> = dyn FnMut(usize, u64, &mut [u8]) -> Result<(), String> + 'r;

/// An image to be checked. Keeps none of its memory.
pub struct ImageCheck {
    device: Arc<Shared>,
    allocations: Vec<Weak<Sealed>>,
    granularity: Granularity,
    digest: [u8; 32],
}

impl ImageCheck {
    pub(super) fn new(device: Arc<Shared>, image: &DeviceImage) -> Self {
        Self {
            device,
            allocations: image.allocations().iter().map(Arc::downgrade).collect(),
            granularity: image.granularity(),
            digest: *image.digest(),
        }
    }

    /// Reads the image back and compares it with its digest. `table`: the tensor table by which it
    /// is laid out; `files`: the length of each file, in the table's order. `done` and `go_on` as
    /// for [`check_host`](crate::integrity::check_host). Blocks.
    pub fn run(
        &self,
        table: &[u8],
        files: &[u64],
        rest: &mut Rest<'_>,
        (done, go_on): (&AtomicU64, &dyn Fn() -> bool),
    ) -> Verdict {
        let plan = match Plan::new(table, self.granularity) {
            Ok(plan) if plan.allocations.len() == self.allocations.len() => plan,
            Ok(_) => return Verdict::Unchecked("it is laid out in another way".to_owned()),
            Err(error) => return Verdict::Unchecked(error.to_string()),
        };
        let stream = match Stream::new(self.device.context()) {
            Ok(stream) => stream,
            Err(error) => return Verdict::Unchecked(error.to_string()),
        };
        let mut reader = Reader {
            check: self,
            stream,
            chunk: vec![0; CHUNK_BYTES],
            done,
            go_on,
        };
        let mut digests = Vec::with_capacity(files.len());
        for (file, bytes) in files.iter().enumerate() {
            match reader.file(&plan, (file, *bytes), rest) {
                Ok(digest) => digests.push(digest),
                Err(verdict) => return verdict,
            }
        }
        let found = digest_of(self.granularity, &digests);
        if found == self.digest {
            Verdict::Intact
        } else {
            Verdict::Damaged { found }
        }
    }
}

struct Reader<'a> {
    check: &'a ImageCheck,
    stream: Stream,
    chunk: Vec<u8>,
    done: &'a AtomicU64,
    go_on: &'a dyn Fn() -> bool,
}

impl Reader<'_> {
    /// The digest of a file.
    fn file(
        &mut self,
        plan: &Plan,
        (file, bytes): (usize, u64),
        rest: &mut Rest<'_>,
    ) -> Result<[u8; 32], Verdict> {
        let parts = plan.allocations.iter().enumerate();
        let parts =
            parts.flat_map(|(allocation, parts)| parts.iter().map(move |p| (allocation, p)));
        let mut parts: Vec<(usize, &Part)> = parts.filter(|(_, p)| p.segment == file).collect();
        parts.sort_unstable_by_key(|(_, part)| part.from);
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        for (allocation, part) in parts {
            self.rest((file, at, part.from), rest, &mut hasher)?;
            self.part(allocation, part, &mut hasher)?;
            at = part.from + part.bytes;
        }
        self.rest((file, at, bytes), rest, &mut hasher)?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// What is in no tensor.
    fn rest(
        &mut self,
        (file, from, to): (usize, u64, u64),
        rest: &mut Rest<'_>,
        hasher: &mut blake3::Hasher,
    ) -> Result<(), Verdict> {
        let mut at = from;
        while at < to {
            let bytes = chunk_of(to - at);
            let into = &mut self.chunk[..bytes];
            rest(file, at, into).map_err(Verdict::Unchecked)?;
            hasher.update(into);
            at += bytes as u64;
        }
        Ok(())
    }

    /// What is on the device.
    fn part(
        &mut self,
        allocation: usize,
        part: &Part,
        hasher: &mut blake3::Hasher,
    ) -> Result<(), Verdict> {
        let memory = self.check.allocations.get(allocation);
        let mut at = 0;
        while at < part.bytes {
            let bytes = chunk_of(part.bytes - at);
            // Held for one copy only.
            let held = memory.and_then(Weak::upgrade);
            let held = held.filter(|_| (self.go_on)()).ok_or(Verdict::Gone)?;
            let failed = |error: &dyn std::fmt::Display| {
                Verdict::Unchecked(format!("it cannot be read back: {error}"))
            };
            let view = held.view(part.at + at, bytes as u64);
            let view = view.map_err(|error| failed(&error))?;
            let into = &mut self.chunk[..bytes];
            let copied = self.stream.copy_out(view, into);
            copied.map_err(|error| failed(&error))?;
            hasher.update(into);
            at += bytes as u64;
            self.done.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn chunk_of(bytes: u64) -> usize {
    usize::try_from(bytes).map_or(CHUNK_BYTES, |bytes| bytes.min(CHUNK_BYTES))
}
