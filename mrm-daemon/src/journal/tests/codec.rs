//! Random events survive, and random bytes do no harm.

use super::config;
use crate::journal::codec::beginning_of;
use crate::journal::file::{self, Reader, Record};
use crate::journal::{Header, Journal};
use mrm_core::event::{
    AdoptedSegment, Adoption, AnyOf, Event, Fault, LoadFailure, Part, Resolution, ResumedLease,
    SegmentFact, Wanted, Wishes,
};
use mrm_core::id::{
    Bytes, ContentId, CopyId, DeviceId, LeaseId, ModelId, OpId, RequestId, SegmentId, SessionId,
    SourceId, Tenant, Time, VersionId,
};
use mrm_core::ledger::Tier;
use mrm_core::policy::{Choice, Cost, CremeBrulee, Experience, LoadMemory, Memory, Route, Rule};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #[test]
    fn what_is_written_is_read(told in prop::collection::vec((0..1_u64 << 40, events()), 0..20)) {
        let mut journal = Journal::new(Header::of(1, &config()), 4096);
        let mut all = Vec::new();
        let mut now = 0;
        for (after, event) in told {
            now += after;
            journal.event(Time(now), &event);
            all.push((Time(now), kept(event)));
        }
        let file = journal.export().unwrap().concat();
        let mut reader = Reader::new(&file).unwrap();
        let mut read = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            if let Record::Event { now, event } = record {
                read.push((now, event));
            }
        }
        // Small chunks: the oldest may be gone.
        prop_assert_eq!(&read[..], &all[all.len() - read.len()..]);
        prop_assert!(all.is_empty() || !read.is_empty());
        prop_assert_eq!(reader.index(), Some(all.len() as u64));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = file::beginning(&Header::of(1, &config())).unwrap();
        file.extend_from_slice(&bytes);
        let mut reader = Reader::new(&file).unwrap();
        while let Ok(Some(_)) = reader.next_record() {}
    }
}

fn memories() -> impl Strategy<Value = Memory> {
    let routes = prop_oneof![
        Just(Route::ToHost),
        Just(Route::ToDevice),
        Just(Route::Up),
        Just(Route::Across)
    ];
    let loads = (routes, any::<[u64; 3]>()).prop_map(|(route, [bytes, us, last])| LoadMemory {
        route,
        bytes,
        us,
        last: Bytes(last),
    });
    let gaps = vec((any::<u8>(), any::<u32>()), 0..5);
    (
        any::<[u64; 5]>(),
        any::<u8>(),
        gaps,
        vec(loads, 0..3),
        any::<[u32; 2]>(),
    )
        .prop_map(
            |([uses, idle_us, run_us, runs, reserve], class, gaps, loads, [tries, hits])| Memory {
                uses,
                idle_us,
                class,
                gaps,
                run_us,
                runs,
                loads,
                tries_thousandths: tries,
                hits_thousandths: hits,
                reserve: Bytes(reserve),
            },
        )
}

fn events() -> impl Strategy<Value = Event> {
    let id = any::<u64>;
    let loaded = (id(), any::<bool>(), prop::result::maybe_ok(id(), faults()));
    let adopted = (
        prop::option::of(id()),
        resolutions(),
        id(),
        vec(adopted(), 0..4),
    );
    prop_oneof![
        (
            (id(), id(), id(), id()),
            wishes(),
            0..12_u8,
            tiers(),
            any::<u32>(),
            any::<bool>()
        )
            .prop_map(|(ids, wanted, kind, tier, tenant, on)| {
                plain(ids, wanted, kind, tier, tenant, on)
            }),
        of_policies(),
        (any::<u64>(), faults()).prop_map(|(segment, fault)| Event::Damaged {
            segment: SegmentId(segment),
            fault,
        }),
        id().prop_map(|op| Event::Laid { op: OpId(op) }),
        (id(), faults()).prop_map(|(op, fault)| Event::Unlaid {
            op: OpId(op),
            fault
        }),
        (any::<u16>(), faults()).prop_map(|(device, fault)| Event::DeviceLost {
            device: DeviceId(device),
            fault
        }),
        (id(), prop::result::maybe_ok(resolutions(), faults())).prop_map(|(op, outcome)| {
            Event::Resolved {
                op: OpId(op),
                outcome,
            }
        }),
        loaded.prop_map(|(op, short, outcome)| Event::Loaded {
            op: OpId(op),
            outcome: outcome.map(ContentId).map_err(|fault| match short {
                true => LoadFailure::OutOfMemory(fault),
                false => LoadFailure::Fault(fault),
            }),
        }),
        adopted.prop_map(
            |(model, resolution, until, resident)| Event::Adopt(Adoption {
                model: model.map(ModelId),
                resolution,
                resident,
                until: Time(until),
            })
        ),
        (id(), id(), vec(resumed(), 0..4)).prop_map(|(session, request, leases)| Event::Resume {
            session: SessionId(session),
            request: RequestId(request),
            leases,
        }),
    ]
}

/// Events that only policies and what is foreseen are told by.
fn of_policies() -> impl Strategy<Value = Event> {
    let id = any::<u64>;
    prop_oneof![
        (tiers(), policies()).prop_map(|(tier, policy)| Event::SetPolicy { tier, policy }),
        (any::<u8>(), any::<bool>()).prop_map(|(share_percent, enabled)| {
            Event::SetPrefetch(mrm_core::Prefetch {
                enabled,
                share_percent,
            })
        }),
        (id(), memories()).prop_map(|(model, memory)| Event::Recall {
            model: ModelId(model),
            memory: Box::new(memory)
        }),
        vec((any::<u8>(), any::<u8>(), any::<u64>()), 0..5)
            .prop_map(|gaps| Event::RecallAll(Box::new(Experience { gaps }))),
        (id(), id()).prop_map(|(model, due)| Event::Hint {
            model: ModelId(model),
            due: Time(due)
        }),
        (id(), id()).prop_map(|(segment, content)| Event::Identified {
            segment: SegmentId(segment),
            content: ContentId(content)
        }),
        (id(), id()).prop_map(|(op, took_us)| Event::Took {
            op: OpId(op),
            took_us
        }),
    ]
}

fn policies() -> impl Strategy<Value = Choice> {
    let rule = prop_oneof![
        Just(Rule::Lru),
        Just(Rule::Mix),
        any::<u64>().prop_map(Rule::Random),
        (any::<u32>(), any::<u32>(), any::<bool>()).prop_map(|(beta, gamma, on)| {
            Rule::CremeBrulee(CremeBrulee {
                beta_thousandths: beta,
                gamma_thousandths: gamma,
                cost: if on { Cost::Direct } else { Cost::Increase },
                use_size: on,
            })
        }),
    ];
    (rule, any::<[bool; 3]>()).prop_map(|(rule, [second_use, give_back, exclusive])| Choice {
        rule,
        second_use,
        give_back,
        exclusive,
    })
}

fn faults() -> impl Strategy<Value = Fault> {
    (any::<u16>(), ".{0,300}").prop_map(|(code, text)| Fault {
        code,
        message: text.into(),
    })
}

fn wishes() -> impl Strategy<Value = Wanted> {
    (0..4_u8, vec(any::<u16>(), 1..4), any::<u64>()).prop_map(|(kind, devices, reserve)| {
        let devices: Vec<DeviceId> = devices.into_iter().map(DeviceId).collect();
        let devices = AnyOf::from(devices).with_reserve(Bytes(reserve));
        match kind {
            0 => Wanted::Host,
            3 => Wanted::Layout,
            1 => Wanted::Device(devices),
            _ => Wanted::Best(devices),
        }
    })
}

fn tiers() -> impl Strategy<Value = Tier> {
    prop::option::of(any::<u16>())
        .prop_map(|device| device.map_or(Tier::Host, |device| Tier::Device(DeviceId(device))))
}

fn resolutions() -> impl Strategy<Value = Resolution> {
    let fact = (any::<u64>(), any::<u64>(), any::<u64>(), 0..3_usize);
    let fact = fact.prop_map(|(source, charge, pieces, part)| SegmentFact {
        source: SourceId(source),
        charge: Bytes(charge),
        pieces,
        part: [Part::Table, Part::File, Part::Image][part],
    });
    (any::<u64>(), vec(fact, 0..6)).prop_map(|(version, segments)| Resolution {
        version: VersionId(version),
        segments,
    })
}

fn adopted() -> impl Strategy<Value = AdoptedSegment> {
    (any::<u64>(), tiers(), any::<u64>()).prop_map(|(source, tier, content)| AdoptedSegment {
        source: SourceId(source),
        tier,
        content: ContentId(content),
    })
}

fn resumed() -> impl Strategy<Value = ResumedLease> {
    let had = (any::<u64>(), any::<u64>(), tiers(), any::<u64>());
    had.prop_map(|(model, version, tier, reserve)| ResumedLease {
        model: ModelId(model),
        copy: CopyId {
            version: VersionId(version),
            tier,
        },
        reserve: Bytes(reserve),
    })
}

fn plain(
    (a, b, c, d): (u64, u64, u64, u64),
    wanted: Wanted,
    kind: u8,
    tier: Tier,
    tenant: u32,
    on: bool,
) -> Event {
    let session = SessionId(a);
    let request = on.then_some(RequestId(b));
    match kind {
        0 => Event::SessionOpened {
            session,
            tenant: Tenant(tenant),
        },
        1 => Event::SessionClosed { session },
        2 => Event::Open {
            session,
            request: RequestId(b),
            model: ModelId(c),
            wanted,
            deadline: Time(d),
        },
        3 => Event::Close {
            session,
            request,
            lease: LeaseId(c),
        },
        4 => Event::Cancel {
            session,
            request,
            target: RequestId(c),
        },
        5 => Event::Evict {
            session,
            request: RequestId(b),
            version: VersionId(c),
            tier: on.then_some(tier),
        },
        6 => Event::Configure {
            model: ModelId(a),
            wishes: Wishes {
                pinned: on,
                eager: b % 2 == 0,
            },
        },
        7 => Event::ModelChanged { model: ModelId(a) },
        8 => Event::SetLimit {
            tier,
            budget: Bytes(c),
            limit: Bytes(d),
        },
        9 => Event::Drain,
        10 => Event::Freed { op: OpId(a) },
        _ => Event::Tick,
    }
}

/// An event as the journal keeps it: the texts of faults are cut.
fn kept(mut event: Event) -> Event {
    let cut = |fault: &mut Fault| {
        fault.message = beginning_of(&fault.message, 256).into();
    };
    if let Event::DeviceLost { fault, .. }
    | Event::Damaged { fault, .. }
    | Event::Unlaid { fault, .. }
    | Event::Resolved {
        outcome: Err(fault),
        ..
    }
    | Event::Loaded {
        outcome: Err(LoadFailure::Fault(fault) | LoadFailure::OutOfMemory(fault)),
        ..
    } = &mut event
    {
        cut(fault);
    }
    event
}
