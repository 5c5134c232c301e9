//! Events as bytes: one function that writes and one that reads for each type.
//!
//! The core forbids itself serialisation, so its types are spelt out here: each is a row of CBOR
//! items, the kind first. The order of the items is the format; a change of it is a new
//! [`FORMAT`](super::file::FORMAT).

pub(crate) mod memories;

use minicbor::decode::Error as DecodeError;
use minicbor::{Decoder, Encoder};
use mrm_core::Prefetch;
use mrm_core::event::{
    AdoptedSegment, Adoption, AnyOf, Event, Fault, LoadFailure, Part, Resolution,
};
use mrm_core::event::{ResumedLease, SegmentFact, Wanted, Wishes};
use mrm_core::id::{
    Bytes, ContentId, CopyId, DeviceId, LeaseId, ModelId, OpId, RequestId, SegmentId, SessionId,
    SourceId, Tenant, Time, VersionId,
};
use mrm_core::ledger::Tier;
use mrm_core::policy::{Choice, Experience, Memory};
use std::convert::Infallible;

/// Longest text of a fault that is kept: the decider does not look inside.
const MESSAGE_BYTES_MAX: usize = 256;

pub(crate) type Out<'a> = Encoder<&'a mut Vec<u8>>;
pub(crate) type Written = Result<(), minicbor::encode::Error<Infallible>>;
pub(crate) type Read<T> = Result<T, DecodeError>;

pub(super) fn put_event(out: &mut Out<'_>, event: &Event) -> Written {
    match event {
        Event::SessionOpened { session, tenant } => {
            put(out, 0, &[session.0, tenant.0.into()])?;
        }
        Event::SessionClosed { session } => put(out, 1, &[session.0])?,
        Event::Open {
            session,
            request,
            model,
            wanted,
            deadline,
        } => {
            put(out, 2, &[session.0, request.0, model.0, deadline.0])?;
            put_wanted(out, wanted)?;
        }
        Event::Close {
            session,
            request,
            lease,
        } => put_answered(out, 3, [session.0, lease.0], *request)?,
        Event::Cancel {
            session,
            request,
            target,
        } => put_answered(out, 4, [session.0, target.0], *request)?,
        Event::Evict {
            session,
            request,
            version,
            tier,
        } => {
            put(out, 5, &[session.0, request.0, version.0])?;
            put_option(out, tier.map(tier_number))?;
        }
        Event::Configure { model, wishes } => put(out, 6, &[model.0, bits_of(*wishes)])?,
        Event::ModelChanged { model } => put(out, 7, &[model.0])?,
        Event::SetLimit {
            tier,
            budget,
            limit,
        } => put(out, 8, &[tier_number(*tier), budget.0, limit.0])?,
        Event::DeviceLost { device, fault } => put_loss(out, 9, device.0.into(), fault)?,
        Event::Damaged { segment, fault } => put_loss(out, 22, segment.0, fault)?,
        Event::Identified { segment, content } => put(out, 32, &[segment.0, content.0])?,
        Event::Drain => put(out, 10, &[])?,
        Event::Resolved { op, outcome } => put_resolved(out, *op, outcome)?,
        Event::Loaded { op, outcome } => put_loaded(out, *op, outcome)?,
        Event::Freed { op } => put(out, 15, &[op.0])?,
        Event::Tick => put(out, 16, &[])?,
        Event::SetPolicy { tier, policy } => put_policy(out, *tier, *policy)?,
        Event::Took { op, took_us } => put(out, 20, &[op.0, *took_us])?,
        Event::SetPrefetch(settings) => put_prefetch(out, *settings)?,
        Event::Hint { model, due } => put(out, 24, &[model.0, due.0])?,
        Event::Laid { op } => put(out, 30, &[op.0])?,
        Event::Unlaid { op, fault } => put_loss(out, 31, op.0, fault)?,
        Event::Recall { model, memory } => put_recall(out, *model, memory)?,
        Event::RecallAll(experience) => put_recall_all(out, experience)?,
        Event::Adopt(adoption) => put_adoption(out, adoption)?,
        Event::Resume {
            session,
            request,
            leases,
        } => put_resumed(out, [session.0, request.0], leases)?,
    }
    Ok(())
}

/// A kind and plain numbers.
fn put(out: &mut Out<'_>, kind: u8, numbers: &[u64]) -> Written {
    out.u8(kind)?;
    for number in numbers {
        out.u64(*number)?;
    }
    Ok(())
}

/// The same, and the request that is answered, if any is.
fn put_answered(
    out: &mut Out<'_>,
    kind: u8,
    numbers: [u64; 2],
    request: Option<RequestId>,
) -> Written {
    put(out, kind, &numbers)?;
    put_option(out, request.map(|request| request.0))
}

const fn bits_of(wishes: Wishes) -> u64 {
    wishes.pinned as u64 | (wishes.eager as u64) << 1
}

fn put_recall(out: &mut Out<'_>, model: ModelId, memory: &Memory) -> Written {
    put(out, 25, &[model.0, memory.reserve.0])?;
    memories::put_memory(out, memory)
}

fn put_recall_all(out: &mut Out<'_>, experience: &Experience) -> Written {
    out.u8(26)?;
    memories::put_experience(out, experience)
}

fn put_loss(out: &mut Out<'_>, kind: u8, of: u64, fault: &Fault) -> Written {
    put(out, kind, &[of])?;
    put_fault(out, fault)
}

fn put_prefetch(out: &mut Out<'_>, settings: Prefetch) -> Written {
    put(out, 23, &[settings.share_percent.into()])?;
    out.bool(settings.enabled)?;
    Ok(())
}

fn put_policy(out: &mut Out<'_>, tier: Tier, policy: Choice) -> Written {
    put(out, 19, &[tier_number(tier)])?;
    out.str(&policy.to_string())?;
    Ok(())
}

fn put_resumed(out: &mut Out<'_>, key: [u64; 2], leases: &[ResumedLease]) -> Written {
    put(out, 18, &key)?;
    out.u64(leases.len() as u64)?;
    for lease in leases {
        out.u64(lease.model.0)?.u64(lease.copy.version.0)?;
        out.u64(tier_number(lease.copy.tier))?
            .u64(lease.reserve.0)?;
    }
    Ok(())
}

fn put_resolved(out: &mut Out<'_>, op: OpId, outcome: &Result<Resolution, Fault>) -> Written {
    match outcome {
        Ok(resolution) => {
            out.u8(11)?.u64(op.0)?;
            put_resolution(out, resolution)
        }
        Err(fault) => {
            out.u8(12)?.u64(op.0)?;
            put_fault(out, fault)
        }
    }
}

fn put_loaded(out: &mut Out<'_>, op: OpId, outcome: &Result<ContentId, LoadFailure>) -> Written {
    match outcome {
        Ok(content) => {
            out.u8(13)?.u64(op.0)?.u64(content.0)?;
            Ok(())
        }
        Err(failure) => {
            let (short, fault) = match failure {
                LoadFailure::Fault(fault) => (false, fault),
                LoadFailure::OutOfMemory(fault) => (true, fault),
            };
            out.u8(14)?.u64(op.0)?.bool(short)?;
            put_fault(out, fault)
        }
    }
}

fn put_adoption(out: &mut Out<'_>, adoption: &Adoption) -> Written {
    out.u8(17)?;
    put_option(out, adoption.model.map(|model| model.0))?;
    out.u64(adoption.until.0)?;
    put_resolution(out, &adoption.resolution)?;
    out.u64(adoption.resident.len() as u64)?;
    for segment in &adoption.resident {
        out.u64(segment.source.0)?.u64(tier_number(segment.tier))?;
        out.u64(segment.content.0)?;
    }
    Ok(())
}

fn put_resolution(out: &mut Out<'_>, resolution: &Resolution) -> Written {
    out.u64(resolution.version.0)?;
    out.u64(resolution.segments.len() as u64)?;
    for fact in &resolution.segments {
        out.u64(fact.source.0)?
            .u64(fact.charge.0)?
            .u64(fact.pieces)?;
        out.u8(match fact.part {
            Part::Table => 0,
            Part::File => 1,
            Part::Image => 2,
        })?;
    }
    Ok(())
}

fn put_wanted(out: &mut Out<'_>, wanted: &Wanted) -> Written {
    let (kind, any) = match wanted {
        Wanted::Host => return out.u8(0).map(drop),
        Wanted::Layout => return out.u8(3).map(drop),
        Wanted::Device(any) => (1, any),
        Wanted::Best(any) => (2, any),
    };
    out.u8(kind)?.u64(any.devices.len() as u64)?;
    for device in any.devices.iter() {
        out.u16(device.0)?;
    }
    out.u64(any.reserve.0)?;
    Ok(())
}

fn put_fault(out: &mut Out<'_>, fault: &Fault) -> Written {
    out.u16(fault.code)?
        .str(beginning_of(&fault.message, MESSAGE_BYTES_MAX))?;
    Ok(())
}

/// What of a text fits into so many bytes.
pub(super) fn beginning_of(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

pub(super) fn put_option(out: &mut Out<'_>, number: Option<u64>) -> Written {
    match number {
        Some(number) => out.u64(number)?,
        None => out.null()?,
    };
    Ok(())
}

/// 0 is the host, and 1 the first device.
pub(super) const fn tier_number(tier: Tier) -> u64 {
    match tier {
        Tier::Host => 0,
        Tier::Device(device) => device.0 as u64 + 1,
    }
}

pub(super) fn get_event(from: &mut Decoder<'_>) -> Read<Event> {
    Ok(match from.u8()? {
        0 => Event::SessionOpened {
            session: SessionId(from.u64()?),
            tenant: Tenant(from.u32()?),
        },
        1 => Event::SessionClosed {
            session: SessionId(from.u64()?),
        },
        2 => Event::Open {
            session: SessionId(from.u64()?),
            request: RequestId(from.u64()?),
            model: ModelId(from.u64()?),
            deadline: Time(from.u64()?),
            wanted: get_wanted(from)?,
        },
        3 => Event::Close {
            session: SessionId(from.u64()?),
            lease: LeaseId(from.u64()?),
            request: get_option(from)?.map(RequestId),
        },
        4 => Event::Cancel {
            session: SessionId(from.u64()?),
            target: RequestId(from.u64()?),
            request: get_option(from)?.map(RequestId),
        },
        5 => Event::Evict {
            session: SessionId(from.u64()?),
            request: RequestId(from.u64()?),
            version: VersionId(from.u64()?),
            tier: get_option(from)?.map(tier_of).transpose()?,
        },
        6 => Event::Configure {
            model: ModelId(from.u64()?),
            wishes: wishes_of(from.u8()?)?,
        },
        7 => Event::ModelChanged {
            model: ModelId(from.u64()?),
        },
        8 => Event::SetLimit {
            tier: tier_of(from.u64()?)?,
            budget: Bytes(from.u64()?),
            limit: Bytes(from.u64()?),
        },
        9 => Event::DeviceLost {
            device: DeviceId(from.u16()?),
            fault: get_fault(from)?,
        },
        10 => Event::Drain,
        kind @ 11..=15 => get_completion(kind, from)?,
        16 => Event::Tick,
        17 => Event::Adopt(get_adoption(from)?),
        18 => Event::Resume {
            session: SessionId(from.u64()?),
            request: RequestId(from.u64()?),
            leases: get_list(from, get_resumed)?,
        },
        19 => get_policy(from)?,
        20 => Event::Took {
            op: OpId(from.u64()?),
            took_us: from.u64()?,
        },
        kind @ (22 | 31) => get_loss(kind, from)?,
        kind @ (30 | 32) => get_lent(kind, from)?,
        kind @ 23..=24 => get_ahead(kind, from)?,
        kind @ 25..=26 => get_recall(kind, from)?,
        kind => return Err(unknown("event", kind.into())),
    })
}

/// What is told of segments that are lent before all is known of them.
fn get_lent(kind: u8, from: &mut Decoder<'_>) -> Read<Event> {
    let of = from.u64()?;
    Ok(if kind == 30 {
        Event::Laid { op: OpId(of) }
    } else {
        Event::Identified {
            segment: SegmentId(of),
            content: ContentId(from.u64()?),
        }
    })
}

fn get_loss(kind: u8, from: &mut Decoder<'_>) -> Read<Event> {
    let (of, fault) = (from.u64()?, get_fault(from)?);
    Ok(if kind == 22 {
        let segment = SegmentId(of);
        Event::Damaged { segment, fault }
    } else {
        let op = OpId(of);
        Event::Unlaid { op, fault }
    })
}

fn get_recall(kind: u8, from: &mut Decoder<'_>) -> Read<Event> {
    Ok(if kind == 25 {
        let (model, reserve) = (ModelId(from.u64()?), Bytes(from.u64()?));
        let memory = memories::get_memory(from)?;
        let memory = Box::new(Memory { reserve, ..memory });
        Event::Recall { model, memory }
    } else {
        Event::RecallAll(Box::new(memories::get_experience(from)?))
    })
}

fn get_policy(from: &mut Decoder<'_>) -> Read<Event> {
    Ok(Event::SetPolicy {
        tier: tier_of(from.u64()?)?,
        policy: from.str()?.parse().map_err(DecodeError::custom)?,
    })
}

fn get_ahead(kind: u8, from: &mut Decoder<'_>) -> Read<Event> {
    Ok(if kind == 23 {
        Event::SetPrefetch(Prefetch {
            share_percent: from.u8()?,
            enabled: from.bool()?,
        })
    } else {
        Event::Hint {
            model: ModelId(from.u64()?),
            due: Time(from.u64()?),
        }
    })
}

fn get_completion(kind: u8, from: &mut Decoder<'_>) -> Read<Event> {
    let op = OpId(from.u64()?);
    Ok(match kind {
        11 => Event::Resolved {
            op,
            outcome: Ok(get_resolution(from)?),
        },
        12 => Event::Resolved {
            op,
            outcome: Err(get_fault(from)?),
        },
        13 => Event::Loaded {
            op,
            outcome: Ok(ContentId(from.u64()?)),
        },
        14 => {
            let short = from.bool()?;
            let fault = get_fault(from)?;
            let failure = match short {
                true => LoadFailure::OutOfMemory(fault),
                false => LoadFailure::Fault(fault),
            };
            Event::Loaded {
                op,
                outcome: Err(failure),
            }
        }
        _ => Event::Freed { op },
    })
}

fn get_adoption(from: &mut Decoder<'_>) -> Read<Adoption> {
    let model = get_option(from)?.map(ModelId);
    let until = Time(from.u64()?);
    Ok(Adoption {
        model,
        until,
        resolution: get_resolution(from)?,
        resident: get_list(from, |from| {
            Ok(AdoptedSegment {
                source: SourceId(from.u64()?),
                tier: tier_of(from.u64()?)?,
                content: ContentId(from.u64()?),
            })
        })?,
    })
}

fn get_resumed(from: &mut Decoder<'_>) -> Read<ResumedLease> {
    let model = ModelId(from.u64()?);
    let version = VersionId(from.u64()?);
    let tier = tier_of(from.u64()?)?;
    Ok(ResumedLease {
        model,
        copy: CopyId { version, tier },
        reserve: Bytes(from.u64()?),
    })
}

fn get_resolution(from: &mut Decoder<'_>) -> Read<Resolution> {
    let version = VersionId(from.u64()?);
    let segments = get_list(from, |from| {
        Ok(SegmentFact {
            source: SourceId(from.u64()?),
            charge: Bytes(from.u64()?),
            pieces: from.u64()?,
            part: match from.u8()? {
                0 => Part::Table,
                1 => Part::File,
                2 => Part::Image,
                part => return Err(unknown("part", part.into())),
            },
        })
    })?;
    Ok(Resolution { version, segments })
}

fn get_wanted(from: &mut Decoder<'_>) -> Read<Wanted> {
    let kind = from.u8()?;
    match kind {
        0 => return Ok(Wanted::Host),
        3 => return Ok(Wanted::Layout),
        _ => {}
    }
    let any = AnyOf {
        devices: get_list(from, |from| from.u16().map(DeviceId))?.into(),
        reserve: Bytes(from.u64()?),
    };
    match kind {
        1 => Ok(Wanted::Device(any)),
        2 => Ok(Wanted::Best(any)),
        kind => Err(unknown("wanted tier", kind.into())),
    }
}

fn get_fault(from: &mut Decoder<'_>) -> Read<Fault> {
    Ok(Fault {
        code: from.u16()?,
        message: from.str()?.into(),
    })
}

/// A count and so many items. A count that lies runs into the end of the record.
fn get_list<T>(
    from: &mut Decoder<'_>,
    mut item: impl FnMut(&mut Decoder<'_>) -> Read<T>,
) -> Read<Vec<T>> {
    let count = from.u64()?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(item(from)?);
    }
    Ok(items)
}

pub(super) fn get_option(from: &mut Decoder<'_>) -> Read<Option<u64>> {
    if from.datatype()? == minicbor::data::Type::Null {
        from.null()?;
        return Ok(None);
    }
    from.u64().map(Some)
}

pub(super) fn tier_of(number: u64) -> Read<Tier> {
    match number.checked_sub(1).map(u16::try_from) {
        None => Ok(Tier::Host),
        Some(Ok(device)) => Ok(Tier::Device(DeviceId(device))),
        Some(Err(_)) => Err(unknown("tier", number)),
    }
}

fn wishes_of(bits: u8) -> Read<Wishes> {
    if bits > 3 {
        return Err(unknown("wish", bits.into()));
    }
    let (pinned, eager) = (bits & 1 != 0, bits & 2 != 0);
    Ok(Wishes { pinned, eager })
}

pub(super) fn unknown(what: &str, number: u64) -> DecodeError {
    DecodeError::message(format!("there is no {what} {number}"))
}
