//! Effects as lines of text.

use mrm_core::effect::{Effect, Feed, Holder, Origin, Refusal, Reply};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use std::fmt::Write;

/// One effect as text.
pub(crate) fn show(effect: &Effect) -> String {
    match effect {
        Effect::Resolve { op, model } => format!("resolve {op} m{}", model.0),
        Effect::Load {
            op,
            segment,
            source,
            version,
            charge,
            tier,
            feed,
        } => {
            let letter = char::from(b'a' + u8::try_from(source.0).unwrap() - 1);
            format!(
                "load {op} s{} {letter}:{} v{}{}{}",
                segment.0,
                charge.0,
                version.0,
                show_tier(*tier),
                show_feed(feed)
            )
        }
        Effect::Free { op, segment, tier } => {
            format!("free {op} s{}{}", segment.0, show_tier(*tier))
        }
        Effect::Adopted {
            segment,
            source,
            tier,
        } => {
            let letter = char::from(b'a' + u8::try_from(source.0).unwrap() - 1);
            format!("adopted s{} {letter}{}", segment.0, show_tier(*tier))
        }
        Effect::Revoke {
            session,
            lease,
            gone,
            fault,
        } => {
            let what = if *gone { "revoke" } else { "taint" };
            format!("{what} {} l{} {}", session.0, lease.0, fault.code)
        }
        Effect::Reply {
            session,
            request,
            reply,
        } => {
            format!("{}.{} {}", session.0, request.0, show_reply(reply))
        }
        Effect::Forget { version } => format!("forget v{}", version.0),
    }
}

/// Nothing for the host: most scripts know no other tier.
fn show_tier(tier: Tier) -> String {
    match tier {
        Tier::Host => String::new(),
        Tier::Device(device) => format!(" on d{}", device.0),
    }
}

fn show_feed(feed: &Feed) -> String {
    match feed {
        Feed::Source => String::new(),
        Feed::Host(segments) => format!(" from [{}]", list(segments)),
        Feed::Peer(segment) => format!(" from s{}", segment.0),
    }
}

fn list(segments: &[SegmentId]) -> String {
    let segments: Vec<_> = segments.iter().map(|id| format!("s{}", id.0)).collect();
    segments.join(" ")
}

fn show_reply(reply: &Reply) -> String {
    match reply {
        Reply::Opened {
            lease,
            version,
            tier,
            origin,
            segments,
        } => {
            let origin = match origin {
                Origin::Hit => "hit",
                Origin::Loaded => "loaded",
                Origin::Joined => "joined",
                Origin::Promoted => "promoted",
            };
            format!(
                "opened l{} v{}{} {origin} [{}]",
                lease.0,
                version.0,
                show_tier(*tier),
                list(segments)
            )
        }
        Reply::Closed => "closed".to_owned(),
        Reply::Resumed { leases } => {
            let leases = leases.iter().map(|lease| match lease {
                Some(lease) => format!("l{}", lease.0),
                None => "-".to_owned(),
            });
            format!("resumed {}", leases.collect::<Vec<_>>().join(" "))
        }
        Reply::Cancelled { was_pending } => format!("cancelled {was_pending}"),
        Reply::Evicted { freed } => format!("evicted {}", freed.0),
        Reply::Failed(fault) => format!("failed {}", fault.code),
        Reply::Refused(refusal) => format!("refused {}", show_refusal(refusal)),
    }
}

fn show_refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::TooLarge {
            tier,
            want,
            reserve,
            limit,
        } => {
            let (want, keep) = (want.0, show_reserve(*reserve));
            format!("too_large {want}{keep} of {}{}", limit.0, show_tier(*tier))
        }
        Refusal::OverShare {
            tier,
            reserve,
            kept,
            max,
        } => {
            let (reserve, kept, max) = (reserve.0, kept.0, max.0);
            format!("over_share {reserve}, {kept} of {max}{}", show_tier(*tier))
        }
        Refusal::NoRoom {
            tier,
            want,
            reserve,
            limit,
            charged,
            holders,
        } => {
            let mut text = format!(
                "no_room {}{}, {} of {}{}:",
                want.0,
                show_reserve(*reserve),
                charged.0,
                limit.0,
                show_tier(*tier)
            );
            for holder in holders {
                write!(text, " {}", show_holder(holder)).unwrap();
            }
            text
        }
        Refusal::DeviceLost { device } => format!("device_lost d{}", device.0),
        Refusal::NoImage => "no_image".to_owned(),
        Refusal::TimedOut => "timed_out".to_owned(),
        Refusal::QueueFull {
            waiting,
            of_tenant: false,
        } => format!("queue_full {waiting}"),
        Refusal::QueueFull {
            waiting,
            of_tenant: true,
        } => format!("share_full {waiting}"),
        Refusal::Draining => "draining".to_owned(),
        Refusal::TooManyLeases { held } => format!("too_many_leases {held}"),
        Refusal::UnknownLease => "unknown_lease".to_owned(),
        Refusal::Cancelled => "cancelled".to_owned(),
        Refusal::InUse(holder) => format!("in_use {}", show_holder(holder)),
    }
}

/// The part that is to stay free, if there is one.
fn show_reserve(reserve: Bytes) -> String {
    match reserve {
        Bytes::ZERO => String::new(),
        reserve => format!(" ({} free)", reserve.0),
    }
}

fn show_holder(holder: &Holder) -> String {
    let mut text = format!("v{}", holder.version.0);
    if let Tier::Device(device) = holder.tier {
        write!(text, ".d{}", device.0).unwrap();
    }
    write!(text, "={}", holder.charged.0).unwrap();
    if holder.leases > 0 {
        write!(text, "+{}leases", holder.leases).unwrap();
    }
    for (is, word) in [(holder.pinned, "+pinned"), (holder.loading, "+loading")] {
        if is {
            text.push_str(word);
        }
    }
    text
}
