//! What is copied where: a layout, cut into pieces that one copy takes each.

use super::error::FillError;
use mrm_proto::layout::{Granularity, Layout, LayoutError};
use mrm_proto::table::Table;

/// A run of bytes that lies in one piece both in a segment and in an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it goes in the allocation.
    pub(super) at: u64,
    /// Which segment it comes from.
    pub(super) segment: usize,
    /// Where it is there.
    pub(super) from: u64,
    pub(super) bytes: u64,
}

impl Part {
    const fn end(&self) -> u64 {
        self.at + self.bytes
    }
}

/// One copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// Through a staging buffer, which takes parts, and zeroes between them.
    Gather { at: u64, bytes: u64 },
    /// By the device itself.
    Direct(Part),
}

/// The parts of each allocation, in the order of the image.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) layout: Layout,
    pub(super) allocations: Vec<Vec<Part>>,
}

impl Plan {
    pub(super) fn new(table: &[u8], granularity: Granularity) -> Result<Self, FillError> {
        let table = Table::parse(table).map_err(|_| LayoutError::Damaged)?;
        let layout = Layout::new(&table, granularity)?;
        let mut allocations: Vec<Vec<Part>> = layout
            .allocations_bytes()
            .iter()
            .map(|_| Vec::new())
            .collect();
        for tensor in table.iter() {
            let tensor = tensor.ok_or(LayoutError::Damaged)?;
            let Some(place) = layout.place(tensor.position) else {
                continue;
            };
            let parts = allocations
                .get_mut(place.allocation as usize)
                .ok_or(LayoutError::Damaged)?;
            let part = Part {
                at: place.offset_bytes,
                segment: tensor.segment as usize,
                from: tensor.offset,
                bytes: tensor.bytes,
            };
            if part.from.checked_add(part.bytes).is_none() {
                return Err(LayoutError::Damaged.into());
            }
            match parts.last_mut().filter(|last| follows(last, &part)) {
                Some(last) => last.bytes += part.bytes,
                None => parts.push(part),
            }
        }
        Ok(Self {
            layout,
            allocations,
        })
    }
}

/// Whether `next` goes on where `last` ends, in both places.
fn follows(last: &Part, next: &Part) -> bool {
    last.segment == next.segment && last.end() == next.at && last.from + last.bytes == next.from
}

/// Cuts an allocation of `bytes` bytes into copies that cover it from its beginning to its end.
/// The parts for which `direct` holds are copied as they are, the rest in buffers of `slot_bytes`.
pub(super) fn pieces(
    parts: &[Part],
    bytes: u64,
    slot_bytes: u64,
    direct: impl Fn(&Part) -> bool,
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let gather_until = |at: u64, end: u64, pieces: &mut Vec<Piece>| {
        let mut at = at;
        while at < end {
            let bytes = slot_bytes.max(1).min(end - at);
            pieces.push(Piece::Gather { at, bytes });
            at += bytes;
        }
    };
    for part in parts.iter().filter(|part| direct(part)) {
        gather_until(at, part.at, &mut pieces);
        pieces.push(Piece::Direct(*part));
        at = part.end();
    }
    gather_until(at, bytes, &mut pieces);
    pieces
}

/// Fills `slot`, which goes to `at`, with what `parts` have there, and zeroes elsewhere. `read`
/// gets a segment, an offset in it, and where the bytes go.
pub(super) fn gather<E>(
    parts: &[Part],
    at: u64,
    slot: &mut [u8],
    mut read: impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let end = at.saturating_add(slot.len() as u64);
    let first = parts.partition_point(|part| part.end() <= at);
    let mut rest = slot;
    let mut done = at;
    for part in parts.iter().skip(first).take_while(|part| part.at < end) {
        let (start, stop) = (part.at.max(at), part.end().min(end));
        let (gap, behind) = rest.split_at_mut(length(start.saturating_sub(done)).min(rest.len()));
        gap.fill(0);
        let (bytes, behind) = behind.split_at_mut(length(stop - start).min(behind.len()));
        read(part.segment, part.from + (start - part.at), bytes)?;
        rest = behind;
        done = stop;
    }
    rest.fill(0);
    Ok(())
}

/// A length within a slot.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "a test fails by panicking")]
    use super::*;

    const fn part(at: u64, segment: usize, from: u64, bytes: u64) -> Part {
        Part {
            at,
            segment,
            from,
            bytes,
        }
    }

    #[test]
    fn an_allocation_is_covered_without_a_hole() {
        let parts = [
            part(0, 0, 8, 100),
            part(256, 0, 108, 3000),
            part(3328, 1, 8, 5),
        ];
        for slot_bytes in [1, 7, 256, 1 << 20] {
            for direct_min in [0, 50, 1000, u64::MAX] {
                let cut = pieces(&parts, 3333, slot_bytes, |part| part.bytes >= direct_min);
                let mut at = 0;
                for piece in cut {
                    let (start, bytes) = match piece {
                        Piece::Gather { at, bytes } => {
                            assert!(bytes <= slot_bytes);
                            (at, bytes)
                        }
                        Piece::Direct(part) => {
                            assert!(part.bytes >= direct_min);
                            (part.at, part.bytes)
                        }
                    };
                    assert_eq!(start, at, "slots of {slot_bytes}, direct from {direct_min}");
                    at += bytes;
                }
                assert_eq!(at, 3333);
            }
        }
    }

    #[test]
    fn a_slot_has_the_parts_and_zeroes_between_them() {
        let parts = [part(0, 0, 8, 3), part(8, 1, 20, 4), part(12, 0, 11, 2)];
        let whole = [8, 9, 10, 0, 0, 0, 0, 0, 120, 121, 122, 123, 11, 12, 0];
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut slot = vec![0xff; end - start];
                gather(
                    &parts,
                    start as u64,
                    &mut slot,
                    |segment, from, into: &mut [u8]| {
                        for (byte, value) in into.iter_mut().zip(from..) {
                            *byte =
                                u8::try_from(value).expect("small") + 100 * u8::from(segment == 1);
                        }
                        Ok::<(), ()>(())
                    },
                )
                .expect("nothing fails");
                assert_eq!(slot, whole[start..end], "{start}..{end}");
            }
        }
    }
}
