//! Digests of what is lent before it is hashed.
//!
//! A file in the page cache is copied as fast as memory is, and hashing it on the way would take as
//! long again. What the digest is for can wait, but for one thing: two files of one content are one
//! copy in memory. So a file is lent before it is hashed only if nothing that is there has its length,
//! and what has the length of something that is not hashed yet waits for that.

use super::{Running, State};
use crate::failpoint::{self, Point};
use crate::integrity::digest_of;
use crate::memory::HostSegment;
use crate::shell::names::Supply;
use crate::shell::supply::Filled;
use crate::shell::work::{Completed, run_in};
use crate::status::view::{VerifiedOutcome, VerifiedSegment};
use crate::transfer::{Completion, Lane, Lost};
use mrm_core::event::{Event, Fault};
use mrm_core::id::{OpId, SegmentId};
use mrm_core::ledger::Tier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Less is hashed sooner than it takes to come back to it.
const BYTES_MIN: u64 = 4 << 20;

impl State {
    /// Whether what is about to be loaded may be lent before it is hashed. An image on a device is
    /// known by the digests of its files, so a node with devices needs them first.
    pub(in crate::shell) fn may_hash_later(&self, supply: &Supply, bytes: u64) -> bool {
        let is_file = matches!(supply, Supply::File { .. });
        if !is_file || bytes < BYTES_MIN || !self.tier.devices.is_empty() {
            return false;
        }
        !self.has_other_of(bytes, None)
    }

    /// Whether so long a segment is there, or being loaded, other than this one.
    fn has_other_of(&self, bytes: u64, than: Option<SegmentId>) -> bool {
        let held = self.segments.iter();
        let mut held = held.map(|(id, held)| (*id, held.segment.bytes()));
        let mut loading = self.loads.iter().map(|(id, load)| (*id, load.bytes));
        let other = |(id, there): (SegmentId, u64)| there == bytes && Some(id) != than;
        held.any(other) || loading.any(other)
    }

    /// Passes on how a load ended. If what it brought and something that is there may be the same,
    /// what of them is not hashed is hashed before: then it comes back here, with its digest.
    pub(in crate::shell) fn hash_first(
        &mut self,
        (op, segment): (OpId, SegmentId),
        outcome: Result<Filled, Fault>,
    ) -> Option<Result<Filled, Fault>> {
        let Ok(filled) = outcome else {
            return Some(outcome);
        };
        let bytes = filled.segment.bytes();
        if bytes < BYTES_MIN || filled.compared {
            return Some(Ok(filled));
        }
        let same = self.keeping.unhashed_of(bytes).filter_map(|id| {
            let held = self.segments.get(&id)?;
            Some((id, Arc::downgrade(&held.segment)))
        });
        let same: Vec<_> = same.collect();
        let itself = filled.digest.is_none() && self.has_other_of(bytes, Some(segment));
        if same.is_empty() && !itself {
            return Some(Ok(filled));
        }
        let completed = self.completed.clone();
        let completion = self.report(move |outcome| Completed::Loaded {
            op,
            segment,
            outcome,
        });
        run_in(&self.lanes, Lane::Registered, completion, move || {
            let mut filled = Filled {
                compared: true,
                ..filled
            };
            for (segment, memory) in same {
                let digest = Ok(hashed(&memory, &AtomicU64::new(0), &|| true));
                drop(completed.send(Completed::Identified { segment, digest }));
            }
            if filled.digest.is_none() {
                let memory = Arc::downgrade(&filled.segment);
                filled.digest = hashed(&memory, &AtomicU64::new(0), &|| true);
            }
            Ok(filled)
        });
        None
    }

    /// Hashes a segment that may be lent already.
    pub(in crate::shell) fn hash_later(&mut self, segment: SegmentId) {
        let Some(held) = self.segments.get(&segment) else {
            return;
        };
        let memory = Arc::downgrade(&held.segment);
        let about = VerifiedSegment {
            model: held.label.as_ref().map(ToString::to_string),
            part: "file",
            tier: self.tier_word(Tier::Host),
            bytes: held.segment.bytes(),
            digest: String::new(),
            outcome: VerifiedOutcome::Gone,
            detail: None,
        };
        let done = Arc::new(AtomicU64::new(0));
        let (progress, stop) = (Arc::clone(&done), Arc::clone(&self.verifying.stop));
        let completed = self.completed.clone();
        let completion = Completion::new(move |digest: Result<Option<[u8; 32]>, Lost>| {
            drop(completed.send(Completed::Identified { segment, digest }));
        });
        match self.verifying.thread() {
            Ok(thread) => {
                thread.run(completion, move || {
                    let go_on = || !stop.load(Ordering::Relaxed);
                    hashed(&memory, &progress, &go_on)
                });
                self.verifying
                    .running
                    .insert(segment, Running { about, done });
            }
            Err(error) => {
                let cure = "raise the daemon's TasksMax or LimitNPROC; until it is opened anew, \
                            the model has no digest";
                self.degraded.report("not_hashed", error.to_string(), cure);
            }
        }
    }

    /// A segment was hashed, if it was there for so long.
    pub(in crate::shell) fn identified(
        &mut self,
        segment: SegmentId,
        digest: Result<Option<[u8; 32]>, Lost>,
    ) {
        failpoint::pass(Point::Hashed);
        let Some(mut running) = self.verifying.running.remove(&segment) else {
            return;
        };
        let digest = digest.unwrap_or_else(|lost| {
            running.about.outcome = VerifiedOutcome::Unchecked;
            running.about.detail = Some(lost.to_string());
            None
        });
        if let Some(digest) = digest.filter(|_| self.segments.contains_key(&segment)) {
            let content = self.names.content(segment, (digest, None));
            self.step(Event::Identified { segment, content });
            self.keep_digest(segment);
            // Who asked for a check before there was anything to compare with gets one now.
            let asked = &mut self.verifying.asked;
            if asked.iter().any(|asked| asked.left.contains(&segment))
                && let Ok(true) = self.check_segment(segment)
            {
                return;
            }
        }
        self.tell_checked(segment, &running.about);
    }
}

fn hashed(
    memory: &Weak<HostSegment>,
    progress: &AtomicU64,
    go_on: &dyn Fn() -> bool,
) -> Option<[u8; 32]> {
    let mut digest = digest_of(memory, progress, go_on);
    if let Some(digest) = &mut digest
        && failpoint::damages()
    {
        digest[0] ^= 1;
    }
    digest
}
