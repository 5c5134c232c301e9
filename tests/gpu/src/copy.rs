//! How fast the device is filled from the host, against one plain copy from page-locked memory, and
//! what registering host memory costs.

use crate::Anything;
use crate::bare::Bare;
use crate::report::Recorder;
use crate::scale::{GIB, MIB, Scale};
use crate::segment::{self, Pages};
use crate::stats::{median, timed_us};
use memmap2::Mmap;
use mrm_cuda::{Context, Mechanism, Registered, Ring, Upload, probe};
use std::convert::Infallible;
use std::thread;

const ROUNDS: usize = 5;
/// What a copy must reach of the plain one.
const LEAST: f64 = 0.9;

/// The step.
pub(crate) fn step(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    let driver = probe()?;
    let device = driver.devices()?.into_iter().next().ok_or("no device")?;
    let context = Context::retain(driver, device.uuid)?;
    let bare = Bare::enter(0)?;
    let mut copies = Copies {
        context,
        bytes: scale.copied_bytes(),
        plain: f64::NAN,
        recorder,
    };
    copies
        .recorder
        .table("Host to device", &["from", "GB/s", "of the plain copy"])?;
    copies.bare(&bare)?;
    copies.rings()?;
    let registered = copies.registered(scale)?;
    if let Some((first, rate)) = registered.rates.first() {
        let name = format!("registered memory ({first}), of the plain copy");
        let plain = copies.plain;
        copies.recorder.at_least(&name, rate / plain, LEAST)?;
    }
    let plain = copies.plain;
    copies.recorder.answer(6, registered.answer(plain))?;
    copies.recorder.answer(7, registered.times())
}

struct Copies<'r> {
    context: Context,
    bytes: u64,
    /// GB/s of one copy from page-locked memory.
    plain: f64,
    recorder: &'r mut Recorder,
}

impl Copies<'_> {
    fn row(&mut self, from: &str, rate: f64) -> Anything<()> {
        let share = rate / self.plain;
        self.recorder.row(&[from.into(), rate.into(), share.into()])
    }

    /// The floor, and the same from memory that nobody locked.
    fn bare(&mut self, bare: &Bare) -> Anything<()> {
        let len = usize::try_from(self.bytes)?;
        let to = bare.allocate(len)?;
        let locked = bare.lock(len)?;
        let rate = |from: &[u8]| {
            median(ROUNDS, || {
                let (copied, us) = timed_us(|| bare.copy_in(to, from));
                copied.map(|()| gb_per_s(from.len() as u64, us))
            })
        };
        bare.copy_in(to, locked.bytes())?;
        self.plain = rate(locked.bytes())?;
        let pageable = rate(&vec![1; len])?;
        bare.free(to)?;
        self.row("page-locked memory, one plain copy", self.plain)?;
        self.row("ordinary memory, one plain copy", pageable)
    }

    /// Through the staging ring: alone, then filled by more and more threads.
    fn rings(&mut self) -> Anything<()> {
        let mut best: f64 = 0.0;
        for (slot_mib, slots) in [(2, 4), (8, 4), (32, 3)] {
            let mut ring = Ring::new(&self.context, slot_mib * MIB, slots)?;
            let rate = self.upload(&mut ring, |_, _| {})?;
            best = best.max(rate);
            self.row(
                &format!("ring of {slots} x {slot_mib} MiB, not filled"),
                rate,
            )?;
        }
        let share = best / self.plain;
        self.recorder
            .at_least("the best ring, not filled, of the plain copy", share, LEAST)?;
        let source = segment::sealed(self.bytes, Pages::Small)?;
        let mut ring = Ring::new(&self.context, 8 * MIB, 4)?;
        let most = thread::available_parallelism().map_or(1, usize::from);
        for threads in [1, 2, 4, 8].into_iter().filter(|count| *count <= most) {
            let rate = self.upload(&mut ring, |at, slot| {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let from = source.get(at..at + slot.len()).unwrap_or(&[]);
                copy_by(threads, from, slot);
            })?;
            let name = format!("ring of 4 x 8 MiB, filled by {threads} threads from a segment");
            self.row(&name, rate)?;
        }
        Ok(())
    }

    /// GB/s of filling an allocation through the ring, until it is sealed.
    fn upload(&self, ring: &mut Ring, fill: impl Fn(u64, &mut [u8])) -> Anything<f64> {
        let sharing = Mechanism::Vmm.sharing();
        median(ROUNDS, || {
            let allocation = sharing.allocate(&self.context, self.bytes)?;
            let (done, us) = timed_us(|| -> Anything<()> {
                let mut upload = Upload::new(ring, allocation)?;
                let mut at = 0;
                while at < self.bytes {
                    let len = upload.slot_bytes().min(self.bytes - at);
                    upload.stage(at, len, |slot| -> Result<(), Infallible> {
                        fill(at, slot);
                        Ok(())
                    })?;
                    at += len;
                }
                upload.finish()?;
                Ok(())
            });
            done.map(|()| gb_per_s(self.bytes, us))
        })
    }

    /// Sealed memfds with every kind of pages, registered for reading.
    fn registered(&mut self, scale: Scale) -> Anything<Asked> {
        let mut asked = Asked::default();
        let mut rows = Vec::new();
        for pages in Pages::ALL {
            let sizes = [&[self.bytes][..], scale.registered_bytes()].concat();
            for bytes in sizes {
                let what = format!("{} MiB in {}", bytes / MIB, pages.name());
                let map = match segment::sealed(bytes, pages) {
                    Ok(map) => map,
                    Err(error) => {
                        let why = error.to_string();
                        self.recorder.skip(&format!("registering {what}"), why)?;
                        continue;
                    }
                };
                let (made, register_us) = timed_us(|| Registered::new(&self.context, map));
                let made = match made {
                    Ok(made) => made,
                    Err(error) => {
                        asked.refused.push(format!("{what}: {error}"));
                        continue;
                    }
                };
                if bytes == self.bytes {
                    let rate = self.copy_registered(&made)?;
                    let name = format!("registered sealed memfd, {}", pages.name());
                    self.row(&name, rate)?;
                    asked.rates.push((pages.name(), rate));
                }
                let ((), release_us) = timed_us(|| drop(made));
                let per_gib = |us: f64| us / 1e3 * (GIB as f64) / (bytes as f64);
                asked
                    .costs
                    .push((pages.name(), bytes, per_gib(register_us)));
                rows.push((
                    pages.name(),
                    bytes,
                    per_gib(register_us),
                    per_gib(release_us),
                ));
            }
        }
        let columns = [
            "sealed memfd",
            "MiB",
            "register ms/GiB",
            "unmap + unregister ms/GiB",
        ];
        self.recorder.table("Registering host memory", &columns)?;
        for (pages, bytes, register, release) in rows {
            let cells = [
                pages.into(),
                (bytes / MIB).into(),
                register.into(),
                release.into(),
            ];
            self.recorder.row(&cells)?;
        }
        Ok(asked)
    }

    fn copy_registered(&self, from: &Registered<Mmap>) -> Anything<f64> {
        let mut ring = Ring::new(&self.context, MIB, 2)?;
        let sharing = Mechanism::Vmm.sharing();
        median(ROUNDS, || {
            let allocation = sharing.allocate(&self.context, self.bytes)?;
            let (done, us) = timed_us(|| -> Anything<()> {
                let mut upload = Upload::new(&mut ring, allocation)?;
                upload.from_registered(0, from, 0..self.bytes)?;
                upload.finish()?;
                Ok(())
            });
            done.map(|()| gb_per_s(self.bytes, us))
        })
    }
}

/// What registering came to.
#[derive(Default)]
struct Asked {
    /// GB/s by pages.
    rates: Vec<(&'static str, f64)>,
    /// Milliseconds per GiB by pages and bytes.
    costs: Vec<(&'static str, u64, f64)>,
    refused: Vec<String>,
}

impl Asked {
    fn answer(&self, plain: f64) -> String {
        let took = |(pages, rate): &(&str, f64)| {
            format!(
                "{pages} accepted, {rate:.1} GB/s ({:.0} % of plain)",
                100.0 * rate / plain
            )
        };
        let took = self.rates.iter().map(took);
        let all: Vec<String> = took.chain(self.refused.iter().cloned()).collect();
        let all = if all.is_empty() {
            "nothing could be asked".to_owned()
        } else {
            all.join("; ")
        };
        format!("cuMemHostRegister READ_ONLY on a sealed memfd: {all}; plain copy {plain:.1} GB/s")
    }

    fn times(&self) -> String {
        let one = |(pages, bytes, ms): &(&str, u64, f64)| {
            format!("{} MiB in {pages}: {ms:.1} ms/GiB", bytes / MIB)
        };
        let all: Vec<String> = self.costs.iter().map(one).collect();
        if all.is_empty() {
            return "could not be asked: nothing was registered".to_owned();
        }
        format!("registration costs {}", all.join("; "))
    }
}

/// Copies by so many threads.
fn copy_by(threads: usize, from: &[u8], to: &mut [u8]) {
    let each = to.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (from, to) in from.chunks(each).zip(to.chunks_mut(each)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
}

fn gb_per_s(bytes: u64, us: f64) -> f64 {
    bytes as f64 / us / 1e3
}
