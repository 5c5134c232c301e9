//! The decider's own memory does not grow with the number of opens.

use mrm_core::effect::{Effect, Reply};
use mrm_core::event::{Event, Part, Resolution, SegmentFact, Wanted};
use mrm_core::id::*;
use mrm_core::view::RecordsView;
use mrm_core::{Config, Core};

const OPENS: u64 = 10_000;
/// The budget holds so many versions of a table of 1 and a file of 7. With as many segments a
/// debug build no longer checks every invariant after every event.
const FIT: u64 = 40;

/// Carries out effects at once, until an open is answered and nothing is in flight.
fn settle(core: &mut Core, now: Time, event: Event) -> Option<LeaseId> {
    let mut events = vec![event];
    let mut lease = None;
    while let Some(event) = events.pop() {
        let mut effects = Vec::new();
        core.handle(now, event, &mut effects).unwrap();
        for effect in effects {
            match effect {
                Effect::Resolve { op, model } => {
                    let fact = |nth, charge| SegmentFact {
                        source: SourceId(model.0 * 2 + nth),
                        charge: Bytes(charge),
                        pieces: 1,
                        part: if nth == 0 { Part::Table } else { Part::File },
                    };
                    let segments = vec![fact(0, 1), fact(1, 7)];
                    let version = VersionId(model.0);
                    events.push(Event::Resolved {
                        op,
                        outcome: Ok(Resolution { version, segments }),
                    });
                }
                Effect::Load { op, source, .. } => {
                    events.push(Event::Loaded {
                        op,
                        outcome: Ok(ContentId(source.0)),
                    });
                }
                Effect::Free { op, .. } => events.push(Event::Freed { op }),
                Effect::Reply {
                    reply: Reply::Opened { lease: granted, .. },
                    ..
                } => {
                    lease = Some(granted);
                }
                Effect::Reply { reply, .. } => panic!("{reply:?}"),
                Effect::Forget { .. } => {}
                Effect::Revoke { .. } => panic!("no device is lost"),
                Effect::Adopted { .. } => panic!("nothing was left"),
            }
        }
    }
    lease
}

#[test]
fn ten_thousand_opens_of_as_many_models_leave_only_what_is_resident() {
    let mut core = Core::new(Config::with_limit(Bytes(FIT * 8)));
    settle(
        &mut core,
        Time(0),
        Event::SessionOpened {
            session: SessionId(0),
            tenant: Tenant(0),
        },
    );
    let mut most = RecordsView::default();
    for n in 1..=OPENS {
        let (session, request, now) = (SessionId(n), RequestId(n), Time(n));
        settle(
            &mut core,
            now,
            Event::SessionOpened {
                session,
                tenant: Tenant(0),
            },
        );
        let open = Event::Open {
            session,
            request,
            model: ModelId(n),
            wanted: Wanted::Host,
            deadline: Time(u64::MAX),
        };
        let lease = settle(&mut core, now, open).unwrap();
        if n % 2 == 0 {
            settle(
                &mut core,
                now,
                Event::Close {
                    session,
                    request: None,
                    lease,
                },
            );
        }
        settle(&mut core, now, Event::SessionClosed { session });
        let records = core.view().records();
        most.versions = most.versions.max(records.versions);
        most.models = most.models.max(records.models);
        most.sources = most.sources.max(records.sources);
        most.segments = most.segments.max(records.segments);
    }
    let fit = usize::try_from(FIT).unwrap();
    let expected = RecordsView {
        models: fit,
        versions: fit,
        sources: 2 * fit,
        segments: 2 * fit,
        contents: 2 * fit,
        sessions: 1,
        ..RecordsView::default()
    };
    assert_eq!(core.view().records(), expected);
    // One session more than what is left at the end is open while its open is granted.
    assert!(most.versions <= fit && most.models <= fit, "{most:?}");
    assert!(
        most.sources <= 2 * fit && most.segments <= 2 * fit,
        "{most:?}"
    );
}

#[test]
fn ten_thousand_hits_of_one_model_leave_nothing() {
    let mut core = Core::new(Config::with_limit(Bytes(8)));
    let session = SessionId(1);
    settle(
        &mut core,
        Time(0),
        Event::SessionOpened {
            session,
            tenant: Tenant(0),
        },
    );
    let open = |n| Event::Open {
        session,
        request: RequestId(n),
        model: ModelId(1),
        wanted: Wanted::Host,
        deadline: Time(u64::MAX),
    };
    settle(&mut core, Time(0), open(0)).unwrap();
    let before = core.view().records();
    for n in 1..=OPENS {
        let lease = settle(&mut core, Time(n), open(n)).unwrap();
        settle(
            &mut core,
            Time(n),
            Event::Close {
                session,
                request: None,
                lease,
            },
        );
    }
    assert_eq!(core.view().records(), before);
}
