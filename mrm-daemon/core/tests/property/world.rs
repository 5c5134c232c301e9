//! A shell, its clients and their files, driven by random acts.

use crate::oracle::{Asked, Oracle, Seen, charge_of, content_of, sources_of};
use mrm_core::effect::Effect;
use mrm_core::event::{Event, Fault, LoadFailure, Part, Resolution, SegmentFact, Wanted, Wishes};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::view::RecordsView;
use mrm_core::{Config, Core, invariants};
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
    Limit(u8),
    /// Luck 0: fails; 1: a resolution that is of another version than the file is now.
    Complete {
        which: u8,
        luck: u8,
    },
    Advance(u8),
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

fn pick<T: Copy>(from: impl Iterator<Item = T>, index: u8) -> Option<T> {
    let all: Vec<T> = from.collect();
    (!all.is_empty()).then(|| all[usize::from(index) % all.len()])
}

impl World {
    pub(crate) fn new() -> Self {
        let config = Config {
            segments_max: 7,
            waiting_max: 6,
            leases_per_session_max: 4,
            revalidate_ms: 2,
            ..Config::with_limit(Bytes(12))
        };
        Self {
            core: Core::new(config),
            now: Time(0),
            oracle: Oracle {
                limit: 12,
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
        self.compare();
    }

    fn compare(&self) {
        let view = self.core.view();
        assert_eq!(view.ledger(Tier::Host).charged.0, self.oracle.charged());
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
            Act::Open { who, model, wait } => self.open(who, ModelId(u64::from(model)), wait),
            Act::Close { lease, answer } => self.close(lease, answer),
            Act::CloseUnknown(who) => self.close_unknown(who),
            Act::Cancel { which, answer } => self.cancel(which, answer),
            Act::Evict { who, model } => self.evict(who, ModelId(u64::from(model))),
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
            Act::Limit(limit) => {
                self.oracle.limit = u64::from(limit);
                self.handle(Event::SetLimit {
                    tier: Tier::Host,
                    budget: Bytes(self.oracle.limit),
                    limit: Bytes(self.oracle.limit),
                });
            }
            Act::Complete { which, luck } => {
                if let Some(op) = pick(self.oracle.in_flight.keys().copied(), which) {
                    self.complete(op, luck);
                }
            }
            Act::Advance(steps) => {
                self.now = Time(self.now.0 + u64::from(steps) * 100);
                self.tick_if_due();
            }
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

    fn open(&mut self, who: u8, model: ModelId, wait: u8) {
        let Some(session) = self.who(who) else { return };
        let request = self.request(session, Asked::Open);
        let deadline = Time(self.now.0 + u64::from(wait) * 200);
        self.handle(Event::Open {
            session,
            request,
            model,
            wanted: Wanted::Host,
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

    fn evict(&mut self, who: u8, model: ModelId) {
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
            tier: None,
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
        let fault = || Fault {
            code: 303,
            message: "bad luck".into(),
        };
        match self.oracle.in_flight.remove(&op).unwrap() {
            Effect::Resolve { model, .. } => {
                if luck == 0 {
                    self.outdated.remove(&op);
                    return self.handle(Event::Resolved {
                        op,
                        outcome: Err(fault()),
                    });
                }
                let version = self.files[&model];
                if !self.outdated.remove(&op) {
                    self.oracle.current.insert(model, version);
                }
                let fact = |source| SegmentFact {
                    source,
                    charge: charge_of(source),
                    pieces: 1,
                    part: Part::File,
                };
                let segments = sources_of(version).into_iter().map(fact).collect();
                self.handle(Event::Resolved {
                    op,
                    outcome: Ok(Resolution { version, segments }),
                });
            }
            Effect::Load {
                segment, source, ..
            } if luck == 0 => {
                assert_eq!(
                    self.oracle.segments.remove(&segment).unwrap().1,
                    Seen::Loading(source)
                );
                self.handle(Event::Loaded {
                    op,
                    outcome: Err(LoadFailure::Fault(fault())),
                });
            }
            Effect::Load {
                segment, source, ..
            } => {
                let content = content_of(source);
                self.oracle.loaded.insert(source);
                self.oracle.segments.get_mut(&segment).unwrap().1 = Seen::Filled(content);
                self.handle(Event::Loaded {
                    op,
                    outcome: Ok(content),
                });
            }
            Effect::Free { segment, .. } => {
                assert_eq!(
                    self.oracle.segments.remove(&segment).unwrap().1,
                    Seen::Freeing
                );
                self.handle(Event::Freed { op });
            }
            effect @ (Effect::Reply { .. } | Effect::Revoke { .. } | Effect::Forget { .. }) => {
                panic!("{effect:?} settles")
            }
        }
    }

    fn complete_all(&mut self) {
        // Each completion starts at most a bounded number of effects, each for a waiting open.
        for _ in 0..10_000 {
            let Some(op) = self.oracle.in_flight.keys().next().copied() else {
                return;
            };
            self.complete(op, 2);
        }
        panic!("effects without end: {:?}", self.oracle.in_flight);
    }

    /// The faults stop. All is answered within the longest deadline, and the ledger settles.
    pub(crate) fn come_to_rest(&mut self, drain: bool) {
        if drain {
            self.handle(Event::Drain);
            assert_eq!(self.core.view().records().waiting, 0);
        }
        self.complete_all();
        self.now = Time(self.now.0 + 1_000_000);
        self.tick_if_due();
        self.complete_all();
        assert!(
            self.oracle.asked.is_empty(),
            "unanswered: {:?}",
            self.oracle.asked
        );
        while self.who(0).is_some() {
            self.act(&Act::Disconnect(0));
        }
        self.complete_all();
        let ledger = self.core.view().ledger(Tier::Host);
        assert_eq!(
            (ledger.freeing, ledger.charged),
            (Bytes::ZERO, ledger.resident)
        );
        assert_eq!(ledger.resident.0, self.oracle.charged());
        let pinned = ledger.resident.saturating_sub(ledger.idle);
        assert!(
            ledger.charged <= ledger.limit || ledger.idle == Bytes::ZERO,
            "{ledger:?}"
        );
        assert!(
            pinned == Bytes::ZERO || !self.oracle.pinned.is_empty(),
            "{ledger:?}"
        );

        for model in 0..u8::try_from(MODELS).unwrap() {
            self.act(&Act::Wish {
                model,
                pinned: false,
                eager: false,
            });
        }
        self.act(&Act::Limit(0));
        self.complete_all();
        assert_eq!(
            self.core.view().records(),
            RecordsView::default(),
            "every gauge is at zero"
        );
        assert_eq!(self.core.view().ledger(Tier::Host).charged, Bytes::ZERO);
    }
}
