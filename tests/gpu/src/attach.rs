//! What attaching costs, against size and count of allocations, beside the bare calls.

use crate::Anything;
use crate::agent::Agent;
use crate::report::Recorder;
use crate::scale::{MIB, Scale};
use crate::wire::{Attached, Command, How};
use serde_json::Value;

const COLUMNS: [&str; 10] = [
    "mechanism",
    "allocations",
    "MiB each",
    "rounds",
    "bare p50 us",
    "bare p99 us",
    "library p50 us",
    "library p99 us",
    "library / bare",
    "close p50 us",
];

/// The step.
pub(crate) fn step(scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    let mut exporter = Agent::ready()?;
    let mut importer = Agent::ready()?;
    let mut seen = Vec::new();
    recorder.table("Attaching one allocation, by size", &COLUMNS)?;
    for how in How::BOTH {
        for bytes in scale.sizes() {
            let case = Case {
                how,
                count: 1,
                bytes: *bytes,
            };
            seen.extend(measure(
                case,
                scale,
                recorder,
                &mut exporter,
                &mut importer,
            )?);
        }
    }
    recorder.table("Attaching many allocations, by count", &COLUMNS)?;
    for how in How::BOTH {
        for count in scale.counts() {
            let bytes = (scale.counted_bytes() / count).max(2 * MIB);
            let case = Case {
                how,
                count: *count,
                bytes,
            };
            seen.extend(measure(
                case,
                scale,
                recorder,
                &mut exporter,
                &mut importer,
            )?);
        }
    }
    recorder.answer(4, answer(&seen))
}

#[derive(Clone, Copy)]
struct Case {
    how: How,
    count: u64,
    bytes: u64,
}

impl Case {
    fn name(self) -> String {
        let (how, count, mib) = (self.how.name(), self.count, self.bytes / MIB);
        format!("{how}, {count} allocations of {mib} MiB")
    }
}

fn measure(
    case: Case,
    scale: Scale,
    recorder: &mut Recorder,
    exporter: &mut Agent,
    importer: &mut Agent,
) -> Anything<Option<(Case, Attached)>> {
    let needed = (case.bytes + 2 * MIB) * case.count;
    let free = exporter.free_bytes()?;
    if needed > free {
        let why = format!("{} MiB of the device are free", free / MIB);
        recorder.skip(&case.name(), why)?;
        return Ok(None);
    }
    let attached = lend_and_attach(case, scale, exporter, importer);
    importer.tell(&Command::Drop)?;
    exporter.tell(&Command::Drop)?;
    match attached {
        Ok(attached) => {
            recorder.row(&row(case, &attached))?;
            Ok(Some((case, attached)))
        }
        Err(error) => {
            recorder.check(&format!("attach: {}", case.name()), false, error)?;
            Ok(None)
        }
    }
}

fn lend_and_attach(
    case: Case,
    scale: Scale,
    exporter: &mut Agent,
    importer: &mut Agent,
) -> Result<Attached, String> {
    let Case { how, count, bytes } = case;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    exporter.tell(&Command::Allocate {
        how,
        bytes,
        count,
        seed: None,
    })?;
    for at in 0..count {
        importer.take(&exporter.export(at, how, bytes)?)?;
    }
    importer.attach(scale.rounds())
}

fn row(case: Case, attached: &Attached) -> Vec<Value> {
    let (bare, library) = (attached.bare, attached.library);
    vec![
        case.how.name().into(),
        case.count.into(),
        ((case.bytes as f64) / (MIB as f64)).into(),
        bare.n.into(),
        bare.p50_us.into(),
        bare.p99_us.into(),
        library.p50_us.into(),
        library.p99_us.into(),
        (library.p50_us / bare.p50_us).into(),
        attached.close.p50_us.into(),
    ]
}

/// The ends of both tables, for each mechanism.
fn answer(seen: &[(Case, Attached)]) -> String {
    let of = |how: How| {
        let mut parts = Vec::new();
        let all = || seen.iter().filter(move |(case, _)| case.how == how);
        let one = || all().filter(|(case, _)| case.count == 1);
        let smallest = one().min_by_key(|(case, _)| case.bytes);
        let largest = one().max_by_key(|(case, _)| case.bytes);
        let most = all().max_by_key(|(case, _)| case.count);
        for (case, attached) in [smallest, largest, most].into_iter().flatten() {
            let (p50, p99) = (attached.bare.p50_us, attached.bare.p99_us);
            let mib = case.bytes / MIB;
            parts.push(format!("{} x {mib} MiB {p50:.0}/{p99:.0} us", case.count));
        }
        format!("{}: {}", how.name(), parts.join(", "))
    };
    let (vmm, legacy) = (of(How::Vmm), of(How::Legacy));
    format!("bare attach, p50/p99: {vmm}; {legacy}")
}
