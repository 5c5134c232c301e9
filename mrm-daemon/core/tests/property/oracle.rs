//! What a daemon must look like from outside: small, naive, and kept from effects alone.

use crate::files::{DEVICES, charge_of, content_of, parts_of, pieces_of, sources_on, wants};
use mrm_core::effect::{Effect, Feed, Refusal, Reply};
use mrm_core::event::{Part, Wanted};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use std::collections::{BTreeMap, BTreeSet};

/// Where a segment is in its life, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Loading(SourceId),
    Filled(ContentId),
    Damaged,
    Freeing,
}

/// A segment as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) tier: Tier,
    pub(crate) charge: u64,
    pub(crate) pieces: u64,
    pub(crate) seen: Seen,
}

/// What an unanswered request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Open(Wanted),
    Evict,
    Close,
    Cancel,
}

/// A lease as its session sees it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) version: VersionId,
    pub(crate) tier: Tier,
    pub(crate) segments: Vec<SegmentId>,
    /// What it keeps free beside them.
    pub(crate) reserve: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) limits: BTreeMap<Tier, u64>,
    pub(crate) lost: BTreeSet<DeviceId>,
    pub(crate) sessions: BTreeSet<SessionId>,
    pub(crate) asked: BTreeMap<(SessionId, RequestId), Asked>,
    pub(crate) leases: BTreeMap<(SessionId, LeaseId), Held>,
    pub(crate) segments: BTreeMap<SegmentId, Segment>,
    pub(crate) current: BTreeMap<ModelId, VersionId>,
    pub(crate) pinned: BTreeSet<ModelId>,
    pub(crate) in_flight: BTreeMap<OpId, Effect>,
    /// What loads in flight are filled from.
    pub(crate) feeds: BTreeMap<OpId, Vec<SegmentId>>,
    /// Loads in flight whose feed is gone by a fault: they fail.
    pub(crate) starved: BTreeSet<OpId>,
    /// Loads in flight that are filled from what is damaged: nobody may get what they bring.
    pub(crate) spoilt: BTreeMap<OpId, BTreeSet<SegmentId>>,
    /// Leases whose sessions were told that what they are on is damaged.
    pub(crate) told: BTreeSet<(SessionId, LeaseId)>,
    /// Segments whose memory is there, while they are filled.
    pub(crate) laid: BTreeSet<SegmentId>,
    /// Sources whose bytes are in a tier's memory.
    pub(crate) loaded: BTreeSet<(Tier, SourceId)>,
    /// Segment ids and op ids come once.
    pub(crate) last_segment: u64,
    pub(crate) last_op: u64,
}

impl Oracle {
    /// The bytes and pieces that are charged on a tier.
    pub(crate) fn charged(&self, tier: Tier) -> (u64, u64) {
        let here = self.segments.values().filter(|there| there.tier == tier);
        here.fold((0, 0), |(bytes, pieces), there| {
            (bytes + there.charge, pieces + there.pieces)
        })
    }

    /// What leases keep free on a tier.
    pub(crate) fn reserved(&self, tier: Tier) -> u64 {
        let here = self.leases.values().filter(|held| held.tier == tier);
        here.map(|held| held.reserve).sum()
    }

    pub(crate) fn is_lost(&self, tier: Tier) -> bool {
        matches!(tier, Tier::Device(device) if self.lost.contains(&device))
    }

    fn leased(&self, segment: SegmentId) -> bool {
        self.leases
            .values()
            .any(|held| held.segments.contains(&segment))
    }

    /// The sources that a pinned model stands for.
    fn pinned_sources(&self) -> BTreeSet<SourceId> {
        let pinned = self
            .pinned
            .iter()
            .filter_map(|model| self.current.get(model));
        let parts = pinned.flat_map(|version| parts_of(*version));
        parts.map(|(source, _)| *source).collect()
    }

    fn filled_with(&self, tier: Tier, content: ContentId) -> Option<SegmentId> {
        let mut all = self.segments.iter();
        let found =
            all.find(|(_, there)| there.tier == tier && there.seen == Seen::Filled(content));
        found.map(|(id, _)| *id)
    }

    /// The loads in flight that a segment feeds.
    pub(crate) fn fed_by(&self, segment: SegmentId) -> Vec<OpId> {
        let feeds = self.feeds.iter();
        let fed = feeds.filter(|(_, from)| from.contains(&segment));
        fed.map(|(op, _)| *op).collect()
    }

    /// What is leased is there: filled, or laid and on its way.
    pub(crate) fn expect_lent(&self) {
        for ((session, lease), held) in &self.leases {
            for segment in &held.segments {
                let seen = self.segments.get(segment).map(|there| there.seen);
                let there = match seen {
                    Some(Seen::Filled(_) | Seen::Damaged) => true,
                    Some(Seen::Loading(_)) => self.laid.contains(segment),
                    Some(Seen::Freeing) | None => false,
                };
                assert!(there, "{lease} of {session} is on {segment}: {seen:?}");
            }
        }
    }

    /// Whether what was lent before it was whole never will be: a load failed or began anew, or
    /// something of it is damaged before the rest is there.
    fn never_whole(&self, segments: &[SegmentId]) -> bool {
        let seen = |id: &SegmentId| self.segments.get(id).map(|there| there.seen);
        let failed = segments.iter().any(|id| seen(id).is_none());
        let mut damaged = segments.iter().filter(|id| seen(id) == Some(Seen::Damaged));
        let loading = |id: &SegmentId| matches!(seen(id), Some(Seen::Loading(_)));
        let anew = |id: &SegmentId| loading(id) && !self.laid.contains(id);
        let failed = failed || segments.iter().any(anew);
        failed || damaged.next().is_some() && segments.iter().any(loading)
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
            Effect::Load { .. } => self.see_load(effect),
            Effect::Free { segment, tier, .. } => self.see_free(*segment, *tier),
            Effect::Adopted { .. } => panic!("nothing was left"),
            Effect::Revoke {
                session,
                lease,
                gone,
                ..
            } => self.see_revoke((*session, *lease), *gone),
            Effect::Reply {
                session,
                request,
                reply,
            } => self.see_reply((*session, *request), reply),
            Effect::Forget { version } => {
                assert!(self.leases.values().all(|held| held.version != *version));
                self.current.retain(|_, current| current != version);
            }
        }
    }

    fn see_revoke(&mut self, key: (SessionId, LeaseId), gone: bool) {
        let held = &self.leases[&key];
        if gone {
            let right = self.is_lost(held.tier) || self.never_whole(&held.segments);
            assert!(right, "{key:?} is revoked");
            self.leases.remove(&key);
            return;
        }
        let damaged = |segment| self.segments[segment].seen == Seen::Damaged;
        assert!(held.segments.iter().any(damaged), "{key:?} is told a lie");
        assert!(self.told.insert(key), "{key:?} is told twice");
    }

    /// What this segment holds is not what it should: whoever has to do with it.
    pub(crate) fn damage(&mut self, segment: SegmentId) {
        let there = self.segments.get_mut(&segment).unwrap();
        let Seen::Filled(content) = there.seen else {
            panic!("{segment} is damaged while {:?}", there.seen)
        };
        let tier = there.tier;
        there.seen = Seen::Damaged;
        for op in self.fed_by(segment) {
            self.spoilt.entry(op).or_default().insert(segment);
        }
        self.loaded
            .retain(|(on, source)| *on != tier || content_of(*source) != content);
    }

    /// Everybody who holds what is damaged was told.
    pub(crate) fn all_are_told(&self) {
        for (key, held) in &self.leases {
            let damaged = |segment| self.segments[segment].seen == Seen::Damaged;
            let told = self.told.contains(key);
            assert!(
                told || !held.segments.iter().any(damaged),
                "{key:?} is not told"
            );
        }
    }

    fn see_load(&mut self, effect: &Effect) {
        let Effect::Load {
            op,
            segment,
            source,
            version,
            charge,
            tier,
            feed,
        } = effect
        else {
            unreachable!()
        };
        assert!(segment.0 > self.last_segment, "{segment} twice");
        self.last_segment = segment.0;
        let part = parts_of(*version).iter().find(|(of, _)| of == source);
        let part = part
            .unwrap_or_else(|| panic!("{source} is not of {version}"))
            .1;
        let on_device = matches!(tier, Tier::Device(_));
        assert_eq!(on_device, part == Part::Image, "{source} on {tier}");
        assert!(!self.is_lost(*tier), "{tier} is lost");
        assert_eq!(*charge, charge_of(*source));
        let loading = |there: &Segment| there.tier == *tier && there.seen == Seen::Loading(*source);
        assert!(
            !self.segments.values().any(loading),
            "{source} is loaded twice at once"
        );
        let made = Segment {
            tier: *tier,
            charge: charge.0,
            pieces: pieces_of(*source),
            seen: Seen::Loading(*source),
        };
        self.segments.insert(*segment, made);
        let charged = self.charged(*tier).0 + self.reserved(*tier);
        let limit = self.limits[tier];
        assert!(charged <= limit, "charged {charged} of {limit} on {tier}");
        self.see_feed((*op, *source, *tier), *version, feed);
    }

    fn see_feed(
        &mut self,
        (op, source, tier): (OpId, SourceId, Tier),
        version: VersionId,
        feed: &Feed,
    ) {
        let from = match feed {
            Feed::Source => return,
            Feed::Host(segments) => {
                let parts = parts_of(version).iter();
                let files = parts.filter(|(_, part)| *part == Part::File);
                let files: Vec<_> = files.map(|(file, _)| content_of(*file)).collect();
                let given = segments.iter().map(|id| match self.segments[id].seen {
                    Seen::Loading(source) => content_of(source),
                    Seen::Filled(content) => content,
                    seen @ (Seen::Damaged | Seen::Freeing) => panic!("{id} feeds, but is {seen:?}"),
                });
                assert_eq!(given.collect::<Vec<_>>(), files, "fed with other files");
                let on_host = |id| self.segments[id].tier == Tier::Host;
                assert!(segments.iter().all(on_host));
                segments.to_vec()
            }
            Feed::Peer(segment) => {
                let peer = self.segments[segment];
                assert_eq!(peer.seen, Seen::Filled(content_of(source)));
                let [first, second] = DEVICES.map(Tier::Device);
                assert_eq!((peer.tier, tier), (first, second));
                vec![*segment]
            }
        };
        self.feeds.insert(op, from);
    }

    fn see_free(&mut self, segment: SegmentId, tier: Tier) {
        assert!(!self.leased(segment), "{segment} is freed while leased");
        let there = self.segments[&segment];
        assert_eq!(there.tier, tier);
        if there.seen == Seen::Damaged {
            let mut spoilt = self.spoilt.values();
            assert!(spoilt.all(|by| !by.contains(&segment)), "{segment} is read");
            self.segments.get_mut(&segment).unwrap().seen = Seen::Freeing;
            return;
        }
        let Seen::Filled(content) = there.seen else {
            panic!("{segment} is freed while {:?}", there.seen)
        };
        self.segments.get_mut(&segment).unwrap().seen = Seen::Freeing;
        let other = self.filled_with(tier, content);
        for op in self.fed_by(segment) {
            // What is there twice may go: the copy from it goes on, and the other is kept for it.
            let from = self.feeds.get_mut(&op).unwrap();
            from.retain(|id| *id != segment);
            match other {
                Some(other) => from.push(other),
                None => assert!(self.is_lost(tier), "{segment} is freed while it feeds {op}"),
            }
        }
        if other.is_some() {
            return;
        }
        let (pinned, lost) = (self.pinned_sources(), self.is_lost(tier));
        self.loaded.retain(|(on, source)| {
            let gone = *on == tier && content_of(*source) == content;
            let kept = pinned.contains(source) && !lost;
            assert!(!gone || !kept, "{segment} is freed while pinned");
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
        match (&asked, reply) {
            (Asked::Open(wanted), Reply::Opened { .. }) => self.see_opened(key.0, wanted, reply),
            (Asked::Open(wanted), Reply::Refused(Refusal::DeviceLost { .. })) => {
                let Wanted::Device(any) = wanted else {
                    panic!("{wanted:?} needs no device")
                };
                assert!(any.devices.iter().all(|device| self.lost.contains(device)));
            }
            (Asked::Open(wanted), Reply::Refused(Refusal::NoImage)) => {
                assert!(matches!(wanted, Wanted::Device(_)), "{wanted:?}");
            }
            (Asked::Open(_), Reply::Failed(_) | Reply::Refused(_))
            | (Asked::Close, Reply::Closed | Reply::Refused(_))
            | (Asked::Cancel, Reply::Cancelled { .. })
            | (Asked::Evict, Reply::Evicted { .. } | Reply::Refused(_)) => {}
            (asked, reply) => panic!("{reply:?} to {asked:?}"),
        }
    }

    fn see_opened(&mut self, session: SessionId, wanted: &Wanted, reply: &Reply) {
        let Reply::Opened {
            lease,
            version,
            tier,
            segments,
            ..
        } = reply
        else {
            unreachable!()
        };
        assert!(wants(wanted, *tier), "{tier} for {wanted:?}");
        assert!(!self.is_lost(*tier), "{tier} is lost");
        let named = sources_on(*version, *tier).into_iter();
        let named: Vec<_> = named.map(|(of, on)| (on, content_of(of))).collect();
        let is_table = |source| parts_of(*version).contains(&(source, Part::Table));
        let early = |source| *wanted == Wanted::Layout && !is_table(source);
        let given = segments.iter().map(|segment| {
            let there = self.segments[segment];
            match there.seen {
                Seen::Filled(content) => (there.tier, content),
                // It will hold that, or be taken away again.
                Seen::Loading(source) if early(source) && self.laid.contains(segment) => {
                    (there.tier, content_of(source))
                }
                seen @ (Seen::Loading(_) | Seen::Damaged | Seen::Freeing) => {
                    panic!("{segment} is lent while {seen:?}")
                }
            }
        });
        assert_eq!(
            given.collect::<Vec<_>>(),
            named,
            "other bytes than the version's"
        );
        let held = Held {
            version: *version,
            tier: *tier,
            segments: segments.to_vec(),
            reserve: wanted.reserve_on(*tier).0,
        };
        let before = self.leases.insert((session, *lease), held);
        assert!(before.is_none(), "{lease} twice");
    }
}
