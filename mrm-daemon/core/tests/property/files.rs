//! The files, tables and images of the versions that there are, and where opens want them.

use mrm_core::event::{AnyOf, Part, SegmentFact, Wanted};
use mrm_core::id::*;
use mrm_core::ledger::Tier;

/// The second can copy from the first.
pub(crate) const DEVICES: [DeviceId; 2] = [DeviceId(0), DeviceId(1)];

/// Tables begin here, one for each version that has one.
const TABLES: u64 = 20;
/// Images begin here; versions share some.
const IMAGES: u64 = 40;

/// Contents repeat, so that some sources are the same bytes.
pub(crate) fn content_of(source: SourceId) -> ContentId {
    match source.0 {
        file if file < TABLES => ContentId(file % 6),
        table if table < IMAGES => ContentId(table),
        image => ContentId(IMAGES + image % 3),
    }
}

/// The charge goes with the content.
pub(crate) fn charge_of(source: SourceId) -> Bytes {
    match source.0 {
        table if (TABLES..IMAGES).contains(&table) => Bytes(1),
        _ => Bytes(content_of(source).0 % 4 + 1),
    }
}

/// And so do the pieces.
pub(crate) fn pieces_of(source: SourceId) -> u64 {
    match content_of(source).0 {
        image if image >= IMAGES => image % 2 + 1,
        _ => 1,
    }
}

/// Versions 0 to 9: one to three of nine files, with a table or without, and one of four images
/// or none.
pub(crate) fn parts_of(version: VersionId) -> &'static [(SourceId, Part)] {
    static PARTS: std::sync::OnceLock<Vec<Vec<(SourceId, Part)>>> = std::sync::OnceLock::new();
    let all = PARTS.get_or_init(|| (0..10).map(make_parts).collect());
    &all[usize::try_from(version.0).unwrap()]
}

fn make_parts(v: u64) -> Vec<(SourceId, Part)> {
    let table = (v % 2 == 1).then_some((SourceId(TABLES + v), Part::Table));
    let files = (0..=v % 3).map(|nth| (SourceId((v * 2 + nth * 3) % 9), Part::File));
    let image = (v % 5 != 4).then_some((SourceId(IMAGES + v % 4), Part::Image));
    table.into_iter().chain(files).chain(image).collect()
}

/// What a resolution says of a version.
pub(crate) fn facts_of(version: VersionId) -> Vec<SegmentFact> {
    let fact = |(source, part): &(SourceId, Part)| SegmentFact {
        source: *source,
        charge: charge_of(*source),
        pieces: pieces_of(*source),
        part: *part,
    };
    parts_of(version).iter().map(fact).collect()
}

/// The sources of a copy, and where each of them is.
pub(crate) fn sources_on(version: VersionId, tier: Tier) -> Vec<(SourceId, Tier)> {
    let parts = parts_of(version).iter();
    let of_copy = parts.filter_map(|(source, part)| match (part, tier) {
        (Part::Table, _) | (Part::File, Tier::Host) => Some((*source, Tier::Host)),
        (Part::Image, Tier::Device(_)) => Some((*source, tier)),
        (Part::File, Tier::Device(_)) | (Part::Image, Tier::Host) => None,
    });
    of_copy.collect()
}

/// One of the wishes for a place that an open can have.
pub(crate) fn wanted(index: u8) -> Wanted {
    let [first, second] = DEVICES;
    let keep = |any: AnyOf, bytes| any.with_reserve(Bytes(bytes));
    match index % 16 {
        0..=1 => Wanted::Host,
        2 | 9 | 10 => Wanted::Layout,
        3 => Wanted::Device([first].into()),
        4 => Wanted::Device([second].into()),
        5 => Wanted::Device([first, second].into()),
        6 => Wanted::Best([second, first].into()),
        7 => Wanted::Best([first].into()),
        11 => Wanted::Device(keep([first].into(), 1)),
        12 => Wanted::Device(keep([first].into(), 3)),
        13 => Wanted::Device(keep([first, second].into(), 2)),
        14 => Wanted::Best(keep([second, first].into(), 2)),
        // More than one user may have.
        15 => Wanted::Device(keep([second].into(), 4)),
        _ => Wanted::Best([].into()),
    }
}

/// Whether a wish is fulfilled.
pub(crate) fn wants(wanted: &Wanted, tier: Tier) -> bool {
    match (wanted, tier) {
        (Wanted::Host | Wanted::Layout | Wanted::Best(_), Tier::Host) => true,
        (Wanted::Device(any) | Wanted::Best(any), Tier::Device(device)) => {
            any.devices.contains(&device)
        }
        (Wanted::Device(_), Tier::Host) | (Wanted::Host | Wanted::Layout, Tier::Device(_)) => false,
    }
}
