//! The journal of a daemon, as the day that another policy is tried on.

#![cfg(feature = "journal")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use mrm_core::effect::{Effect, Reply};
use mrm_core::event::{Event, Part, Resolution, SegmentFact, Wanted};
use mrm_core::id::{
    Bytes, ContentId, ModelId, RequestId, SessionId, SourceId, Tenant, Time, VersionId,
};
use mrm_core::{Config, Core};
use mrm_daemon::journal::{Header, Journal};
use mrm_simulate::workload::{Binding, Workload};
use support::{outcome, trace};

const SESSION: SessionId = SessionId(1);

/// A decider with its journal, of models whose number is their size in KiB and the seconds that
/// they take to load.
struct Daemon {
    core: Core,
    journal: Journal,
    now: Time,
}

impl Daemon {
    fn new() -> Self {
        let config = || Config::with_limit(Bytes(20 << 10));
        let mut daemon = Self {
            core: Core::new(config()),
            journal: Journal::new(Header::of(1, &config()), 1 << 20),
            now: Time(1_000_000_000),
        };
        let tenant = Tenant(0);
        daemon.told(Event::SessionOpened {
            session: SESSION,
            tenant,
        });
        daemon
    }

    fn told(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut effects = Vec::new();
            self.journal.event(self.now, &event);
            self.core.handle(self.now, event, &mut effects).unwrap();
            self.journal
                .effects(&effects, |model| Some(format!("org/{}", model.0)));
            for effect in effects {
                self.carry_out(effect, &mut events);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, events: &mut Vec<Event>) {
        if let Effect::Resolve { op, model } = effect {
            let fact = SegmentFact {
                source: SourceId(model.0),
                charge: Bytes(model.0 << 10),
                pieces: 1,
                part: Part::File,
            };
            let version = VersionId(model.0);
            let segments = vec![fact];
            let outcome = match model.0 {
                404 => Err(mrm_core::event::Fault {
                    code: 201,
                    message: "is not there".into(),
                }),
                _ => Ok(Resolution { version, segments }),
            };
            events.push(Event::Resolved { op, outcome });
        } else if let Effect::Load { op, source, .. } = effect {
            self.now = Time(self.now.0 + source.0 * 1_000_000);
            let outcome = Ok(ContentId(source.0));
            events.push(Event::Loaded { op, outcome });
        } else if let Effect::Free { op, .. } = effect {
            events.push(Event::Freed { op });
        } else if let Effect::Reply {
            reply: Reply::Opened { lease, .. },
            ..
        } = effect
        {
            events.push(Event::Close {
                session: SESSION,
                request: None,
                lease,
            });
        }
    }

    fn open(&mut self, request: u64, model: u64) {
        self.now = Time(self.now.0 + 60_000_000);
        self.told(Event::Open {
            session: SESSION,
            request: RequestId(request),
            model: ModelId(model),
            wanted: Wanted::Host,
            deadline: self.now.after_ms(30_000_000),
        });
    }

    fn export(&self) -> Vec<u8> {
        self.journal.export().unwrap().concat()
    }
}

#[test]
fn a_journal_knows_its_models_and_their_loads() {
    let mut daemon = Daemon::new();
    for (request, model) in (1..).zip([8, 9, 8, 10, 404, 9]) {
        daemon.open(request, model);
    }
    let trace = trace(&daemon.export()).unwrap();
    let recorded = trace.recorded.as_ref().unwrap();
    assert_eq!(
        (recorded.budget_bytes, recorded.policy.as_str()),
        (20 << 10, daemon_policy())
    );
    assert!(
        trace.notes[0].starts_with("1 opens left out"),
        "{:?}",
        trace.notes
    );
    let (day, _) = Workload::of(&trace, &recorded.models, &Binding::default()).unwrap();
    let models: Vec<(&str, u64, u64)> = day
        .models
        .iter()
        .map(|model| {
            (
                model.name.as_str(),
                model.bytes >> 10,
                model.load_us / 1_000_000,
            )
        })
        .collect();
    assert_eq!(
        models,
        [("org/8", 8, 8), ("org/9", 9, 9), ("org/10", 10, 10)]
    );
    assert_eq!(day.requests.len(), 5);
    assert_eq!(day.requests[0].at, Time(0), "it begins with its first open");
    assert_eq!(day.requests[1].at, Time(68_000_000));
    // What the daemon did itself, and what it would have done with twice the memory.
    let (as_it_was, twice) = (
        outcome(&day, "lru", 20 << 10),
        outcome(&day, "lru", 40 << 10),
    );
    assert_eq!(as_it_was.load_us, (8 + 9 + 10 + 9) * 1_000_000);
    assert_eq!(twice.load_us, (8 + 9 + 10) * 1_000_000);
}

/// What the decider is configured with where nothing is said.
fn daemon_policy() -> &'static str {
    let policy = mrm_core::policy::Choice::default().to_string();
    Box::leak(policy.into_boxed_str())
}

#[test]
fn a_damaged_or_empty_journal_is_refused() {
    let mut daemon = Daemon::new();
    let empty = trace(&daemon.export()).unwrap_err().to_string();
    assert!(empty.contains("nothing was opened"), "{empty}");
    daemon.open(1, 8);
    let file = daemon.export();
    assert!(trace(&file).is_ok());
    for at in [8, 20, file.len() / 2, file.len() - 8] {
        let mut damaged = file.clone();
        damaged[at] ^= 0x40;
        let error = trace(&damaged).unwrap_err().to_string();
        assert!(error.contains("the journal is damaged at byte"), "{error}");
    }
    let cut = trace(&file[..12]).unwrap_err().to_string();
    assert!(cut.contains("ends within its header"), "{cut}");
}
