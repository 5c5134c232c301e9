//! The numbered invariants of `mrm-daemon/DESIGN.md`, recomputed from the state.
//!
//! Tests check them after every event; debug builds do while the state is small. What is about
//! more than one state (each request is answered once, a version never changes) is checked as it
//! happens, and by the oracle in the tests.
//!
//! ```
//! use mrm_core::{Config, Core, id::Bytes, invariants};
//! assert_eq!(invariants::check(&Core::new(Config::with_limit(Bytes(1)))), Ok(()));
//! ```

mod reserves;

use crate::Core;
use crate::admission::{Stage, Target, Waiting};
use crate::catalogue::Copy;
use crate::event::{Part, SegmentFact};
use crate::id::{CopyId, VersionId};
use crate::ledger::{Amount, Tier};
use crate::ops::Op;
use crate::residency::{Segment, State};
use crate::step::Claims;
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};

/// Looks at everything.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check(core: &Core) -> Result<(), Violation> {
    i1_charged_is_what_is_in_memory(core)?;
    i3_evicting_is_let_go(core)?;
    i4_ops_have_one_object(core)?;
    i5_held_is_counted(core)?;
    i5_feeds_are_counted(core)?;
    i6_idle_is_indexed(core)?;
    i7_leases_are_backed(core)?;
    i8_waiters_are_bounded_and_have_a_target(core)?;
    i8_wants_are_waited_for(core)?;
    i9_sources_and_contents_agree(core)?;
    i10_models_and_versions_agree(core)?;
    i11_nothing_is_kept_for_nothing(core)?;
    i12_whole_is_true(core)?;
    i13_evictions_await_frees(core)?;
    i14_the_first_want_has_its_room_made(core)?;
    i19_policies_remember_what_is_there(core)?;
    reserves::i20_what_is_kept_free_is_asked_for(core)
}

fn ensure(holds: bool, number: u8, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation::Invariant {
            number,
            what: what(),
        })
    }
}

fn sum<'a>(segments: impl Iterator<Item = &'a Segment>) -> Amount {
    segments.fold(Amount::ZERO, |sum, segment| sum.plus(segment.charge))
}

/// All copies that are kept track of.
fn copies(core: &Core) -> impl Iterator<Item = (CopyId, &Copy)> {
    core.catalogue.versions.iter().flat_map(|(id, version)| {
        let copy = |(tier, copy)| {
            let tier: &Tier = tier;
            let (version, tier) = (*id, *tier);
            (CopyId { version, tier }, copy)
        };
        version.copies.iter().map(copy)
    })
}

fn is_whole(core: &Core, copy: CopyId) -> Result<bool, Violation> {
    Ok(core
        .catalogue
        .places(copy)?
        .all(|(_, _, segment)| segment.is_some_and(|segment| core.residency.is_resident(segment))))
}

fn i1_charged_is_what_is_in_memory(core: &Core) -> Result<(), Violation> {
    for tier in core.ledger.tiers() {
        let account = core.ledger.account(tier);
        let here = || {
            let all = core.residency.all().map(|(_, segment)| segment);
            all.filter(move |segment| segment.tier == tier)
        };
        let all = sum(here()).plus(Amount::bytes(account.reserved));
        ensure(account.charged == all, 1, || {
            format!("{tier}: charged {:?}, is {all:?}", account.charged)
        })?;
        let freeing = sum(here().filter(|segment| matches!(segment.state, State::Evicting(_))));
        ensure(account.freeing == freeing, 1, || {
            format!("{tier}: {:?} is {freeing:?}", account.freeing)
        })?;
        ensure(account.limit.fits(account.budget), 1, || {
            format!("{tier}: a limit above the budget")
        })?;
    }
    let astray = core.residency.all().find(|(_, segment)| {
        let mut tiers = core.ledger.tiers();
        tiers.all(|tier| tier != segment.tier)
    });
    ensure(astray.is_none(), 1, || "a segment without tier".to_owned())
}

fn i3_evicting_is_let_go(core: &Core) -> Result<(), Violation> {
    for (id, segment) in core.residency.all() {
        let evicting = matches!(segment.state, State::Evicting(_));
        ensure(!evicting || segment.held == 0, 3, || {
            format!("{id} is evicted while held")
        })?;
        let damaged = matches!(segment.state, State::Damaged);
        let left = evicting || damaged;
        ensure(left == segment.sources.is_empty(), 3, || {
            format!("{id} and its sources")
        })?;
        ensure(!damaged || segment.held > 0, 3, || {
            format!("{id} is damaged, and kept for nobody")
        })?;
        ensure(evicting || segment.left_by.is_empty(), 3, || {
            format!("{id} was left early")
        })?;
    }
    Ok(())
}

fn i4_ops_have_one_object(core: &Core) -> Result<(), Violation> {
    let mut objects = 0;
    for (id, segment) in core.residency.all() {
        let expected = match segment.state {
            State::Resident(_) | State::Damaged => continue,
            State::Loading(op) => (op, Op::Load { segment: id }),
            State::Evicting(op) => (op, Op::Free { segment: id }),
        };
        objects += 1;
        let found = core.ops.get(expected.0);
        ensure(found == Some(expected.1), 4, || {
            format!("{} of {id} is {found:?}", expected.0)
        })?;
    }
    for (id, model) in &core.catalogue.models {
        let Some(resolving) = model.resolving else {
            continue;
        };
        objects += 1;
        let found = core.ops.get(resolving.op);
        let right = matches!(found, Some(Op::Resolve { model, .. }) if model == *id);
        ensure(right, 4, || {
            format!("{} of {id} is {found:?}", resolving.op)
        })?;
    }
    ensure(objects == core.ops.len(), 4, || {
        format!("{} ops, {objects} objects", core.ops.len())
    })
}

fn i5_held_is_counted(core: &Core) -> Result<(), Violation> {
    for (id, segment) in core.residency.all() {
        let mut held = 0;
        for user in core.catalogue.copies_with(segment.tier, &segment.sources)? {
            held += u64::from(core.catalogue.held(user)?);
        }
        held += core.quarantine.leases_on(id) as u64;
        let loads = core.residency.all();
        let spoilt = loads.filter_map(|(_, load)| load.spoilt.as_ref());
        held += spoilt.filter(|spoilt| spoilt.by.contains(&id)).count() as u64;
        ensure(held == segment.held, 5, || {
            format!("{id} held {}, is {held}", segment.held)
        })?;
    }
    Ok(())
}

fn i5_feeds_are_counted(core: &Core) -> Result<(), Violation> {
    let mut fed: BTreeMap<CopyId, u64> = BTreeMap::new();
    let mut spoilt: BTreeSet<CopyId> = BTreeSet::new();
    for (id, segment) in core.residency.all() {
        let Some(feeding) = segment.fed_by else {
            let sound = segment.spoilt.is_none();
            ensure(sound, 5, || format!("{id} is spoilt by nothing"))?;
            continue;
        };
        if segment.spoilt.is_some() {
            spoilt.insert(feeding);
        }
        let loading = matches!(segment.state, State::Loading(_));
        ensure(loading && feeding.tier != segment.tier, 5, || {
            format!("{id} is fed by {feeding}")
        })?;
        *fed.entry(feeding).or_default() += 1;
    }
    for (id, copy) in copies(core) {
        let loads = fed.remove(&id).unwrap_or_default();
        ensure(loads == copy.feeding, 5, || {
            format!("{id} feeds {loads} loads")
        })?;
        let lost = core.devices.tier_is_lost(id.tier);
        ensure(lost == copy.lost, 5, || format!("{id} lost: {lost}"))?;
        let kept = core.expected.iter().filter(|(_, copy)| *copy == id);
        let kept = kept.count() as u64;
        ensure(kept == copy.expected, 5, || {
            format!("{id} is kept {kept} times")
        })?;
        let used = copy.leases > 0 || copy.admitted || copy.expected > 0;
        ensure(!(lost && used), 5, || format!("{id} is used, but lost"))?;
        let mut fed_from = true;
        if copy.feeding > 0 && !lost {
            for (slot, _, segment) in core.catalogue.places(id)? {
                fed_from &= slot.part == Part::Table || segment.is_some();
            }
        }
        // A file whose load failed is gone; what it fed will fail by itself. What is damaged is gone,
        // too, and what it fed spoilt.
        let excused = id.tier == Tier::Host || spoilt.contains(&id);
        ensure(fed_from || excused, 5, || {
            format!("{id} feeds, but is not there")
        })?;
    }
    ensure(fed.is_empty(), 5, || format!("fed by unknown {fed:?}"))
}

fn i6_idle_is_indexed(core: &Core) -> Result<(), Violation> {
    for tier in core.ledger.tiers() {
        let mut idle = BTreeSet::new();
        let mut amount = Amount::ZERO;
        let here = core.residency.all();
        for (id, segment) in here.filter(|(_, segment)| segment.tier == tier) {
            let free = matches!(segment.state, State::Resident(_)) && segment.held == 0;
            ensure(free == segment.idle_since.is_some(), 6, || {
                format!("{id} idle: {free}")
            })?;
            if let Some(since) = segment.idle_since {
                amount = amount.plus(segment.charge);
                idle.insert((since, id));
            }
        }
        ensure(amount == core.residency.idle_amount(tier), 6, || {
            format!("idle amount of {tier} is {amount:?}")
        })?;
        ensure(core.residency.idle_index(tier).eq(idle), 6, || {
            format!("the index of {tier}")
        })?;
    }
    Ok(())
}

fn i7_leases_are_backed(core: &Core) -> Result<(), Violation> {
    let mut of_copy: BTreeMap<CopyId, u64> = BTreeMap::new();
    let mut tainted: BTreeMap<CopyId, u64> = BTreeMap::new();
    for (session, lease, held) in core.leases.all() {
        ensure(core.leases.session(session).is_ok(), 7, || {
            format!("{lease} has no session")
        })?;
        let counted = match core.quarantine.holds((session, lease)) {
            true => &mut tainted,
            false => &mut of_copy,
        };
        *counted.entry(held.copy).or_default() += 1;
    }
    i7_quarantine_is_of_leases(core)?;
    for (id, copy) in copies(core) {
        let leases = of_copy.remove(&id).unwrap_or_default();
        ensure(leases == copy.leases, 7, || {
            format!("{id} has {leases} leases")
        })?;
        let leases_before = tainted.remove(&id).unwrap_or_default();
        ensure(leases_before == copy.tainted, 7, || {
            format!("{id} has {leases_before} leases on what it was")
        })?;
        if leases > 0 {
            let lent = is_whole(core, id)? || core.laid_out(id)?.is_some();
            ensure(lent, 7, || format!("{id} is leased, but not there"))?;
        }
    }
    ensure(of_copy.is_empty() && tainted.is_empty(), 7, || {
        format!("leases on unknown {of_copy:?}, {tainted:?}")
    })?;
    for (id, session) in core.leases.sessions() {
        let leases = core.leases.of(id).count();
        ensure(leases == session.leases, 7, || {
            format!("{id} has {leases} leases")
        })?;
        let bounded = session.leases + session.waiting <= core.leases_per_session_max;
        ensure(bounded, 7, || format!("{id} has too many leases"))?;
    }
    Ok(())
}

/// What a lease on a damaged copy keeps is there, and the damage is part of it.
fn i7_quarantine_is_of_leases(core: &Core) -> Result<(), Violation> {
    for ((session, lease), kept) in core.quarantine.all() {
        let there = core.leases.of(session).any(|(id, _)| id == lease);
        ensure(there, 7, || format!("{lease} is kept, but not there"))?;
        let mut damaged = false;
        for segment in kept {
            let segment = core.residency.get(*segment)?;
            damaged |= matches!(segment.state, State::Damaged);
            let kept = matches!(segment.state, State::Damaged | State::Resident(_));
            ensure(kept, 7, || {
                format!("what {lease} keeps is {:?}", segment.state)
            })?;
        }
        ensure(damaged, 7, || format!("{lease} is on nothing damaged"))?;
    }
    Ok(())
}

fn i8_waiters_are_bounded_and_have_a_target(core: &Core) -> Result<(), Violation> {
    let len = core.admission.len();
    let Waiting { all, for_copies } = core.admission.waiting();
    let mut counted = BTreeMap::new();
    for (_, waiter) in core.admission.all() {
        let of: &mut (usize, usize) = counted.entry(waiter.tenant).or_default();
        of.0 += 1;
        of.1 += usize::from(matches!(waiter.target, Target::Copy(_)));
    }
    let noted = core.admission.tenants();
    let noted: BTreeMap<_, _> = noted.map(|(t, w)| (t, (w.all, w.for_copies))).collect();
    let sum = counted
        .values()
        .fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    ensure(counted == noted && sum == (all, for_copies), 8, || {
        format!("the counts of waiting are {noted:?}, not {counted:?}")
    })?;
    ensure(for_copies <= core.waiting_max, 8, || {
        format!("{for_copies} opens wait")
    })?;
    ensure(core.admission.index_lens() == (len, len), 8, || {
        "indexes of waiting".to_owned()
    })?;
    ensure(len == 0 || !core.draining, 8, || {
        format!("{len} opens wait while draining")
    })?;
    let mut of_session = BTreeMap::new();
    for ((session, request), waiter) in core.admission.all() {
        *of_session.entry(session).or_insert(0) += 1;
        let there = match waiter.target {
            Target::Model(model) => core
                .catalogue
                .models
                .get(&model)
                .is_some_and(|model| model.resolving.is_some()),
            Target::Copy(copy) => core.admission.stage(copy).is_some(),
        };
        ensure(there, 8, || {
            format!("{request} of {session} waits for nothing")
        })?;
    }
    for (id, session) in core.leases.sessions() {
        let waiting = of_session.remove(&id).unwrap_or_default();
        ensure(waiting == session.waiting, 8, || {
            format!("{id} has {waiting} opens waiting")
        })?;
    }
    ensure(of_session.is_empty(), 8, || {
        format!("waiting without session: {of_session:?}")
    })
}

fn i8_wants_are_waited_for(core: &Core) -> Result<(), Violation> {
    let mut queued = 0;
    for (id, stage) in core.admission.wants() {
        let waited_for = core.admission.first_waiting_for(Target::Copy(id)).is_some();
        let ahead = core.ahead.loads(id);
        ensure(waited_for || ahead, 8, || format!("nobody wants {id}"))?;
        let admitted = core.catalogue.copy(id)?.admitted;
        ensure(admitted == (stage == Stage::Loading), 8, || {
            format!("{id} is at {stage:?}")
        })?;
        if stage == Stage::Room {
            queued += 1;
            continue;
        }
        ensure(core.catalogue.lacks_nothing(id)?, 8, || {
            format!("{id} is admitted, but not all of it is charged")
        })?;
        let whole = is_whole(core, id)?;
        ensure(!whole, 8, || format!("{id} is resident and waited for"))?;
    }
    ensure(queued == core.admission.queue_len(), 8, || {
        format!("{queued} wants are queued")
    })?;
    let admitted = copies(core).filter(|(_, copy)| copy.admitted);
    let wants = core
        .admission
        .wants()
        .filter(|(_, stage)| *stage == Stage::Loading)
        .count();
    ensure(admitted.count() == wants, 8, || {
        format!("{wants} wants are admitted")
    })
}

fn i9_sources_and_contents_agree(core: &Core) -> Result<(), Violation> {
    for (id, source) in &core.catalogue.sources {
        for (tier, segment) in source.segments.iter() {
            let there = core.residency.get(*segment)?;
            let right = there.sources.contains(id) && there.tier == *tier;
            ensure(right, 9, || format!("{segment} does not stand for {id}"))?;
            let on_device = matches!(tier, Tier::Device(_));
            ensure(on_device == (source.part == Part::Image), 9, || {
                format!("{id} is on {tier}")
            })?;
        }
        for version in source.versions.iter() {
            let slots = &core.catalogue.version(*version)?.slots;
            let same = |slot: &SegmentFact| slot.source == *id && slot.part == source.part;
            let there = slots.iter().any(same);
            ensure(there, 9, || format!("{version} does not name {id}"))?;
        }
    }
    let (mut resident, mut twins) = (0, 0);
    for (id, segment) in core.residency.all() {
        for source in &segment.sources {
            let there = core.catalogue.segment(*source, segment.tier) == Some(id);
            ensure(there, 9, || format!("{source} is not in {id}"))?;
        }
        let State::Resident(content) = segment.state else {
            continue;
        };
        if core.residency.twin(id).is_some() {
            twins += 1;
            let lent = core.is_lent(id)?;
            ensure(lent, 9, || format!("{id} is a twin, and not lent"))?;
        } else {
            resident += 1;
            let there = core.residency.holding(segment.tier, content) == Some(id);
            ensure(there, 9, || format!("{content} is resident twice"))?;
        }
    }
    let contents = core.residency.contents_len();
    ensure(contents == resident, 9, || {
        format!("{contents} contents, {resident} resident")
    })?;
    let known = core.residency.twins_len();
    ensure(twins == known, 9, || {
        format!("{known} twins, {twins} resident")
    })
}

fn i10_models_and_versions_agree(core: &Core) -> Result<(), Violation> {
    for (id, model) in &core.catalogue.models {
        if let Some(current) = model.current {
            let there = core.catalogue.version(current.version)?.models.contains(id);
            ensure(there, 10, || {
                format!("{} does not know {id}", current.version)
            })?;
        }
    }
    for (id, version) in &core.catalogue.versions {
        let mut pins = 0;
        for model in version.models.iter() {
            let known = core.catalogue.models.get(model);
            let current = known
                .and_then(|model| model.current)
                .map(|current| current.version);
            ensure(current == Some(*id), 10, || {
                format!("{model} does not stand for {id}")
            })?;
            pins += usize::from(known.is_some_and(|model| model.wishes.pinned));
        }
        ensure(pins == version.pins, 10, || format!("{id} has {pins} pins"))?;
    }
    Ok(())
}

fn i11_nothing_is_kept_for_nothing(core: &Core) -> Result<(), Violation> {
    for id in core.catalogue.versions.keys() {
        ensure(!core.forgettable(*id)?, 11, || {
            format!("{id} is not forgotten")
        })?;
    }
    for (id, source) in &core.catalogue.sources {
        ensure(!source.versions.is_empty(), 11, || {
            format!("nothing names {id}")
        })?;
    }
    for (id, model) in &core.catalogue.models {
        let known = model.current.is_some() || model.resolving.is_some();
        let wished = model.wishes != crate::event::Wishes::default();
        ensure(known || wished, 11, || format!("nothing is known of {id}"))?;
    }
    for (id, version) in &core.catalogue.versions {
        for segment in &version.evicting {
            let left = core.residency.get(*segment)?.left_by.contains(id);
            ensure(left, 11, || format!("{segment} was not of {id}"))?;
        }
    }
    ensure(core.touched.is_empty() && !core.room_changed, 11, || {
        "left unsettled".to_owned()
    })
}

fn i12_whole_is_true(core: &Core) -> Result<(), Violation> {
    for (id, copy) in copies(core) {
        let Some(whole) = &copy.whole else {
            continue;
        };
        let places = core.catalogue.places(id)?;
        let segments: Option<Vec<_>> = places.map(|(_, _, segment)| segment).collect();
        let same = segments.as_deref() == Some(&**whole);
        ensure(same && is_whole(core, id)?, 12, || {
            format!("{id} is not whole")
        })?;
    }
    Ok(())
}

fn i13_evictions_await_frees(core: &Core) -> Result<(), Violation> {
    let mut left = BTreeMap::new();
    for (op, keys) in core.evictions.awaited() {
        let found = core.ops.get(op);
        ensure(matches!(found, Some(Op::Free { .. })), 13, || {
            format!("{op} is {found:?}")
        })?;
        for key in keys {
            *left.entry(*key).or_insert(0) += 1;
        }
    }
    for (session, request, expected) in core.evictions.all() {
        ensure(core.leases.session(session).is_ok(), 13, || {
            format!("{session} is gone")
        })?;
        let found = left.get(&(session, request)).copied().unwrap_or_default();
        ensure(found == expected && found > 0, 13, || {
            format!("{request} awaits {found}")
        })?;
    }
    Ok(())
}

fn i14_the_first_want_has_its_room_made(core: &Core) -> Result<(), Violation> {
    let Some(first) = core.admission.queue().first().copied() else {
        return Ok(());
    };
    let nothing = Claims::default();
    // Its users' shares are used up: nothing but the end of a lease of theirs helps.
    let Some(reserve) = core.next_reserve(first)? else {
        return Ok(());
    };
    for plan in core.plans(first, reserve)? {
        if core.exceeds(&plan).is_some() {
            continue;
        }
        ensure(!core.fits_now(&plan, &nothing), 14, || {
            format!("{first} waits, but fits")
        })?;
        if core.blocked_on(&plan, &nothing)?.is_some() {
            continue;
        }
        let coming = plan.missing.iter().all(|(tier, missing)| {
            let account = core.ledger.account(tier);
            missing.fits(account.coming())
        });
        return ensure(coming, 14, || format!("{first} is forgotten"));
    }
    Ok(())
}

fn i19_policies_remember_what_is_there(core: &Core) -> Result<(), Violation> {
    for tier in core.ledger.tiers() {
        let mut there: BTreeSet<VersionId> = BTreeSet::new();
        for source in core.catalogue.sources.values() {
            if source.segments.contains_key(&tier) {
                there.extend(source.versions.iter());
            }
        }
        let tracked = core.policies.policy(tier)?.tracked();
        ensure(tracked <= there.len(), 19, || {
            let there = there.len();
            format!("the policy of {tier} remembers {tracked} versions, there are {there}")
        })?;
    }
    for id in core.ahead.unused.keys() {
        let known = core.catalogue.versions.contains_key(id);
        let there = known && !core.catalogue.all_segments(*id)?.is_empty();
        ensure(there, 19, || {
            format!("{id} was loaded ahead, but is not there")
        })?;
    }
    let loading = core.residency.all();
    let loading = loading.filter(|(_, segment)| matches!(segment.state, State::Loading(_)));
    let (loading, (timed, batches)) = (loading.count(), core.policies.reloads.in_flight());
    ensure(timed <= loading && batches <= timed, 19, || {
        format!("{timed} loads are timed in {batches} batches, {loading} are under way")
    })
}
