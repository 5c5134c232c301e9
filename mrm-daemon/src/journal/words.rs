//! Events in words, for people.

use mrm_core::Prefetch;
use mrm_core::event::{AnyOf, Event, Wanted, Wishes};
use mrm_core::id::{Bytes, ModelId};
use mrm_core::ledger::Tier;

/// One line about an event.
pub(super) fn words(event: &Event) -> String {
    match event {
        Event::SessionOpened { session, tenant } => {
            format!("{session} of uid {} begins", tenant.0)
        }
        Event::SessionClosed { session } => format!("{session} ends"),
        Event::Open {
            session,
            request,
            model,
            wanted,
            ..
        } => format!("{session} opens {model} {} as {request}", place(wanted)),
        Event::Close { session, lease, .. } => format!("{session} gives back {lease}"),
        Event::Cancel {
            session, target, ..
        } => format!("{session} cancels {target}"),
        Event::Evict {
            session,
            version,
            tier,
            ..
        } => {
            let from = tier.map_or_else(|| "all tiers".to_owned(), |tier: Tier| tier.to_string());
            format!("{session} evicts {version} from {from}")
        }
        Event::Configure { model, wishes } => wished(*model, *wishes),
        Event::ModelChanged { model } => format!("{model} changed"),
        Event::SetLimit {
            tier,
            budget,
            limit,
        } => format!("{tier} may take {limit} of a budget of {budget}"),
        Event::Adopt(adoption) => format!(
            "{} is taken over with {} segments",
            adoption.resolution.version,
            adoption.resident.len()
        ),
        Event::DeviceLost { device, fault } => format!("{device} is lost: {}", fault.message),
        Event::Damaged { segment, fault } => format!("{segment} is damaged: {}", fault.message),
        Event::Drain => "a drain begins".to_owned(),
        Event::Resolved { op, outcome } => match outcome {
            Ok(found) => format!(
                "{op} ends: {} of {} segments",
                found.version,
                found.segments.len()
            ),
            Err(fault) => format!("{op} fails to resolve: {}", fault.message),
        },
        Event::Loaded { op, outcome } => match outcome {
            Ok(content) => format!("{op} ends: {content} is loaded"),
            Err(failure) => format!("{op} fails to load: {failure:?}"),
        },
        Event::Freed { op } => format!("{op} ends: its memory is free"),
        Event::Tick => "time passes".to_owned(),
        Event::SetPolicy { tier, policy } => format!("{tier} has the policy {policy}"),
        Event::SetPrefetch(settings) => prefetch(*settings),
        Event::Recall { model, memory } => {
            format!("{model} was used {} times before", memory.uses)
        }
        Event::RecallAll(_) => "times between uses are known from before".to_owned(),
        Event::Hint { model, due } => format!("{model} is said to come at {} µs", due.0),
        Event::Resume {
            session, leases, ..
        } => format!("{session} comes back with {} leases", leases.len()),
        Event::Laid { op } => format!("the memory of {op} is there"),
        Event::Unlaid { op, fault } => format!("{op} begins anew: {}", fault.message),
        Event::Identified { segment, content } => format!("{segment} holds {content}"),
        Event::Took { op, took_us } => format!("{op} took {took_us} µs by itself"),
    }
}

fn wished(model: ModelId, wishes: Wishes) -> String {
    let Wishes { pinned, eager } = wishes;
    format!("{model} is to be pinned: {pinned}, eager: {eager}")
}

fn prefetch(settings: Prefetch) -> String {
    let state = if settings.enabled { "on" } else { "off" };
    let percent = settings.share_percent;
    format!("loading ahead is {state}, for {percent} % of the time")
}

fn place(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Host => "in host memory".to_owned(),
        Wanted::Layout => "in host memory by its layout".to_owned(),
        Wanted::Device(any) => format!("on one of {}", devices(any)),
        Wanted::Best(any) => format!("in host memory or on one of {}", devices(any)),
    }
}

fn devices(any: &AnyOf) -> String {
    let count = any.devices.len();
    match any.reserve {
        Bytes::ZERO => format!("{count} devices"),
        reserve => format!("{count} devices with {reserve} to stay free"),
    }
}
