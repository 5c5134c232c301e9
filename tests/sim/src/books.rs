//! What a daemon must look like from outside: small, naive, and kept from events and effects alone.
//!
//! The decider has books of its own, and invariants over them. These are apart from both: what the
//! decider forgets, they remember.

use crate::breach::{Checked, Rule, breach, ensure};
use mrm_core::effect::{Effect, Feed, Reply};
use mrm_core::event::{Event, Wanted};
use mrm_core::id::{DeviceId, LeaseId, OpId, RequestId, SegmentId, SessionId, Time};
use mrm_core::ledger::Tier;
use mrm_core::{Config, Core};
use std::collections::{BTreeMap, BTreeSet};

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    /// Its memory is there: it may be lent.
    Laid,
    Resident,
    Damaged,
    Freeing,
}

#[derive(Debug)]
struct Segment {
    tier: Tier,
    bytes: u64,
    pieces: u64,
    stage: Stage,
}

/// What an unanswered request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Open {
        deadline: Time,
        /// The layout will do.
        early: bool,
        /// What is to stay free, if it comes to be on a device.
        reserve: u64,
    },
    Close,
    Cancel,
    Evict,
    Resume,
}

impl Asked {
    fn open(deadline: Time, wanted: &Wanted) -> Self {
        Self::Open {
            deadline,
            early: *wanted == Wanted::Layout,
            reserve: wanted.reserve_on(Tier::Device(DeviceId(0))).0,
        }
    }
}

/// An effect in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Resolve,
    Load(SegmentId),
    Free(SegmentId),
}

#[derive(Debug)]
struct Lease {
    tier: Tier,
    segments: Vec<SegmentId>,
    /// Its client was told that what it is on is damaged.
    told: bool,
    /// What it keeps free of its tier; `None` when it was taken up again: that or nothing.
    reserve: Option<u64>,
}

/// The books.
#[derive(Debug)]
pub(crate) struct Books {
    limits: BTreeMap<Tier, u64>,
    pieces_max: BTreeMap<Tier, u64>,
    lost: BTreeSet<DeviceId>,
    sessions: BTreeSet<SessionId>,
    asked: BTreeMap<(SessionId, RequestId), Asked>,
    leases: BTreeMap<(SessionId, LeaseId), Lease>,
    segments: BTreeMap<SegmentId, Segment>,
    ops: BTreeMap<OpId, Op>,
    /// What loads in flight are filled from.
    feeds: BTreeMap<OpId, Vec<SegmentId>>,
    /// Loads in flight that are filled from what is damaged.
    spoilt: BTreeSet<OpId>,
    /// What was leased that is being asked for again.
    had: Vec<(Tier, Vec<SegmentId>)>,
    last_op: OpId,
    last_segment: SegmentId,
}

impl Books {
    pub(crate) fn new(config: &Config) -> Self {
        let devices = (0..=u16::MAX)
            .map(|n| Tier::Device(DeviceId(n)))
            .zip(&config.devices);
        let mut limits = BTreeMap::from([(Tier::Host, config.limit.0)]);
        limits.extend(
            devices
                .clone()
                .map(|(tier, device)| (tier, device.budget.0)),
        );
        let mut pieces_max = BTreeMap::from([(Tier::Host, config.segments_max)]);
        pieces_max.extend(devices.map(|(tier, device)| (tier, device.pieces_max)));
        Self {
            limits,
            pieces_max,
            lost: BTreeSet::new(),
            sessions: BTreeSet::new(),
            asked: BTreeMap::new(),
            leases: BTreeMap::new(),
            segments: BTreeMap::new(),
            ops: BTreeMap::new(),
            feeds: BTreeMap::new(),
            spoilt: BTreeSet::new(),
            had: Vec::new(),
            last_op: OpId(0),
            last_segment: SegmentId(0),
        }
    }

    /// Bytes and pieces that are charged on a tier.
    pub(crate) fn charged(&self, tier: Tier) -> (u64, u64) {
        let here = self.segments.values().filter(|there| there.tier == tier);
        here.fold((0, 0), |sum, there| {
            (sum.0 + there.bytes, sum.1 + there.pieces)
        })
    }

    /// Whether an open is unanswered.
    pub(crate) fn waits(&self) -> bool {
        let open = |asked: &Asked| matches!(asked, Asked::Open { .. });
        self.asked.values().any(open)
    }

    /// Takes note of an event, before the decider is told.
    pub(crate) fn happens(&mut self, event: &Event) -> Checked {
        match event {
            Event::SessionOpened { session, .. } => {
                self.sessions.insert(*session);
            }
            Event::SessionClosed { session } => {
                self.sessions.remove(session);
                self.asked.retain(|key, _| key.0 != *session);
                self.leases.retain(|key, _| key.0 != *session);
            }
            Event::Open {
                session,
                request,
                deadline,
                wanted,
                ..
            } => {
                let asked = Asked::open(*deadline, wanted);
                self.ask(*session, Some(*request), asked);
            }
            Event::Close {
                session,
                request,
                lease,
            } => {
                self.leases.remove(&(*session, *lease));
                self.ask(*session, *request, Asked::Close);
            }
            Event::Cancel {
                session, request, ..
            } => self.ask(*session, *request, Asked::Cancel),
            Event::Evict {
                session, request, ..
            } => self.ask(*session, Some(*request), Asked::Evict),
            Event::Resume {
                session, request, ..
            } => self.ask(*session, Some(*request), Asked::Resume),
            Event::SetLimit {
                tier,
                budget,
                limit,
            } if !self.is_lost(*tier) => {
                self.limits.insert(*tier, limit.0.min(budget.0));
            }
            Event::DeviceLost { device, .. } => {
                self.lost.insert(*device);
                self.limits.insert(Tier::Device(*device), 0);
            }
            Event::Damaged { segment, .. } => self.damaged(*segment),
            Event::Resolved { op, .. } => self.ends(*op, |op| op == Op::Resolve)?,
            Event::Laid { op } => self.turns(*op, Stage::Loading, Stage::Laid)?,
            Event::Unlaid { op, .. } => self.turns(*op, Stage::Laid, Stage::Loading)?,
            Event::Loaded { op, outcome } => self.loaded(*op, outcome.is_ok())?,
            Event::Freed { op } => self.freed(*op)?,
            Event::SetLimit { .. }
            | Event::Configure { .. }
            | Event::ModelChanged { .. }
            | Event::Adopt(_)
            | Event::Identified { .. }
            | Event::Drain
            | Event::SetPolicy { .. }
            | Event::Took { .. }
            | Event::SetPrefetch(_)
            | Event::Hint { .. }
            | Event::Recall { .. }
            | Event::RecallAll(_)
            | Event::Tick => {}
        }
        Ok(())
    }

    fn ask(&mut self, session: SessionId, request: Option<RequestId>, asked: Asked) {
        if let Some(request) = request {
            self.asked.insert((session, request), asked);
        }
    }

    fn is_lost(&self, tier: Tier) -> bool {
        matches!(tier, Tier::Device(device) if self.lost.contains(&device))
    }

    fn ends(&mut self, id: OpId, right: impl FnOnce(Op) -> bool) -> Checked {
        let op = self.ops.remove(&id);
        ensure(op.is_some_and(right), Rule::Effects, || {
            format!("{id} ends: {op:?}")
        })
    }

    /// What a load fills comes from one stage to another.
    fn turns(&mut self, op: OpId, from: Stage, to: Stage) -> Checked {
        let Some(Op::Load(segment)) = self.ops.get(&op) else {
            return breach(Rule::Effects, format!("{op} is no load"));
        };
        let Some(loading) = self.segments.get_mut(segment) else {
            return breach(Rule::Effects, format!("{segment} is not there"));
        };
        let before = std::mem::replace(&mut loading.stage, to);
        ensure(before == from, Rule::Effects, || {
            format!("{to:?} is what is {before:?}")
        })
    }

    fn loaded(&mut self, op: OpId, there: bool) -> Checked {
        let Some(Op::Load(segment)) = self.ops.remove(&op) else {
            return breach(Rule::Effects, format!("{op} is no load"));
        };
        self.feeds.remove(&op);
        let spoilt = self.spoilt.remove(&op);
        match self.segments.get_mut(&segment) {
            Some(loading) if there && spoilt => loading.stage = Stage::Damaged,
            Some(loading) if there => loading.stage = Stage::Resident,
            Some(_) => drop(self.segments.remove(&segment)),
            None => return breach(Rule::Effects, format!("{segment} is not there")),
        }
        Ok(())
    }

    /// Nobody gets this any more, nor what is being filled from it.
    fn damaged(&mut self, segment: SegmentId) {
        match self.segments.get_mut(&segment) {
            Some(there) if there.stage == Stage::Resident => there.stage = Stage::Damaged,
            Some(_) | None => return,
        }
        let fed = self.feeds.iter();
        let fed = fed.filter(|(_, from)| from.contains(&segment));
        self.spoilt.extend(fed.map(|(op, _)| *op));
    }

    fn is_damaged(&self, lease: &Lease) -> bool {
        lease.segments.iter().any(|segment| {
            let there = self.segments.get(segment);
            there.is_some_and(|there| there.stage == Stage::Damaged)
        })
    }

    /// Whether what was lent before it was whole never will be: a load failed or began anew, or
    /// something of it is damaged before the rest is there.
    fn never_whole(&self, lease: &Lease) -> bool {
        let stage = |id: &SegmentId| self.segments.get(id).map(|there| there.stage);
        let anew = |id| matches!(stage(id), None | Some(Stage::Loading));
        let failed = lease.segments.iter().any(anew);
        let laid = |id| stage(id) == Some(Stage::Laid);
        failed || self.is_damaged(lease) && lease.segments.iter().any(laid)
    }

    fn see_revoke(&mut self, key: (SessionId, LeaseId), gone: bool) -> Checked {
        let right = if gone {
            let lease = self.leases.remove(&key);
            lease.is_some_and(|lease| self.is_lost(lease.tier) || self.never_whole(&lease))
        } else {
            let lease = self.leases.get(&key);
            let right = lease.is_some_and(|lease| !lease.told && self.is_damaged(lease));
            if let Some(lease) = self.leases.get_mut(&key) {
                lease.told = true;
            }
            right
        };
        ensure(right, Rule::Effects, || {
            format!("{key:?} is revoked for nothing")
        })
    }

    fn freed(&mut self, op: OpId) -> Checked {
        let Some(Op::Free(segment)) = self.ops.remove(&op) else {
            return breach(Rule::Effects, format!("{op} is no free"));
        };
        let gone = self.segments.remove(&segment);
        let right = gone.is_some_and(|gone| gone.stage == Stage::Freeing);
        ensure(right, Rule::Effects, || {
            format!("{segment} was not being freed")
        })
    }

    /// Looks at an effect. `size`: bytes and pieces of what is taken over or loaded.
    pub(crate) fn see(&mut self, effect: &Effect, size: (u64, u64)) -> Checked {
        match effect {
            Effect::Resolve { op, .. } => self.starts(*op, Op::Resolve),
            Effect::Load {
                op,
                segment,
                tier,
                charge,
                feed,
                ..
            } => {
                self.starts(*op, Op::Load(*segment))?;
                match feed {
                    Feed::Source => None,
                    Feed::Host(segments) => self.feeds.insert(*op, segments.to_vec()),
                    Feed::Peer(segment) => self.feeds.insert(*op, vec![*segment]),
                };
                self.see_load(*segment, *tier, charge.0, size.1)
            }
            Effect::Free { op, segment, tier } => {
                self.starts(*op, Op::Free(*segment))?;
                self.see_free(*segment, *tier)
            }
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
            } => self.see_reply(*session, *request, reply),
            Effect::Adopted { segment, tier, .. } => self.adopted(*segment, *tier, size),
            Effect::Forget { .. } => Ok(()),
        }
    }

    fn starts(&mut self, id: OpId, op: Op) -> Checked {
        let new = id > self.last_op;
        self.last_op = self.last_op.max(id);
        self.ops.insert(id, op);
        ensure(new, Rule::Effects, || format!("{id} starts twice"))
    }

    fn adopted(&mut self, segment: SegmentId, tier: Tier, (bytes, pieces): (u64, u64)) -> Checked {
        let new = segment > self.last_segment && !self.is_lost(tier);
        self.last_segment = self.last_segment.max(segment);
        let stage = Stage::Resident;
        let there = Segment {
            tier,
            bytes,
            pieces,
            stage,
        };
        self.segments.insert(segment, there);
        ensure(new && bytes > 0, Rule::Effects, || {
            format!("{segment} is taken over on {tier}")
        })
    }

    /// What each lease is on that is asked for again.
    pub(crate) fn resumes(&mut self, had: Vec<(Tier, Vec<SegmentId>)>) {
        self.had = had;
    }

    fn see_resumed(&mut self, session: SessionId, leases: &[Option<LeaseId>]) -> Checked {
        let had = std::mem::take(&mut self.had);
        ensure(had.len() == leases.len(), Rule::Answers, || {
            format!("{leases:?} for {had:?}")
        })?;
        for (lease, (tier, segments)) in leases.iter().zip(had) {
            if let Some(lease) = lease {
                self.see_opened((session, *lease), (tier, false, None), &segments)?;
            }
        }
        Ok(())
    }

    fn see_load(&mut self, segment: SegmentId, tier: Tier, bytes: u64, pieces: u64) -> Checked {
        let new = segment > self.last_segment;
        self.last_segment = self.last_segment.max(segment);
        let stage = Stage::Loading;
        self.segments.insert(
            segment,
            Segment {
                tier,
                bytes,
                pieces,
                stage,
            },
        );
        ensure(new && !self.is_lost(tier), Rule::Effects, || {
            format!("{segment} is loaded on {tier}")
        })?;
        let charged = self.charged(tier);
        let limit = self.limits.get(&tier).copied().unwrap_or(0);
        let pieces_max = self.pieces_max.get(&tier).copied().unwrap_or(0);
        ensure(
            charged.0 <= limit && charged.1 <= pieces_max,
            Rule::Budget,
            || format!("{charged:?} of {limit} B in {pieces_max} pieces are charged on {tier}"),
        )
    }

    fn see_free(&mut self, segment: SegmentId, tier: Tier) -> Checked {
        let leased = self
            .leases
            .values()
            .any(|lease| lease.segments.contains(&segment));
        ensure(!leased, Rule::Held, || {
            format!("{segment} is freed while leased")
        })?;
        let Some(there) = self.segments.get_mut(&segment) else {
            return breach(Rule::Effects, format!("{segment} is freed, but not there"));
        };
        let before = std::mem::replace(&mut there.stage, Stage::Freeing);
        ensure(
            matches!(before, Stage::Resident | Stage::Damaged) && there.tier == tier,
            Rule::Effects,
            || format!("{segment} is freed while {before:?}"),
        )
    }

    fn see_reply(&mut self, session: SessionId, request: RequestId, reply: &Reply) -> Checked {
        let key = (session, request);
        ensure(self.sessions.contains(&session), Rule::Answers, || {
            format!("{session} is closed, but answered")
        })?;
        let asked = self.asked.remove(&key);
        let right = match (asked, reply) {
            (
                Some(Asked::Open { early, reserve, .. }),
                Reply::Opened {
                    lease,
                    tier,
                    segments,
                    ..
                },
            ) => {
                let reserve = if *tier == Tier::Host { 0 } else { reserve };
                let how = (*tier, early, Some(reserve));
                return self.see_opened((session, *lease), how, segments);
            }
            (Some(Asked::Resume), Reply::Resumed { leases }) => {
                return self.see_resumed(session, leases);
            }
            (Some(Asked::Open { .. }), Reply::Failed(_) | Reply::Refused(_))
            | (Some(Asked::Close), Reply::Closed | Reply::Refused(_))
            | (Some(Asked::Cancel), Reply::Cancelled { .. })
            | (Some(Asked::Evict), Reply::Evicted { .. } | Reply::Refused(_)) => true,
            (_, _) => false,
        };
        ensure(right, Rule::Answers, || {
            format!("{key:?}: {reply:?} to {asked:?}")
        })
    }

    fn see_opened(
        &mut self,
        key: (SessionId, LeaseId),
        (tier, early, reserve): (Tier, bool, Option<u64>),
        segments: &[SegmentId],
    ) -> Checked {
        for segment in segments {
            let stage = self.segments.get(segment).map(|there| there.stage);
            let laid = early && stage == Some(Stage::Laid);
            ensure(laid || stage == Some(Stage::Resident), Rule::Held, || {
                format!("{segment} is lent while {stage:?}")
            })?;
        }
        ensure(!self.is_lost(tier), Rule::Held, || {
            format!("{tier} is lost, but lent")
        })?;
        let segments = segments.to_vec();
        let told = false;
        let lease = Lease {
            tier,
            segments,
            told,
            reserve,
        };
        let before = self.leases.insert(key, lease);
        ensure(before.is_none(), Rule::Answers, || {
            format!("{key:?} is granted twice")
        })
    }

    /// What leases and admitted opens keep free is what they asked for, and charged.
    fn compare_reserves(&self, core: &Core) -> Checked {
        let view = core.view();
        for shown in view.leases() {
            let lease = self.leases.get(&(shown.session, shown.lease));
            let asked = lease.and_then(|lease| lease.reserve);
            let right = asked.is_none_or(|asked| asked == shown.reserve.0);
            ensure(right, Rule::Budget, || format!("{shown:?}, not {asked:?}"))?;
        }
        for tier in view.tiers() {
            let here = view.leases().filter(|lease| lease.tier == tier);
            let kept = here.map(|lease| lease.reserve).sum();
            let reserved = view.ledger(tier).reserved;
            let right = reserved == kept || reserved > kept && self.waits();
            ensure(right, Rule::Budget, || {
                format!("leases keep {kept} of {tier} free, {reserved} are")
            })?;
        }
        Ok(())
    }

    /// Compares with the decider. `ticked`: no open may wait for longer than this.
    pub(crate) fn compare(&self, core: &Core, ticked: Option<Time>) -> Checked {
        let view = core.view();
        for (tier, limit) in &self.limits {
            let ledger = view.ledger(*tier);
            let in_memory = ledger.charged.saturating_sub(ledger.reserved);
            let seen = (in_memory.0, ledger.segments);
            let charged = self.charged(*tier);
            ensure(
                seen == charged && ledger.limit.0 == *limit,
                Rule::Budget,
                || format!("{tier}: {charged:?} of {limit} is said to be {ledger:?}"),
            )?;
        }
        self.compare_reserves(core)?;
        let kept = self.leases.values().find(|lease| self.is_lost(lease.tier));
        ensure(kept.is_none(), Rule::Held, || {
            format!("{kept:?} is not revoked")
        })?;
        let untold = self.leases.values();
        let untold = untold
            .filter(|lease| !lease.told)
            .find(|lease| self.is_damaged(lease));
        ensure(untold.is_none(), Rule::Held, || {
            format!("{untold:?} is on what is damaged, and not told")
        })?;
        for ((session, lease), held) in &self.leases {
            let gone = |segment: &&SegmentId| !self.segments.contains_key(segment);
            let gone = held.segments.iter().find(gone);
            ensure(gone.is_none(), Rule::Held, || {
                format!("{gone:?} is gone, and leased by {lease} of {session}")
            })?;
        }
        let seen = view.leases().map(|lease| (lease.session, lease.lease));
        ensure(self.leases.keys().copied().eq(seen), Rule::Held, || {
            format!("leases are {:?}", view.leases().collect::<Vec<_>>())
        })?;
        let sessions = view.sessions().map(|session| session.session);
        ensure(
            self.sessions.iter().copied().eq(sessions),
            Rule::Session,
            || format!("sessions are {:?}", view.sessions().collect::<Vec<_>>()),
        )?;
        let records = view.records();
        let waiting = records.waiting + records.evictions;
        ensure(waiting == self.asked.len(), Rule::Answers, || {
            format!("{waiting} requests wait, of {:?}", self.asked)
        })?;
        ensure(records.ops == self.ops.len(), Rule::Effects, || {
            format!("{} effects are in flight: {:?}", records.ops, self.ops)
        })?;
        let late = self.asked.iter().find(|(_, asked)| match asked {
            Asked::Open { deadline, .. } => ticked.is_some_and(|now| *deadline <= now),
            Asked::Close | Asked::Cancel | Asked::Evict | Asked::Resume => false,
        });
        ensure(late.is_none(), Rule::Answers, || {
            format!("{late:?} is late")
        })
    }
}
