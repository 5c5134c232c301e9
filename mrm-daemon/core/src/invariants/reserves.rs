//! What is kept free on devices.

use super::{copies, ensure};
use crate::Core;
use crate::admission::{Stage, Target};
use crate::id::{Bytes, CopyId, Tenant};
use crate::ledger::Tier;
use crate::violation::Violation;
use std::collections::BTreeMap;

/// What is kept free is what the leases on a tier's copies, and the admitted opens that wait for
/// one, keep free: in all, for each user, and for each copy.
pub(super) fn i20_what_is_kept_free_is_asked_for(core: &Core) -> Result<(), Violation> {
    let mut of_user: BTreeMap<(Tier, Tenant), Bytes> = BTreeMap::new();
    let mut of_copy: BTreeMap<CopyId, Bytes> = BTreeMap::new();
    for (session, lease, held) in core.leases.all() {
        let tier = held.copy.tier;
        let right = held.reserve == Bytes::ZERO || tier != Tier::Host;
        ensure(right, 20, || format!("{lease} keeps host memory free"))?;
        let tenant = core.leases.session(session)?.tenant;
        add(&mut of_user, (tier, tenant), held.reserve);
        add(&mut of_copy, held.copy, held.reserve);
    }
    for ((session, request), waiter) in core.admission.all() {
        if waiter.reserved == Bytes::ZERO {
            continue;
        }
        let (wanted, admitted) = match waiter.target {
            Target::Model(_) => (Bytes::ZERO, false),
            Target::Copy(copy) => {
                let admitted = core.admission.stage(copy) == Some(Stage::Loading);
                add(&mut of_user, (copy.tier, waiter.tenant), waiter.reserved);
                (waiter.wanted.reserve_on(copy.tier), admitted)
            }
        };
        ensure(admitted && waiter.reserved == wanted, 20, || {
            format!("{request} of {session} keeps {} free", waiter.reserved)
        })?;
    }
    for (id, copy) in copies(core) {
        let kept = of_copy.remove(&id).unwrap_or_default();
        ensure(copy.reserved == kept, 20, || {
            format!("leases on {id} keep {kept} free, not {}", copy.reserved)
        })?;
    }
    of_user.retain(|_, kept| *kept > Bytes::ZERO);
    let noted: BTreeMap<_, _> = core.reserves.all().collect();
    ensure(noted == of_user, 20, || {
        format!("users keep {of_user:?} free, not {noted:?}")
    })?;
    for tier in core.ledger.tiers() {
        let of_tier = of_user.iter().filter(|((on, _), _)| *on == tier);
        let kept: Bytes = of_tier.map(|(_, kept)| *kept).sum();
        let reserved = core.ledger.account(tier).reserved;
        ensure(reserved == kept, 20, || {
            format!("{kept} of {tier} are kept free, not {reserved}")
        })?;
    }
    Ok(())
}

fn add<K: Ord>(sums: &mut BTreeMap<K, Bytes>, key: K, bytes: Bytes) {
    let sum = sums.entry(key).or_default();
    *sum = sum.saturating_add(bytes);
}
