//! What is there of a model that is still being filled.
//!
//! Told by the daemon's `Ready` frames, which whoever reads the session delivers here. Until a
//! segment is sealed, only what they name is lent out: it is in place and does not change. For that
//! the daemon is trusted, as it is for what the bytes are; afterwards the kernel vouches for it.

use crate::error::SessionError;
use mrm_proto::reply::{Opened, Ready};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Of one lease.
#[derive(Debug)]
pub(crate) struct Filling {
    /// Of each segment: what is there, in order and with gaps between; `None` once it is sealed.
    segments: Mutex<Vec<Option<Vec<Range<u64>>>>>,
    /// How many are not sealed.
    left: AtomicUsize,
}

impl Filling {
    /// What a grant says of itself; `None` if nothing is being filled.
    pub(crate) fn of(opened: &Opened) -> Result<Option<Self>, SessionError> {
        let Some(filling) = &opened.filling else {
            return Ok(None);
        };
        let mut segments = vec![None; opened.segments_bytes.len()];
        for index in filling {
            match segments.get_mut(*index as usize) {
                Some(segment @ None) => *segment = Some(Vec::new()),
                Some(Some(_)) | None => {
                    return Err(out_of_place(format!(
                        "segment {index} is said to be filled"
                    )));
                }
            }
        }
        let left = AtomicUsize::new(filling.len());
        let segments = Mutex::new(segments);
        Ok((!filling.is_empty()).then_some(Self { segments, left }))
    }

    /// Takes in what the daemon says.
    pub(crate) fn apply(&self, ready: &Ready) -> Result<(), SessionError> {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        for range in &ready.ranges {
            match segments.get_mut(range.segment as usize) {
                Some(Some(there)) => add(there, range.from..range.to),
                // Sealed already, which says more.
                Some(None) => {}
                None => return Err(out_of_place(format!("{range:?} of no segment"))),
            }
        }
        for index in &ready.sealed {
            match segments.get_mut(*index as usize) {
                Some(segment) => {
                    if segment.take().is_some() {
                        // What was read under the lock is seen by whoever sees that it is whole.
                        self.left.fetch_sub(1, Ordering::AcqRel);
                    }
                }
                None => {
                    return Err(out_of_place(format!(
                        "segment {index} is said to be sealed"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether these bytes of a segment are there.
    pub(crate) fn has(&self, segment: usize, bytes: &Range<u64>) -> bool {
        if self.is_whole() || bytes.is_empty() {
            return true;
        }
        let segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        match segments.get(segment) {
            Some(None) => true,
            Some(Some(there)) => there
                .iter()
                .any(|range| range.start <= bytes.start && bytes.end <= range.end),
            None => false,
        }
    }

    /// Whether a segment is sealed.
    pub(crate) fn is_sealed(&self, segment: usize) -> bool {
        let segments = || self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_whole() || matches!(segments().get(segment), Some(None))
    }

    /// Whether all segments are sealed.
    pub(crate) fn is_whole(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }
}

/// Adds a range, which may touch or overlap others.
fn add(there: &mut Vec<Range<u64>>, new: Range<u64>) {
    if new.is_empty() {
        return;
    }
    let from = there.partition_point(|range| range.end < new.start);
    let to = there.partition_point(|range| range.start <= new.end);
    let start = there
        .get(from)
        .map_or(new.start, |range| range.start.min(new.start));
    let last = to.checked_sub(1).filter(|last| *last >= from);
    let end = last.and_then(|last| there.get(last));
    let end = end.map_or(new.end, |range| range.end.max(new.end));
    let start = if from < to { start } else { new.start };
    there.splice(from..to, std::iter::once(start..end));
}

fn out_of_place(what: String) -> SessionError {
    SessionError::OutOfPlace(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mrm_proto::ids::{LeaseId, VersionId};
    use mrm_proto::reply::{Origin, ReadyRange};

    fn opened(filling: Option<Vec<u32>>) -> Opened {
        Opened {
            lease: LeaseId(1),
            version: VersionId(1),
            origin: Origin::Loaded,
            table_bytes: 1,
            segments_bytes: vec![100, 50, 70],
            took_us: 0,
            device: None,
            filling,
        }
    }

    fn ready(ranges: &[(u32, u64, u64)], sealed: &[u32]) -> Ready {
        let range = |&(segment, from, to): &(u32, u64, u64)| ReadyRange { segment, from, to };
        Ready {
            lease: LeaseId(1),
            ranges: ranges.iter().map(range).collect(),
            sealed: sealed.to_vec(),
        }
    }

    #[test]
    fn ranges_grow_together() {
        let mut there = Vec::new();
        for new in [50..60, 10..20, 70..80, 20..30, 0..5, 60..70, 40..41, 5..5] {
            add(&mut there, new);
        }
        assert_eq!(there, [0..5, 10..30, 40..41, 50..80]);
        add(&mut there, 4..55);
        assert_eq!(there, std::slice::from_ref(&(0..80)));
    }

    #[test]
    fn only_what_was_told_is_there_and_all_once_sealed() {
        let filling = Filling::of(&opened(Some(vec![0, 2])))
            .expect("good")
            .expect("some");
        assert!(filling.has(1, &(0..50)) && filling.is_sealed(1));
        assert!(!filling.has(0, &(0..1)) && filling.has(0, &(7..7)));
        filling
            .apply(&ready(&[(0, 0, 40), (2, 10, 20)], &[]))
            .expect("good");
        assert!(filling.has(0, &(3..40)) && !filling.has(0, &(3..41)));
        filling.apply(&ready(&[], &[0])).expect("good");
        assert!(filling.has(0, &(0..100)) && !filling.is_whole());
        filling
            .apply(&ready(&[(0, 0, 1)], &[2, 2]))
            .expect("said twice");
        assert!(filling.is_whole() && filling.has(2, &(0..70)));
    }

    #[test]
    fn a_daemon_that_speaks_of_other_segments_is_not_believed() {
        assert!(Filling::of(&opened(None)).expect("good").is_none());
        assert!(Filling::of(&opened(Some(vec![3]))).is_err());
        assert!(Filling::of(&opened(Some(vec![1, 1]))).is_err());
        let filling = Filling::of(&opened(Some(vec![0])))
            .expect("good")
            .expect("some");
        assert!(filling.apply(&ready(&[(3, 0, 1)], &[])).is_err());
        assert!(filling.apply(&ready(&[], &[9])).is_err());
    }
}
