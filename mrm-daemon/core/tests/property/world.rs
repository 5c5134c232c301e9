//! A shell, its clients and their files, driven by random acts.

mod rest;

use crate::files::{DEVICES, content_of, facts_of, wanted};
use crate::oracle::{Asked, Oracle, Seen};
use mrm_core::effect::Effect;
use mrm_core::event::{Event, Fault, LoadFailure, Resolution, Wishes};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::{Config, Core, DeviceConfig, Prefetch, invariants};
use std::collections::{BTreeMap, BTreeSet};

const MODELS: u64 = 6;

/// Something that happens. Indexes are taken modulo what there is.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Connect,
    Disconnect(u8),
    Open {
        who: u8,
        model: u8,
        place: u8,
        wait: u8,
    },
    Close {
        lease: u8,
        answer: bool,
    },
    CloseUnknown(u8),
    Cancel {
        which: u8,
        answer: bool,
    },
    Evict {
        who: u8,
        model: u8,
        tier: u8,
    },
    Wish {
        model: u8,
        pinned: bool,
        eager: bool,
    },
    Changed(u8),
    Rewrite {
        model: u8,
        version: u8,
    },
    Limit {
        tier: u8,
        budget: u8,
        less: u8,
    },
    Lose(u8),
    /// What one of the segments holds is found damaged; also of one that is not there.
    Damage(u8),
    /// One of the policies for a tier.
    Policy {
        tier: u8,
        which: u8,
    },
    /// Luck 0: fails; 1 and 2: the device has less than was thought, which 1 says before.
    Complete {
        which: u8,
        luck: u8,
    },
    /// The memory of a load is there.
    Lay(u8),
    /// It is thrown away.
    Unlay(u8),
    Advance(u8),
    /// So many seconds.
    Sleep(u8),
    /// A model is said to come in so many seconds.
    Hint {
        model: u8,
        in_s: u8,
    },
    /// Loading ahead: off, on, all of the time.
    Prefetch(u8),
}

#[derive(Debug)]
pub(crate) struct World {
    core: Core,
    now: Time,
    oracle: Oracle,
    next_session: u64,
    next_request: u64,
    /// What each model's file is now.
    files: BTreeMap<ModelId, VersionId>,
    /// Resolutions in flight whose model changed since.
    outdated: BTreeSet<OpId>,
}

fn tiers() -> [Tier; 3] {
    let [first, second] = DEVICES.map(Tier::Device);
    [Tier::Host, first, second]
}

fn fault() -> Fault {
    Fault {
        code: 303,
        message: "bad luck".into(),
    }
}

fn pick<T: Copy>(from: impl Iterator<Item = T>, index: u8) -> Option<T> {
    let all: Vec<T> = from.collect();
    (!all.is_empty()).then(|| all[usize::from(index) % all.len()])
}

impl World {
    /// A host and two devices. Which policies they begin with are three indexes.
    pub(crate) fn new(policies: [u8; 3], prefetch: bool) -> Self {
        let device = |budget, pieces_max| DeviceConfig {
            pieces_max,
            ..DeviceConfig::with_budget(Bytes(budget))
        };
        let [host, first, second] = policies;
        let first = DeviceConfig {
            policy: crate::policies::choice(first),
            ..device(7, 5)
        };
        let second = DeviceConfig {
            peers: vec![DEVICES[0]],
            policy: crate::policies::choice(second),
            ..device(5, 4)
        };
        let config = Config {
            segments_max: 7,
            waiting_max: 6,
            leases_per_session_max: 4,
            revalidate_ms: 2,
            policy: crate::policies::choice(host),
            prefetch: Prefetch {
                enabled: prefetch,
                ..Prefetch::default()
            },
            devices: vec![first, second],
            ..Config::with_limit(Bytes(12))
        };
        let limits = [
            (Tier::Host, 12),
            (Tier::Device(DEVICES[0]), 7),
            (Tier::Device(DEVICES[1]), 5),
        ];
        let mut core = Core::new(config);
        for (tier, which) in tiers().into_iter().zip(policies) {
            crate::policies::install(&mut core, tier, which);
        }
        Self {
            core,
            now: Time(0),
            oracle: Oracle {
                limits: limits.into(),
                ..Oracle::default()
            },
            next_session: 0,
            next_request: 0,
            files: (0..MODELS)
                .map(|model| (ModelId(model), VersionId(model)))
                .collect(),
            outdated: BTreeSet::new(),
        }
    }

    fn handle(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.core.handle(self.now, event, &mut effects).unwrap();
        for effect in &effects {
            self.oracle.see(effect);
        }
        // A debug build has checked them already.
        if !cfg!(debug_assertions) {
            invariants::check(&self.core).unwrap();
        }
        self.look_at_what_is_ahead();
        self.compare();
    }

    /// Nothing is loaded ahead while an open waits, nor in place of what is worth more.
    fn look_at_what_is_ahead(&self) {
        for foreseen in self.core.view().foreseen() {
            let opens = self.oracle.asked.values();
            let mut opens = opens.filter(|asked| matches!(asked, Asked::Open(_)));
            assert!(opens.next().is_none(), "{foreseen:?}");
            assert!(foreseen.displaced <= foreseen.worth, "{foreseen:?}");
        }
    }

    fn compare(&self) {
        let view = self.core.view();
        let records = view.records();
        for tier in tiers() {
            let ledger = view.ledger(tier);
            let in_memory = ledger.charged.saturating_sub(ledger.reserved).0;
            let charged = (in_memory, ledger.segments);
            assert_eq!(charged, self.oracle.charged(tier), "{tier}");
            let (reserved, by_leases) = (ledger.reserved.0, self.oracle.reserved(tier));
            // The rest is kept free for opens that were admitted.
            let right = reserved == by_leases || reserved > by_leases && records.waiting > 0;
            assert!(
                right,
                "{reserved} of {tier} are kept free, {by_leases} for leases"
            );
            assert_eq!(ledger.limit.0, self.oracle.limits[&tier], "{tier}");
        }
        self.oracle.expect_lent();
        let leases: BTreeSet<_> = view
            .leases()
            .map(|lease| (lease.session, lease.lease))
            .collect();
        assert_eq!(leases, self.oracle.leases.keys().copied().collect());
        let sessions: BTreeSet<_> = view.sessions().map(|session| session.session).collect();
        assert_eq!(sessions, self.oracle.sessions);
        let pending = self.oracle.asked.len();
        let records = view.records();
        assert_eq!(
            records.waiting + records.evictions,
            pending,
            "an answer is missing"
        );
        assert_eq!(view.ops_in_flight(), self.oracle.in_flight.len());
    }

    fn request(&mut self, session: SessionId, asked: Asked) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.oracle.asked.insert((session, request), asked);
        request
    }

    fn who(&self, index: u8) -> Option<SessionId> {
        pick(self.oracle.sessions.iter().copied(), index)
    }

    pub(crate) fn act(&mut self, act: &Act) {
        match *act {
            Act::Connect => self.connect(),
            Act::Disconnect(who) => self.disconnect(who),
            Act::Open {
                who,
                model,
                place,
                wait,
            } => self.open(who, ModelId(u64::from(model)), place, wait),
            Act::Close { lease, answer } => self.close(lease, answer),
            Act::CloseUnknown(who) => self.close_unknown(who),
            Act::Cancel { which, answer } => self.cancel(which, answer),
            Act::Evict { who, model, tier } => {
                let tier = tiers().into_iter().nth(usize::from(tier));
                self.evict(who, ModelId(u64::from(model)), tier);
            }
            Act::Wish {
                model,
                pinned,
                eager,
            } => {
                self.wish(ModelId(u64::from(model)), Wishes { pinned, eager });
            }
            Act::Changed(model) => self.changed(ModelId(u64::from(model))),
            Act::Rewrite { model, version } => {
                let version = VersionId(u64::from(version) % 10);
                self.files.insert(ModelId(u64::from(model)), version);
            }
            Act::Limit { tier, budget, less } => {
                let tier = tiers()[usize::from(tier) % 3];
                let limit = budget.saturating_sub(less);
                self.limit(tier, u64::from(budget), u64::from(limit));
            }
            Act::Policy { tier, which } => {
                let tier = tiers()[usize::from(tier) % 3];
                let policy = crate::policies::choice(which);
                self.handle(Event::SetPolicy { tier, policy });
            }
            Act::Lose(which) => self.lose(DEVICES[usize::from(which) % 2]),
            Act::Damage(which) => self.damage(which),
            Act::Complete { which, luck } => {
                if let Some(op) = pick(self.oracle.in_flight.keys().copied(), which) {
                    self.complete(op, luck);
                }
            }
            Act::Lay(which) => self.lay(which),
            Act::Unlay(which) => self.unlay(which),
            Act::Advance(steps) => {
                self.now = Time(self.now.0 + u64::from(steps) * 100);
                self.tick_if_due();
            }
            Act::Sleep(seconds) => {
                self.now = self.now.after_ms(u64::from(seconds) * 1000);
                self.tick_if_due();
            }
            Act::Hint { model, in_s } => {
                let model = ModelId(u64::from(model));
                let due = self.now.after_ms(u64::from(in_s) * 1000);
                self.handle(Event::Hint { model, due });
            }
            Act::Prefetch(which) => self.handle(Event::SetPrefetch(Prefetch {
                enabled: which > 0,
                share_percent: [0, 20, 100][usize::from(which)],
            })),
        }
    }

    fn connect(&mut self) {
        self.next_session += 1;
        let session = SessionId(self.next_session);
        self.oracle.sessions.insert(session);
        self.handle(Event::SessionOpened {
            session,
            tenant: Tenant(0),
        });
    }

    fn disconnect(&mut self, who: u8) {
        let Some(session) = self.who(who) else { return };
        self.oracle.sessions.remove(&session);
        self.oracle.leases.retain(|key, _| key.0 != session);
        self.oracle.asked.retain(|key, _| key.0 != session);
        self.handle(Event::SessionClosed { session });
    }

    fn limit(&mut self, tier: Tier, budget: u64, limit: u64) {
        if !self.oracle.is_lost(tier) {
            self.oracle.limits.insert(tier, limit);
        }
        self.handle(Event::SetLimit {
            tier,
            budget: Bytes(budget),
            limit: Bytes(limit),
        });
    }

    fn lose(&mut self, device: DeviceId) {
        let tier = Tier::Device(device);
        self.oracle.lost.insert(device);
        self.oracle.limits.insert(tier, 0);
        let segments = &self.oracle.segments;
        let there = |segment| segments.get(segment).is_some_and(|s| s.tier == tier);
        let feeds = self.oracle.feeds.iter();
        let fed = feeds.filter(|(_, from)| from.iter().any(there));
        let fed: Vec<OpId> = fed.map(|(op, _)| *op).collect();
        self.oracle.starved.extend(fed);
        self.handle(Event::DeviceLost {
            device,
            fault: fault(),
        });
        let leases = &self.oracle.leases;
        assert!(leases.values().all(|held| held.tier != tier));
        let filled = self.oracle.segments.values();
        let left = filled.filter(|there| there.tier == tier);
        assert!(
            left.clone()
                .all(|there| !matches!(there.seen, Seen::Filled(_)))
        );
    }

    fn damage(&mut self, which: u8) {
        let Some(segment) = pick(self.oracle.segments.keys().copied(), which) else {
            return;
        };
        if matches!(self.oracle.segments[&segment].seen, Seen::Filled(_)) {
            self.oracle.damage(segment);
        }
        let fault = fault();
        self.handle(Event::Damaged { segment, fault });
        self.oracle.all_are_told();
    }

    fn open(&mut self, who: u8, model: ModelId, place: u8, wait: u8) {
        let Some(session) = self.who(who) else { return };
        let wanted = wanted(place);
        let request = self.request(session, Asked::Open(wanted.clone()));
        let deadline = Time(self.now.0 + u64::from(wait) * 200);
        self.handle(Event::Open {
            session,
            request,
            model,
            wanted,
            deadline,
        });
    }

    fn close_unknown(&mut self, who: u8) {
        let Some(session) = self.who(who) else { return };
        let request = Some(self.request(session, Asked::Close));
        self.handle(Event::Close {
            session,
            request,
            lease: LeaseId(u64::MAX),
        });
    }

    fn cancel(&mut self, which: u8, answer: bool) {
        let Some((session, target)) = pick(self.oracle.asked.keys().copied(), which) else {
            return;
        };
        let request = answer.then(|| self.request(session, Asked::Cancel));
        self.handle(Event::Cancel {
            session,
            request,
            target,
        });
    }

    fn evict(&mut self, who: u8, model: ModelId, tier: Option<Tier>) {
        let Some(session) = self.who(who) else { return };
        let request = self.request(session, Asked::Evict);
        let current = self
            .core
            .view()
            .model(model)
            .and_then(|model| model.version);
        let version = current.unwrap_or(VersionId(99));
        self.handle(Event::Evict {
            session,
            request,
            version,
            tier,
        });
    }

    fn wish(&mut self, model: ModelId, wishes: Wishes) {
        if wishes.pinned {
            self.oracle.pinned.insert(model);
        } else {
            self.oracle.pinned.remove(&model);
        }
        self.handle(Event::Configure { model, wishes });
    }

    fn close(&mut self, lease: u8, answer: bool) {
        let Some((session, lease)) = pick(self.oracle.leases.keys().copied(), lease) else {
            return;
        };
        let request = answer.then(|| self.request(session, Asked::Close));
        self.oracle.leases.remove(&(session, lease));
        self.oracle.told.remove(&(session, lease));
        self.handle(Event::Close {
            session,
            request,
            lease,
        });
    }

    fn changed(&mut self, model: ModelId) {
        self.oracle.current.remove(&model);
        for (op, effect) in &self.oracle.in_flight {
            if matches!(effect, Effect::Resolve { model: other, .. } if *other == model) {
                self.outdated.insert(*op);
            }
        }
        self.handle(Event::ModelChanged { model });
    }

    fn tick_if_due(&mut self) {
        if self
            .core
            .next_deadline()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.handle(Event::Tick);
            assert!(
                self.core
                    .next_deadline()
                    .is_none_or(|deadline| deadline > self.now)
            );
        }
    }

    fn complete(&mut self, op: OpId, luck: u8) {
        match self.oracle.in_flight[&op].clone() {
            Effect::Resolve { model, .. } => {
                self.oracle.in_flight.remove(&op);
                self.resolved(op, model, luck);
            }
            Effect::Load { .. } => self.loaded(op, luck),
            Effect::Free { segment, .. } => {
                self.oracle.in_flight.remove(&op);
                assert_eq!(
                    self.oracle.segments.remove(&segment).unwrap().seen,
                    Seen::Freeing
                );
                self.handle(Event::Freed { op });
            }
            Effect::Adopted { .. } => panic!("nothing was left"),
            effect @ (Effect::Reply { .. } | Effect::Revoke { .. } | Effect::Forget { .. }) => {
                panic!("{effect:?} settles")
            }
        }
    }

    fn resolved(&mut self, op: OpId, model: ModelId, luck: u8) {
        let outdated = self.outdated.remove(&op);
        let outcome = if luck == 0 {
            Err(fault())
        } else {
            let version = self.files[&model];
            if !outdated {
                self.oracle.current.insert(model, version);
            }
            let segments = facts_of(version);
            Ok(Resolution { version, segments })
        };
        self.handle(Event::Resolved { op, outcome });
    }

    fn loaded(&mut self, op: OpId, luck: u8) {
        let Effect::Load {
            segment,
            source,
            tier,
            ..
        } = self.oracle.in_flight[&op].clone()
        else {
            unreachable!()
        };
        let starved = self.oracle.starved.contains(&op);
        if luck > 2 && !starved {
            let from = self.oracle.feeds.get(&op).into_iter().flatten();
            let mut states = from.map(|segment| self.oracle.segments[segment].seen);
            if states.any(|seen| matches!(seen, Seen::Loading(_))) {
                // What it is filled from is not there yet.
                return;
            }
        }
        if luck % 5 == 4 {
            let took_us = u64::from(luck) * 1000;
            self.handle(Event::Took { op, took_us });
        }
        if luck == 1 && tier != Tier::Host {
            let limit = self.oracle.limits[&tier];
            self.limit(tier, limit, limit / 2);
        }
        self.oracle.in_flight.remove(&op);
        self.oracle.feeds.remove(&op);
        self.oracle.starved.remove(&op);
        let spoilt = self.oracle.spoilt.remove(&op).is_some();
        let outcome = if luck > 2 && !starved {
            let content = content_of(source);
            let seen = if spoilt && !self.oracle.is_lost(tier) {
                Seen::Damaged
            } else {
                self.oracle.loaded.insert((tier, source));
                Seen::Filled(content)
            };
            self.oracle.segments.get_mut(&segment).unwrap().seen = seen;
            Ok(content)
        } else {
            let gone = self.oracle.segments.remove(&segment).unwrap();
            assert_eq!(gone.seen, Seen::Loading(source));
            self.oracle.starved.extend(self.oracle.fed_by(segment));
            Err(match luck {
                1 | 2 if !starved => LoadFailure::OutOfMemory(fault()),
                _ => LoadFailure::Fault(fault()),
            })
        };
        self.handle(Event::Loaded { op, outcome });
    }

    fn lay(&mut self, which: u8) {
        let bare = self.oracle.in_flight.iter().filter_map(|(op, effect)| {
            let Effect::Load { segment, tier, .. } = effect else {
                return None;
            };
            let bare = *tier == Tier::Host && !self.oracle.laid.contains(segment);
            bare.then_some((*op, *segment))
        });
        if let Some((op, segment)) = pick(bare, which) {
            self.oracle.laid.insert(segment);
            self.handle(Event::Laid { op });
        }
    }

    fn unlay(&mut self, which: u8) {
        let laid = self.oracle.in_flight.iter().filter_map(|(op, effect)| {
            let Effect::Load { segment, .. } = effect else {
                return None;
            };
            self.oracle
                .laid
                .contains(segment)
                .then_some((*op, *segment))
        });
        if let Some((op, segment)) = pick(laid, which) {
            self.oracle.laid.remove(&segment);
            let fault = fault();
            self.handle(Event::Unlaid { op, fault });
        }
    }
}
