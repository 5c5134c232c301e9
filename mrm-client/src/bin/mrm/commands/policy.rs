//! `mrm policy`.

use crate::args::Policy;
use crate::failure::Failure;
use crate::http::{Api, encode};
use crate::look::{Look, Tone};
use crate::out::Out;
use crate::table::{Align, Cell, Table};
use crate::wire::{Policies, Prefetch};
use std::fmt::Write as _;
use std::time::Duration;

/// Prints the policy of each tier, after it was changed if that was asked.
pub(super) async fn run(api: &Api, args: &Policy, out: Out) -> Result<(), Failure> {
    let document = if args.policy.is_empty() {
        api.get("/v1/policy").await?
    } else {
        let policy = args.policy.join(",");
        let mut target = format!("/v1/policy?policy={}", encode(&policy, false));
        if let Some(tier) = &args.tier {
            let _ = write!(target, "&tier={}", encode(tier, false));
        }
        api.post(&target, Duration::ZERO).await?
    };
    if out.json {
        return out.document(&document);
    }
    let mut policies: Policies = api.read(&document)?;
    if let Some(tier) = &args.tier {
        policies.tiers.retain(|of| of.tier == *tier);
    }
    out.text(&render(&policies, out.look))
}

fn render(policies: &Policies, look: Look) -> String {
    let mut table = Table::new(&[
        ("TIER", Align::Left),
        ("POLICY", Align::Left),
        ("CONFIGURED", Align::Left),
    ]);
    for of in &policies.tiers {
        let configured = match of.differs {
            true => Cell::toned(&of.configured, Tone::Warning),
            false => "the same".into(),
        };
        table.row([
            super::status::short(&of.tier).into(),
            of.policy.as_str().into(),
            configured,
        ]);
    }
    let mut text = table.render(look);
    text.push('\n');
    text.push_str(&prefetch(&policies.prefetch));
    text
}

fn prefetch(of: &Prefetch) -> String {
    let state = match of.enabled {
        true => format!("on, for {} % of the time", of.share_percent),
        false => "off".to_owned(),
    };
    let mut text = format!("loading ahead: {state}");
    if of.started_total > 0 {
        let (started, used, wasted) = (of.started_total, of.used_total, of.wasted_total);
        let _ = write!(text, "; {started} started, {used} used, {wasted} in vain");
    }
    if of.hints > 0 {
        let _ = write!(text, "; {} announced", of.hints);
    }
    text.push('\n');
    text
}
