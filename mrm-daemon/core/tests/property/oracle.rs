//! What a daemon must look like from outside: small, naive, and kept from effects alone.

use mrm_core::effect::{Effect, Reply};
use mrm_core::id::*;
use std::collections::{BTreeMap, BTreeSet};

/// A segment as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Loading(SourceId),
    Filled(ContentId),
    Freeing,
}

/// What an unanswered request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Open,
    Evict,
    Close,
    Cancel,
}

/// Contents repeat, so that some sources are the same bytes.
pub(crate) fn content_of(source: SourceId) -> ContentId {
    ContentId(source.0 % 6)
}

/// The charge goes with the content.
pub(crate) fn charge_of(source: SourceId) -> Bytes {
    Bytes(content_of(source).0 % 4 + 1)
}

/// Versions 0 to 9: one to three of nine sources.
pub(crate) fn sources_of(version: VersionId) -> Vec<SourceId> {
    let v = version.0;
    (0..=v % 3)
        .map(|nth| SourceId((v * 2 + nth * 3) % 9))
        .collect()
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) limit: u64,
    pub(crate) sessions: BTreeSet<SessionId>,
    pub(crate) asked: BTreeMap<(SessionId, RequestId), Asked>,
    pub(crate) leases: BTreeMap<(SessionId, LeaseId), (VersionId, Vec<SegmentId>)>,
    pub(crate) segments: BTreeMap<SegmentId, (Bytes, Seen)>,
    pub(crate) current: BTreeMap<ModelId, VersionId>,
    pub(crate) pinned: BTreeSet<ModelId>,
    pub(crate) in_flight: BTreeMap<OpId, Effect>,
    /// Sources whose bytes are in memory.
    pub(crate) loaded: BTreeSet<SourceId>,
    /// Segment ids and op ids come once.
    pub(crate) last_segment: u64,
    pub(crate) last_op: u64,
}

impl Oracle {
    pub(crate) fn charged(&self) -> u64 {
        self.segments.values().map(|(charge, _)| charge.0).sum()
    }

    fn leased(&self, segment: SegmentId) -> bool {
        self.leases
            .values()
            .any(|(_, segments)| segments.contains(&segment))
    }

    /// The sources that a pinned model stands for.
    fn pinned_sources(&self) -> BTreeSet<SourceId> {
        let pinned = self
            .pinned
            .iter()
            .filter_map(|model| self.current.get(model));
        pinned.flat_map(|version| sources_of(*version)).collect()
    }

    fn source_is_in(&self, source: SourceId) -> bool {
        self.segments
            .values()
            .any(|(_, seen)| *seen == Seen::Loading(source))
    }

    /// Takes in one effect, and panics where it breaks a rule.
    pub(crate) fn see(&mut self, effect: &Effect) {
        if let Some(op) = effect.op() {
            assert!(op.0 > self.last_op, "{op} twice");
            self.last_op = op.0;
            self.in_flight.insert(op, effect.clone());
        }
        match effect {
            Effect::Resolve { model, .. } => {
                let same = |effect: &&Effect| matches!(effect, Effect::Resolve { model: other, .. } if other == model);
                assert_eq!(
                    self.in_flight.values().filter(same).count(),
                    1,
                    "resolved twice at once"
                );
            }
            Effect::Load {
                segment,
                source,
                version,
                charge,
                ..
            } => {
                assert!(segment.0 > self.last_segment, "{segment} twice");
                self.last_segment = segment.0;
                assert!(sources_of(*version).contains(source));
                assert_eq!(*charge, charge_of(*source));
                assert!(
                    !self.source_is_in(*source),
                    "{source} is loaded twice at once"
                );
                self.segments
                    .insert(*segment, (*charge, Seen::Loading(*source)));
                assert!(
                    self.charged() <= self.limit,
                    "charged {} of {}",
                    self.charged(),
                    self.limit
                );
            }
            Effect::Free { segment, .. } => self.see_free(*segment),
            Effect::Reply {
                session,
                request,
                reply,
            } => self.see_reply((*session, *request), reply),
            Effect::Revoke { .. } => panic!("no device is lost"),
            Effect::Forget { version } => {
                assert!(self.leases.values().all(|(leased, _)| leased != version));
                self.current.retain(|_, current| current != version);
            }
        }
    }

    fn see_free(&mut self, segment: SegmentId) {
        assert!(!self.leased(segment), "{segment} is freed while leased");
        let (_, seen) = self.segments[&segment];
        let Seen::Filled(content) = seen else {
            panic!("{segment} is freed while {seen:?}")
        };
        self.segments.get_mut(&segment).unwrap().1 = Seen::Freeing;
        if self
            .segments
            .values()
            .any(|(_, seen)| *seen == Seen::Filled(content))
        {
            return;
        }
        let pinned = self.pinned_sources();
        self.loaded.retain(|source| {
            let gone = content_of(*source) == content;
            assert!(
                !gone || !pinned.contains(source),
                "{segment} is freed while pinned"
            );
            !gone
        });
    }

    fn see_reply(&mut self, key: (SessionId, RequestId), reply: &Reply) {
        assert!(
            self.sessions.contains(&key.0),
            "a reply to a closed {}",
            key.0
        );
        let asked = self
            .asked
            .remove(&key)
            .unwrap_or_else(|| panic!("{key:?} is answered twice"));
        match (asked, reply) {
            (
                Asked::Open,
                Reply::Opened {
                    lease,
                    version,
                    segments,
                    ..
                },
            ) => {
                let wanted: Vec<_> = sources_of(*version).into_iter().map(content_of).collect();
                let given = segments
                    .iter()
                    .map(|segment| match self.segments[segment].1 {
                        Seen::Filled(content) => content,
                        seen @ (Seen::Loading(_) | Seen::Freeing) => {
                            panic!("{segment} is lent while {seen:?}")
                        }
                    });
                assert_eq!(
                    given.collect::<Vec<_>>(),
                    wanted,
                    "other bytes than the version's"
                );
                let held = (*version, segments.to_vec());
                assert!(
                    self.leases.insert((key.0, *lease), held).is_none(),
                    "{lease} twice"
                );
            }
            (Asked::Open, Reply::Failed(_) | Reply::Refused(_))
            | (Asked::Close, Reply::Closed | Reply::Refused(_))
            | (Asked::Cancel, Reply::Cancelled { .. })
            | (Asked::Evict, Reply::Evicted { .. } | Reply::Refused(_)) => {}
            (asked, reply) => panic!("{reply:?} to {asked:?}"),
        }
    }
}
