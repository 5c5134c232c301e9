mod codec;

use super::file::{Damage, Reader, Record};
use super::opens::opens;
use super::replay::{Options, ReplayError, replay};
use super::*;
use mrm_core::Core;
use mrm_core::effect::{Effect, Origin};
use mrm_core::event::{Event, Part, Resolution, SegmentFact, Wanted};
use mrm_core::id::{
    Bytes, ContentId, DeviceId, LeaseId, ModelId, OpId, RequestId, SessionId, SourceId, Tenant,
    Time, VersionId,
};
use mrm_core::ledger::Tier;
use std::sync::Arc;

fn config() -> mrm_core::Config {
    mrm_core::Config {
        devices: vec![mrm_core::DeviceConfig::with_budget(Bytes(1 << 20))],
        ..mrm_core::Config::with_limit(Bytes(1 << 20))
    }
}

/// A decider with its journal.
struct Kept {
    core: Core,
    journal: Journal,
    effects: Vec<Effect>,
    now: u64,
    requests: u64,
}

const SESSION: SessionId = SessionId(1);

impl Kept {
    fn new(bytes_max: usize) -> Self {
        let mut kept = Self {
            core: Core::new(config()),
            journal: Journal::new(Header::of(7, &config()), bytes_max),
            effects: Vec::new(),
            now: 0,
            requests: 0,
        };
        let tenant = Tenant(1000);
        kept.step(Event::SessionOpened {
            session: SESSION,
            tenant,
        });
        kept
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.now += 10;
        let now = Time(self.now);
        self.effects.clear();
        self.journal.event(now, &event);
        if let Err(violation) = self.core.handle(now, event, &mut self.effects) {
            self.journal.violated(&violation);
        }
        let name = |model: ModelId| Some(format!("model {}", model.0));
        self.journal.effects(&self.effects, name);
        self.effects.clone()
    }

    /// An open, with all that it takes, and how long the load takes.
    fn open(&mut self, model: u64, wanted: Wanted, load_us: u64) -> LeaseId {
        self.requests += 1;
        let mut todo = self.step(Event::Open {
            session: SESSION,
            request: RequestId(self.requests),
            model: ModelId(model),
            wanted,
            deadline: Time(u64::MAX),
        });
        while let Some(effect) = todo.pop() {
            let event = match effect {
                Effect::Resolve { op, model } => resolved(op, model),
                Effect::Load { op, source, .. } => {
                    self.now += load_us;
                    let outcome = Ok(ContentId(source.0));
                    Event::Loaded { op, outcome }
                }
                Effect::Free { op, .. } => Event::Freed { op },
                Effect::Reply { reply, .. } => {
                    let mrm_core::effect::Reply::Opened { lease, .. } = reply else {
                        panic!("{reply:?}");
                    };
                    return lease;
                }
                Effect::Adopted { .. } | Effect::Revoke { .. } | Effect::Forget { .. } => continue,
            };
            todo.extend(self.step(event));
        }
        panic!("not granted");
    }

    fn close(&mut self, lease: LeaseId) {
        self.step(Event::Close {
            session: SESSION,
            request: None,
            lease,
        });
    }

    fn file(&self) -> Vec<u8> {
        self.journal.export().unwrap().concat()
    }
}

fn resolved(op: OpId, model: ModelId) -> Event {
    let fact = |part, bytes| SegmentFact {
        source: SourceId(model.0 * 10 + part as u64),
        charge: Bytes(bytes),
        pieces: 1,
        part,
    };
    let segments = vec![
        fact(Part::Table, 4096),
        fact(Part::File, 8192),
        fact(Part::Image, 16384),
    ];
    let version = VersionId(model.0 + 100);
    let outcome = Ok(Resolution { version, segments });
    Event::Resolved { op, outcome }
}

fn run(file: &[u8]) -> Result<replay::Report, ReplayError> {
    replay(file, &Options::default(), |_| {})
}

#[test]
fn a_replay_comes_to_where_the_decider_is() {
    let mut kept = Kept::new(1 << 20);
    let on_device = || Wanted::Device([DeviceId(0)].into());
    let first = kept.open(1, on_device(), 500);
    kept.open(1, Wanted::Host, 0);
    kept.open(2, Wanted::Best([DeviceId(0)].into()), 70);
    kept.close(first);
    let report = run(&kept.file()).unwrap();
    assert!(report.is_clean() && !report.cut_off, "{report:?}");
    assert_eq!(report.counts.events, kept.journal.len());
    assert_eq!((report.counts.opens, report.counts.hits), (3, 1));
    assert_eq!(report.end.leases, 2);
    for (tier, told) in kept.core.view().tiers().zip(&report.end.tiers) {
        let ledger = kept.core.view().ledger(tier);
        assert!(ledger.resident > Bytes::ZERO, "the test needs something");
        assert_eq!(told.resident_bytes, ledger.resident.0, "{tier}");
        assert_eq!(told.charged_bytes, ledger.charged.0, "{tier}");
    }
}

#[test]
fn a_broken_rule_is_broken_again_by_the_same_event() {
    let mut kept = Kept::new(1 << 20);
    kept.open(1, Wanted::Host, 1);
    let index = kept.journal.len();
    kept.step(Event::Freed { op: OpId(99) });
    let report = run(&kept.file()).unwrap();
    let stop = report.violation.clone().unwrap();
    assert_eq!((stop.index, stop.now_us), (index, kept.now));
    assert_eq!(stop.event, "op99 ends: its memory is free");
    assert_eq!(report.recorded_violation, Some(stop.violation));
    assert!(!report.is_clean());
}

#[test]
fn a_decision_that_differs_is_found_where_it_was_taken() {
    let mut kept = Kept::new(1 << 20);
    kept.open(1, Wanted::Host, 1);
    let index = kept.journal.len();
    // A decider that would have granted what the real one had to load.
    kept.journal.event(
        Time(kept.now + 1),
        &Event::Open {
            session: SESSION,
            request: RequestId(50),
            model: ModelId(2),
            wanted: Wanted::Host,
            deadline: Time(u64::MAX),
        },
    );
    let reply = mrm_core::effect::Reply::Opened {
        lease: LeaseId(2),
        version: VersionId(101),
        tier: Tier::Host,
        origin: Origin::Hit,
        segments: Arc::from([]),
    };
    let request = RequestId(50);
    let granted = Effect::Reply {
        session: SESSION,
        request,
        reply,
    };
    kept.journal.effects(&[granted], |_| None);
    let report = run(&kept.file()).unwrap();
    assert_eq!(report.divergence.unwrap().index, index);
    assert_eq!(report.violation, None);
}

#[test]
fn a_file_that_was_cut_off_is_used_as_far_as_it_goes() {
    let mut kept = Kept::new(1 << 20);
    kept.open(1, Wanted::Host, 1);
    kept.open(1, Wanted::Host, 1);
    let file = kept.file();
    let whole = run(&file).unwrap().counts.events;
    let mut seen = std::collections::BTreeSet::new();
    for end in 0..file.len() {
        match run(&file[..end]) {
            Ok(report) => {
                assert!(report.cut_off && report.counts.events <= whole, "{end}");
                assert_eq!(report.divergence, None, "{end}");
                seen.insert(report.counts.events);
            }
            Err(ReplayError::Damaged(damage)) => {
                assert!(damage.event.is_none(), "{end}: {damage}");
            }
            Err(error) => panic!("{end}: {error}"),
        }
    }
    assert_eq!(seen.len() as u64, whole + 1, "each event can be the last");
}

#[test]
fn every_damaged_byte_is_noticed_and_named() {
    let mut kept = Kept::new(1 << 20);
    kept.open(1, Wanted::Device([DeviceId(0)].into()), 1);
    let file = kept.file();
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        match run(&damaged) {
            Err(ReplayError::Damaged(damage)) => {
                // A wrong length of the header shows at its end.
                assert!(at < 48 || damage.offset <= at, "{at}: {damage}");
            }
            // A length that grew past the end looks like a file that ends too soon.
            Ok(report) => assert!(report.cut_off, "{at}: {report:?}"),
            Err(error) => panic!("{at}: {error}"),
        }
    }
    let mut longer = file.clone();
    longer.push(0);
    let damage = Damage {
        offset: file.len(),
        event: Some(kept.journal.len()),
        what: "there is more after its end".into(),
    };
    assert_eq!(run(&longer), Err(ReplayError::Damaged(damage)));
}

#[test]
fn a_journal_that_wrapped_tells_its_opens_and_refuses_a_replay() {
    let mut kept = Kept::new(64 << 10);
    let lease = kept.open(1, Wanted::Host, 300);
    kept.close(lease);
    for _ in 0..10_000 {
        let lease = kept.open(1, Wanted::Host, 0);
        kept.close(lease);
    }
    let file = kept.file();
    assert!(file.len() < (64 << 10) + 4096, "{}", file.len());
    let mut reader = Reader::new(&file).unwrap();
    let Some(Record::Chunk { index: first, now }) = reader.next_record().unwrap() else {
        panic!("a chunk begins the file");
    };
    assert!(first > 0 && now.0 > 300);
    assert_eq!(run(&file), Err(ReplayError::Wrapped { first }));
    let opens = opens(&file).unwrap();
    assert!(opens.len() > 500, "{}", opens.len());
    for open in &opens[..opens.len() - 1] {
        let granted = open.granted.as_ref().unwrap();
        assert_eq!(granted.origin, Origin::Hit);
        assert_eq!(granted.name.as_deref(), Some("model 1"));
        assert_eq!(granted.bytes, Some(Bytes(12288)));
    }
}

#[test]
fn opens_tell_what_a_simulation_needs() {
    let mut kept = Kept::new(1 << 20);
    kept.open(3, Wanted::Host, 500);
    kept.open(3, Wanted::Host, 0);
    kept.open(3, Wanted::Device([DeviceId(0)].into()), 40);
    let opens = opens(&kept.file()).unwrap();
    let granted: Vec<_> = opens
        .iter()
        .map(|open| open.granted.clone().unwrap())
        .collect();
    let origins = granted.iter().map(|granted| granted.origin);
    let expected = [Origin::Loaded, Origin::Hit, Origin::Promoted];
    assert_eq!(origins.collect::<Vec<_>>(), expected);
    // Two segments were loaded one after the other.
    assert_eq!(granted[0].load_us, Some(1020));
    assert_eq!(granted[1].load_us, Some(1020), "what it would have cost");
    assert_eq!(granted[2].load_us, Some(50));
    assert_eq!(granted[2].bytes, Some(Bytes(16384)));
    assert_eq!(opens[1].at, granted[1].at, "a hit is granted at once");
    assert_eq!(opens[0].model, ModelId(3));
}

/// Not an assertion: the figure is printed, for whoever wonders what the journal costs a hit.
#[test]
fn what_an_open_and_its_close_cost() {
    let mut journal = Journal::new(Header::of(1, &config()), 16 << 20);
    let effect = [Effect::Reply {
        session: SESSION,
        request: RequestId(5),
        reply: mrm_core::effect::Reply::Opened {
            lease: LeaseId(2),
            version: VersionId(101),
            tier: Tier::Host,
            origin: Origin::Hit,
            segments: Arc::from([]),
        },
    }];
    let rounds = 200_000;
    let began = std::time::Instant::now();
    for round in 0..rounds {
        let at = Time(round * 20);
        let open = Event::Open {
            session: SESSION,
            request: RequestId(round),
            model: ModelId(3),
            wanted: Wanted::Host,
            deadline: at.after_ms(30_000),
        };
        journal.event(at, &open);
        journal.effects(&effect, |_| None);
        let lease = LeaseId(round);
        let request = Some(RequestId(round));
        let close = Event::Close {
            session: SESSION,
            request,
            lease,
        };
        journal.event(at, &close);
    }
    let each = began.elapsed().as_nanos() / u128::from(rounds * 2);
    println!("journal: {each} ns an event");
}
